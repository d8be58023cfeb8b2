"""Type aliases for arguments, used only by type checkers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from io import BytesIO
    from typing import BinaryIO, TypeAlias

    from .._llama import CData as CData

    # A source of bytes: an open binary file, a descriptor, or the bytes themselves.
    FileSource: TypeAlias = BinaryIO | BytesIO | int | bytes | bytearray | memoryview
