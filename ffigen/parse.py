"""C text to `Api`, with pycparser.

A declaration that this module does not understand stops the build by name: a binding that leaves
something out in silence is worse than none.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pycparser import c_ast, c_generator

from .api import (
    Api,
    Array,
    Callback,
    Constant,
    Declaration,
    Enum,
    Enumerator,
    Field,
    Function,
    FunctionType,
    Inline,
    Name,
    Origin,
    Parameter,
    Pointer,
    Record,
    Struct,
    Tag,
    Type,
    Typedef,
)
from .macros import read_macros, scalar_kind, scope_of
from .nodes import (
    BUILT_IN,
    NUMBER_WORDS,
    UnknownDeclarationError,
    declared_name,
    has_name,
    innermost,
    is_definition,
    number_name,
    parse,
    tag_kind,
    unknown,
    value_type,
)
from .preprocess import Comment, Macro, Source, find_comments, header_name


def read_api(
    source: Source, headers: Path, llama_cpp: Path, omit: Mapping[str, str] | None = None
) -> Api:
    """Parse preprocessed headers into a model.

    Args:
        source: What `preprocess` returned.
        headers: The project's ``headers/`` directory, for the trampolines in callbacks.h.
        llama_cpp: The tree that ``source`` was made from.
        omit: Declarations to leave out, each with the reason.

    Raises:
        UnknownDeclarationError: A declaration is not understood.
    """
    omit = omit or {}
    reader = Reader({str(path): path for path in source.headers}, omit)
    declarations = reader.read(source.text)
    scope = scope_of(declarations, reader.typedefs)
    macros, omitted = read_macros(source, headers, llama_cpp, scope)
    constants = [Constant(one.name, kind, reader.macro_origin(one)) for one, kind in macros]
    omitted |= {name: omit[name] for name in reader.omitted}
    seen: dict[tuple[type, str], Declaration] = {}
    for one in [*constants, *declarations, *read_callbacks(headers / "callbacks.h", source.text)]:
        if one.name in omit:
            omitted[one.name] = omit[one.name]
            continue
        key = (type(one), one.name or f"<{len(seen)}>")
        kept = merge(seen[key], one) if key in seen else one
        if kept is one:
            seen.pop(key, None)  # a definition stands where the headers have it, not its forward
        seen[key] = kept
    return Api((*undeclared(list(seen.values())), *seen.values()), omitted)


def undeclared(declarations: list[Declaration]) -> list[Struct]:
    """Return the structs that the headers only point to; in C, that declares them."""
    declared = {one.name for one in declarations if isinstance(one, Struct)}
    tags = {tag.name: tag for one in declarations for tag in tags_of(one)}
    return [
        Struct(name, Record(tag.kind, None), Origin("", 0))
        for name, tag in tags.items()
        if tag.kind != "enum" and name not in declared
    ]


def tags_of(node: object) -> Iterator[Tag]:
    """Yield the tags in a declaration, or in any part of one."""
    if isinstance(node, Tag):
        yield node
    elif isinstance(node, tuple):
        for one in node:
            yield from tags_of(one)
    elif is_dataclass(node):
        for part in dataclass_fields(node):
            yield from tags_of(getattr(node, part.name))


def merge(old: Declaration, new: Declaration) -> Declaration:
    """Choose among two declarations of one thing; they may differ only in what one leaves open."""
    if isinstance(old, Struct) and isinstance(new, Struct):
        if old.record.fields is None or new.record.fields is None:
            return new if old.record.fields is None else old
    elif isinstance(old, Typedef) and isinstance(new, Typedef):
        if old.type == new.type:
            return old
    elif isinstance(old, Function) and isinstance(new, Function):
        return new if old.deprecated is None and new.deprecated is not None else old
    raise UnknownDeclarationError(
        f"{new.origin.header}:{new.origin.line}: {new.name} is declared twice, differently"
    )


class Reader:
    """Turns the nodes of public headers into declarations."""

    def __init__(self, headers: Mapping[str, Path], omit: Container[str] = ()) -> None:
        self.headers = headers
        self.omit = omit
        self.omitted: list[str] = []
        self.typedefs: dict[str, c_ast.Node] = {}
        self.notes: dict[Path, Notes] = {}
        # Structs and enums that are declarations already, by the id of their node.
        self.defined: dict[int, Name | Tag] = {}

    def read(self, text: str) -> list[Declaration]:
        """Parse ``text`` and keep what stands in the public headers."""
        declarations: list[Declaration] = []
        for node in parse(text).ext:
            if node.coord is None or node.coord.file not in self.headers:
                self.know(node)
                continue
            name = declared_name(node)
            if name in self.omit:
                self.know(node)
                self.omitted.append(name)
            else:
                declarations += self.read_node(node)
        return declarations

    def read_node(self, node: c_ast.Node) -> Iterator[Declaration]:
        """Yield what one top-level node declares, and know its name from then on."""
        self.know(node)
        yield from self.declarations(node)

    def know(self, node: c_ast.Node) -> None:
        """Remember a typedef."""
        if isinstance(node, c_ast.Typedef):
            self.typedefs[node.name] = node.type

    def declarations(self, node: c_ast.Node) -> Iterator[Declaration]:
        """Yield what one top-level node declares."""
        match node:
            case c_ast.Typedef(name=str(name), type=type_):
                yield from self.typedef(node, name, type_)
            case c_ast.Decl(type=c_ast.FuncDecl() as function, name=str(name), storage=storage):
                if "static" in storage or "inline" in node.funcspec:
                    raise unknown(node, f"static or inline function {name}")
                yield self.function(node, name, function)
            case c_ast.Decl(name=None, type=c_ast.Struct() | c_ast.Union() as record):
                yield from self.hoisted(record)
                yield self.struct(record)
            case c_ast.Decl(name=None, type=c_ast.Enum() as enum):
                if enum.values is not None:
                    yield self.enum(enum)
            case c_ast.Decl(name=str(name), storage=["static"], quals=["const"], type=type_):
                kind = scalar_kind(type_, self.typedefs)
                if kind is None:
                    raise unknown(node, f"constant {name} that is not a number")
                yield Constant(name, kind, self.origin(node))
            case c_ast.FuncDef(decl=decl):
                raise unknown(node, f"inline function {decl.name}")
            case c_ast.Pragma() | c_ast.StaticAssert():
                self.skip(node)
            case c_ast.Decl(name=str(name)):
                raise unknown(node, f"variable {name}")
            case _:
                raise unknown(node, type(node).__name__)

    def typedef(self, node: c_ast.Typedef, name: str, type_: c_ast.Node) -> Iterator[Declaration]:
        """Yield a typedef, and the struct or enum that it defines on the way."""
        inner = innermost(type_)
        here = type_.type is inner
        if is_definition(inner) and id(inner) not in self.defined and (here or inner.name):
            if isinstance(inner, c_ast.Enum):
                yield self.enum(inner, name)
            else:
                yield from self.hoisted(inner)
                yield self.struct(inner, name)
            if inner.name is None:
                return
        yield Typedef(name, self.type(type_), self.origin(node))

    def skip(self, node: c_ast.Node) -> None:
        """Pass over what declares nothing, unless it changes how the rest is laid out."""
        if isinstance(node, c_ast.Pragma) and node.string.startswith("pack"):
            raise unknown(node, f"#pragma {node.string}")

    def function(self, node: c_ast.Decl, name: str, type_: c_ast.FuncDecl) -> Function:
        """Read a function; a deprecation stands where a variable has its initializer."""
        hint = constant_value(node.init) if node.init is not None else None
        return Function(name, self.function_type(type_), self.origin(node), hint)

    def struct(self, node: Any, typedef_name: str = "") -> Struct:
        """Read a struct or union."""
        record = self.record(node)
        name = node.name or typedef_name
        if record.fields is not None:
            self.defined[id(node)] = Tag(record.kind, name) if node.name else Name(name)
        return Struct(name, record, self.origin(node), bool(node.name))

    def hoisted(self, node: Any) -> Iterator[Declaration]:
        """Yield the structs and enums with a tag that are defined inside a struct."""
        for field in node.decls or ():
            inner = innermost(getattr(field, "type", None))
            if not is_definition(inner) or id(inner) in self.defined:
                continue
            if isinstance(inner, c_ast.Enum):
                if inner.name or inner is field.type:
                    yield self.enum(inner)
            else:
                yield from self.hoisted(inner)
                if inner.name:
                    yield self.struct(inner)

    def record(self, node: Any) -> Record:
        """Read the fields of a struct or union."""
        kind: Literal["struct", "union"] = "struct" if isinstance(node, c_ast.Struct) else "union"
        if node.decls is None:
            return Record(kind, None)
        return Record(kind, tuple(self.fields(node.decls)))

    def fields(self, nodes: list[c_ast.Node]) -> Iterator[Field]:
        """Read the fields among what stands between the braces of a struct."""
        for node in nodes:
            match node:
                case c_ast.Pragma() | c_ast.StaticAssert():
                    self.skip(node)
                case c_ast.Decl(name=None, type=c_ast.Enum()):
                    pass  # enumerators only, which are hoisted
                case _:
                    yield self.field(node)

    def field(self, node: c_ast.Node) -> Field:
        """Read a field; an anonymous struct or union has the empty name."""
        match node:
            case c_ast.Decl(bitsize=bits) if bits is not None:
                raise unknown(node, f"bit-field {node.name}")
            case c_ast.Decl(align=[_, *_]):
                raise unknown(node, f"_Alignas of {node.name}")
            case c_ast.Decl(name=None, type=c_ast.Struct() | c_ast.Union() as inner) if inner.name:
                raise unknown(node, f"{inner.name}, defined in a struct without being a field")
            case c_ast.Decl(name=str(name), type=type_) if self.is_partial(value_type(type_)):
                raise unknown(node, f"{name}, a struct without a tag that holds another by value")
            case c_ast.Decl(name=name, type=type_):
                return Field(name or "", self.type(type_), self.origin(node).doc)
            case _:
                raise unknown(node, f"{type(node).__name__} in a struct")

    def is_partial(self, node: Any) -> bool:
        """Tell whether CFFI would have to ask for the layout of a struct that has no name."""
        if not is_definition(node) or node.name is not None or isinstance(node, c_ast.Enum):
            return False
        for field in node.decls:
            inner = value_type(getattr(field, "type", None))
            while isinstance(inner, c_ast.IdentifierType) and inner.names[0] in self.typedefs:
                inner = value_type(self.typedefs[inner.names[0]])
            named = getattr(inner, "name", None) or id(inner) in self.defined
            if isinstance(inner, c_ast.Struct) and (named or field.name is None):
                return True
            if field.name is None and self.is_partial(inner):
                return True
        return False

    def enum(self, node: c_ast.Enum, typedef_name: str = "") -> Enum:
        """Read an enum; its values are left to the C compiler."""
        values = node.values.enumerators if node.values else ()
        members = tuple(Enumerator(one.name, self.origin(one).doc) for one in values)
        flags = any(getattr(one.value, "op", "") == "<<" for one in values)
        name = node.name or typedef_name
        self.defined[id(node)] = Tag("enum", name) if node.name else Name(name)
        return Enum(name, members, self.origin(node), bool(node.name), flags)

    def type(self, node: c_ast.Node) -> Type:
        """Read a type."""
        if "_Atomic" in getattr(node, "quals", ()):
            raise unknown(node, "_Atomic")
        match node:
            case c_ast.TypeDecl(type=c_ast.IdentifierType(names=names), quals=quals):
                return Name(self.type_name(node, names), "const" in quals)
            case c_ast.TypeDecl(
                type=c_ast.Struct() | c_ast.Union() | c_ast.Enum() as inner, quals=quals
            ):
                return self.tag_or_inline(inner, "const" in quals)
            case c_ast.Struct() | c_ast.Union():
                return self.tag_or_inline(node, const=False)
            case c_ast.PtrDecl(type=inner, quals=quals):
                return Pointer(self.type(inner), "const" in quals)
            case c_ast.ArrayDecl(type=inner, dim=dim):
                length = c_generator.CGenerator().visit(dim) if dim else ""
                return Array(self.type(inner), length, has_name(dim))
            case c_ast.FuncDecl():
                return self.function_type(node)
            case c_ast.Typename(type=inner):
                return self.type(inner)
            case _:
                raise unknown(node, f"type {type(node).__name__}")

    def tag_or_inline(self, node: Any, const: bool) -> Type:
        """Read the use of a struct, union or enum: by its tag, or written out."""
        if id(node) in self.defined:
            return replace(self.defined[id(node)], const=const)
        kind = tag_kind(node)
        if node.name is None and kind != "enum":
            return Inline(self.record(node))
        if is_definition(node):
            raise unknown(node, f"{kind} {node.name or 'without a name'}, defined in this place")
        return Tag(kind, node.name, const)

    def type_name(self, node: c_ast.Node, names: list[str]) -> str:
        """Return the one spelling of a built-in type, or the name of a typedef."""
        name = number_name(names) if NUMBER_WORDS.issuperset(names) else " ".join(names)
        if name not in BUILT_IN and name not in self.typedefs:
            raise unknown(node, f"the type {name}")
        return name

    def function_type(self, node: c_ast.FuncDecl) -> FunctionType:
        """Read what a function takes and returns; an array parameter is a pointer, as in C."""
        parameters: list[Parameter] = []
        variadic = False
        for one in node.args.params if node.args else ():
            if isinstance(one, c_ast.EllipsisParam):
                variadic = True
                continue
            if isinstance(one, c_ast.ID):  # a name without a type
                raise unknown(node, f"the type {one.name}")
            type_ = self.type(one.type)
            if type_ == Name("void"):
                continue
            if isinstance(type_, Array):
                type_ = Pointer(type_.of)
            parameters.append(Parameter(one.name or "", type_))
        return FunctionType(self.type(node.type), tuple(parameters), variadic)

    def origin(self, node: c_ast.Node) -> Origin:
        """Return where ``node`` stands and the comment that belongs to it."""
        if node.coord is None or node.coord.file not in self.headers:
            return Origin("", 0)
        return self.place(self.headers[node.coord.file], node.coord.line)

    def macro_origin(self, macro: Macro) -> Origin:
        """Return where ``macro`` stands and the comment that belongs to it."""
        return self.place(macro.path, macro.line)

    def place(self, path: Path, line: int) -> Origin:
        """Return the place and the comment that belongs to it."""
        if path not in self.notes:
            text = path.read_text(encoding="utf-8", errors="replace")
            self.notes[path] = Notes(find_comments(text))
        return Origin(header_name(path), line, self.notes[path].at(line))


class Notes:
    """The comments of one header, by line."""

    def __init__(self, comments: list[Comment]) -> None:
        self.above = {one.last + 1: one.text for one in comments if one.alone}
        self.beside = {one.first: one.text for one in comments if not one.alone}

    def at(self, line: int) -> str:
        """Return the comment right above ``line``, and the one at its end."""
        return "\n".join(filter(None, (self.above.get(line), self.beside.get(line))))


def read_callbacks(path: Path, context: str) -> list[Declaration]:
    """Read the ``extern "Python"`` trampolines, which are C but for those two words."""
    text = path.read_text(encoding="utf-8").replace('extern "Python"', "extern")
    marked = f'{context}\n# 1 "{path}"\n{blank_comments(text)}\n'
    reader = Reader({str(path): path})
    return [
        Callback(one.name, one.type, one.origin)
        for one in reader.read(marked)
        if isinstance(one, Function)
    ]


def blank_comments(text: str) -> str:
    """Replace comments by as many empty lines."""
    lines = text.splitlines()
    for one in find_comments(text):
        if one.alone:
            lines[one.first - 1 : one.last] = [""] * (one.last - one.first + 1)
    return "\n".join(lines)


def constant_value(node: c_ast.Node) -> str:
    """Return the text of a string literal."""
    if not isinstance(node, c_ast.Constant) or node.type != "string":
        raise unknown(node, "initializer of a function")
    return str(node.value)[1:-1]
