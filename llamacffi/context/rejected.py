"""Why llama.cpp rejected a batch.

upstream: src/llama-batch.cpp "inconsistent sequence positions": it writes the reason to its log
only, and names no remedy.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..batch.arrays import BatchArrays

# Models with several positions for each token, which can have gaps.
SECTIONED = (lib.LLAMA_ROPE_TYPE_MROPE, lib.LLAMA_ROPE_TYPE_IMROPE)


def why_rejected(context: Any, batch: BatchArrays, pos_max: Mapping[int, int | None]) -> str:
    """Return what is wrong with a batch for which ``llama_decode`` returned -1, and the remedy.

    Args:
        context: The ``struct llama_context *``.
        batch: The batch.
        pos_max: The last position of each sequence in memory; None if it is empty.
    """
    found: dict[int, list[int]] = {}
    sets = batch.seq_ids
    for pos, seq_ids in zip(batch.positions.tolist(), sets, strict=True):
        for seq_id in seq_ids:
            found.setdefault(seq_id, []).append(pos)
    may_jump = lib.llama_model_rope_type(lib.llama_get_model(context)) in SECTIONED
    step = (
        0 if may_jump and not len(batch.tokens) else 1
    )  # an image may start at the last position of a text
    for seq_id, positions in sorted(found.items()):
        reason = _misplaced(seq_id, positions, pos_max.get(seq_id), step, may_jump)
        if reason:
            return reason
    return _diverged(context, sets) or "see its log for the reason"


def _misplaced(
    seq_id: int, positions: list[int], last: int | None, step: int, may_jump: bool
) -> str:
    """Return what is wrong with the positions of a sequence that ends at ``last`` in memory."""
    first = min(positions)
    if last is not None and (first < last + step if may_jump else first != last + 1):
        remedy = f"give pos=context.memory.next_pos({seq_id}), which is {last + 1}"
        if first <= last:
            remedy += f", or call context.memory.remove({seq_id}, {first}) first"
        return (
            f"sequence {seq_id} ends at position {last} in memory, but its first token in the "
            f"batch has position {first}: {remedy}"
        )
    if any(after < before for before, after in pairwise(positions)):
        return (
            f"the positions of sequence {seq_id} decrease in the batch: sort the tokens by position"
        )
    for before, after in pairwise(positions):
        if after > before + 1 and not may_jump:
            return (
                f"in the batch, position {after} of sequence {seq_id} comes after {before}: give "
                "consecutive positions"
            )
    return ""


def _diverged(context: Any, sets: Iterable[Sequence[int]]) -> str:
    """Return which sequences share tokens of the batch, but differ in memory."""
    memory = lib.llama_get_memory(context)
    for first, *others in sets if memory != ffi.NULL else ():
        for other in others:
            for end in (lib.llama_memory_seq_pos_min, lib.llama_memory_seq_pos_max):
                if end(memory, first) != end(memory, other):
                    return (
                        f"sequences {first} and {other} share tokens of the batch, but have "
                        "different positions in memory: make them equal with "
                        "context.memory.fork(), or give each its own tokens"
                    )
    return ""
