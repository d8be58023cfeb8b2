"""Locks that raise an error instead of waiting, and that an interrupt cannot leave locked.

Ctrl-C raises KeyboardInterrupt between any two steps of the interpreter: also between taking a lock
and the ``try`` that releases it, or just before the release.  So a lock is held by a function call
(its frame), and counts as free once that call has ended, however it ended.  A call that finds the
lock taken checks whether its holder is still running; taking a free lock needs no such check.

The locks rely on `dict.setdefault` and `dict.clear` being atomic in CPython, as they are for keys
and values that are compared by identity.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import BusyError, ForkError
from . import shutdown
from .frames import is_inside, is_running

if TYPE_CHECKING:
    from types import FrameType

# Holds the locks that are closed for good, since the interpreter is exiting.
EXIT_HOLDER: Any = object()


class CallLock:
    """Admits one thread at a time, and raises `BusyError` in the others instead of waiting.

    Only one thread at a time may use a context or a sampler of llama.cpp.  A program that uses one
    from two threads has a bug, which waiting would hide.
    """

    __slots__ = ("__weakref__", "_generation", "_name", "_successors", "ended", "holders")

    ended: bool
    """Whether the lock refuses everyone, its holder too, since the interpreter is exiting."""
    holders: dict[int, FrameType]
    """The call that holds the lock, under the key 0; it may have ended."""

    def __init__(self, name: str) -> None:
        self.holders = {}
        self.ended = False
        self._name = name
        self._generation = shutdown.generation
        # Maps a holder that has ended to the call that takes the lock over from it.
        self._successors: dict[FrameType, FrameType] = {}

    def __enter__(self) -> None:
        self.enter(sys._getframe(1))

    def enter(self, frame: FrameType) -> None:
        """Take the lock for a running function, until it calls `leave` or ends."""
        if self.holders.setdefault(0, frame) is not frame:
            error = self._take_over(frame)
            if error is not None:
                raise error

    def __exit__(self, *exc_info: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Release the lock; only its holder may call this."""
        self.holders.clear()
        if self.ended:
            shutdown.refuse_at_exit(self._name)

    def check(self) -> None:
        """Raise BusyError if a running call holds the lock."""
        holder = self.holders.get(0)
        if holder is not None and is_running(holder):
            raise self._busy(holder)

    def sweep(self) -> None:
        """Clear the variables of a holder that has ended: they may keep the C object alive."""
        holder = self.holders.get(0)
        if holder is not None and holder is not EXIT_HOLDER:
            is_running(holder)  # clears them

    def _take_over(self, frame: FrameType) -> BusyError | ForkError | None:
        """Take the lock from a holder that has ended, or return the error that prevents it."""
        if self.ended:
            shutdown.refuse_at_exit(self._name)
        if self._generation < shutdown.first_own_generation:  # held by a thread of the parent
            return shutdown.parent_process_error(self._name)
        first = last = self.holders.get(0, frame)
        claimed = []
        while last is not frame:
            if is_running(last):
                return self._busy(last)
            claimed.append(last)
            # Of several calls that try this at once, one becomes the successor.  If that one has
            # ended too, it gets a successor in turn.
            last = self._successors.setdefault(last, frame)
        # Only its successor may replace `first`, and only if no earlier successor has done so.
        winner = self.holders.setdefault(0, frame)
        if winner is first:
            self.holders[0] = winner = frame
        for one in claimed:
            self._successors.pop(one, None)
        return None if winner is frame else self._busy(winner)

    def _busy(self, holder: FrameType) -> BusyError:
        if is_inside(holder):
            return BusyError(
                f"this thread is using this {self._name} already: code that runs in the middle of "
                "that call, such as cb_eval, a Python sampler or a signal handler, cannot use it"
            )
        return BusyError(
            f"another thread is using this {self._name}; give each thread its own, "
            "or hold a lock around its use"
        )


class CallLocks:
    """Takes several `CallLock` as one: all of them or none."""

    __slots__ = ("_held", "first", "others")

    def __init__(self, first: CallLock, *others: CallLock) -> None:
        self.first: CallLock = first
        self.others: tuple[CallLock, ...] = others
        """The locks that the next call takes too; only the holder of ``first`` may change them."""
        self._held: tuple[CallLock, ...] = ()

    def __enter__(self) -> None:
        self.enter(sys._getframe(1))

    def enter(self, frame: FrameType) -> None:
        """Take the locks for a running function, until it calls `leave` or ends."""
        self.first.enter(frame)
        held = self.others
        try:
            for other in held:
                other.enter(frame)
        except BaseException:  # also an interrupt: hold all of them or none
            self._release(held, frame)
            raise
        self._held = held

    def __exit__(self, *exc_info: object) -> None:
        self.leave(sys._getframe(1))

    def leave(self, frame: FrameType) -> None:
        """Release the locks; only their holder may call this."""
        held = self._held
        self._release(held, frame)
        for one in (self.first, *held):
            if one.ended:
                one.leave()

    def _release(self, others: tuple[CallLock, ...], frame: FrameType) -> None:
        for one in (*others, self.first):
            if one.holders.get(0) is frame:
                one.holders.clear()


class ExitGuard:
    """Lets the interpreter's exit stop and lock an object that one thread at a time may use."""

    __slots__ = ("_cancel", "_lock", "in_use")

    in_use: Callable[[], bool]
    """Returns whether something else still uses the memory, which then must not be freed."""

    def __init__(
        self,
        lock: CallLock,
        cancel: Callable[[], object] | None = None,
        in_use: Callable[[], bool] = bool,
    ) -> None:
        """Guard an object.

        Args:
            lock: The lock of the object.  Only a weak reference to it is kept.
            cancel: Makes a running call return soon.
            in_use: See the attribute.
        """
        self._lock = weakref.ref(lock)
        self._cancel, self.in_use = cancel, in_use

    def stop(self) -> None:
        """Stop the running call, and refuse all use from now on."""
        lock = self._lock()
        if lock is not None:
            lock.ended = True
        if self._cancel is not None:
            self._cancel()

    def wait(self) -> bool:
        """Take the lock for good; return False if its holder does not release it in time."""
        lock = self._lock()
        if lock is None:
            return True
        deadline = time.monotonic() + shutdown.EXIT_SECONDS
        while lock.holders.setdefault(0, EXIT_HOLDER) is not EXIT_HOLDER:
            holder = lock.holders.get(0)
            if holder is not None and holder is not EXIT_HOLDER and not is_running(holder):
                lock.holders[0] = EXIT_HOLDER
            elif time.monotonic() > deadline:
                return False
            else:
                time.sleep(shutdown.EXIT_POLL)
        return True
