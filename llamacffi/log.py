"""llama.cpp's log, forwarded to ``logging.getLogger("llamacffi")``.

llama.cpp logs from any thread, often under its own locks, so no Python runs there: a C callback
writes the lines to a ring, and `drain` forwards them from Python's side.  The package drains after
each call that may have logged; users of the raw `lib` may call it too.  Without a handler nothing
is printed.

There is one log for the whole process: it has the lines of all models, and what is set here is set
for all.  `set_level` drops lines before they cost anything; levels, handlers and filters of the
logger work as with any other.  `capture_logs` collects what is logged inside of a ``with``.

llama.cpp prints a few things itself, past its log and so past this one, to stderr: where a grammar
cannot be parsed (``llama_sampler_init_grammar``), the progress of training (``ggml_opt_fit``), and
what is wrong with the weights of a model (``check_tensors``).  They stay there: redirecting the
descriptors would take away what other threads print.
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

from ._core.values import flag
from ._native import ffi, lib
from .errors import ArgumentError, NativeError

logger: logging.Logger = logging.getLogger("llamacffi")
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
_level = logging.DEBUG  # what `set_level` has set
_captures: list[CapturedLog] = []  # those whose ``with`` is not over

_Error = TypeVar("_Error", bound=BaseException)


class LogLine(NamedTuple):
    """One line of llama.cpp's log."""

    level: int
    """As `logging` counts: ``logging.DEBUG`` to ``logging.ERROR``."""
    text: str
    """Without its newline."""
    time: float
    """When it was logged, in seconds since 1970."""
    thread: int
    """A number for the thread that logged it; equal for lines of one thread."""


class CapturedLog(Sequence[LogLine]):
    """The lines that `capture_logs` has collected: a sequence, also while more are coming."""

    def __init__(self, level: int, forward: bool, thread: int | None, start: int) -> None:
        self._lines: list[LogLine] = []
        self._level, self._forward, self._thread, self._start = level, forward, thread, start
        self.n_lost = 0
        """Lines of all threads that came and went before they could be read, see `drain`."""

    @property
    def text(self) -> str:
        """The lines as one text."""
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
        """Add a line if it belongs here; tell whether it is not to be forwarded."""
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
    """Collect what llama.cpp logs inside of the ``with``.

    It may be nested: each block gets its lines.

    Args:
        level: The lowest level to collect, as `logging` names or counts them; lines of it come also
            if `set_level` is higher.
        forward: Forward the lines to ``logging.getLogger("llamacffi")`` too.
        thread: Collect only the lines of the thread that makes the block; else those of all threads
            of the process.  Work that llama.cpp gives to threads of its own is not this thread's.

    Yields:
        The lines, in the order in which they were logged.

    Raises:
        ArgumentError: There is no such level.
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
        with _lock:  # which another thread holds as long as it has lines that are not shared out
            _captures.remove(capture)
            _apply_level()


def set_level(level: int | str) -> None:
    """Drop the lines below a level where llama.cpp logs them, which costs next to nothing.

    For the whole process.  Above ``"WARNING"``, exceptions cannot say what llama.cpp warned of.

    Args:
        level: As `logging` names or counts them; at first ``"DEBUG"``, and nothing is dropped.

    Raises:
        ArgumentError: There is no such level.
    """
    global _level
    number = level_number(level)
    with _lock:
        _level = number
        _apply_level()


def get_level() -> int:
    """Return what `set_level` has set, as `logging` counts."""
    return _level


def level_number(level: int | str) -> int:
    """Return a level as `logging` counts.

    Raises:
        ArgumentError: `logging` has no level of that name.
        TypeError: It is neither a number nor a name.
    """
    if isinstance(level, str):
        number = logging.getLevelName(level.upper())
        if not isinstance(number, int):
            names = ", ".join(repr(logging.getLevelName(one)) for one in LEVELS.values())
            raise ArgumentError(f"there is no log level {level!r}; there are {names}")
        return number
    if not isinstance(level, int) or isinstance(level, bool):
        raise TypeError(f"a log level is a number or a name, not {level!r}")
    return level


def drain() -> None:
    """Forward the lines that llama.cpp has logged since the last call.

    The ring has room for ``lib.LLAMACFFI_LOG_CAPACITY`` lines.  If more were logged, the oldest are
    lost, and a warning says how many.
    """
    global _next
    if lib.llamacffi_log_checkpoint() == _next:
        return
    with _lock:
        first, _next = _next, lib.llamacffi_log_count()
        lines = list(_lines(first, _next))
        forgotten = _next - first - len(lines)
        forward = [line for number, line in lines if not _share_out(number, line)]
        for capture in _captures:
            capture.n_lost += max(0, min(forgotten, first + forgotten - capture._start))
    # Outside the lock: a handler may well use llama.cpp itself.
    if forgotten > 0:
        logger.warning("%d lines of llama.cpp's log were lost", forgotten)
    for line in forward:
        logger.log(line.level, "%s", line.text)


def with_log(error: _Error) -> _Error:
    """Attach the warnings and errors that this thread has logged since its last `drain`; and drain.

    If a `NativeError` is being handled, what it carries is attached too.

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
    # Python 3.10 shows no notes.
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
    """Make the exception for a failure that the guard caught; called by the compiled module."""
    return with_log(NativeError(f"{function}: {message}", function))


def _lines(start: int, stop: int) -> Iterator[tuple[int, LogLine]]:
    """Yield the lines ``start`` to ``stop`` that the ring still has, each with its number."""
    size = 1024
    text, info = ffi.new("char[]", size), ffi.new("struct llamacffi_log_info *")
    for number in range(max(start, stop - lib.LLAMACFFI_LOG_CAPACITY), stop):
        length = lib.llamacffi_log_line(number, info, text, size)
        if length > size:
            size = length
            text = ffi.new("char[]", size)
            length = lib.llamacffi_log_line(number, info, text, size)
        if length >= 0:
            words = bytes(ffi.buffer(text, min(length, size))).decode(errors="replace")
            level = LEVELS.get(info.level, logging.INFO)
            yield number, LogLine(level, words, info.time, info.thread)


def _share_out(number: int, line: LogLine) -> bool:
    """Give a line to the captures; tell whether it ends there."""
    ends = [capture._take(number, line) for capture in _captures]
    return any(ends) or line.level < _level


def _apply_level() -> None:
    """Let C drop what neither the logger nor a capture wants; the caller has the lock."""
    lowest = min([_level, *(capture._level for capture in _captures)])
    wanted = [ours for ours, level in LEVELS.items() if level >= lowest]
    lib.llamacffi_log_set_level(min(wanted, default=lib.GGML_LOG_LEVEL_CONT))


def _forked() -> None:
    """Leave the parent's lines to the parent; its threads may have held the lock."""
    global _lock, _next
    _lock, _next = threading.RLock(), lib.llamacffi_log_count()


atexit.register(drain)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
