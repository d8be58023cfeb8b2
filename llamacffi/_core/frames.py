"""Whether a function is still running, and whether this thread is inside it."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

GENERATORS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def is_inside(frame: object) -> bool:
    """Return whether this thread is inside a function: whether its frame is one of our callers."""
    caller: FrameType | None = sys._getframe()
    while caller is not None:
        if caller is frame:
            return True
        caller = caller.f_back
    return False


def is_running(frame: FrameType) -> bool:
    """Return whether a function is still running in any thread; clear its variables if not."""
    if frame.f_code.co_flags & GENERATORS:  # clear() would end a suspended one
        return True
    try:
        frame.clear()
    except RuntimeError:
        return True
    return False
