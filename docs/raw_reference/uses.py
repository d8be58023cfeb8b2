"""Which names of the facade call a C function, from the ``Source:`` lines of docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

SOURCE = re.compile(r"^\s*Source: (.*(?:\n.*\S.*)*)", re.MULTILINE)
NAME = re.compile(r"``(\w+)``")

ENTRY = re.compile(
    r"^::: llamacffi\.(\w+)(?:\n    options:\n      members: \[(.*)\])?", re.MULTILINE
)

Described = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Entry = tuple[str, Described]


class Package:
    """The classes and functions of a package, as its source has them."""

    def __init__(self, directory: Path) -> None:
        """Read the package in a directory."""
        self.classes: dict[str, ast.ClassDef] = {}
        self.modules: dict[str, dict[str, Described]] = {}
        for path in sorted(directory.rglob("*.py")):
            name = ".".join(path.relative_to(directory).with_suffix("").parts)
            body = ast.parse(path.read_text(encoding="utf-8")).body
            found = {one.name: one for one in body if isinstance(one, Described)}
            self.modules[name] = found
            self.classes |= {
                name: one for name, one in found.items() if isinstance(one, ast.ClassDef)
            }

    def described(self, names: Iterable[str], homes: Mapping[str, str]) -> Iterator[Entry]:
        """Yield each name with its object, including methods of classes.

        Args:
            names: The names, as in the reference: ``Model``, ``gguf.quantize_array``.
            homes: The modules that the public names of the package are from.
        """
        for name in names:
            module, _, last = name.rpartition(".")
            one = self.modules.get(module or homes.get(name, ""), {}).get(last)
            if one is not None:
                yield name, one
            if isinstance(one, ast.ClassDef):
                yield from ((f"{name}.{method.name}", method) for method in self.methods(one))

    def methods(self, cls: ast.ClassDef) -> Iterator[Described]:
        """Yield the methods of a class and of its bases, if they are in the package."""
        for one in cls.body:
            if isinstance(one, Described):
                yield one
        for base in cls.bases:
            inner = base.value if isinstance(base, ast.Subscript) else base
            found = self.classes.get(inner.id) if isinstance(inner, ast.Name) else None
            if found is not None:
                yield from self.methods(found)


def sources(one: Described) -> list[str]:
    """Return the C functions that a docstring names as its source."""
    text = ast.get_docstring(one) or ""
    return [name for line in SOURCE.findall(text) for name in NAME.findall(line)]


def uses(
    described: Iterable[Entry], shown: Callable[[str], bool] = lambda _: True
) -> dict[str, list[str]]:
    """Return the names of the facade that call each C function.

    Args:
        described: What `Package.described` yields.
        shown: Tells whether the reference has a method of that name; the class stands for one that
            it does not have.
    """
    found: dict[str, dict[str, None]] = {}
    for name, one in described:
        owner, _, last = name.rpartition(".")
        public = name if shown(last) else owner
        for source in sources(one):
            found.setdefault(source, {})[public] = None
    return {source: list(names) for source, names in found.items()}


def reference_names(text: str) -> list[str]:
    """Return the names that docs/reference.md describes: for a module, its listed members."""
    names: list[str] = []
    for name, listed in ENTRY.findall(text):
        members = [f"{name}.{one}" for one in listed.split(", ")] if listed else []
        names += [name, *members]
    return names
