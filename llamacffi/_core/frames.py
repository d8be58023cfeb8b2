"""Which functions are running, and in which thread."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

GENERATORS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def is_inside(frame: object) -> bool:
    """Return whether a function that runs in this thread has called, over others, this one."""
    caller: FrameType | None = sys._getframe()
    while caller is not None:
        if caller is frame:
            return True
        caller = caller.f_back
    return False


def is_running(frame: FrameType) -> bool:
    """Return whether a function, of any thread, is not over; if it is, its variables are gone."""
    if frame.f_code.co_flags & GENERATORS:  # one that waits would be ended
        return True
    try:
        frame.clear()
    except RuntimeError:
        return True
    return False
