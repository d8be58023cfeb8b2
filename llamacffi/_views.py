"""Arrays over memory that C owns."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ._ffi import ffi

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Exports:
    """Counts the live views of a buffer that C may move, as `bytearray` does."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def check_none(self) -> None:
        """Raise `BufferError` while a view is alive."""
        if self.count:
            raise BufferError(
                f"{self.count} zero-copy view(s) of the outputs are alive; delete them before "
                "decoding, or use logits(), which copies"
            )


def float_view(
    ptr: Any, shape: tuple[int, ...], owner: Any, exports: Exports
) -> npt.NDArray[np.float32]:
    """Return a read-only float32 array over ``ptr`` that keeps ``owner`` alive.

    The chain is array -> buffer -> ``tied`` -> ``release`` -> owner: the owner goes no earlier than
    the last array, slice or memoryview that looks into its memory.
    """
    import numpy as np

    def release(_ptr: Any, _owner: Any = owner) -> None:
        exports.count -= 1

    exports.count += 1
    tied = ffi.gc(ptr, release)
    n_bytes = math.prod(shape) * ffi.sizeof("float")
    view: npt.NDArray[np.float32] = np.frombuffer(ffi.buffer(tied, n_bytes), np.float32)
    view = view.reshape(shape)
    view.flags.writeable = False
    return view
