"""Public docstrings are complete, and name arguments, exceptions and functions that exist."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import llamacffi
from llamacffi import lib

REFERENCE = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()
SECTION = r"^{}:\n((?:    .*\n|\n)+)"


def public() -> Iterator[tuple[str, Any]]:
    """Yield the classes and functions in the reference with their names."""
    entry = re.compile(r"^::: llamacffi\.(\w+)(?:\n    options:\n      members: \[(.*)\])?", re.M)
    for name, names in entry.findall(REFERENCE):
        value = getattr(llamacffi, name, None)
        if isinstance(value, types.ModuleType):
            yield from ((f"{name}.{one}", getattr(value, one)) for one in names.split(", ") if one)
        elif value is not None:
            yield name, value


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public members of a class, including inherited ones."""
    for base in cls.__mro__:
        if base.__module__.startswith("llamacffi"):
            for name, value in vars(base).items():
                if not name.startswith("_"):
                    yield name, getattr(value, "__func__", value)  # of class methods


def described() -> dict[str, Any]:
    """Return the public classes, functions, methods and properties."""
    found: dict[str, Any] = {}
    for name, value in public():
        found[name] = value
        if isinstance(value, type):
            for member, one in members(value):
                if isinstance(one, types.FunctionType | property | cached_property):
                    found.setdefault(f"{name}.{member}", one)
            if isinstance(init := value.__init__, types.FunctionType) and init.__doc__:
                found[f"{name}.__init__"] = init
    return found


DESCRIBED = described()
FUNCTIONS = {
    name: value for name, value in DESCRIBED.items() if isinstance(value, types.FunctionType)
}


def doc(value: Any) -> str:
    return inspect.cleandoc(value.__doc__ or "") + "\n"


def entries(text: str, title: str) -> list[str]:
    """Return the names that a section of a docstring describes."""
    section = re.search(SECTION.format(title), text, re.MULTILINE)
    words = textwrap.dedent(section[1]) if section else ""
    return re.findall(r"^([*\w]+)(?: \(.*\))?:", words, re.MULTILINE)


def test_the_public_objects_are_found():
    """The tests below look at classes, their methods and properties, and functions of modules."""
    assert {"Model", "Context.decode", "Context.n_ctx", "generate", "rpc.add_server"} <= set(
        DESCRIBED
    )


def test_attributes_are_described():
    """Annotated attributes of public classes, except the fields of samplers."""
    bare = []
    for name, cls in public():
        if not isinstance(cls, type) or issubclass(cls, llamacffi.Sampler | llamacffi.ContextShift):
            continue  # their fields are described as arguments
        if cls.__module__.startswith("llamacffi._generated"):
            continue  # llama.h describes them
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        for one, after in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(one, ast.AnnAssign) and not ast.unparse(one.target).startswith("_"):
                text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                bare += [] if text else [f"{name}.{ast.unparse(one.target)}"]
    obvious = {"Token.id", "DeviceMemory.free", "DeviceMemory.total", "BufferType.name"}
    obvious |= {f"Device.{name}" for name in ("name", "description", "backend")}
    obvious |= {f"demo.Entry.{name}" for name in ("text", "score", "type")}
    assert set(bare) - obvious == set()


def test_arguments_are_described_as_they_are():
    """All of them or none, in order."""
    wrong = {}
    for name, function in FUNCTIONS.items():
        parameters = [
            {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "") + one.name
            for one in inspect.signature(function).parameters.values()
            if one.name not in ("self", "cls")
        ]
        if entries(doc(function), "Args") not in ([], parameters):
            wrong[name] = parameters
    assert wrong == {}


def test_raises_sections_name_exceptions():
    wrong = []
    for name, value in DESCRIBED.items():
        for raised in entries(doc(value), "Raises"):
            error = getattr(llamacffi, raised, getattr(builtins, raised, None))
            if not (isinstance(error, type) and issubclass(error, BaseException)):
                wrong.append((name, raised))
    assert wrong == []


def test_source_sections_name_c_functions():
    wrong = []
    for name, value in DESCRIBED.items():
        for source in re.findall(r"Source:(.*?)(?:\n\n|$)", doc(value), re.DOTALL):
            cited = re.findall(r"``(\w+)``", source)
            wrong += [(name, one) for one in cited if not is_of_c(one)]
            wrong += [] if cited or re.search("functions|field", source) else [(name, source)]
    assert wrong == []


def is_of_c(name: str) -> bool:
    """Return whether C has a function, constant, backend function or field of that name."""
    if hasattr(lib, name) or name == "to_float":
        return True
    try:
        llamacffi.ffi.typeof(f"{name}_t")
    except llamacffi.ffi.error:
        return False
    return True


def test_callers_of_llama_cpp_have_a_source_section():
    """In their own docstring, or in that of their class."""
    wrong = {}
    for name, function in FUNCTIONS.items():
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        called = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if node.value.id == "lib" and re.match("(llama|ggml|gguf)_[a-z]", node.attr)
        }
        cls = DESCRIBED.get(name.rpartition(".")[0])
        if called and "Source:" not in doc(function) + doc(cls):
            wrong[name] = called
    assert wrong == {}


def test_names_in_backticks_exist():
    """A name in single backticks belongs to the class, the module, the package or Python."""
    wrong = []
    for name, value in DESCRIBED.items():
        owner = DESCRIBED.get(name.rpartition(".")[0])
        function = getattr(value, "fget", None) or getattr(value, "func", value)
        scopes = [owner, value, sys.modules[function.__module__], llamacffi, builtins]
        for one in re.findall(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)", doc(value)):
            if not any(has(scope, one) for scope in scopes) and not is_module(one):
                wrong.append((name, one))
    assert wrong == []


def has(scope: Any, name: str) -> bool:
    for part in name.split("."):
        annotated = [
            vars(base).get("__annotations__", {}) for base in getattr(scope, "__mro__", ())
        ]
        if scope is not None and not hasattr(scope, part):
            return any(part in names for names in annotated)
        scope = getattr(scope, part, None)
    return scope is not None


def is_module(name: str) -> bool:
    """Return whether a full name is of this package or of the standard library."""
    first, _, rest = name.partition(".")
    return first in {"llamacffi", *sys.stdlib_module_names} and (
        not rest or has(importlib.import_module(first), rest)
    )
