"""Batches with embeddings, passed to C entry by entry.

A ``struct llama_batch`` records neither the width of its embeddings nor the number of positions of
each: C reads as much as the model needs, even past the end.  A ``struct llama_batch_ext`` gets the
width of each row and checks it, so all batches with embeddings use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._core.ownership import make, own
from .._native import ffi, lib
from ..errors import batch_error
from ..log import with_log

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# upstream: include/llama.h llama_batch_ext_add_embd, "-2: token is invalid": returned for
# embeddings whose width differs from that of the model; C has no name for it.
INVALID = -2


def fill(
    context: Any,
    tokens: Sequence[int] | None,
    embeddings: npt.NDArray[np.float32],
    positions: npt.NDArray[np.int32],
    seq_ids: Sequence[Sequence[int]],
    outputs: bytes,
) -> Any:
    """Return a ``llama_batch_ext_t`` with embeddings, for ``llama_process``.

    Args:
        context: The ``struct llama_context *``.
        tokens: The token of each entry; None for embeddings without tokens.
        embeddings: ``[n, width]``, C-contiguous.
        positions: ``[n, SECTIONS]``, C-contiguous; most models use only the first.
        seq_ids: The sequences of each entry.
        outputs: A byte for each entry: whether it has an output.

    Raises:
        ArgumentError: The width of the embeddings differs from the model's.

    Source: ``llama_batch_ext_init`` and the functions after it.
    """
    batch = own(make(lib.llama_batch_ext_free, (context,), lib.llama_batch_ext_init, context))
    rows = ffi.from_buffer("float[]", embeddings)
    where = ffi.from_buffer("llama_pos[]", positions)
    width, step = embeddings.shape[1], positions.shape[1]
    embd = ffi.new("struct llama_embd *", {"n_rows": 1, "n_embd": width})
    for i, (first, *others) in enumerate(seq_ids):
        embd.data = rows + i * width
        if tokens is None:
            index = lib.llama_batch_ext_add_embd(batch, first, embd[0])
        else:
            index = lib.llama_batch_ext_add_token(batch, first, tokens[i])
            if index >= 0 and not lib.llama_batch_ext_set_embd_token(batch, index, embd[0]):
                index = INVALID
        if index < 0:
            raise with_log(batch_error(index, f"embedding {i}, which has {width} floats"))
        done = all(lib.llama_batch_ext_add_seq(batch, index, other) for other in others)
        done = done and lib.llama_batch_ext_set_pos(batch, index, where + i * step)
        done = done and lib.llama_batch_ext_set_output_logits(batch, index, bool(outputs[i]))
        assert done, "C refuses only indices and sequences out of range"
    return batch
