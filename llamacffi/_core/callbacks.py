"""Python callables called from C, without letting an exception cross the boundary.

A Python exception cannot pass through C.  So a trampoline stores it on the `Bridge` and returns the
value that makes C stop; after the C call has returned, `bridged` raises it.  The trampolines are
declared in headers/callbacks.h.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .._native import ffi
from ..errors import LoadError


class Bridge:
    """A callable that C passes along as ``void *user_data``."""

    __slots__ = ("__weakref__", "error", "function", "on_error")

    def __init__(
        self, function: Callable[..., Any], on_error: Callable[[], object] | None = None
    ) -> None:
        self.function = function
        self.on_error = on_error
        """Called after an error, if the value that the trampoline returns is not enough to make C
        stop."""
        self.error: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """Keep an error until the C call has returned."""
        self.error = error
        if self.on_error is not None:
            self.on_error()

    def reraise(self) -> None:
        """Raise the stored error, if any, and forget it: its traceback refers to this object."""
        if self.error is not None:
            try:
                raise self.error  # the cause; what C made of it becomes its __context__
            finally:
                self.error = None


@contextmanager
def bridged(function: Callable[..., Any]) -> Iterator[Any]:
    """Yield the ``user_data`` by which one C call finds ``function``.

    The handle is valid only inside the ``with``, so C must not keep the pointer.  If C does keep
    it, make a handle of your own and pass it to `own` as ``keep``.
    """
    bridge = Bridge(function)
    user_data = ffi.new_handle(bridge)
    try:
        yield user_data
    finally:
        bridge.reraise()


def _on_entry(_type: Any, error: BaseException, traceback: Any) -> None:
    """Store an exception that a signal handler raised before the `try` of a trampoline."""
    bridge: Bridge = ffi.from_handle(traceback.tb_frame.f_locals["args"][-1])
    bridge.fail(error)


def trampoline(
    *, stop: Any, over: Callable[..., Any] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register an ``extern "Python"`` function.

    Args:
        stop: The value to return that makes C stop.
        over: Gets the arguments if C calls again after an error, and returns the value to return
            then; by default that is ``stop``.
    """

    def register(target: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(target)
        def guarded(*args: Any) -> Any:
            bridge: Bridge = ffi.from_handle(args[-1])
            if bridge.error is not None:
                return stop if over is None else over(*args)
            try:
                return target(bridge.function, *args[:-1])
            except BaseException as error:  # KeyboardInterrupt must stop the load too
                bridge.fail(error)
                return stop

        ffi.def_extern(name=target.__name__, error=stop, onerror=_on_entry)(guarded)
        return guarded

    return register


@trampoline(stop=False)
def llamacffi_on_progress(function: Callable[[float], object], progress: float) -> bool:
    """Continue loading unless the user's function returns False."""
    if function(progress) is False:
        raise LoadError(f"the load was stopped at {progress:.0%}: progress returned False")
    return True


@trampoline(stop=None)
def llamacffi_on_tensor_data(function: Callable[[Any], None], tensor: Any) -> None:
    """Fill a tensor of a model that is made in memory."""
    function(tensor)


@trampoline(stop=False)
def llamacffi_on_quantize(function: Callable[[bytes], object], text: Any) -> bool:
    """Pass a line of output on, and continue quantizing."""
    function(ffi.string(text))
    return True
