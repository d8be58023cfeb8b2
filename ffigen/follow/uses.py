"""Where our own code uses the names of llama.cpp: a search for whole words.

It finds words in comments, too, which should follow a change as well.  A field has a short name
that may mean anything, so it counts only where it is written as a member, a keyword or a string, in
a file that has to do with its struct.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..api import Enum, Enumerator, Origin
from ..lock import Facts
from ..names import py_class, py_member
from .changes import Change, Use

# Where our code is, and what it is called in a report.
PLACES = {
    "llamacffi": "facade",
    "native": "native",
    "headers": "native",
    "tests": "tests",
    "docs": "docs",
    "README.md": "docs",
    "bench": "bench",
    "examples": "examples",
}
# Not read: what is generated, and what names nothing.
SKIPPED = frozenset(
    {"_generated", "__pycache__", "build", "libc", "templates", "raw_unsafe.md", "raw_unsafe.toml"}
)
SUFFIXES = frozenset({".py", ".c", ".h", ".hpp", ".cpp", ".md", ".toml"})
# A word, and the one that follows it after a dot: an enumerator in Python is `Class.MEMBER`.
WORDS = re.compile(r"\b(?=(\w+)(\.\w+)?)\w+(\s*=)?")
BEFORE_MEMBERS = tuple(".>'\"`")


@dataclass(slots=True)
class File:
    """The words that one file has, each with the lines where."""

    kind: str
    path: str
    words: dict[str, list[int]] = field(default_factory=dict)

    def read(self, text: str) -> None:
        """Note every word, every two that a dot joins, and with a dot what may be a member."""
        for number, line in enumerate(text.splitlines(), 1):
            for found in WORDS.finditer(line):
                word, member, assigned = found.groups(default="")
                names = {word, word + member}
                if assigned or line[: found.start()].endswith(BEFORE_MEMBERS):
                    names.add(f".{word}")
                for name in names:
                    lines = self.words.setdefault(name, [])
                    if number not in lines[-1:]:
                        lines.append(number)


def mark_uses(
    changes: Iterable[Change], root: Path, sides: tuple[Facts, Facts], names: Mapping[str, str]
) -> list[Change]:
    """Return ``changes`` with the places of our own code that use what changed.

    Args:
        changes: The changes.
        root: The top directory of our sources.
        sides: The facts before and after, which tell what belongs to what.
        names: The Python names of structs and enums that headers/surface.toml gives.
    """
    files = read_files(root)
    spelled = Spelling(sides, names)
    return [replace(one, uses=tuple(sorted(set(uses_of(one, files, spelled))))) for one in changes]


def uses_of(change: Change, files: list[File], spelled: Spelling) -> Iterator[Use]:
    """Yield the places that use what changed."""
    if change.action == "added":
        return
    for name in change.names:
        struct, _, member = name.rpartition(".")
        relatives = spelled.relatives(struct) if change.what == "field" else None
        for file in files:
            if relatives is not None and relatives.isdisjoint(file.words):
                continue
            word = f".{member}" if change.what == "field" else member
            for spelling in (word, *spelled.in_python(name)):
                for line in file.words.get(spelling, ()):
                    yield Use(file.kind, file.path, line)


class Spelling:
    """How our code spells the names of an API."""

    def __init__(self, sides: tuple[Facts, Facts], names: Mapping[str, str]) -> None:
        self.names = names
        self.sides = sides
        self.members = {
            name: spelling for side in sides for name, spelling in _members(side, names).items()
        }

    def in_python(self, name: str) -> Iterator[str]:
        """Yield what Python calls an enumerator: its class and its name there."""
        if name in self.members:
            yield self.members[name]

    def relatives(self, struct: str) -> set[str]:
        """Return the names of which a file has one if it has to do with a struct."""
        python = py_class(struct, self.names)
        taker = python.removesuffix("Params")  # Context takes ContextParams
        related = {struct, python, taker, taker.lower()}
        word = re.compile(rf"\b{struct}\b")
        for side in self.sides:
            related |= {name for name, one in side.functions.items() if word.search(one.text)}
            related |= {name for name, one in side.typedefs.items() if word.search(one.text)}
        return related


def _members(facts: Facts, names: Mapping[str, str]) -> dict[str, str]:
    """Return ``Class.MEMBER`` for each enumerator of an enum that has a name."""
    enums: dict[str, list[str]] = {}
    for one in facts.enumerators.values():
        enums.setdefault(one.enum, []).append(one.name)
    return {
        member: f"{py_class(name, names)}.{py_member(member, enum)}"
        for name, members in enums.items()
        if name
        for enum in [Enum(name, tuple(map(Enumerator, members)), Origin("", 0))]
        for member in members
    }


def read_files(root: Path) -> list[File]:
    """Read all of our code that may use llama.cpp's names."""
    files: list[File] = []
    for place, kind in PLACES.items():
        paths = sorted((root / place).rglob("*")) if (root / place).is_dir() else [root / place]
        for path in paths:
            inside = path.relative_to(root)
            if path.suffix in SUFFIXES and path.is_file() and SKIPPED.isdisjoint(inside.parts):
                one = File(kind, inside.as_posix())
                one.read(path.read_text(encoding="utf-8"))
                files.append(one)
    return files
