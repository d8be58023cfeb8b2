"""The register of llama.cpp's quirks: the comments that say which of its code we work around.

Such a comment begins with "upstream:", a path in llama.cpp's tree, and one or more names that occur
in that file (identifiers, or literal text in double quotes), separated by commas.  A colon and an
explanation follow.  It may run over several lines; in a docstring it begins a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..preprocess import GeneratorError

PLACES = ("llamacffi", "native", "headers", "ffigen", "cmake")
SUFFIXES = frozenset({".py", ".c", ".h", ".cpp", ".hpp", ".toml", ".cmake"})
SKIPPED = frozenset({"_generated", "__pycache__", "build", "include", "lib"})

# What begins a comment or a line of a docstring, and the mark.
BEGINS = re.compile(r'(?:^|\s)(#|//|/\*+)\s+upstream:|^\s*(\*|"{3})?\s*upstream:')
# A mark where it does not count, or is spelled differently; in front of what looks like a path.
MISPLACED = re.compile(r"\bupstreams?\s?:\s*[\w.-]+/[\w./-]+|(?:#|//|/\*+)\s*upstreams?\s?:", re.I)
NAME = r'[A-Za-z_]\w*|"[^"]+"'
FORM = re.compile(rf"upstream: ([\w./+-]+\.\w+) ((?:{NAME})(?:,\s+(?:{NAME}))*):\s+(\S.*)")


@dataclass(frozen=True, slots=True, order=True)
class Quirk:
    """A comment of the register."""

    file: str
    """Ours."""
    line: int
    path: str
    """Of the file of llama.cpp that it is about."""
    names: tuple[str, ...]
    """What it is about in that file; literal text is in double quotes."""
    text: str
    """The explanation."""


@dataclass(frozen=True, slots=True)
class Review:
    """A workaround to look at again."""

    quirk: Quirk
    reason: str
    """What happened to the code of llama.cpp that it is about."""


def read_quirks(root: Path) -> list[Quirk]:
    """Read the register from the comments of our sources.

    Raises:
        GeneratorError: A comment looks like one of the register, but does not have its form.
    """
    found: list[Quirk] = []
    malformed: list[str] = []
    for path in _files(root):
        file = path.relative_to(root).as_posix()
        for line, comment in comments(path.read_text(encoding="utf-8").splitlines()):
            form = FORM.fullmatch(comment)
            if form:
                names = tuple(re.findall(NAME, form[2]))
                found.append(Quirk(file, line, form[1], names, form[3]))
            else:
                malformed.append(f"{file}:{line}: {comment}")
    if malformed:
        raise GeneratorError(
            'these comments do not have the form "upstream: PATH NAME, NAME: explanation":\n'
            + "\n".join(malformed)
        )
    return found


def _files(root: Path) -> Iterator[Path]:
    for place in PLACES:
        for path in sorted((root / place).rglob("*")):
            inside = path.relative_to(root)
            if path.suffix in SUFFIXES and SKIPPED.isdisjoint(inside.parts[1:2]) and path.is_file():
                yield path


def comments(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield each comment that begins with the mark, or should: its line and its whole text."""
    for number, line in enumerate(lines, 1):
        if begins := BEGINS.search(line):
            leader = begins[1] or begins[2] or ""
            first = line[line.index("upstream:", begins.start()) :]
            yield number, " ".join(_joined(first, lines[number:], leader))
        elif MISPLACED.search(line):
            yield number, line.strip()


def _joined(first: str, following: list[str], leader: str) -> Iterator[str]:
    """Yield the lines of a comment without what marks them as one."""
    closes = "*/" if leader.startswith(("/*", "*")) else '"""'
    marks = leader if leader in ("#", "//") else "*" if closes == "*/" else ""
    for line in (first, *following):
        text = line.strip()
        if line is not first:
            if not text.startswith(marks) or BEGINS.search(line):
                return
            text = text.removeprefix(marks).strip()
        if leader not in ("#", "//") and closes in text:
            yield from filter(None, [text.partition(closes)[0].strip()])
            return
        if not text:
            return
        yield text


# --- Comparing trees ------------------------------------------------------------------------------


def read_upstream(quirks: Iterable[Quirk], tree: Path) -> dict[str, str]:
    """Return the texts of the files that a register is about; those that exist in a tree."""
    paths = sorted({one.path for one in quirks})
    return {
        path: (tree / path).read_text(encoding="utf-8", errors="replace")
        for path in paths
        if (tree / path).is_file()
    }


def missing_names(quirk: Quirk, text: str) -> list[str]:
    """Return the names that do not occur in the text of a file: as words, or literally."""
    return [
        name
        for name in quirk.names
        if (name[1:-1] not in text if name[0] == '"' else not re.search(rf"\b{name}\b", text))
    ]


def to_review(
    quirks: Iterable[Quirk], old: Mapping[str, str], new: Mapping[str, str]
) -> list[Review]:
    """Return the workarounds whose file of llama.cpp changed, the most urgent first.

    Args:
        quirks: The register.
        old: The texts of its files before.
        new: The texts after.
    """
    gone, nameless, changed = [], [], []
    for quirk in quirks:
        before, after = old.get(quirk.path), new.get(quirk.path)
        if before is None or before == after:
            continue
        if after is None:
            gone.append(Review(quirk, "the file is gone"))
        elif lost := set(missing_names(quirk, after)) - set(missing_names(quirk, before)):
            names = ", ".join(name for name in quirk.names if name in lost)
            nameless.append(Review(quirk, f"no longer contains {names}"))
        else:
            changed.append(Review(quirk, "the file changed"))
    return gone + nameless + changed
