"""What is known of the types of weights is what the graph of each architecture does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llamacffi import Batch, Context, Model, ffi, lib
from llamacffi.model.weight_types import RULES

# What only looks at a tensor in another shape.
VIEWS = (*(lib.GGML_OP_RESHAPE, lib.GGML_OP_VIEW, lib.GGML_OP_PERMUTE, lib.GGML_OP_TRANSPOSE),)
# What reads quantized matrices.
MATRIX = (lib.GGML_OP_MUL_MAT, lib.GGML_OP_MUL_MAT_ID, lib.GGML_OP_GET_ROWS)


def uses(model: Model) -> set[tuple[str, int, int]]:
    """Return what the graphs of a model do: the name of a weight, the operation, which source."""
    names = {
        int(ffi.cast("intptr_t", tensor)): ffi.string(tensor.name).decode()
        for tensor in (
            lib.llamacffi_model_tensor(model.ptr, i)
            for i in range(lib.llamacffi_model_n_tensors(model.ptr))
        )
    }
    found = set()

    def look(node: Any, _asked: bool) -> bool:
        for i, source in enumerate(node.ptr.src):
            while source != ffi.NULL and source.op in VIEWS:
                source = source.src[0]
            name = names.get(int(ffi.cast("intptr_t", source)))
            if name is not None and node.ptr.op not in VIEWS:
                found.add((name, int(node.ptr.op), i))
        return False

    with Context(model, n_ctx=64, n_threads=1, cb_eval=look) as context:
        batch = Batch.from_tokens([1, 2, 3])
        if model.has_encoder:
            context.encode(batch)
        if model.has_decoder:
            context.decode(batch)
    return found


def test_the_rules_are_true_of_each_architecture(models: Path):
    wrong = set()
    for path in sorted(models.iterdir()):
        with Model(path, n_gpu_layers=0) as model:
            found = uses(model)
            assert found, path.stem
            for name, op, i in found:
                _, fits, reads = next(rule for rule in RULES if rule[0].search(name))
                if fits(lib.GGML_TYPE_Q8_0) != (op in MATRIX and i == 0):
                    what = ffi.string(lib.ggml_op_name(op)).decode()
                    wrong.add(f"{path.stem}: {name}: {what} {i}, but {reads}")
    # Of this one the shape of the kernel's input differs by architecture.
    assert {one for one in wrong if "indexer_compressor_ape" not in one} == set()
