"""Imports point downhill, from room to room, and private attributes stay in their module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

# The folders and the modules beside them, from the ground up.  Each imports only from those before.
ROOMS = (
    *("errors", "_native", "_generated", "_core", "log"),
    *("gguf", "backend", "vocab", "model", "adapter", "sampling", "batch", "context"),
    *("generation", "tools", "hub", "rpc", "shards", "demo", "cli", "__main__"),
)

# Imports from a room above that only type checkers see, and why they are needed.
UPHILL = {
    ("_generated", "context"): "the parameters of a context name the objects that they take",
    ("_generated", "model"): "the same for a model",
    ("_generated", "tools"): "the same for quantize()",
    ("vocab", "model"): "Vocab.model",
}

# The files that form circles, with the imports that only type checkers make, and why they must.
CIRCLES = {
    "Model.vocab is a Vocab, whose `model` is that Model": (
        "model.model vocab.entries vocab.tokenizing vocab.vocab"
    ),
}

# The private attributes that a module uses although another defines them, and why it must.  Aim:
# none.  A function in the owner's module, or a public name, takes the place of an entry.
PRIVATE: dict[tuple[str, str], str] = {}


def modules(root: Path) -> dict[str, Path]:
    """Return the modules of the package by their names."""
    package = root / "llamacffi"
    found = {path.relative_to(package): path for path in sorted(package.rglob("*.py"))}
    return {
        ".".join(part for part in short.with_suffix("").parts if part != "__init__"): path
        for short, path in found.items()
        if short.name != "__init__.py"
        or short.parent.name  # not the package's own, which imports from all rooms
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


def private_names(tree: ast.AST) -> set[str]:
    """Return the private names that a module defines, as functions, classes or attributes."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id="__slots__")], value=slots):
                found |= {one.value for one in ast.walk(slots) if isinstance(one, ast.Constant)}
    return found


def private_uses(path: Path) -> set[str]:
    """Return the private attributes that a module uses, but does not define."""
    tree = ast.parse(path.read_text())
    mine = {"self", "cls", "super()"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            mine |= {one.asname or one.name for one in node.names if one.name.islower()}
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.endswith("__")
        and ast.unparse(node.value) not in mine
    } - private_names(tree)


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


def test_only_its_owner_uses_a_private_attribute(root):
    used = {(name, one) for name, path in modules(root).items() for one in private_uses(path)}
    assert used == set(PRIVATE), "mend the new ones; drop the entries that are mended"


def circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """Return the sets of modules that all reach each other by imports."""
    reached = {name: reachable(name, imports) for name in imports}
    found: list[set[str]] = []
    for name in sorted(imports):
        circle = {other for other in reached[name] if name in reached[other]}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def reachable(name: str, imports: dict[str, set[str]]) -> set[str]:
    """Return the modules that a module imports, directly or through others."""
    found: set[str] = set()
    waiting = list(imports[name])
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += imports[one]
    return found


def test_circles_are_found():
    imports = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"f"}, "f": {"e"}}
    assert circles(imports) == [{"b", "c"}, {"e", "f"}]


@pytest.mark.parametrize("typing", [False, True])
def test_files_form_no_other_circles(root, typing):
    known = modules(root)
    imports = {
        name: set(imported(path, known, typing=typing)) & (known.keys() - {name})
        for name, path in known.items()
    }
    assert sorted(map(sorted, circles(imports))) == sorted(
        sorted(files.split()) for files in CIRCLES.values() if typing
    )


def test_classes_have_three_levels_of_bases_at_most(root):
    bases: dict[str, list[str]] = {}
    for path in modules(root).values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and "_generated" not in path.parts:
                bases[node.name] = [ast.unparse(base).rpartition(".")[2] for base in node.bases]

    def level(name: str) -> int:
        return max((1 + level(base) for base in bases[name] if base in bases), default=0)

    assert {name for name in bases if level(name) > 3} == set()


def test_only_one_module_imports_the_compiled_one(root):
    known = modules(root)
    importers = [
        name for name, path in known.items() if "_llama" in imported(path, known, typing=False)
    ]
    assert importers == ["_native"]


@pytest.mark.parametrize("package", ["ffigen", "llamacffi"])
def test_modules_fit_in_the_head(root, package):
    """Split a module that has grown past this."""
    long = {
        path.name: lines
        for path in (root / package).rglob("*.py")
        if "_generated" not in path.parts and (lines := len(path.read_text().splitlines())) > 450
    }
    assert not long


def test_no_generator_holds_an_object(root):
    """A `CallLock` cannot tell whether an interrupted generator has ended or is suspended."""
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
