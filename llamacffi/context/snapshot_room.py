"""Checks that there is enough memory for a snapshot.

upstream: src/llama-context.cpp "~llama_io_write_device": it allocates the memory in a destructor,
where a failure ends the process; so we allocate and free the same amount first.
"""

from __future__ import annotations

from typing import Any

from .._core.text import new_uncleared
from .._native import ffi, lib
from ..errors import StateError
from .memory_size import GIB, available_bytes

CAN_TELL = hasattr(lib, "llamacffi_snapshot_fits")


class Mark:
    """Identifies the valid snapshot of a sequence, and records what C has allocated for it."""

    __slots__ = ("n_tensors", "sizes")

    def __init__(self) -> None:
        self.sizes: tuple[int, int] = (0, 0)
        self.n_tensors: int = 0


def check_room(ptr: Any, seq_id: int, flags: int, before: Mark | None, mark: Mark) -> None:
    """Check that there is enough memory for a snapshot, and record its size.

    Args:
        ptr: The ``struct llama_context *``.
        seq_id: The sequence.
        flags: The flags for C.
        before: The mark of the snapshot to replace, whose buffers are reused if they fit.
        mark: Where to record the size.

    Raises:
        StateError: There is not enough memory.

    Source: ``llamacffi_snapshot_size``, ``llamacffi_snapshot_fits``.
    """
    if not CAN_TELL:
        return
    size = ffi.new("struct llamacffi_snapshot *")
    lib.llamacffi_snapshot_size(ptr, seq_id, flags, size)
    mark.sizes, mark.n_tensors = (size.n_host, size.n_device), size.n_tensors
    fresh = before is None or before.sizes != mark.sizes
    # Linux overcommits memory, so compare large sizes with the available memory.
    overcommits = fresh and size.n_host > GIB // 4 and size.n_host > available_bytes()
    if overcommits or not lib.llamacffi_snapshot_fits(ptr, seq_id, flags, fresh):
        raise StateError(
            f"there is not enough memory for a snapshot of sequence {seq_id}, which takes "
            f"{(size.n_host + size.n_device) / 2**20:.1f} MiB in {size.n_tensors} pieces: free "
            'memory, or set flash_attn_type="enabled", which needs fewer pieces'
        )


def check_room_to_restore(mark: Mark) -> None:
    """Check that C can allocate the descriptions of the pieces that it copies back.

    Raises:
        StateError: There is not enough memory for them.

    Source: ``llamacffi_snapshot_description``.
    """
    if not CAN_TELL:
        return
    try:
        new_uncleared("char[]", lib.llamacffi_snapshot_description(2 * mark.n_tensors))
    except MemoryError:
        raise StateError("there is not enough memory to restore a snapshot: free some") from None
