"""Names for what the parameters take, used only by type checkers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import BytesIO
    from typing import BinaryIO, TypeAlias

    from ._llama import CData as CData
    from .context import Context as Context
    from .tensor import TensorView

    # Told of each node of the compute graph: before it is computed, and after if it asked for that.
    EvalCallback: TypeAlias = Callable[[TensorView, bool], bool | None]

    # What can be read from: an open binary file, a descriptor, or the bytes themselves.
    FileSource: TypeAlias = BinaryIO | BytesIO | int | bytes | bytearray | memoryview
