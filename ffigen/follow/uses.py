"""Where our own code uses the names of llama.cpp, found in its syntax trees.

Python is read with `ast`, C and C++ with tree-sitter, and pages with markdown-it: their code is
Python, and what they set in backticks are names.  A field has a short name that may mean anything,
so it counts only in a file that has to do with its struct.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..api import Enum, Enumerator, Origin
from ..lock import Facts
from ..names import py_class, py_member
from ..preprocess import GeneratorError
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
WORD = re.compile(r"\w+")
C_SUFFIXES = frozenset({".c", ".h", ".hpp", ".cpp"})
C_NAMES = frozenset({"identifier", "type_identifier", "field_identifier"})


@dataclass(slots=True)
class File:
    """The names that one file has, each with the lines where."""

    kind: str
    path: str
    names: dict[str, list[int]] = field(default_factory=dict)

    def add(self, name: str, line: int) -> None:
        """Note a name."""
        lines = self.names.setdefault(name, [])
        if line not in lines:
            lines.append(line)


def mark_uses(
    changes: Iterable[Change], root: Path, sides: tuple[Facts, Facts], names: Mapping[str, str]
) -> list[Change]:
    """Return ``changes`` with the places of our own code that use what changed.

    Args:
        changes: The changes.
        root: The top directory of our sources.
        sides: The facts before and after, which tell what belongs to what.
        names: The Python names of structs and enums that headers/surface.toml gives.

    Raises:
        GeneratorError: The packages that read C++ and Markdown are not installed.
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
            if relatives is not None and relatives.isdisjoint(file.names):
                continue
            for spelling in (member, *spelled.in_python(name)):
                for line in file.names.get(spelling, ()):
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
        taker = python.removesuffix(
            "Params"
        )  # Context takes ContextParams, quantize QuantizeParams
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


# --- Reading --------------------------------------------------------------------------------------


def read_files(root: Path) -> list[File]:
    """Read all of our code that may use llama.cpp's names."""
    files: list[File] = []
    for place, kind in PLACES.items():
        for path in sorted(
            (root / place).rglob("*") if (root / place).is_dir() else [root / place]
        ):
            inside = path.relative_to(root)
            if path.is_file() and SKIPPED.isdisjoint(inside.parts):
                one = File(kind, inside.as_posix())
                read_file(path, one)
                files.append(one)
    return [one for one in files if one.names]


def read_file(path: Path, file: File) -> None:
    """Note the names in a file of a kind that is known."""
    if path.suffix == ".py":
        read_python(path.read_text(encoding="utf-8"), file)
    elif path.suffix in C_SUFFIXES:
        read_c(path.read_bytes(), file)
    elif path.suffix == ".md":
        read_markdown(path.read_text(encoding="utf-8"), file)
    elif path.suffix == ".toml":
        read_lines(path.read_text(encoding="utf-8"), file)


def read_python(text: str, file: File, offset: int = 0) -> None:
    """Note the names in Python, and the words in its strings, docstrings among them."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Attribute(value=value, attr=name, end_lineno=int(line)):
                file.add(name, line + offset)
                owner = getattr(value, "attr", None) or getattr(value, "id", "")
                file.add(f"{owner}.{name}", line + offset)
            case ast.Name(id=name, lineno=line) | ast.alias(name=name, lineno=line):
                file.add(name, line + offset)
            case ast.keyword(arg=str(name), lineno=line):
                file.add(name, line + offset)
            case ast.Constant(value=str(string), lineno=line):
                read_lines(string, file, line - 1 + offset)


def read_lines(text: str, file: File, offset: int = 0) -> None:
    """Note every word of a text."""
    for number, line in enumerate(text.split("\n"), 1):
        for word in WORD.findall(line):
            file.add(word, number + offset)


def read_c(text: bytes, file: File) -> None:
    """Note the names in C or C++, and the words in the bodies of macros, which have no syntax."""
    try:
        import tree_sitter
        import tree_sitter_cpp
    except ImportError as error:
        raise missing_package(error) from error
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_cpp.language()))
    nodes: list[Any] = [parser.parse(text).root_node]
    while nodes:
        node = nodes.pop()
        line = node.start_point[0] + 1
        if node.type in C_NAMES:
            file.add(node.text.decode(), line)
        elif node.type == "preproc_arg":
            read_lines(node.text.decode(errors="replace"), file, line - 1)
        nodes += node.children


def read_markdown(text: str, file: File) -> None:
    """Note the names in the code of a page."""
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise missing_package(error) from error
    for token in MarkdownIt().parse(text):
        first = token.map[0] if token.map else 0
        if token.type == "fence" and token.info.split(" ")[0] == "python":
            read_python(token.content, file, first + 1)
        elif token.type == "inline":
            line = first
            for child in token.children or ():
                if child.type == "code_inline":
                    read_lines(child.content, file, line)
                line += child.type in ("softbreak", "hardbreak")


def missing_package(error: ImportError) -> GeneratorError:
    """Make the error that says what to install."""
    return GeneratorError(
        f"cannot look for uses in our own code: {error}; install the packages of the group "
        "`generator` (pip install --group generator), or leave that out with --no-uses"
    )
