"""The API as pages of Markdown, by jinja2 templates.

What comes from a header is HTML in them, escaped by jinja2, so that nothing in a comment is taken
for Markdown.  Headings and links to the facade are Markdown, which mkdocs checks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ffigen.api import (
    Api,
    Constant,
    Declaration,
    Enum,
    Field,
    Function,
    FunctionType,
    Inline,
    Pointer,
    Struct,
    Type,
    Typedef,
    declare,
)
from ffigen.names import py_class, py_member
from ffigen.typing import Annotations, parameter_name

from .params import Params
from .places import CALLBACKS, Places, Writer

TEMPLATES = Path(__file__).parent / "templates"
# Longer declarations have one parameter per line.
WIDTH = 80


@dataclass(frozen=True)
class Facts:
    """The facts that the pages show."""

    api: Api
    upstream: str
    """The text of headers/upstream.h."""
    values: Mapping[str, str] = field(default_factory=dict)
    """What `ffigen.layout.measure` found."""
    names: Mapping[str, str] = field(default_factory=dict)
    """The Python names of headers/surface.toml."""
    uses: Mapping[str, Collection[str]] = field(default_factory=dict)
    """The names of the facade that call a function."""
    late: Mapping[str, str] = field(default_factory=dict)
    """Functions that exist only in a library loaded at run time."""
    unexported: Collection[str] = ()
    """Functions that are declared, but in no library."""


@dataclass(frozen=True, slots=True)
class Row:
    """A field in the table of a struct."""

    name: str
    """With the names of the fields around it."""
    type: str
    doc: str


class Reference:
    """Renders the pages."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.places = Places(facts.api, facts.upstream)
        self.annotations = Annotations(facts.api)
        self.environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            undefined=StrictUndefined,
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.environment.globals.update(
            c_declaration=c_declaration,
            facts=facts,
            places=self.places,
            py_signature=self.py_signature,
            rows=rows,
        )
        self.environment.filters.update(
            py_class=lambda name: py_class(name, facts.names),
            py_member=py_member,
        )

    def page(self, header: str) -> str:
        """Return the page of a header."""
        kinds = (Constant, Enum, Struct, Typedef, Function)
        entries = {kind.__name__: self.places.entries(header, kind) for kind in kinds}
        if header == CALLBACKS:
            entries["Function"] = list(self.facts.api.callbacks)
        return self.render("header.md.j2", header, header=header, **entries)

    def index(self) -> str:
        """Return the index page, which also lists what is left out."""
        counts = {page: self.counts(page) for page in self.places.pages}
        totals = [sum(column) for column in zip(*counts.values(), strict=True)]
        return self.render("index.md.j2", "", counts=counts, totals=totals)

    def params(self, tables: Iterable[Params]) -> str:
        """Return the page of the parameter structs."""
        return self.render("params.md.j2", "params", tables=tables)

    def render(self, template: str, page: str, **more: object) -> str:
        """Render a template as a page."""
        writer = Writer(self.places, page)
        return self.environment.get_template(template).render(writer=writer, **more)

    def counts(self, page: str) -> list[int]:
        """Count the functions, structs, enums, other types and constants of a page."""
        kinds = (Function, Struct, Enum, Typedef, Constant)
        counts = [len(self.places.entries(page, kind)) for kind in kinds]
        if page == CALLBACKS:
            counts[0] = len(list(self.facts.api.callbacks))
        return counts

    def py_signature(self, one: Function) -> str:
        """Return a function as the stub of the compiled module has it."""
        given = [
            f"{parameter_name(each.name, i)}: {self.annotations.argument(each.type)}"
            for i, each in enumerate(one.type.parameters)
        ]
        if given:
            given[-1] += ", /"
        given += ["*args: CData"] * one.type.variadic
        start, end = f"lib.{one.name}(", f" -> {self.annotations.value(one.type.result)}"
        line = f"{start}{', '.join(given)}){end}"
        return line if len(line) <= WIDTH else listed(start, given) + end


def c_declaration(one: Declaration) -> str:
    """Return a function or typedef in C."""
    assert not isinstance(one, Struct | Enum | Constant), "they have tables"
    if isinstance(one, Typedef):
        return f"typedef {split(one.type, one.name)};"
    return f"{split(one.type, one.name)};"


def split(type_: Type, name: str) -> str:
    """Write a declaration; that of a function, or of a pointer to one, on several lines if long."""
    line = declare(type_, name)
    match type_:
        case Pointer(to=FunctionType() as function):
            name = f"(*{name})"
        case FunctionType() as function:
            pass
        case _:
            return line
    if len(line) <= WIDTH or not function.parameters:
        return line
    parameters = [declare(one.type, one.name) for one in function.parameters]
    return declare(function.result, listed(f"{name}(", parameters + ["..."] * function.variadic))


def listed(start: str, items: list[str]) -> str:
    """Put items between parentheses, each on a line of its own."""
    return f"{start}\n    " + ",\n    ".join(items) + "\n)"


def rows(fields: tuple[Field, ...], prefix: str = "") -> Iterator[Row]:
    """Yield the rows of a table of fields, including those of nested anonymous structs."""
    for one in fields:
        inner = one.type.record if isinstance(one.type, Inline) else None
        if one.name:
            type_ = inner.kind if inner else declare(one.type)
            yield Row(f"{prefix}{one.name}", type_, one.doc)
        if inner:
            yield from rows(inner.fields or (), f"{prefix}{one.name}." if one.name else prefix)
