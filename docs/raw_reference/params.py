"""The parameter structs: their fields, what Python takes for them, and llama.cpp's defaults."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ffigen.api import Api, Field, Function, Struct, Tag, flat_fields
from ffigen.names import py_class, py_member
from ffigen.render import PARAMS_SUFFIX, param_kind, param_type
from ffigen.typing import Annotations

ALIAS = re.compile(r"\btypes\.(\w+)")


@dataclass(frozen=True)
class Python:
    """What the package declares about parameters."""

    names: Mapping[str, str] = field(default_factory=dict)
    """The Python names of headers/surface.toml."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """The annotations of headers/surface.toml."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """The types that the aliases in the annotations stand for."""
    instead: Mapping[str, str] = field(default_factory=dict)
    """For fields that cannot be given, what to do instead."""
    public: Callable[[str], bool] = lambda _: False
    """Tells whether a class is in the reference."""


@dataclass(frozen=True, slots=True)
class Param:
    """A row of the table of a struct."""

    name: str
    default: str
    kind: str
    takes: str
    """The annotation."""
    instead: str
    """What to do instead if it cannot be given."""
    doc: str


@dataclass(frozen=True, slots=True)
class Params:
    """The table of a struct."""

    struct: Struct
    function: str
    """The function without arguments that returns the defaults; empty if none exists."""
    public: str
    """Its name in the reference; empty if it is not there."""
    rows: tuple[Param, ...]


def tables(
    api: Api, values: Mapping[str, str], python: Python, default: Callable[[str], Any]
) -> Iterator[Params]:
    """Yield the tables of the parameter structs.

    Args:
        api: The API.
        values: The values of enumerators.
        python: What the package says of parameters.
        default: Calls a function of llama.cpp: the struct that it returns, as cdata.
    """
    annotations = Annotations(api)
    for struct in api.structs:
        if not struct.name.endswith(PARAMS_SUFFIX) or not struct.record.fields:
            continue
        function = defaults_of(api, struct)
        made = default(function.name) if function else None
        rows = tuple(
            Param(
                one.name,
                "" if made is None else written(getattr(made, one.name), one, api, values),
                param_kind(annotations, one.type, python.names),
                takes(f"{struct.name}.{one.name}", one, annotations, python),
                python.instead.get(f"{struct.name}.{one.name}", ""),
                one.doc,
            )
            for one in flat_fields(struct.record.fields)
        )
        name = py_class(struct.name, python.names)
        public = name if python.public(name) else ""
        yield Params(struct, function.name if function else "", public, rows)


def defaults_of(api: Api, struct: Struct) -> Function | None:
    """Return the function without parameters that returns a struct."""
    for one in api.functions:
        result, is_plain = one.type.result, not one.type.parameters
        if is_plain and isinstance(result, Tag) and result.name == struct.name:
            return one
    return None


def written(value: Any, one: Field, api: Api, values: Mapping[str, str]) -> str:
    """Write the default of a field; a member of an enum by its name in Python."""
    kind = Annotations(api).parameter_kind(one.type)
    for enum in api.enums:
        if kind == f"enum:{enum.name}":
            for member in enum.members:
                if values[member.name] == str(value):
                    return py_member(member.name, enum)
    if kind == "float":
        return repr(float(f"{value:.7g}"))  # a C float has no more digits
    if kind == "pointer":
        return "set" if value else "NULL"
    return "{...}" if kind == "struct" else str(value)


def takes(path: str, one: Field, annotations: Annotations, python: Python) -> str:
    """Annotate what Python takes for a field."""
    annotation = python.annotations.get(path)
    if annotation is None:
        return param_type(annotations, one.type, python.names)
    return ALIAS.sub(lambda match: python.aliases.get(match[1], match[1]), annotation)


def type_aliases(text: str) -> dict[str, str]:
    """Return the types that the ``TypeAlias`` of a module stand for."""
    return {
        node.target.id: ast.unparse(node.value)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.AnnAssign) and node.value is not None
        if isinstance(node.target, ast.Name) and ast.unparse(node.annotation) == "TypeAlias"
    }
