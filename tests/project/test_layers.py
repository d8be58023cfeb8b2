"""Imports point down."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

# From the ground up; a module may import those of the lines above its own, and of its own line.
LAYERS = """
_llama
_ffi
_types
errors
log
_generated
_handle _callbacks _views _text _tokens _params _atomic _files
_checks _gbnf_rules
_gbnf samplers
_ggml_types _gguf_values
_gguf_metadata _gguf_tensors
_gguf_files
gguf
shards
_sources _weights _planning
_cores _devices
backend
perf tensor threads
candidates
_python_samplers
custom
rpc
_entries _sequences
vocab
_context
token_samplers
grammar_sampler _plan
_chain _recommended
sampling
_overrides
_loading _model_info _model_params
_making _saving hub
model
_batch_ext _batch_input
_batch_arrays
batch _lineage
_held_memory
memory
_lora
adapter control_vector
lora
_adapters _outputs _threads _settling _identity _state_format
_restoring
snapshot state
_backend_sampling
_graph _memory_size
_context_params
_computation
_perf
context
_step
_loop
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
        if "_generated" not in path.parts and path != package / "__init__.py"
    ]


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes under ``node`` but for those only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from runtime_nodes(child)


def imported(path: Path, package: Path) -> Iterator[str]:
    """Yield the modules of the package that a module imports, at any place in it."""
    depth = len(path.relative_to(package).parts)
    for node in runtime_nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            yield from [node.module] if node.module else [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llamacffi"):
            yield (node.module or "").partition(".")[2] or "llamacffi"


def test_every_module_has_its_layer(root):
    package = root / "llamacffi"
    names = {path.relative_to(package).parts[0].removesuffix(".py") for path in modules(root)}
    assert names == set(ORDER) - {"_llama", "_generated"}


def test_imports_point_down(root):
    package = root / "llamacffi"
    checked = 0
    for path in modules(root):
        name = path.relative_to(package).parts[0].removesuffix(".py")
        for target in imported(path, package):
            layer = target.split(".")[0]
            if layer == name:
                continue
            assert ORDER[layer] <= ORDER[name], f"{path.name} imports {target}, which is above it"
            checked += 1
    assert checked > 40


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
