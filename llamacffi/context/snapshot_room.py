"""Whether there is room for a snapshot.

llama.cpp allocates it in a destructor, where a failure ends the process.  So as much is allocated
and freed first.
"""

from __future__ import annotations

from typing import Any

from .._core.text import new_uncleared
from .._native import ffi, lib
from ..errors import StateError
from .memory_size import GIB, available_bytes

CAN_TELL = hasattr(lib, "llamacffi_snapshot_fits")


class Mark:
    """Whose the snapshot of a sequence is, and what C has allocated for it."""

    __slots__ = ("n_tensors", "sizes")

    def __init__(self) -> None:
        self.sizes: tuple[int, int] = (0, 0)
        self.n_tensors: int = 0


def check_room(ptr: Any, seq_id: int, flags: int, before: Mark | None, mark: Mark) -> None:
    """Check that there is room for a snapshot, and note how large it is.

    Args:
        ptr: The ``struct llama_context *``.
        seq_id: The sequence.
        flags: As C gets them.
        before: Of the snapshot that is replaced, whose buffers are used again if they fit.
        mark: Where to note it.

    Raises:
        StateError: There is none.

    Source: ``llamacffi_snapshot_size``, ``llamacffi_snapshot_fits``.
    """
    if not CAN_TELL:
        return
    size = ffi.new("struct llamacffi_snapshot *")
    lib.llamacffi_snapshot_size(ptr, seq_id, flags, size)
    mark.sizes, mark.n_tensors = (size.n_host, size.n_device), size.n_tensors
    fresh = before is None or before.sizes != mark.sizes
    # Linux promises more memory than it has: what is not small is compared with what is there.
    promised = fresh and size.n_host > GIB // 4 and size.n_host > available_bytes()
    if promised or not lib.llamacffi_snapshot_fits(ptr, seq_id, flags, fresh):
        raise StateError(
            f"there is no room for a snapshot of sequence {seq_id}, which takes "
            f"{(size.n_host + size.n_device) / 2**20:.1f} MiB in {size.n_tensors} pieces: free "
            'memory, or give flash_attn_type="enabled", which makes fewer pieces'
        )


def check_room_to_restore(mark: Mark) -> None:
    """Check that C can describe what it copies back, in pieces that may be other ones.

    Raises:
        StateError: There is no memory for that.

    Source: ``llamacffi_snapshot_description``.
    """
    if not CAN_TELL:
        return
    try:
        new_uncleared("char[]", lib.llamacffi_snapshot_description(2 * mark.n_tensors))
    except MemoryError:
        raise StateError("there is no memory to restore a snapshot: free some first") from None
