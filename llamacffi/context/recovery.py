"""Making the memory of a context consistent after a batch has failed.

Source: ``llama_memory_seq_rm``, ``llama_memory_clear``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..batch.arrays import BatchArrays
    from .bookkeeping import Bookkeeping
    from .traits import ContextTraits

PosMax = dict[int, "int | None"]


def ends(context: Any, batch: BatchArrays) -> PosMax:
    """Return the last position of each sequence of a batch in memory; None if it is empty.

    Source: ``llama_memory_seq_pos_max``.
    """
    memory = lib.llama_get_memory(context)
    if memory == ffi.NULL:
        return {}
    found = {seq_id: lib.llama_memory_seq_pos_max(memory, seq_id) for seq_id in batch.starts()}
    return {seq_id: None if pos < 0 else pos for seq_id, pos in found.items()}


class Recovery:
    """Removes from memory what a failed batch left there.

    The first argument of its methods is the ``struct llama_context *``; the caller holds it.
    """

    __slots__ = ("_bookkeeping", "_traits")

    def __init__(self, traits: ContextTraits, bookkeeping: Bookkeeping) -> None:
        self._traits, self._bookkeeping = traits, bookkeeping

    def after_failure(self, context: Any, batch: BatchArrays) -> PosMax:
        """Make the memory consistent; finished micro-batches stay where the model allows it.

        Returns:
            The last position of each sequence of the batch.
        """
        memory = lib.llama_get_memory(context)
        if memory != ffi.NULL:
            # Keys that were to be rotated before the batch may be spoilt.
            self._forget(memory, self._bookkeeping.interrupted(batch))
            if self._traits.has_state:
                self._forget_states(memory, batch.starts())
            elif batch.coupled:
                self._forget_torn(memory, batch)
        return ends(context, batch)

    def after_exception(self, context: Any, batch: BatchArrays) -> None:
        """Remove the whole batch: a C++ exception has kept llama.cpp from cleaning up."""
        self.after_failure(context, batch)
        memory = lib.llama_get_memory(context)
        if memory != ffi.NULL:
            for seq_id, pos in batch.starts().items():
                self._cut(memory, seq_id, pos)

    def take_back(self, context: Any, before: Mapping[int, int]) -> None:
        """Remove what sequences have after the positions where they ended before a micro-batch.

        A device that cannot be stopped has finished it, and perhaps others after it.
        """
        memory = lib.llama_get_memory(context)
        if memory == ffi.NULL or self._traits.has_state:  # `after_failure` forgets whole states
            return
        for seq_id, end in before.items():
            self._cut(memory, seq_id, end + 1)

    def _cut(self, memory: Any, seq_id: int, start: int) -> None:
        """Remove the end of a sequence from a position on, or all of it if C cannot do that."""
        if lib.llama_memory_seq_pos_max(memory, seq_id) >= start:
            if lib.llama_memory_seq_rm(memory, seq_id, start, -1):
                self._bookkeeping.removed(seq_id, start)
            else:
                self._forget(memory, [seq_id])

    def _forget(self, memory: Any, seq_ids: Iterable[int]) -> None:
        """Remove whole sequences, which is always possible."""
        for seq_id in list(seq_ids):
            lib.llama_memory_seq_rm(memory, seq_id, -1, -1)
            self._bookkeeping.removed(seq_id, 0)

    def _forget_states(self, memory: Any, starts: dict[int, int]) -> None:
        """Remove the sequences whose recurrent state may be half computed."""
        # A sequence that ends where it did before the batch was not touched, unless llama.cpp went
        # back to an earlier state, which the same computation was to write.
        torn = [
            seq_id
            for seq_id, start in starts.items()
            if self._traits.n_rs_seq or lib.llama_memory_seq_pos_max(memory, seq_id) >= start
        ]
        if torn and len(starts) > 1:
            # upstream: src/llama-memory-recurrent.cpp find_slot: to compute several sequences at
            # once it moves their states next to each other, and other states out of the way; so
            # those may be misplaced too.
            lib.llama_memory_clear(memory, False)
            self._bookkeeping.cleared()
        self._forget(memory, torn)

    def _forget_torn(self, memory: Any, batch: BatchArrays) -> None:
        """Remove the tokens that are left in some of their sequences, and gone from others."""
        for pos, seq_ids in zip(batch.positions.tolist(), batch.seq_ids, strict=True):
            left = [one for one in seq_ids if lib.llama_memory_seq_pos_max(memory, one) >= pos]
            if len(left) < len(seq_ids):
                for seq_id in left:
                    lib.llama_memory_seq_rm(memory, seq_id, pos, -1)
                    self._bookkeeping.removed(seq_id, pos)
