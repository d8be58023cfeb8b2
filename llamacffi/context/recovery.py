"""What becomes of the memory when a computation fails.

llama.cpp takes back the micro-batch that failed, and leaves those before it.  But it takes it back
from the first sequence of each token only, and a recurrent state, which cannot go back, it leaves
half computed.  Here that is put right, so that what the memory says that it has, it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._native import ffi, lib
from .compat import n_rs_seq

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..batch.batch import Batch
    from .bookkeeping import Bookkeeping

PosMax = dict[int, "int | None"]


def ends(context: Any, batch: Batch) -> PosMax:
    """Return where each sequence of a batch ends in memory: its last position, None if empty.

    Source: ``llama_memory_seq_pos_max``.
    """
    memory = lib.llama_get_memory(context)
    if memory == ffi.NULL:
        return {}
    found = {seq_id: lib.llama_memory_seq_pos_max(memory, seq_id) for seq_id in batch.starts()}
    return {seq_id: None if pos < 0 else pos for seq_id, pos in found.items()}


def settle(context: Any, batch: Batch, bookkeeping: Bookkeeping) -> PosMax:
    """Make the memory consistent after llama.cpp has given up a batch.

    Returns:
        Where each sequence of the batch ends now.
    """
    memory = lib.llama_get_memory(context)
    if memory != ffi.NULL:
        # What was to be turned before may be spoilt.
        _forget(memory, bookkeeping, bookkeeping.interrupted(batch))
        if _is_recurrent(context):
            _forget_states(context, memory, batch.starts(), bookkeeping)
        elif batch.is_coupled:
            _forget_torn(memory, batch, bookkeeping)
    return ends(context, batch)


def roll_back(context: Any, batch: Batch, bookkeeping: Bookkeeping) -> PosMax:
    """Remove a batch from memory where a C++ exception kept llama.cpp from doing anything.

    Returns:
        Where each sequence of the batch ends now.
    """
    memory = lib.llama_get_memory(context)
    if memory != ffi.NULL:
        settle(context, batch, bookkeeping)
        for seq_id, pos in batch.starts().items():
            if lib.llama_memory_seq_pos_max(memory, seq_id) >= pos:
                if lib.llama_memory_seq_rm(memory, seq_id, pos, -1):
                    bookkeeping.removed(seq_id, pos)
                else:
                    _forget(memory, bookkeeping, [seq_id])
    return ends(context, batch)


def take_back(context: Any, before: Mapping[int, int], bookkeeping: Bookkeeping) -> None:
    """Remove what sequences have behind the positions where they ended before a micro-batch.

    A device that cannot be stopped has computed it to its end, and perhaps others after it.
    """
    memory = lib.llama_get_memory(context)
    if memory == ffi.NULL or _is_recurrent(context):  # `settle` forgets states as a whole
        return
    for seq_id, end in before.items():
        if lib.llama_memory_seq_pos_max(memory, seq_id) > end:
            if lib.llama_memory_seq_rm(memory, seq_id, end + 1, -1):
                bookkeeping.removed(seq_id, end + 1)
            else:
                _forget(memory, bookkeeping, [seq_id])


def _forget(memory: Any, bookkeeping: Bookkeeping, seq_ids: Iterable[int]) -> None:
    """Forget whole sequences, which is always possible."""
    for seq_id in list(seq_ids):
        lib.llama_memory_seq_rm(memory, seq_id, -1, -1)
        bookkeeping.removed(seq_id, 0)


def _is_recurrent(context: Any) -> bool:
    model = lib.llama_get_model(context)
    return bool(lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model))


def _forget_states(
    context: Any, memory: Any, starts: dict[int, int], bookkeeping: Bookkeeping
) -> None:
    """Forget the sequences whose recurrent state may be half computed."""
    # A sequence that ends where it did before the batch was not touched, unless llama.cpp went back
    # to a snapshot, which the same computation was to write.
    snapshots = n_rs_seq(context) > 0
    torn = [
        seq_id
        for seq_id, start in starts.items()
        if snapshots or lib.llama_memory_seq_pos_max(memory, seq_id) >= start
    ]
    if torn and len(starts) > 1:
        # To compute several sequences at once their states are moved side by side, and those of
        # others out of the way: they too may be anywhere.
        lib.llama_memory_clear(memory, False)
        bookkeeping.cleared()
    _forget(memory, bookkeeping, torn)


def _forget_torn(memory: Any, batch: Batch, bookkeeping: Bookkeeping) -> None:
    """Take back the tokens that are left in some of their sequences, and gone from others."""
    for pos, seq_ids in zip(batch.positions.tolist(), batch.seq_ids, strict=True):
        left = [seq_id for seq_id in seq_ids if lib.llama_memory_seq_pos_max(memory, seq_id) >= pos]
        if len(left) < len(seq_ids):
            for seq_id in left:
                lib.llama_memory_seq_rm(memory, seq_id, pos, -1)
                bookkeeping.removed(seq_id, pos)
