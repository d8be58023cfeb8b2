"""Locks that tell instead of waiting, and that an interrupt cannot leave locked.

Ctrl-C raises KeyboardInterrupt between any two steps of the interpreter, so also between taking a
lock and the ``try`` that is to release it, or before the release.  Therefore a lock is held by a
function call (its frame): it is free as soon as that is over, however it has ended.  Whoever finds
it taken looks whether the call still runs; that costs nothing where it is free.

It relies on what CPython does in one step: `dict.setdefault` and `dict.clear`, with keys and values
that are compared by identity.
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

# Holds what nobody may use any more: the interpreter exits.
END: Any = object()


class CallLock:
    """Lets one thread at a time in, and tells the others so instead of making them wait.

    llama.cpp's contexts and samplers are for one thread at a time.  A program that uses one from
    two threads has a bug, which waiting would hide.
    """

    __slots__ = ("__weakref__", "_claims", "_generation", "_name", "ended", "holders")

    ended: bool
    """Whether nobody may come in or go on, since the interpreter exits."""
    holders: dict[int, FrameType]
    """The call that is inside, by the key 0; it may be over."""

    def __init__(self, name: str) -> None:
        self.holders = {}
        self.ended = False
        self._name = name
        self._generation = shutdown.generation
        # By a call that is over, the one that comes in its place.
        self._claims: dict[FrameType, FrameType] = {}

    def __enter__(self) -> None:
        self.enter(sys._getframe(1))

    def enter(self, frame: FrameType) -> None:
        """Let a function that is running in, until it calls `leave` or is over."""
        if self.holders.setdefault(0, frame) is not frame:
            error = self._succeed(frame)
            if error is not None:
                raise error

    def __exit__(self, *exc_info: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Let others in; called by who is inside."""
        self.holders.clear()
        if self.ended:
            shutdown.leave(self._name)

    def check(self) -> None:
        """Raise BusyError if somebody is inside."""
        holder = self.holders.get(0)
        if holder is not None and is_running(holder):
            raise self._busy(holder)

    def sweep(self) -> None:
        """Forget a call that is over: its variables may keep the C object."""
        holder = self.holders.get(0)
        if holder is not None and holder is not END:
            is_running(holder)

    def _succeed(self, frame: FrameType) -> BusyError | ForkError | None:
        """Take the place of a call that is over; return why that is not possible."""
        if self.ended:
            shutdown.leave(self._name)
        if self._generation < shutdown.ours:  # one of the parent's threads was inside
            return shutdown.of_parent(self._name)
        first = last = self.holders.get(0, frame)
        claimed = []
        while last is not frame:
            if is_running(last):
                return self._busy(last)
            claimed.append(last)
            # One of several that come at once.  One that claims it and is over too, has a
            # successor in its turn.
            last = self._claims.setdefault(last, frame)
        # Only who has the claim may replace it, and nobody has done so before.
        won = self.holders.setdefault(0, frame)
        if won is first:
            self.holders[0] = won = frame
        for one in claimed:
            self._claims.pop(one, None)
        return None if won is frame else self._busy(won)

    def _busy(self, holder: FrameType) -> BusyError:
        if is_inside(holder):
            return BusyError(
                f"this thread is using this {self._name} already: what is called meanwhile, as "
                "cb_eval, a sampler in Python, or the handler of a signal, cannot use it too"
            )
        return BusyError(
            f"another thread is using this {self._name}; give each thread its own, "
            "or hold a lock around its use"
        )


class CallLocks:
    """Holds several `CallLock` as one: all of them or none."""

    __slots__ = ("_held", "first", "others")

    def __init__(self, first: CallLock, *others: CallLock) -> None:
        self.first: CallLock = first
        self.others: tuple[CallLock, ...] = others
        """For the next to come; changed only by who holds ``first``."""
        self._held: tuple[CallLock, ...] = ()

    def __enter__(self) -> None:
        self.enter(sys._getframe(1))

    def enter(self, frame: FrameType) -> None:
        """Let a function that is running in, until it calls `leave` or is over."""
        self.first.enter(frame)
        held = self.others
        try:
            for other in held:
                other.enter(frame)
        except BaseException:  # also if interrupted: all of them or none
            self._release(held, frame)
            raise
        self._held = held

    def __exit__(self, *exc_info: object) -> None:
        self.leave(sys._getframe(1))

    def leave(self, frame: FrameType) -> None:
        """Let others in; called by who is inside."""
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
    """What the exit of the interpreter needs of an object that one thread at a time may use."""

    __slots__ = ("_cancel", "_lock", "in_use")

    in_use: Callable[[], bool]
    """Tells whether its memory is used otherwise: then it stays."""

    def __init__(
        self,
        lock: CallLock,
        cancel: Callable[[], object] | None = None,
        in_use: Callable[[], bool] = bool,
    ) -> None:
        """Describe one.

        Args:
            lock: Who is inside.  Only a weak reference to it is kept.
            cancel: Makes a call that is running return soon.
            in_use: See the attribute.
        """
        self._lock = weakref.ref(lock)
        self._cancel, self.in_use = cancel, in_use

    def stop(self) -> None:
        """Stop what is running, and let nobody in or go on."""
        lock = self._lock()
        if lock is not None:
            lock.ended = True
        if self._cancel is not None:
            self._cancel()

    def wait(self) -> bool:
        """Keep everybody out for ever; return whether who was inside has come out in time."""
        lock = self._lock()
        if lock is None:
            return True
        deadline = time.monotonic() + shutdown.EXIT_SECONDS
        while lock.holders.setdefault(0, END) is not END:
            holder = lock.holders.get(0)
            if holder is not None and holder is not END and not is_running(holder):
                lock.holders[0] = END
            elif time.monotonic() > deadline:
                return False
            else:
                time.sleep(shutdown.EXIT_POLL)
        return True
