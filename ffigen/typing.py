"""C types to Python annotations: for the stub of ``_llama`` and for the parameter TypedDicts.

In the stub the struct X is the class ``struct_X``, since functions may have the same name, and a
pointer to it is ``X_p``; a pointer to a number is named after the number.  So a type checker tells
them all apart.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterator

from .api import Api, Array, FunctionType, Name, Pointer, Tag, Type

INTEGERS = frozenset(
    {
        *("signed_char", "unsigned_char", "short", "unsigned_short", "int", "unsigned_int"),
        *("long", "unsigned_long", "long_long", "unsigned_long_long"),
        *("int8_t", "int16_t", "int32_t", "int64_t", "intptr_t", "ptrdiff_t"),
        *("uint8_t", "uint16_t", "uint32_t", "uint64_t", "uintptr_t", "size_t"),
    }
)
FLOATS = frozenset({"float", "double"})


class Annotations:
    """Annotates the types of one API, whose typedefs it knows."""

    def __init__(self, api: Api) -> None:
        self.typedefs = {one.name: one.type for one in api.typedefs}
        self.records = {one.name for one in api.structs}
        self.enums = {one.name for one in api.enums}

    def resolve(self, type_: Type) -> Type:
        """Follow typedefs to what they stand for."""
        while isinstance(type_, Name) and type_.name in self.typedefs:
            type_ = self.typedefs[type_.name]
        return type_

    def value(self, type_: Type) -> str:
        """Annotate what CFFI returns for a result, a field or an array item."""
        match self.resolve(type_):
            case Name(name="void"):
                return "None"
            case Name(name="bool" | "_Bool"):
                return "bool"
            case Name(name="char"):
                return "bytes"
            case Name(name=name) if name in FLOATS:
                return "float"
            case Name(name="long double"):
                return "CData"
            case Name(name=name) if name in self.records:
                return f"struct_{name}"
            case Name() | Tag(kind="enum"):
                return "int"
            case Tag(name=name):
                return f"struct_{name}"
            case Pointer(to=to) | Array(of=to):
                return self.pointer(to)
            case FunctionType():
                return "FunctionPointer"
            case _:
                return "CData"

    def pointer(self, to: Type) -> str:
        """Annotate a pointer to ``to``."""
        match self.resolve(to):
            case FunctionType():
                return "FunctionPointer"
            case Tag(kind="enum"):
                return "enum_p"
            case Name(name="_Bool"):
                return "bool_p"
            case Name(name="long double"):
                return "CData"
            case Name(name=name) | Tag(name=name):
                return f"{name.replace(' ', '_')}_p"
            case Pointer() | Array():
                return f"Pointer[{self.value(to)}]"
            case _:
                return "CData"

    def argument(self, type_: Type) -> str:
        """Annotate what CFFI takes for a parameter."""
        match self.resolve(type_):
            case Name(name="char"):
                return "bytes"
            case Pointer(to=to):
                return " | ".join((self.pointer(to), *self.instead_of_pointer(to)))
            case FunctionType():
                return "FunctionPointer | Callable[..., object]"
            case _:
                return self.value(type_)

    def instead_of_pointer(self, to: Type) -> Iterator[str]:
        """Yield what CFFI makes a temporary C object of, where a pointer is expected."""
        match self.resolve(to):
            case FunctionType():
                yield "Callable[..., object]"
            case Name(name="void"):
                yield from ("CData", "bytes")
            case Name(name="FILE"):
                yield "IO[bytes]"
            case Name(name="char" | "int8_t" | "uint8_t" as name):
                yield "bytes"
                if name != "char":
                    yield "Sequence[int]"
            case Name(name=name) if name in self.records:
                return
            case Name() as item:
                yield f"Sequence[{self.value(item)}]"
            case Pointer() as item:
                yield f"Sequence[{self.value(item)}]"

    def pointee_names(self) -> list[str]:
        """Return the number types that get a pointer class, as C names them."""
        return sorted(INTEGERS) + sorted(FLOATS) + ["bool"]

    def parameter_kind(self, type_: Type) -> str:
        """Name the kind of a parameter field: bool, int, float, pointer, struct, or enum:NAME."""
        match self.resolve(type_):
            case Pointer() | FunctionType() | Array():
                return "pointer"
            case Tag(kind="enum", name=name):
                return f"enum:{name}"
            case Name(name="bool" | "_Bool"):
                return "bool"
            case Name(name=name) if name in FLOATS:
                return "float"
            case Name(name=name) if name not in self.records:
                return "int"
            case _:
                return "struct"


def parameter_name(name: str, index: int) -> str:
    """Return a name that Python allows for the parameter at ``index``."""
    if not name:
        return f"arg{index}"
    return f"{name}_" if keyword.iskeyword(name) or name == "self" else name


def docstring(text: str, indent: int) -> str:
    """Write ``text`` as a string literal in triple quotes, its lines indented."""
    safe = text.replace("\\", "\\\\").replace('"""', "'''")
    if safe.endswith('"'):
        safe += " "
    margin = " " * indent
    lines = "\n".join(margin + line if line.strip() else "" for line in safe.split("\n"))
    return f'"""{lines[indent:]}"""'
