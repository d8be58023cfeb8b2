"""Headers to plain C text: the macros expanded, the comments located.

The C preprocessor does the work.  Its output loses two things that the generator needs: the macros
that are constants, which it is told to print too, and the comments, which are found again in the
headers by line number.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

from .api import OWN

# Where the public headers lie in a llama.cpp tree, and the one that shows that it is such a tree.
INCLUDE_DIRS = ("include", "ggml/include", "tools/mtmd")
LANDMARK = "include/llama.h"

# What headers/libc/attributes.h makes of a deprecation, with the hint in parentheses.
DEPRECATED = "LLAMACFFI_DEPRECATED("

# In front of an attribute that headers/libc/attributes.h has no rule for.
ATTRIBUTE_MARK = "llamacffi_attribute_"


class GeneratorError(Exception):
    """The binding cannot be generated; the text is for the user."""


class PreprocessError(GeneratorError):
    """The headers cannot be read, or the C compiler rejects them."""


@dataclass(frozen=True, slots=True)
class Macro:
    """One ``#define`` of a public header."""

    name: str
    path: Path
    line: int
    has_parameters: bool
    body: str


@dataclass(frozen=True, slots=True)
class Source:
    """What the preprocessor made of the headers."""

    text: str
    """C with line markers, nothing left of macros."""
    macros: tuple[Macro, ...]
    headers: tuple[Path, ...]
    """The public headers that were read, in order; the stand-ins for libc are not among them."""
    flags: tuple[str, ...] = ()
    """What else the preprocessor was told."""


def own_headers(headers: Path) -> list[str]:
    """Return the headers of our own C API, one for each part of native/, as C includes them."""
    return [f"{OWN}/{path.name}" for path in sorted((headers / OWN).glob("*.h"))]


def includes(names: Sequence[str]) -> str:
    """Write the C that includes headers."""
    return "".join(f'#include "{name}"\n' for name in names)


def bound_headers(headers: Path) -> str:
    """Write the C that includes every header that is bound: llama.cpp's, and our own."""
    return includes(["upstream.h", *own_headers(headers)])


def include_paths(llama_cpp: Path) -> tuple[Path, ...]:
    """Return the directories of a llama.cpp tree that hold public headers."""
    return tuple(llama_cpp / directory for directory in INCLUDE_DIRS)


def preprocess(headers: Path, llama_cpp: Path, defined: Sequence[str] = ()) -> Source:
    """Run the C preprocessor over llama.cpp's public headers and our own.

    Args:
        headers: The project's ``headers/`` directory.
        llama_cpp: A llama.cpp source tree.
        defined: Macros that are defined.

    Raises:
        PreprocessError: There is no C compiler, it rejects the headers, or they have an attribute
            that is not known.
    """
    if not (llama_cpp / LANDMARK).is_file():
        raise PreprocessError(f"{llama_cpp} is not a llama.cpp tree: it has no {LANDMARK}")
    libc = headers / "libc"
    flags = [f"-D{name}" for name in defined]
    text = run_preprocessor(
        bound_headers(headers),
        ["-dD", "-nostdinc", *flags, "-include", str(libc / "attributes.h")],
        [libc, headers, *include_paths(llama_cpp)],
    )
    code: list[str] = []
    macros: dict[str, Macro] = {}
    files: dict[Path, None] = {}
    for line, where, number in located_lines(text):
        public = where.suffix == ".h" and libc not in where.parents and where.is_absolute()
        if public:
            files[where] = None
        if line.startswith("#define ") and public:
            macro = read_define(line, where, number)
            macros[macro.name] = macro
        if line.startswith("#undef "):
            macros.pop(line.removeprefix("#undef ").strip(), None)
        if line.startswith(("#define ", "#undef ")):
            line = ""
        elif line.startswith("# "):
            line = f'# {number + 1} "{where}"'
        elif ATTRIBUTE_MARK in line:
            raise unknown_attribute(line, where, number)
        code.append(line)
    return Source(
        place_deprecations("\n".join(code)), tuple(macros.values()), tuple(files), tuple(flags)
    )


def place_deprecations(text: str) -> str:
    """Write deprecations so that C can be parsed: at the top level as an initializer.

    Within braces, where a field or an enumerator is deprecated, they are dropped.
    """
    parts: list[str] = []
    depth, start = 0, 0
    for mark in re.finditer(r"[{}\"']|LLAMACFFI_DEPRECATED\(", text):
        if mark.start() < start:
            continue  # inside of what was passed already
        position = mark.start()
        parts.append(text[start:position])
        start = position
        if mark[0] == DEPRECATED:
            start = closing(text, mark.end()) + 1
            hint = text[mark.end() : start - 1]
            parts.append("" if depth else f"= {hint}")
        elif mark[0] in "\"'":
            start = literal_end(text, position)
            parts.append(text[position:start])
        else:
            depth += 1 if mark[0] == "{" else -1
    return "".join([*parts, text[start:]])


def closing(text: str, position: int) -> int:
    """Return where the parenthesis closes that was opened before ``position``."""
    depth = 1
    while depth and position < len(text):
        if text[position] in "\"'":
            position = literal_end(text, position)
            continue
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        position += 1
    return position - 1


def compiler_command() -> list[str]:
    """Return the C compiler to run: ``$CC``, which may have arguments, or ``cc``."""
    compiler = os.environ.get("CC", "cc")
    return [compiler] if shutil.which(compiler) else shlex.split(compiler)


def unknown_attribute(line: str, where: Path, number: int) -> PreprocessError:
    """Make the error that names an attribute."""
    _, _, rest = line.partition(ATTRIBUTE_MARK)
    name = "".join(takewhile(lambda char: char.isalnum() or char == "_", rest))
    return PreprocessError(
        f"{where}:{number}: the generator does not know __attribute__(({name})) as it stands here; "
        "give it a rule in headers/libc/attributes.h"
    )


def run_preprocessor(source: str, flags: list[str], include: list[Path]) -> str:
    """Return what ``cc -E`` prints for ``source``, which is C."""
    compiler = compiler_command()
    command = [*compiler, "-E", *flags, *(f"-I{path}" for path in include), "-xc", "-"]
    try:
        result = subprocess.run(
            command,
            input=source,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        raise PreprocessError(
            f"no C compiler: {compiler[0]!r} not found; install gcc or clang, or set CC"
        ) from error
    if result.returncode:
        raise PreprocessError(f"the C preprocessor failed:\n{result.stderr.strip()}")
    return result.stdout


def located_lines(text: str) -> Iterator[tuple[str, Path, int]]:
    """Yield each line of preprocessor output with the file and line that it comes from."""
    where, number = Path(), 0
    for line in text.split("\n"):  # and not at a form feed, as splitlines does
        if line.startswith("# "):
            _, marker, name = line.split(" ", 2)
            where, number = marker_path(name[1 : name.rindex('"')]), int(marker) - 1
        else:
            number += 1
        yield line, where, number


def header_name(path: Path) -> str:
    """Return what a header is called: one of our own as C includes it, and else its file name."""
    return f"{OWN}/{path.name}" if path.parent.name == OWN else path.name


def marker_path(name: str) -> Path:
    """Read the file name of a line marker, where other bytes than ASCII are octal escapes."""
    if "\\" in name:
        octets = name.encode().decode("unicode_escape").encode("latin-1")
        name = octets.decode(errors="surrogateescape")
    return Path(name)


def read_define(line: str, path: Path, number: int) -> Macro:
    """Read a ``#define`` as the preprocessor prints it: a space after name and parameters."""
    name, _, body = line.removeprefix("#define ").partition(" ")
    bare, parenthesis, _ = name.partition("(")
    return Macro(bare, path, number, bool(parenthesis), body.strip())


def expand(
    headers: Path, llama_cpp: Path, names: list[str], flags: Sequence[str] = ()
) -> list[str]:
    """Return what each of the macros ``names`` expands to in the end."""
    marker = "llamacffi_expanded"
    probe = "".join(f"{marker} {name}\n" for name in names)
    result = subprocess.run(
        [
            *compiler_command(),
            *("-E", "-P", "-nostdinc", "-include", str(headers / "libc" / "attributes.h")),
            *(f"-I{path}" for path in (headers / "libc", headers, *include_paths(llama_cpp))),
            *flags,
            *("-xc", "-"),
        ],
        input=bound_headers(headers) + probe,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=True,
    )
    lines = [line for line in result.stdout.split("\n") if line.startswith(marker)]
    return [line.removeprefix(marker).strip() for line in lines]


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment, or several ``//`` lines that belong together."""

    first: int
    last: int
    text: str
    alone: bool
    """Nothing but the comment stands before it on its first line."""
    column: int = field(default=0, compare=False)


def find_comments(text: str) -> list[Comment]:
    """Locate the comments of a C file; adjoining ``//`` lines are one comment.

    So are those right under a comment beside code, if they begin in its column.
    """
    merged: list[Comment] = []
    for comment in scan_comments(text):
        before = merged[-1] if merged else None
        if before and goes_on(before, comment):
            joined = f"{before.text}\n{comment.text}"
            merged[-1] = replace(before, last=comment.last, text=joined)
        else:
            merged.append(comment)
    return [replace(one, text=textwrap.dedent(one.text).strip()) for one in merged]


def goes_on(before: Comment, comment: Comment) -> bool:
    """Tell whether a comment belongs to the one before it."""
    adjoins = comment.alone and before.last + 1 == comment.first
    return adjoins and (before.alone or before.column == comment.column)


def scan_comments(text: str) -> Iterator[Comment]:
    """Yield the comments of a C file one by one, skipping string and character literals."""
    position, line, line_start = 0, 1, 0
    while position < len(text):
        char = text[position]
        if char == "\n":
            position, line, line_start = position + 1, line + 1, position + 1
        elif char in "\"'":
            position = literal_end(text, position)
        elif text.startswith(("//", "/*"), position):
            is_line = text[position + 1] == "/"
            stop = line_end(text, position) if is_line else block_end(text, position)
            body = text[position:stop]
            alone = not text[line_start:position].strip()
            last, column = line + body.count("\n"), position - line_start
            yield Comment(line, last, strip_marks(body), alone, column)
            line += body.count("\n")
            position = stop
        else:
            position += 1


def line_end(text: str, start: int) -> int:
    """Return where the ``//`` comment at ``start`` ends; a backslash continues it."""
    end = text.find("\n", start)
    while end > 0 and text[end - 1] == "\\":
        end = text.find("\n", end + 1)
    return end if end >= 0 else len(text)


def block_end(text: str, start: int) -> int:
    """Return where the ``/*`` comment at ``start`` ends."""
    end = text.find("*/", start + 2)
    return end + 2 if end >= 0 else len(text)


def literal_end(text: str, start: int) -> int:
    """Return the position after the literal that opens at ``start``, or after a lone quote."""
    quote, position = text[start], start + 1
    while position < len(text) and text[position] not in (quote, "\n"):
        position += 2 if text[position] == "\\" else 1
    return position + 1 if position < len(text) and text[position] == quote else position


def strip_marks(comment: str) -> str:
    """Return the words of a comment without its slashes and stars; lines stay indented."""
    if comment.startswith("//"):
        return comment.lstrip("/").removeprefix("<").removeprefix(" ").rstrip()
    first, *rest = comment.removeprefix("/*").removesuffix("*/").split("\n")
    words = [line.strip() for line in rest]
    if all(line.startswith("*") for line in words if line):
        rest = [line.lstrip("*") for line in words]
    below = textwrap.dedent("\n".join(rest))
    return f"{first.lstrip('*').strip()}\n{below}".strip()
