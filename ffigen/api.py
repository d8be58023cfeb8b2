"""The model of a C API: all that the templates may know.

Everything is frozen and in the order of the headers, so that the output is stable.  Types are
trees; `declare` writes one as C.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

# The folder of headers/ with our own C API.
OWN = "llamacffi"


@dataclass(frozen=True, slots=True)
class Name:
    """A built-in type or a typedef, such as ``unsigned int`` or ``llama_token``."""

    name: str
    const: bool = False


@dataclass(frozen=True, slots=True)
class Tag:
    """A type named by its tag, such as ``struct llama_model`` or ``enum ggml_type``."""

    kind: Literal["struct", "union", "enum"]
    name: str
    const: bool = False


@dataclass(frozen=True, slots=True)
class Inline:
    """A struct or union written where it is used, without a name."""

    record: Record


@dataclass(frozen=True, slots=True)
class Pointer:
    """A pointer."""

    to: Type
    const: bool = False


@dataclass(frozen=True, slots=True)
class Array:
    """An array; ``length`` is the expression of the header, empty if it has none."""

    of: Type
    length: str
    symbolic: bool = False
    """The length names an enumerator, whose value only the C compiler knows."""


@dataclass(frozen=True, slots=True)
class FunctionType:
    """What a function takes and returns."""

    result: Type
    parameters: tuple[Parameter, ...]
    variadic: bool = False


Type: TypeAlias = Name | Tag | Inline | Pointer | Array | FunctionType


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter; ``name`` is empty where the header gives none."""

    name: str
    type: Type


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a struct or union; ``name`` is empty for an anonymous member."""

    name: str
    type: Type
    doc: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """The fields of a struct or union; opaque if the headers do not show them."""

    kind: Literal["struct", "union"]
    fields: tuple[Field, ...] | None


@dataclass(frozen=True, slots=True)
class Origin:
    """The place of a declaration, and its comment in the header."""

    header: str
    line: int
    doc: str = ""

    @property
    def is_own(self) -> bool:
        """Whether it stands in headers/llamacffi/, and not in a header of llama.cpp."""
        return self.header.startswith(f"{OWN}/")


@dataclass(frozen=True, slots=True)
class Function:
    """A function."""

    name: str
    type: FunctionType
    origin: Origin
    deprecated: str | None = None
    """The hint, if the header marks the function as deprecated."""


@dataclass(frozen=True, slots=True)
class Struct:
    """A struct or union with a tag, or with only a typedef name."""

    name: str
    record: Record
    origin: Origin
    tagged: bool = True

    @property
    def c_name(self) -> str:
        """The type as C writes it."""
        return f"{self.record.kind} {self.name}" if self.tagged else self.name


@dataclass(frozen=True, slots=True)
class Enumerator:
    """A member of an enum."""

    name: str
    doc: str = ""


@dataclass(frozen=True, slots=True)
class Enum:
    """An enum; ``name`` is empty if the header gives it none."""

    name: str
    members: tuple[Enumerator, ...]
    origin: Origin
    tagged: bool = True
    flags: bool = False
    """Its values are bits to be combined: the header writes one of them as a shift."""

    @property
    def c_name(self) -> str:
        """The type as C writes it."""
        return f"enum {self.name}" if self.tagged else self.name


@dataclass(frozen=True, slots=True)
class Typedef:
    """A typedef of anything but a struct, union or enum that is defined in the same place."""

    name: str
    type: Type
    origin: Origin


@dataclass(frozen=True, slots=True)
class Constant:
    """A ``#define`` or ``static const`` with a value."""

    name: str
    kind: Literal["int", "float", "str"]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Callback:
    """An ``extern "Python"`` trampoline of headers/callbacks.h."""

    name: str
    type: FunctionType
    origin: Origin


Declaration: TypeAlias = Function | Struct | Enum | Typedef | Constant | Callback


@dataclass(frozen=True, slots=True)
class Api:
    """A whole C API."""

    declarations: tuple[Declaration, ...]
    omitted: dict[str, str] = field(default_factory=dict)
    """What the headers have and this model has not, with the reason."""

    def names(self) -> set[str]:
        """Return the names of functions, constants and enumerators: what ``lib`` has."""
        members = {member.name for enum in self.enums for member in enum.members}
        functions = {one.name for one in self.functions}
        return members | functions | {one.name for one in self.constants}

    @property
    def functions(self) -> Iterator[Function]:
        """The functions, in header order."""
        return (one for one in self.declarations if isinstance(one, Function))

    @property
    def structs(self) -> Iterator[Struct]:
        """The structs and unions, in header order."""
        return (one for one in self.declarations if isinstance(one, Struct))

    @property
    def enums(self) -> Iterator[Enum]:
        """The enums, in header order."""
        return (one for one in self.declarations if isinstance(one, Enum))

    @property
    def typedefs(self) -> Iterator[Typedef]:
        """The typedefs, in header order."""
        return (one for one in self.declarations if isinstance(one, Typedef))

    @property
    def constants(self) -> Iterator[Constant]:
        """The constants, in header order."""
        return (one for one in self.declarations if isinstance(one, Constant))

    @property
    def callbacks(self) -> Iterator[Callback]:
        """The trampolines, in header order."""
        return (one for one in self.declarations if isinstance(one, Callback))


def flat_fields(fields: tuple[Field, ...] | None) -> Iterator[Field]:
    """Yield the fields that can be named: the members of an anonymous union as the struct's own."""
    for one in fields or ():
        if not one.name and isinstance(one.type, Inline):
            yield from flat_fields(one.type.record.fields)
        else:
            yield one


def closed_arrays(type_: Type, *, is_open: bool) -> Iterator[Array]:
    """Yield the arrays whose length `declare` writes out even if it is told to leave them open."""
    match type_:
        case Array():
            if not is_open:
                yield type_
            is_inline = isinstance(type_.of, Inline)
            yield from closed_arrays(type_.of, is_open=is_open and not is_inline)
        case Pointer():
            yield from closed_arrays(type_.to, is_open=False)
        case FunctionType():
            for inner in (type_.result, *(one.type for one in type_.parameters)):
                yield from closed_arrays(inner, is_open=False)
        case Inline():
            for one in type_.record.fields or ():
                is_inline = isinstance(one.type, Inline) and bool(one.name)
                yield from closed_arrays(one.type, is_open=is_open and not is_inline)


def declare(type_: Type, name: str = "", *, open_arrays: bool = False) -> str:
    """Write the C declaration of ``name`` with a type, without the semicolon.

    Args:
        type_: The type.
        name: What is declared; empty for the bare type.
        open_arrays: Write ``[...]`` for lengths, which leaves them to the C compiler.
    """
    match type_:
        case Name() | Tag():
            words = [
                "const" if type_.const else "",
                type_.kind if isinstance(type_, Tag) else "",
                type_.name,
                name,
            ]
            return " ".join(word for word in words if word)
        case Pointer():  # CFFI takes an open length only where it can ask for the size of a field
            name = f"*const {name}".rstrip() if type_.const else f"*{name}"
            if isinstance(type_.to, Array | FunctionType):
                name = f"({name})"
            return declare(type_.to, name)
        case Array():
            length = "..." if open_arrays and type_.length else type_.length
            return declare(type_.of, f"{name}[{length}]", open_arrays=open_arrays)
        case FunctionType():
            return declare(type_.result, f"{name}({parameter_list(type_)})")
        case Inline():
            open_arrays = open_arrays and not name
            fields = " ".join(
                declare_field(one, open_arrays=open_arrays) for one in type_.record.fields or ()
            )
            return f"{type_.record.kind} {{ {fields} }} {name}".rstrip()


def parameter_list(type_: FunctionType) -> str:
    """Write what stands between the parentheses of a function declaration."""
    parameters = [declare(one.type, one.name) for one in type_.parameters]
    if type_.variadic:
        parameters.append("...")
    return ", ".join(parameters) or "void"


def declare_field(one: Field, *, open_arrays: bool = False) -> str:
    """Write the declaration of a field, with its semicolon."""
    return declare(one.type, one.name, open_arrays=open_arrays) + ";"
