"""Names for what the parameters take, used only by type checkers."""

from __future__ import annotations

from ._llama import CData as CData
