"""Macros to constants: which of them have a value, and of what type.

The preprocessor expands a macro, pycparser reads what comes out, and the names in it are looked up
among the declarations.  The value itself is left to the C compiler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pycparser import c_ast, c_parser

from .api import Constant, Declaration, Enum, Function
from .preprocess import Macro, Source, expand

Kind = Literal["int", "float", "str"]

FLOATING = frozenset({"float", "double", "long double"})
TRUTH = frozenset({"==", "!=", "<", ">", "<=", ">=", "&&", "||"})


class NotConstantError(Exception):
    """A macro has no value; the text says what it is instead."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What the names in a macro may stand for."""

    kinds: Mapping[str, Kind]
    """Enumerators and constants."""
    functions: frozenset[str]
    typedefs: Mapping[str, c_ast.Node]


def scope_of(declarations: list[Declaration], typedefs: Mapping[str, c_ast.Node]) -> Scope:
    """Return the names that the headers declare."""
    kinds: dict[str, Kind] = {}
    for one in declarations:
        if isinstance(one, Enum):
            kinds |= {member.name: "int" for member in one.members}
        elif isinstance(one, Constant):
            kinds[one.name] = one.kind
    functions = frozenset(one.name for one in declarations if isinstance(one, Function))
    return Scope(kinds, functions, typedefs)


def read_macros(
    source: Source, headers: Path, llama_cpp: Path, scope: Scope
) -> tuple[list[tuple[Macro, Kind]], dict[str, str]]:
    """Sort the macros into constants and those that are none, with the reason."""
    constants: list[tuple[Macro, Kind]] = []
    omitted = {one.name: "function-like macro" for one in source.macros if one.has_parameters}
    plain = [one for one in source.macros if not one.has_parameters]
    values = expand(headers, llama_cpp, [one.name for one in plain], source.flags)
    for macro, value in zip(plain, values, strict=True):
        if value == macro.name and (value in scope.kinds or value in scope.functions):
            continue  # `#define X X` lets others ask `#ifdef X`; the declaration is bound
        try:
            constants.append((macro, value_kind(value, scope)))
        except NotConstantError as reason:
            omitted[macro.name] = str(reason)
    return constants, omitted


def value_kind(text: str, scope: Scope) -> Kind:
    """Tell the type of what a macro expands to.

    Raises:
        NotConstantError: It is not an expression, or not one with a value.
    """
    if not text:
        raise NotConstantError("macro without a value")
    known = "".join(f"typedef int {name};\n" for name in scope.typedefs if name in text)
    try:
        tree = c_parser.CParser().parse(f"{known}int x = ({text});")
    except c_parser.ParseError:
        raise NotConstantError("macro that is not an expression") from None
    return node_kind(tree.ext[-1].init, scope)


def node_kind(node: c_ast.Node, scope: Scope) -> Kind:
    """Tell the type of an expression."""
    match node:
        case c_ast.Constant(type="string", value=value):
            if not value.startswith('"'):
                raise NotConstantError("macro for a string that is not of char")
            return "str"
        case c_ast.Constant(type=type_):
            return "float" if type_ in FLOATING else "int"
        case c_ast.ID(name=name):
            return name_kind(name, scope)
        case c_ast.UnaryOp(op="sizeof"):
            return "int"
        case c_ast.UnaryOp(op="+" | "-" | "~" | "!" as op, expr=operand):
            kind = number_kind(operand, scope)
            return "int" if op == "!" else kind
        case c_ast.BinaryOp(op=op, left=left, right=right):
            kinds = {number_kind(left, scope), number_kind(right, scope)}
            return "float" if "float" in kinds and op not in TRUTH else "int"
        case c_ast.TernaryOp(iftrue=left, iffalse=right):
            kinds = {node_kind(left, scope), node_kind(right, scope)}
            return "str" if kinds == {"str"} else "float" if "float" in kinds else "int"
        case c_ast.Cast(to_type=c_ast.Typename(type=type_), expr=operand):
            return cast_kind(type_, node_kind(operand, scope), scope)
        case _:
            raise NotConstantError("macro that is not a constant")


def number_kind(node: c_ast.Node, scope: Scope) -> Kind:
    """Tell the type of an operand, which must be a number."""
    kind = node_kind(node, scope)
    if kind == "str":
        raise NotConstantError("macro that computes with a string")
    return kind


def name_kind(name: str, scope: Scope) -> Kind:
    """Tell the type of what a name stands for."""
    if name in scope.functions:
        raise NotConstantError(f"another name of {name}")
    if name not in scope.kinds:
        raise NotConstantError(f"macro for {name}, which is not a constant")
    return scope.kinds[name]


def cast_kind(type_: c_ast.Node, operand: Kind, scope: Scope) -> Kind:
    """Tell the type of a cast."""
    kind = scalar_kind(type_, scope.typedefs)
    if kind is not None:
        return kind
    match type_:
        case c_ast.PtrDecl(type=c_ast.TypeDecl(type=c_ast.IdentifierType(names=["char"]))) if (
            operand == "str"
        ):
            return "str"
        case _:
            raise NotConstantError("macro for a pointer")


def scalar_kind(type_: c_ast.Node, typedefs: Mapping[str, c_ast.Node]) -> Kind | None:
    """Tell the kind of number that a type is; None if it is something else."""
    match type_:
        case c_ast.TypeDecl(type=c_ast.IdentifierType(names=[name])) if name in typedefs:
            return scalar_kind(typedefs[name], typedefs)
        case c_ast.TypeDecl(type=c_ast.IdentifierType(names=names)):
            return "float" if FLOATING & set(names) else "int"
        case c_ast.TypeDecl(type=c_ast.Enum()):
            return "int"
        case _:
            return None
