"""Imports point down, from room to room, and no files import each other in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

# The folders and the modules beside them, from the ground up.  One imports from those before it.
ROOMS = (
    *("errors", "_native", "_generated", "_core", "log"),
    *("gguf", "backend", "vocab", "model", "adapter", "sampling", "batch", "context"),
    *("generation", "tools", "hub", "rpc", "shards", "demo", "cli", "__main__"),
)

# What type checkers alone import from a room above, and why it cannot be otherwise.
UPHILL = {
    ("_generated", "_core"): "the parameters name the objects that they take",
    ("_core", "backend"): "the same",
    ("_core", "context"): "the same",
    ("_core", "sampling"): "the same",
    ("adapter", "batch"): "Adapter.invocation_start() takes what Batch.add() takes",
    ("sampling", "context"): "SamplerChain.sample() takes a Context",
    ("vocab", "model"): "Vocab.model",
}


def modules(root: Path) -> dict[str, Path]:
    """Return the modules of the package by their names."""
    package = root / "llamacffi"
    found = {path.relative_to(package): path for path in sorted(package.rglob("*.py"))}
    return {
        ".".join(part for part in short.with_suffix("").parts if part != "__init__"): path
        for short, path in found.items()
        if short.name != "__init__.py" or short.parent.name  # not the package's own, which has all
    }


def imported(path: Path, known: dict[str, Path], *, typing: bool) -> Iterator[str]:
    """Yield the modules that a module imports, anywhere in it; ``typing``: for checkers too."""
    package = next(one for one in path.parents if one.name == "llamacffi")
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing:
            continue
        nodes += ast.iter_child_nodes(node)
        if not isinstance(node, ast.ImportFrom):
            continue
        base = node.module.split(".") if node.module else []
        if node.level:
            base = [*path.relative_to(package).parts[: -node.level], *base]
        elif not base or base.pop(0) != "llamacffi":
            continue
        for one in node.names:
            whole = ".".join([*base, one.name])
            yield whole if whole in known else ".".join(base)


def room(module: str) -> int:
    return ROOMS.index(module.partition(".")[0])


def test_imports_point_down(root):
    known, uphill = modules(root), set()
    for name, path in known.items():
        for target in set(imported(path, known, typing=True)) - {"", "_llama"}:
            if room(target) > room(name):
                uphill.add((name.partition(".")[0], target.partition(".")[0]))
        for target in set(imported(path, known, typing=False)) - {"", "_llama"}:
            assert room(target) <= room(name), f"{name} imports {target}, from a room above it"
    assert uphill == set(UPHILL)


def test_only_one_module_imports_the_compiled_one(root):
    known = modules(root)
    importers = [
        name for name, path in known.items() if "_llama" in imported(path, known, typing=False)
    ]
    assert importers == ["_native"]


@pytest.mark.parametrize("package", ["ffigen", "llamacffi"])
def test_modules_fit_in_the_head(root, package):
    """A module that has grown past this wants a seam."""
    long = {
        path.name: lines
        for path in (root / package).rglob("*.py")
        if "_generated" not in path.parts and (lines := len(path.read_text().splitlines())) > 450
    }
    assert not long


def test_no_generator_holds_an_object(root):
    """A `CallLock` cannot tell whether a generator that was interrupted is over or waits."""
    held = [
        f"{path.name}:{inner.lineno}"
        for name, path in modules(root).items()
        if not name.startswith(("gguf", "log", "backend.registry"))  # an RLock, which waits
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        and any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(function))
        for inner in ast.walk(function)
        if isinstance(inner, ast.With)
        and any("lock" in ast.unparse(item.context_expr) for item in inner.items)
    ]
    assert not held
