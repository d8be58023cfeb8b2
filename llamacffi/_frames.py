"""Which functions are running, and in which thread."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


def is_inside(frame: FrameType | None) -> bool:
    """Return whether a function that runs in this thread has called, over others, this one."""
    caller: FrameType | None = sys._getframe()
    while caller is not None:
        if caller is frame:
            return True
        caller = caller.f_back
    return False
