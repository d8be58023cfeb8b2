"""The reference of this tree: where its facts come from, and its pages."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

from ffigen.api import Api, Constant
from ffigen.layout import measure
from ffigen.project import Project
from ffigen.vendor import ensure_tree

from .pages import Facts, Reference
from .params import Python, tables, type_aliases
from .places import DIRECTORY
from .uses import Package, reference_names, uses

ROOT = Path(__file__).parent.parent.parent
PROJECT = Project(ROOT)
PACKAGE = ROOT / "llamacffi"


@lru_cache(maxsize=1)
def read() -> tuple[Api, dict[str, str]]:
    """Return the API of the pinned llama.cpp, with sizes and values from the C compiler."""
    tree = ensure_tree(ROOT).path
    api = PROJECT.api(tree)
    return api, measure(api, PROJECT.headers, tree)


@lru_cache(maxsize=1)
def headings() -> frozenset[str]:
    """Return the names that have a heading of their own, and so can be linked to from anywhere."""
    api, _ = read()
    return frozenset(one.name for one in api.declarations if not isinstance(one, Constant))


def reference(shown: Callable[[str], bool]) -> Reference:
    """Return the reference of the pinned llama.cpp.

    Args:
        shown: Tells whether the reference of the facade has a method of that name.
    """
    from llamacffi._generated.exports import LATE, UNEXPORTED

    api, values = read()
    described = Package(PACKAGE).described(facade_names(), facade_homes())
    return Reference(
        Facts(
            api,
            (PROJECT.headers / "upstream.h").read_text(encoding="utf-8"),
            values,
            PROJECT.surface["names"],
            uses(described, shown),
            LATE,
            UNEXPORTED,
        )
    )


def pages(made: Reference) -> dict[str, str]:
    """Return the pages of the reference by their file names, in the order of the navigation."""
    from llamacffi import lib

    facts = made.facts
    params = tables(facts.api, facts.values, python(), lambda name: getattr(lib, name)())
    texts = {"index": made.index(), "params": made.params(params)}
    texts |= {header: made.page(header) for header in made.places.pages}
    return {f"{DIRECTORY}/{name}.md": text for name, text in texts.items()}


def python() -> Python:
    """Return what the package declares about parameters."""
    from llamacffi.context.params import OWNED as CONTEXT
    from llamacffi.model.params import OWNED as MODEL

    surface = PROJECT.surface
    instead = {f"llama_model_params.{name}": text for name, text in MODEL.items()}
    instead |= {f"llama_context_params.{name}": text for name, text in CONTEXT.items()}
    return Python(
        surface["names"],
        surface["annotations"],
        aliases(surface["aliases"].values()),
        instead,
        facade_names().__contains__,
    )


def aliases(modules: Iterable[str]) -> dict[str, str]:
    """Return what the type aliases of parameters stand for."""
    paths = [PACKAGE.joinpath(*module.split(".")).with_suffix(".py") for module in modules]
    return type_aliases("\n".join(path.read_text(encoding="utf-8") for path in paths))


def facade_names() -> list[str]:
    """Return the names that the reference of the facade has."""
    return reference_names((ROOT / "docs" / "reference.md").read_text(encoding="utf-8"))


def facade_homes() -> dict[str, str]:
    """Return the modules that the public names of the package are from."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_NAMES":
            modules: dict[str, str] = ast.literal_eval(node.value)
            return {name: home for home, names in modules.items() for name in names.split()}
    raise LookupError("llamacffi/__init__.py has no _NAMES")
