"""Names for what the parameters take, used only by type checkers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._llama import CData as CData
