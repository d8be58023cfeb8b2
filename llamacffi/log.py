"""llama.cpp's log, forwarded to ``logging.getLogger("llamacffi")``.

llama.cpp logs from any thread, often while it holds locks, so no Python runs there: a C callback
writes the lines to a ring, and `drain` forwards them from Python.  The package drains after each
call that may have logged; users of the raw `lib` can call it too.  Without a handler nothing is
printed.

There is one log for the whole process: it has the lines of all models, and settings apply to all
of them.  `set_level` drops lines before they cost anything; levels, handlers and filters of the
logger work as usual.  `capture_logs` collects what is logged inside a ``with`` block.

llama.cpp bypasses its log and prints a few things to stderr: errors in a grammar
(``llama_sampler_init_grammar``), the progress of training (``ggml_opt_fit``), and invalid weights
in a model (``check_tensors``).  This module leaves them there: redirecting the file descriptor
would also redirect what other threads print.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar, overload

from ._core.values import flag, integer
from ._native import ffi, lib
from .errors import ArgumentError, NativeError

logger: logging.Logger = logging.getLogger("llamacffi")
logger.addHandler(logging.NullHandler())  # otherwise logging prints warnings to stderr

LEVELS = {
    lib.GGML_LOG_LEVEL_DEBUG: logging.DEBUG,
    lib.GGML_LOG_LEVEL_INFO: logging.INFO,
    lib.GGML_LOG_LEVEL_WARN: logging.WARNING,
    lib.GGML_LOG_LEVEL_ERROR: logging.ERROR,
}

# upstream: src/llama-grammar.cpp stderr: errors in a grammar bypass the log, as do the next two.
# upstream: ggml/src/ggml-opt.cpp stderr: the progress of training.
# upstream: ggml/src/ggml-quants.c ggml_validate_row_data, stderr: invalid weights.

# The number of log lines that an exception carries.
NOTE_LINES = 12

_lock = threading.RLock()  # reentrant: a finalizer may log while this thread holds it
_next = 0  # the number of the first line that was not forwarded yet
_level = logging.DEBUG  # as set by `set_level`
_captures: list[CapturedLog] = []  # those whose ``with`` block is running

_Error = TypeVar("_Error", bound=BaseException)


class LogLine(NamedTuple):
    """One line of llama.cpp's log."""

    level: int
    """The level as in `logging`: ``logging.DEBUG`` to ``logging.ERROR``."""
    text: str
    """The line, without its newline."""
    time: float
    """When it was logged, in seconds since 1970."""
    thread: int
    """A number for the thread that logged it; lines from the same thread have the same number."""


class CapturedLog(Sequence[LogLine]):
    """The lines that `capture_logs` has collected so far: a sequence that may still grow."""

    def __init__(self, level: int, forward: bool, thread: int | None, start: int) -> None:
        self._lines: list[LogLine] = []
        self._level, self._forward, self._thread, self._start = level, forward, thread, start
        self.n_lost = 0
        """The number of lines, from all threads, that were overwritten before they were read.

        See `drain`."""

    @property
    def text(self) -> str:
        """All lines, joined with newlines."""
        return "".join(f"{line.text}\n" for line in self)

    def __len__(self) -> int:
        self._read()
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> LogLine: ...
    @overload
    def __getitem__(self, index: slice) -> list[LogLine]: ...
    def __getitem__(self, index: int | slice) -> LogLine | list[LogLine]:
        self._read()
        return self._lines[index]

    def __repr__(self) -> str:
        return f"<CapturedLog of {len(self)} lines>"

    def _read(self) -> None:
        if self in _captures:
            drain()

    def _take(self, number: int, line: LogLine) -> bool:
        """Add a line if it belongs here; return whether to withhold it from the logger."""
        if number < self._start or line.level < self._level:
            return False
        if self._thread is not None and line.thread != self._thread:
            return False
        self._lines.append(line)
        return not self._forward

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


@contextmanager
def capture_logs(
    level: int | str = logging.DEBUG, *, forward: bool = True, thread: bool = False
) -> Iterator[CapturedLog]:
    """Collect what llama.cpp logs inside a ``with`` block.

    Blocks can be nested: each one collects its own lines.

    Args:
        level: The lowest level to collect, as a name or number of `logging`.  It takes precedence
            over `set_level`.
        forward: Forward the lines to ``logging.getLogger("llamacffi")`` too.
        thread: Collect only the lines logged by the calling thread, instead of all threads in the
            process.  That excludes the lines of llama.cpp's own worker threads.

    Yields:
        The lines, in the order in which they were logged.

    Raises:
        ArgumentError: The level is unknown.
    """
    number = level_number(level)
    forward, alone = flag("forward", forward), flag("thread", thread)
    only = lib.llamacffi_log_thread() if alone else None
    drain()
    with _lock:
        capture = CapturedLog(number, forward, only, lib.llamacffi_log_count())
        _captures.append(capture)
        _apply_level()
    try:
        yield capture
    finally:
        drain()
        with _lock:  # waits for another thread that is still distributing lines
            _captures.remove(capture)
            _apply_level()


def set_level(level: int | str) -> None:
    """Drop lines below a level at their source, at almost no cost.

    This applies to the whole process.  Above ``"WARNING"``, exceptions lose llama.cpp's warnings.

    Args:
        level: A name or number of `logging`.  The initial level is ``"DEBUG"``, which keeps all
            lines.

    Raises:
        ArgumentError: The level is unknown.
    """
    global _level
    number = level_number(level)
    with _lock:
        _level = number
        _apply_level()


def get_level() -> int:
    """Return the level that `set_level` has set, as a number of `logging`."""
    return _level


def level_number(level: int | str) -> int:
    """Return a level as a number of `logging`.

    Raises:
        ArgumentError: `logging` has no level of that name.
        TypeError: The level is neither a number nor a name.
    """
    if isinstance(level, str):
        number = logging.getLevelName(level.upper())
        if not isinstance(number, int):
            names = ", ".join(repr(logging.getLevelName(one)) for one in LEVELS.values())
            raise ArgumentError(f"level must be one of {names} or a number, not {level!r}")
        return number
    return integer("level", level)


def drain() -> None:
    """Forward the lines that llama.cpp has logged since the last call.

    The ring holds ``lib.LLAMACFFI_LOG_CAPACITY`` lines.  If more were logged, the oldest are lost,
    and a warning gives their number.
    """
    global _next
    if lib.llamacffi_log_checkpoint() == _next:
        return
    with _lock:
        first, _next = _next, lib.llamacffi_log_count()
        lines = list(_lines(first, _next))
        n_lost = _next - first - len(lines)
        forward = [line for number, line in lines if not _distribute(number, line)]
        for capture in _captures:
            capture.n_lost += max(0, min(n_lost, first + n_lost - capture._start))
    # Outside the lock: a handler may use llama.cpp itself.
    if n_lost > 0:
        logger.warning("%d lines of llama.cpp's log were lost", n_lost)
    for line in forward:
        logger.log(line.level, "%s", line.text)


def with_log(error: _Error) -> _Error:
    """Attach the warnings and errors of this thread since its last `drain`, then drain.

    If a `NativeError` is being handled, its notes are attached too.

    Returns:
        ``error``, so that it can be raised in the same statement.
    """
    lines = recent(logging.WARNING)
    handled = sys.exc_info()[1]
    notes = list(getattr(handled, "__notes__", [])) if isinstance(handled, NativeError) else []
    if lines:
        notes.append(
            "\n".join(["llama.cpp's log:", *(f"  {line}" for line in lines[-NOTE_LINES:])])
        )
    for note in notes:
        _attach(error, note)
    drain()
    return error


def _attach(error: BaseException, note: str) -> None:
    if hasattr(error, "add_note"):
        error.add_note(note)
        return
    # Python 3.10 has no notes, so the message gets them too.
    error.__notes__ = [*getattr(error, "__notes__", []), note]  # type: ignore[attr-defined]  # as 3.11
    if note not in str(error.args[0]):
        error.args = (f"{error.args[0]}\n{note}", *error.args[1:])


def recent(level: int) -> list[str]:
    """Return the lines of at least ``level`` that this thread has logged since its last `drain`."""
    thread, since = lib.llamacffi_log_thread(), lib.llamacffi_log_since()
    return [
        line.text
        for _, line in _lines(since, lib.llamacffi_log_count())
        if line.thread == thread and line.level >= level
    ]


def native_error(function: str, message: str) -> NativeError:
    """Create the exception for a failure that the guard caught; called by the compiled module."""
    return with_log(NativeError(f"{function}: {message}", function))


def _lines(start: int, stop: int) -> Iterator[tuple[int, LogLine]]:
    """Yield those lines from ``start`` to ``stop`` that the ring still has, with their numbers."""
    size = 1024
    text, info = ffi.new("char[]", size), ffi.new("struct llamacffi_log_info *")
    for number in range(max(start, stop - lib.LLAMACFFI_LOG_CAPACITY), stop):
        length = lib.llamacffi_log_line(number, info, text, size)
        if length > size:
            size = length
            text = ffi.new("char[]", size)
            length = lib.llamacffi_log_line(number, info, text, size)
        if length >= 0:
            decoded = bytes(ffi.buffer(text, min(length, size))).decode(errors="replace")
            level = LEVELS.get(info.level, logging.INFO)
            yield number, LogLine(level, decoded, info.time, info.thread)


def _distribute(number: int, line: LogLine) -> bool:
    """Give a line to the captures; return whether to withhold it from the logger."""
    withheld = [capture._take(number, line) for capture in _captures]
    return any(withheld) or line.level < _level


def _apply_level() -> None:
    """Let C drop what neither the logger nor a capture wants; the caller holds the lock."""
    lowest = min([_level, *(capture._level for capture in _captures)])
    wanted = [ggml_level for ggml_level, level in LEVELS.items() if level >= lowest]
    lib.llamacffi_log_set_level(min(wanted, default=lib.GGML_LOG_LEVEL_CONT))


def _after_fork() -> None:
    """Leave the parent's lines to the parent, and make a new lock: its threads may hold the old."""
    global _lock, _next
    _lock, _next = threading.RLock(), lib.llamacffi_log_count()


atexit.register(drain)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
