"""Arrays over memory that C owns.

No Python runs when one goes: an interrupt could be lost in it, with what it was to do.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from .._native import ffi

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Exports:
    """Knows the live views of a buffer that C may move, as `bytearray` does."""

    __slots__ = ("live",)

    live: set[weakref.ref[_Floats]]
    """One for each view; C takes it out."""

    def __init__(self) -> None:
        self.live = set()

    def check_none(self) -> None:
        """Raise `BufferError` while a view is alive."""
        if n := len(self.live):
            raise BufferError(
                f"{n} zero-copy view(s) of the outputs are alive; delete them before "
                "decoding, or use logits(), which copies"
            )


class _Floats:
    """Memory of C as numpy reads it: the base of an array, and of all that look into that."""

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

    The owner goes no earlier than the last array, slice or memoryview that looks into its memory.
    """
    import numpy as np

    floats = _Floats(ptr, shape, owner)
    exports.live.add(weakref.ref(floats, exports.live.discard))
    return np.asarray(floats)
