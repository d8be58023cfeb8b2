"""Python callables called from C, without letting an exception cross the boundary.

C cannot carry a Python exception.  A trampoline therefore stores it on the `Bridge` and returns the
value that makes C stop; when the C call is over, `bridged` raises it.  The trampolines are declared
in headers/callbacks.h.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ._ffi import ffi
from .errors import LoadError


class Bridge:
    """One callable on its way through a C ``void *user_data``."""

    __slots__ = ("__weakref__", "error", "function")

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.error: BaseException | None = None


@contextmanager
def bridged(function: Callable[..., Any]) -> Iterator[Any]:
    """Yield the ``user_data`` that leads C back to ``function``, for one C call.

    The handle is alive only inside the ``with``: C must not keep the pointer.  For a callback that
    C does keep, pass the handle as ``keep`` to `own`.
    """
    bridge = Bridge(function)
    user_data = ffi.new_handle(bridge)
    try:
        yield user_data
    finally:
        if bridge.error is not None:
            raise bridge.error  # the cause; what C made of it becomes its __context__


def _on_entry(_type: Any, error: BaseException, traceback: Any) -> None:
    """Store what was raised before the `try` of a trampoline: by the handler of a signal."""
    bridge: Bridge = ffi.from_handle(traceback.tb_frame.f_locals["args"][-1])
    bridge.error = error


def trampoline(*, stop: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register an ``extern "Python"`` function; ``stop`` is what tells C to give up."""

    def register(target: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(target)
        def guarded(*args: Any) -> Any:
            bridge: Bridge = ffi.from_handle(args[-1])
            if bridge.error is not None:
                return stop
            try:
                return target(bridge.function, *args[:-1])
            except BaseException as error:  # KeyboardInterrupt must stop the load too
                bridge.error = error
                return stop

        ffi.def_extern(name=target.__name__, error=stop, onerror=_on_entry)(guarded)
        return guarded

    return register


@trampoline(stop=False)
def llamacffi_on_progress(function: Callable[[float], object], progress: float) -> bool:
    """Go on loading unless the user's function returns False."""
    if function(progress) is False:
        raise LoadError(f"the load was stopped at {progress:.0%}: progress returned False")
    return True
