"""C text to `Api`, with pycparser.

A declaration that this module does not understand stops the build by name: a binding that leaves
something out in silence is worse than none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal

from pycparser import c_ast, c_generator, c_parser

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
from .preprocess import Comment, Source, expand, find_comments

Kind = Literal["int", "float", "str"]

FLOATING = frozenset({"float", "double"})


class UnknownDeclarationError(NotImplementedError):
    """The headers have something that the generator does not understand."""


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
    reader = Reader({str(path): path for path in source.headers})
    declarations = reader.read(source.text)
    constants, omitted = read_macros(source, headers, llama_cpp)
    seen: dict[tuple[type, str], Declaration] = {}
    for one in [*constants, *declarations, *read_callbacks(headers / "callbacks.h", source.text)]:
        if one.name in omit:
            omitted[one.name] = omit[one.name]
            continue
        key = (type(one), one.name or f"<{one.origin.line}>")
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
        return old
    raise UnknownDeclarationError(
        f"{new.origin.header}:{new.origin.line}: {new.name} is declared twice, differently"
    )


class Reader:
    """Turns the nodes of public headers into declarations."""

    def __init__(self, headers: Mapping[str, Path]) -> None:
        self.headers = headers
        self.notes: dict[str, Notes] = {}

    def read(self, text: str) -> list[Declaration]:
        """Parse ``text`` and keep what stands in the public headers."""
        declarations: list[Declaration] = []
        for node in c_parser.CParser().parse(text).ext:
            if node.coord is not None and node.coord.file in self.headers:
                declarations += self.declarations(node)
        return declarations

    def declarations(self, node: c_ast.Node) -> Iterator[Declaration]:
        """Yield what one top-level node declares."""
        match node:
            case c_ast.Typedef(name=str(name), type=type_):
                yield from self.typedef(node, name, type_)
            case c_ast.Decl(type=c_ast.FuncDecl() as function, name=str(name), storage=storage):
                if "static" in storage:
                    raise unknown(node, f"static function {name}")
                yield self.function(node, name, function)
            case c_ast.Decl(name=None, type=c_ast.Struct() | c_ast.Union() as record):
                yield from self.hoisted(record)
                yield self.struct(record)
            case c_ast.Decl(name=None, type=c_ast.Enum() as enum):
                yield self.enum(enum)
            case c_ast.Decl(name=str(name), storage=["static"], quals=["const"], type=type_):
                yield Constant(name, scalar_kind(node, type_), self.origin(node))
            case c_ast.FuncDef(decl=decl):
                raise unknown(node, f"inline function {decl.name}")
            case c_ast.Pragma() | c_ast.StaticAssert():
                pass
            case c_ast.Decl(name=str(name)):
                raise unknown(node, f"variable {name}")
            case _:
                raise unknown(node, type(node).__name__)

    def typedef(self, node: c_ast.Typedef, name: str, type_: c_ast.Node) -> Iterator[Declaration]:
        """Yield a typedef, and the struct or enum that it defines on the way."""
        match type_:
            case c_ast.TypeDecl(type=c_ast.Struct() | c_ast.Union() as record) if record.decls:
                yield from self.hoisted(record)
                yield self.struct(record, name)
                if record.name is None:
                    return
            case c_ast.TypeDecl(type=c_ast.Enum() as enum) if enum.values:
                yield self.enum(enum, name)
                if enum.name is None:
                    return
        yield Typedef(name, self.type(type_), self.origin(node))

    def function(self, node: c_ast.Decl, name: str, type_: c_ast.FuncDecl) -> Function:
        """Read a function; a deprecation stands where a variable has its initializer."""
        hint = constant_value(node.init) if node.init is not None else None
        return Function(name, self.function_type(type_), self.origin(node), hint)

    def struct(self, node: Any, typedef_name: str = "") -> Struct:
        """Read a struct or union."""
        record = self.record(node)
        return Struct(node.name or typedef_name, record, self.origin(node), bool(node.name))

    def hoisted(self, node: Any) -> Iterator[Declaration]:
        """Yield the structs and enums with a tag that are defined inside a struct."""
        for field in node.decls or ():
            inner = field.type
            while isinstance(inner, c_ast.TypeDecl | c_ast.PtrDecl | c_ast.ArrayDecl):
                inner = inner.type
            if isinstance(inner, c_ast.Struct | c_ast.Union) and inner.decls:
                yield from self.hoisted(inner)
                if inner.name:
                    yield self.struct(inner)
            elif isinstance(inner, c_ast.Enum) and inner.values:
                yield self.enum(inner)

    def record(self, node: Any) -> Record:
        """Read the fields of a struct or union."""
        kind: Literal["struct", "union"] = "struct" if isinstance(node, c_ast.Struct) else "union"
        if node.decls is None:
            return Record(kind, None)
        return Record(kind, tuple(self.field(one) for one in node.decls))

    def field(self, node: c_ast.Node) -> Field:
        """Read a field; an anonymous struct or union has the empty name."""
        match node:
            case c_ast.Decl(bitsize=bits) if bits is not None:
                raise unknown(node, f"bit-field {node.name}")
            case c_ast.Decl(name=name, type=type_):
                return Field(name or "", self.type(type_), self.origin(node).doc)
            case _:
                raise unknown(node, f"{type(node).__name__} in a struct")

    def enum(self, node: c_ast.Enum, typedef_name: str = "") -> Enum:
        """Read an enum; its values are left to the C compiler."""
        values = node.values.enumerators if node.values else ()
        members = tuple(Enumerator(one.name, self.origin(one).doc) for one in values)
        flags = any(getattr(one.value, "op", "") == "<<" for one in values)
        return Enum(node.name or typedef_name, members, self.origin(node), bool(node.name), flags)

    def type(self, node: c_ast.Node) -> Type:
        """Read a type."""
        match node:
            case c_ast.TypeDecl(type=c_ast.IdentifierType(names=names), quals=quals):
                return Name(" ".join(names), "const" in quals)
            case c_ast.TypeDecl(type=c_ast.Struct() | c_ast.Union() as inner, quals=quals):
                return self.tag_or_inline(inner, "const" in quals)
            case c_ast.TypeDecl(type=c_ast.Enum(name=str(name)), quals=quals):
                return Tag("enum", name, "const" in quals)
            case c_ast.Struct() | c_ast.Union():
                return self.tag_or_inline(node, const=False)
            case c_ast.PtrDecl(type=inner, quals=quals):
                return Pointer(self.type(inner), "const" in quals)
            case c_ast.ArrayDecl(type=inner, dim=dim):
                return Array(self.type(inner), c_generator.CGenerator().visit(dim) if dim else "")
            case c_ast.FuncDecl():
                return self.function_type(node)
            case c_ast.Typename(type=inner):
                return self.type(inner)
            case _:
                raise unknown(node, f"type {type(node).__name__}")

    def tag_or_inline(self, node: Any, const: bool) -> Type:
        """Read the use of a struct or union: by its tag, or written out."""
        if node.name is None:
            return Inline(self.record(node))
        return Tag("struct" if isinstance(node, c_ast.Struct) else "union", node.name, const)

    def function_type(self, node: c_ast.FuncDecl) -> FunctionType:
        """Read what a function takes and returns; an array parameter is a pointer, as in C."""
        parameters: list[Parameter] = []
        variadic = False
        for one in node.args.params if node.args else ():
            if isinstance(one, c_ast.EllipsisParam):
                variadic = True
                continue
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
        path = self.headers[node.coord.file]
        if node.coord.file not in self.notes:
            self.notes[node.coord.file] = Notes(find_comments(path.read_text(encoding="utf-8")))
        line = node.coord.line
        return Origin(path.name, line, self.notes[node.coord.file].at(line))


class Notes:
    """The comments of one header, by line."""

    def __init__(self, comments: list[Comment]) -> None:
        self.above = {one.last + 1: one.text for one in comments if one.alone}
        self.beside = {one.first: one.text for one in comments if not one.alone}

    def at(self, line: int) -> str:
        """Return the comment right above ``line``, and the one at its end."""
        return "\n".join(filter(None, (self.above.get(line), self.beside.get(line))))


def read_macros(
    source: Source, headers: Path, llama_cpp: Path
) -> tuple[list[Constant], dict[str, str]]:
    """Sort the macros into constants and those that are none, with the reason."""
    constants: list[Constant] = []
    omitted = {one.name: "function-like macro" for one in source.macros if one.has_parameters}
    plain = [one for one in source.macros if not one.has_parameters]
    names = [one.name for one in plain]
    notes = {path.name: Notes(find_comments(path.read_text("utf-8"))) for path in source.headers}
    for macro, value in zip(plain, expand(headers, llama_cpp, names), strict=True):
        kind = expression_kind(value)
        if kind is None:
            omitted[macro.name] = "macro without a value"
        else:
            doc = notes[macro.header].at(macro.line)
            constants.append(Constant(macro.name, kind, Origin(macro.header, macro.line, doc)))
    return constants, omitted


def expression_kind(text: str) -> Kind | None:
    """Tell the type of a macro's value; None if it is not an expression."""
    if not text:
        return None
    try:
        tree = c_parser.CParser().parse(f"int x = {text};")
    except c_parser.ParseError:
        return None
    leaves: set[str] = set()
    collect_constant_types(tree.ext[0].init, leaves)
    if "string" in leaves:
        return "str"
    return "float" if leaves & {"float", "double", "long double"} else "int"


def collect_constant_types(node: c_ast.Node, found: set[str]) -> None:
    """Gather the types of the literals in an expression."""
    if isinstance(node, c_ast.Constant):
        found.add(node.type)
    for _, child in node.children():
        collect_constant_types(child, found)


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


def scalar_kind(node: c_ast.Node, type_: c_ast.Node) -> Kind:
    """Tell the type of a ``static const`` scalar."""
    match type_:
        case c_ast.TypeDecl(type=c_ast.IdentifierType(names=names)):
            return "float" if FLOATING & set(names) else "int"
        case _:
            raise unknown(node, "static const that is not a number")


def constant_value(node: c_ast.Node) -> str:
    """Return the text of a string literal."""
    if not isinstance(node, c_ast.Constant) or node.type != "string":
        raise unknown(node, "initializer of a function")
    return str(node.value)[1:-1]


def unknown(node: c_ast.Node, what: str) -> UnknownDeclarationError:
    """Make the error that names the place."""
    return UnknownDeclarationError(
        f"{node.coord}: the generator does not know {what}; teach ffigen/parse.py, "
        "or list it in headers/surface.toml with the reason"
    )
