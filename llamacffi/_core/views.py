"""Arrays over memory that C owns.

No Python code runs when an array is deleted: an interrupt there would be swallowed, and the cleanup
left undone.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from .._native import ffi

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Exports:
    """Tracks the live views of a buffer that C may move, as `bytearray` does."""

    __slots__ = ("live",)

    live: set[weakref.ref[_Floats]]
    """One reference for each view; removed, by C code, when the view is deleted."""

    def __init__(self) -> None:
        self.live = set()

    def check_none(self) -> None:
        """Raise `BufferError` while a view is alive."""
        if n := len(self.live):
            raise BufferError(
                f"{n} zero-copy view(s) of the outputs are alive: delete them before decoding, or "
                "use logits(), which copies"
            )


class _Floats:
    """C memory in the form that numpy reads: the base of an array and of all its slices."""

    __slots__ = ("__array_interface__", "__weakref__", "_owner")

    def __init__(self, ptr: Any, shape: tuple[int, ...], owner: Any) -> None:
        import numpy as np

        self._owner = owner
        self.__array_interface__ = {
            "version": 3,
            "data": (int(ffi.cast("uintptr_t", ptr)), True),  # read-only
            "shape": shape,
            "typestr": np.dtype(np.float32).str,
        }


def float_view(
    ptr: Any, shape: tuple[int, ...], owner: Any, exports: Exports
) -> npt.NDArray[np.float32]:
    """Return a read-only float32 array over ``ptr`` that keeps ``owner`` alive.

    The owner lives at least as long as the last array, slice or memoryview of its memory.
    """
    import numpy as np

    floats = _Floats(ptr, shape, owner)
    exports.live.add(weakref.ref(floats, exports.live.discard))
    return np.asarray(floats)
