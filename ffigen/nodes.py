"""What the parser needs to know of pycparser's nodes, and the error that names one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pycparser import c_ast, c_parser

from .preprocess import GeneratorError

# The words that C builds its numbers of, in any order, and what they may come to.
NUMBER_WORDS = frozenset({"signed", "unsigned", "char", "short", "int", "long", "double"})
BUILT_IN = frozenset(
    {
        *("void", "_Bool", "float", "double", "long double", "char", "signed char"),
        *("short", "int", "long", "long long", "unsigned char"),
        *("unsigned short", "unsigned int", "unsigned long", "unsigned long long"),
    }
)


class UnknownDeclarationError(GeneratorError):
    """The headers have something that the generator does not understand."""


def parse(text: str) -> c_ast.FileAST:
    """Parse C; what pycparser does not understand is shown as the header has it."""
    try:
        return c_parser.CParser().parse(text)
    except c_parser.ParseError as error:
        file, _, line = str(error).partition(": ")[0].rpartition(":")[0].rpartition(":")
        shown = ""
        if line.isdigit() and Path(file).is_file():
            lines = Path(file).read_text(encoding="utf-8", errors="replace").split("\n")
            shown = f": {lines[int(line) - 1].strip()}"
        raise UnknownDeclarationError(f"{error}; pycparser cannot read this line{shown}") from error


def declared_name(node: c_ast.Node) -> str:
    """Return the name of a top-level declaration; empty if it has none."""
    if isinstance(node, c_ast.FuncDef):
        return str(node.decl.name)
    return getattr(node, "name", None) or getattr(getattr(node, "type", None), "name", None) or ""


def innermost(node: Any) -> Any:
    """Return what a type points to or is an array of, in the end."""
    while isinstance(node, c_ast.TypeDecl | c_ast.PtrDecl | c_ast.ArrayDecl):
        node = node.type
    return node


def value_type(node: Any) -> Any:
    """Return what a type is, or is an array of, in the end; pointers are not followed."""
    while isinstance(node, c_ast.TypeDecl | c_ast.ArrayDecl):
        node = node.type
    return node


def has_name(node: c_ast.Node | None) -> bool:
    """Tell whether an expression has an identifier in it."""
    if node is None:
        return False
    return isinstance(node, c_ast.ID) or any(has_name(child) for _, child in node.children())


def is_definition(node: Any) -> bool:
    """Tell whether a node has the braces of a struct, union or enum."""
    if isinstance(node, c_ast.Enum):
        return node.values is not None
    return isinstance(node, c_ast.Struct | c_ast.Union) and node.decls is not None


def tag_kind(node: c_ast.Node) -> Literal["struct", "union", "enum"]:
    """Return the keyword in front of a tag."""
    if isinstance(node, c_ast.Enum):
        return "enum"
    return "struct" if isinstance(node, c_ast.Struct) else "union"


def number_name(names: list[str]) -> str:
    """Return the one spelling of a number type: ``long int unsigned`` is ``unsigned long``."""
    unsigned = "unsigned " if "unsigned" in names else ""
    if "char" in names:
        return f"{unsigned or ('signed ' if 'signed' in names else '')}char"
    longs = ["long"] * names.count("long")
    if "double" in names:
        return " ".join([*longs, "double"])
    return unsigned + ("short" if "short" in names else " ".join(longs) or "int")


def unknown(node: c_ast.Node, what: str) -> UnknownDeclarationError:
    """Make the error that names the place."""
    places = (node.coord, *(child.coord for _, child in node.children()))
    place = next(filter(None, places), "the headers")
    return UnknownDeclarationError(
        f"{place}: the generator does not know {what}; teach ffigen/parse.py, "
        "or list it in headers/surface.toml with the reason"
    )
