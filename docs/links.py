"""Links in the documentation: a name in backticks leads to its place in the reference.

mkdocs calls `on_page_markdown` for each page, and griffe calls `Links` for the docstrings.  A link
to a missing entry fails ``mkdocs build --strict``.  Names of C functions lead to the reference of
the raw layer; pages write them as ``lib.llama_decode`` or ``llama_decode()``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import griffe

from docs.raw_reference.site import headings

PACKAGE = Path(__file__).parent.parent / "llamacffi"
FENCES = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# `Model`, `Model.save`, `Model.save()`, `generate()`, `rpc.add_server()`.
CODE = re.compile(r"(?<![`\[])`([A-Za-z]\w*(?:\.\w+)?)(\(\))?`(?![`\]])")
# ``llama_decode`` in a docstring.
C_CODE = re.compile(r"(?<!`)``([a-z]\w*)``(?!`)")
# What starts a block of code in a docstring.
LITERAL = re.compile(r"^::\n\n|::(?=\n\n)", re.MULTILINE)


def public_names() -> tuple[dict[str, str], dict[str, str]]:
    """Return the module that defines each public name, and the path of each public module."""
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse((PACKAGE / "__init__.py").read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if node.targets[0].id in ("_NAMES", "_MODULES")
    }
    homes = {name: home for home, names in tables["_NAMES"].items() for name in names.split()}
    return homes, tables["_MODULES"]


NAMES, MODULES = public_names()


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Link the names on a page, except in code, headings and generated pages."""
    if page.file.generated_by:
        return markdown

    def link(match: re.Match[str]) -> str:
        name, call = match[1], match[2] or ""
        first = name.partition(".")[0]
        known = first in NAMES and (first[0].isupper() or call)
        if known or (first in MODULES and call and "." in name):
            return f"[`{name}{call}`][llamacffi.{name}]"
        c_name = name.removeprefix("lib.")
        return f"[`{name}{call}`][{c_name}]" if c_name in headings() else match[0]

    parts, end = [], 0
    for fence in FENCES.finditer(markdown):
        parts += [_outside_headings(markdown[end : fence.start()], link), fence[0]]
        end = fence.end()
    return "".join([*parts, _outside_headings(markdown[end:], link)])


def _outside_headings(text: str, link: Callable[[re.Match[str]], str]) -> str:
    return "".join(
        line if line.startswith("#") else CODE.sub(link, line)
        for line in text.splitlines(keepends=True)
    )


class Links(griffe.Extension):
    """Links the names in docstrings that have an entry in the reference."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Add links to the docstrings of a package that griffe has read."""
        if pkg.name != PACKAGE.name:
            return
        functions = _functions(pkg)
        classes: dict[str, Any] = {}
        owners: dict[str, list[str]] = {}  # class -> the public classes that have its members
        for name, home in NAMES.items():
            found = pkg[home][name]
            if found.is_class:
                classes[name] = found.all_members
                for base in (found, *found.mro()):
                    owners.setdefault(base.path, []).append(name)
        for module in _modules(pkg):
            for one in _objects(module):
                if one.docstring:
                    own = owners.get(one.path) or owners.get(getattr(one.parent, "path", ""), [])
                    members = own[0] if len(own) == 1 else None
                    place = functions.get(module.path, {})
                    one.docstring.value = _linked(one.docstring.value, classes, members, place)


def _functions(pkg: Any) -> dict[str, dict[str, str]]:
    """Return the functions that the reference has in public modules, by their own modules.

    A public module may import a function from the module that defines it.
    """
    found: dict[str, dict[str, str]] = {}
    for door, home in MODULES.items():
        for name, member in pkg[home].members.items():
            path = member.target_path if member.is_alias else member.path
            module = path.rpartition(".")[0]
            if path.startswith(f"{pkg.name}.") and _is_shown(name) and member.is_function:
                found.setdefault(module, {})[name] = f"{pkg.name}.{door}.{name}"
                found.setdefault(pkg[home].path, {})[name] = f"{pkg.name}.{door}.{name}"
    return found


def _modules(module: Any) -> Iterator[Any]:
    yield module
    for child in module.modules.values():
        if not child.is_alias:
            yield from _modules(child)


def _objects(parent: Any) -> Iterator[Any]:
    yield parent
    for child in parent.members.values():
        if not child.is_alias and not child.is_module:
            yield from _objects(child)


def _linked(text: str, classes: dict[str, Any], own: str | None, functions: dict[str, str]) -> str:
    """Return a docstring as Markdown, with links.

    Args:
        text: The docstring.
        classes: The members of each public class.
        own: The class that the docstring is of.
        functions: The public functions of its module, with their places in the reference.
    """

    def link(match: re.Match[str]) -> str:
        name, call = match[1], match[2] or ""
        first, _, rest = name.partition(".")
        target = None
        if own is not None and name in classes[own] and _is_shown(name):
            target = f"llamacffi.{own}.{name}"
        elif name in NAMES or (rest in classes.get(first, ()) and _is_shown(rest)):
            target = f"llamacffi.{name}"
        else:
            target = functions.get(name)
        return match[0] if target is None else f"[`{name}{call}`][{target}]"

    def link_c(match: re.Match[str]) -> str:
        return f"[`{match[1]}`][{match[1]}]" if match[1] in headings() else match[0]

    text = C_CODE.sub(link_c, text)
    return CODE.sub(link, LITERAL.sub(lambda one: "" if one[0][0:3] == "::\n" else ":", text))


def _is_shown(name: str) -> bool:
    return not name.startswith("_")
