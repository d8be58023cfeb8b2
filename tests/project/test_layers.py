"""Imports point down."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

# From the ground up; a module may import those of the lines above its own, and of its own line.
LAYERS = """
_llama
_elf _layout _libraries _frames _opening _unique
_loading
_chosen_libraries
errors
_checks
_missing
_ffi
_types
log
_generated
_hints _path_hints _subprocess
_life
_exclusive
_handle _callbacks _views _text _tokens _params _atomic _files
_regex _sampling.gbnf_rules
_sampling.gbnf _sampling.trigger samplers
_gguf.types _gguf.numbers _gguf.values _gguf.kept
_gguf.metadata _gguf.tensors
_gguf.files
gguf
shards
_sources _model.weights _model.weight_types _context.planning
_backend_files _build_info _cores _devices _endpoint
interop
backend
perf tensor threads
candidates
_sampling.python
custom
rpc
_vocab.entries _vocab.sequences
_vocab.tokenizing
vocab
_context.newer _context.contention
_context.base
token_samplers
grammar_sampler _sampling.plan
_sampling.chain _sampling.recommended
sampling
_model.pattern_cost
_model.overrides _model.vocabulary
_model.load_mode _model.file_kind
_model.hyperparameters
_model.loading _model.info _model.params
_model.making _model.token_types _model.saving hub
model
_batch.ext _batch.input
_batch.arrays
batch _context.known_tokens
_context.lineage _context.turning
_context.held_memory
memory
_lora
adapter control_vector
lora
_context.adapters _context.outputs _context.threads _context.settling _context.rejected
_context.identity _context.state_format _context.memory_size
_context.restoring _context.room
snapshot state
_context.sampling
_context.graph
_context.params
_context.computation
_context.perf
context
_generation.step _generation.stops _generation.prompt
_generation.loop
generation
imatrix
_quantize_params
quantization
demo
cli
__main__
"""
ORDER = {name: i for i, line in enumerate(LAYERS.split("\n")) for name in line.split()}


def modules(root: Path) -> list[Path]:
    package = root / "llamacffi"
    return [
        path
        for path in sorted(package.rglob("*.py"))
        if "_generated" not in path.parts and (path.name != "__init__.py" or "cli" in path.parts)
    ]


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes under ``node`` but for those only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from runtime_nodes(child)


def layer_name(path: Path, package: Path) -> str:
    """Return the name of a module as LAYERS has it; the command line is one."""
    name = ".".join(path.relative_to(package).with_suffix("").parts)
    return "cli" if name.startswith("cli.") else name


def imported(path: Path, package: Path) -> Iterator[str]:
    """Yield the modules of the package that a module imports, at any place in it."""
    parts = path.relative_to(package).parts
    for node in runtime_nodes(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = (node.module or "").split(".") if node.module else []
        if node.level:
            base = [*parts[: len(parts) - node.level], *base]
        elif base.pop(0) != "llamacffi":
            continue
        for one in node.names:
            whole = ".".join([*base, one.name])
            yield whole if whole in ORDER else ".".join(base)


def layer_of(module: str) -> int:
    """Return the layer of a module; those of the command line and the generated ones have one."""
    return ORDER[module if module in ORDER else module.split(".")[0]]


def test_every_module_has_its_layer(root):
    package = root / "llamacffi"
    names = {layer_name(path, package) for path in modules(root)}
    assert names == set(ORDER) - {"_llama", "_generated"}


def test_imports_point_down(root):
    package = root / "llamacffi"
    checked = 0
    for path in modules(root):
        name = layer_name(path, package)
        for target in imported(path, package):
            if target.split(".")[0] == name == "cli":
                continue
            assert layer_of(target) <= ORDER[name], f"{name} imports {target}, which is above it"
            checked += 1
    assert checked > 200


def test_only_one_module_imports_the_compiled_one(root):
    importers = [
        path.name for path in modules(root) if "_llama" in set(imported(path, root / "llamacffi"))
    ]
    assert importers == ["_ffi.py"]


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
    """An `Exclusive` cannot tell whether a generator that was interrupted is over or waits."""
    held = [
        f"{path.name}:{inner.lineno}"
        for path in modules(root)
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        and any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(function))
        for inner in ast.walk(function)
        if isinstance(inner, ast.With)
        and any("exclusive" in ast.unparse(item.context_expr) for item in inner.items)
    ]
    assert not held
