"""llama.cpp's log, forwarded to ``logging.getLogger("llamacffi")``.

llama.cpp logs from any thread, often under its own locks, so no Python runs there: a C callback
writes the lines to a ring, and `drain` forwards them from Python's side.  The package drains after
each call that may have logged; users of the raw `lib` may call it too.  Without a handler nothing
is printed.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Iterator
from typing import TypeVar

from ._ffi import ffi, lib
from .errors import NativeError

logger = logging.getLogger("llamacffi")
logger.addHandler(logging.NullHandler())  # else logging prints warnings on stderr

LEVELS = {
    lib.GGML_LOG_LEVEL_DEBUG: logging.DEBUG,
    lib.GGML_LOG_LEVEL_INFO: logging.INFO,
    lib.GGML_LOG_LEVEL_WARN: logging.WARNING,
    lib.GGML_LOG_LEVEL_ERROR: logging.ERROR,
}

# How many lines of the log an exception carries.
NOTE_LINES = 12

_lock = threading.RLock()  # a finalizer may log while this thread has it
_next = 0  # the number of the first line that was not forwarded yet

_Error = TypeVar("_Error", bound=BaseException)


def drain() -> None:
    """Forward the lines that llama.cpp has logged since the last call."""
    global _next
    if lib.llamacffi_log_count() == _next:
        return
    with _lock:
        first, _next = _next, lib.llamacffi_log_count()
        lines = list(_lines(first, _next))
        forgotten = _next - first - len(lines)
    # Outside the lock: a handler may well use llama.cpp itself.
    if forgotten > 0:
        logger.warning("%d lines of llama.cpp's log were lost", forgotten)
    for level, text in lines:
        logger.log(level, "%s", text)


def with_log(error: _Error) -> _Error:
    """Attach the warnings and errors that were not forwarded yet, then forward all lines.

    Returns:
        ``error``, so that it can be raised in the same statement.
    """
    lines = [
        text for level, text in _lines(_next, lib.llamacffi_log_count()) if level >= logging.WARNING
    ]
    if lines:
        note = "\n".join(["llama.cpp's log:", *(f"  {line}" for line in lines[-NOTE_LINES:])])
        if hasattr(error, "add_note"):
            error.add_note(note)
        else:  # Python 3.10 has no notes
            error.args = (f"{error.args[0]}\n{note}", *error.args[1:])
    drain()
    return error


def native_error(function: str, message: str) -> NativeError:
    """Make the exception for a failure that the guard caught; called by the compiled module."""
    return with_log(NativeError(f"{function}: {message}", function))


def _lines(start: int, stop: int) -> Iterator[tuple[int, str]]:
    """Yield level and text of the lines ``start`` to ``stop`` that the ring still has."""
    size = 1024
    text, level = ffi.new("char[]", size), ffi.new("int32_t *")
    for number in range(max(start, stop - lib.LLAMACFFI_LOG_CAPACITY), stop):
        length = lib.llamacffi_log_line(number, level, text, size)
        if length > size:
            size = length
            text = ffi.new("char[]", size)
            length = lib.llamacffi_log_line(number, level, text, size)
        if length >= 0:
            words = bytes(ffi.buffer(text, min(length, size))).decode(errors="replace")
            yield LEVELS.get(level[0], logging.INFO), words


def _forked() -> None:
    """Leave the parent's lines to the parent; its threads may have held the lock."""
    global _lock, _next
    _lock, _next = threading.RLock(), lib.llamacffi_log_count()


atexit.register(drain)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
