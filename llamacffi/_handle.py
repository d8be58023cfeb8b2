"""Ownership of C objects: one owner each, freed once, after everything that stands on it.

The owner of a C object is a cdata with a finalizer (`own`).  Whoever holds the cdata keeps the
object alive: a running call holds it as an argument, a zero-copy array through its buffer, a child
in the arguments of its own finalizer.  `Handle.close` only lets go of it.

This relies on CPython's reference counts for the moment of the free.

At interpreter exit everything is freed, whoever still refers to it, and daemon threads may be
using it.  So first (`_end`) it is taken away from all: the main thread gets `ClosedError`, a daemon
thread ends.  What computes is told to stop, and the frees wait for the calls that are running.  If
one does not end in time nothing is freed, and the process ends without the destructors of static
objects.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from ._ffi import ffi, lib
from ._unique import Unique
from .errors import BusyError, ClosedError, ForkError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

# How long the exit of the interpreter waits for daemon threads to come out of C.
EXIT_SECONDS = 5.0
# How often it looks, and how often in a row there must be no call.
EXIT_POLL, EXIT_POLLS = 0.002, 3

# Objects of an earlier generation cannot be used: a fork begins a new one, and so does the exit.
_generation = 0
# The first generation whose objects this process may free.
_ours = 0
_ending = False


def _abandon() -> None:
    """Leave all objects as they are: they are not used again, and not freed."""
    global _generation, _ours
    _generation += 1
    _ours = _generation


def _forked() -> None:
    """Leave the objects to the parent: what they are here is a copy without its threads."""
    _abandon()
    lib.llamacffi_forget_calls()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forked)


def hold_at_fork(lock: Any) -> Any:
    """Return a lock that no other thread has while this one forks, since in the child it would."""
    if sys.platform != "win32":
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )
    return lock


def _end() -> None:
    """Take all objects away from their users, and wait until no call is running."""
    global _ending, _generation
    _ending = True
    _generation += 1
    lib.llamacffi_guard_exit()
    if len(sys._current_frames()) == 1:
        return
    for free in _live():
        if isinstance(free, Ending):
            free.stop()
    deadline, quiet = time.monotonic() + EXIT_SECONDS, 0
    # A thread may have a pointer already, but not have called yet: let each of them run.
    while quiet < EXIT_POLLS + len(sys._current_frames()):
        if time.monotonic() > deadline:
            _abandon()
            return
        time.sleep(EXIT_POLL)
        quiet = 0 if lib.llamacffi_n_calls() > 0 else quiet + 1


def own(ptr: Any, free: Callable[[Any], object], *keep: object) -> Any:
    """Return ``ptr`` as an owning pointer: ``free`` runs when its last reference goes.

    Args:
        ptr: A C object that nobody owns yet; not NULL.
        free: The C function that frees it.
        keep: What the C object points into: parents, buffers, callback handles.  It is an argument
            of the finalizer and not an attribute, so it outlives the object even when the garbage
            collector takes a whole cycle, and at interpreter exit.
    """
    assert ptr != ffi.NULL, "check for NULL first: only the caller knows the error"
    global _registered
    owner = ffi.cast(ffi.typeof(ptr), ptr)  # a second cdata: the finalizer has the first
    weakref.finalize(owner, _free, free, ptr, keep, _generation)
    if not _registered:
        atexit.register(_end)  # after the finalizers were, so that it runs before them
        _registered = True
    if _ending:
        _end_daemon()
    return owner


_registered = False


def _end_daemon() -> None:
    """End the calling thread at the exit, unless it is the main thread."""
    if threading.get_ident() != threading.main_thread().ident:
        raise SystemExit  # silent, and it releases the locks that the thread has


def _free(
    free: Callable[[Any], object], ptr: Any, keep: tuple[object, ...], generation: int
) -> None:
    if generation >= _ours:
        free(ptr)
    # `keep` goes when this frame does, hence after the object.


def _live() -> list[Callable[[Any], object]]:
    """Return what frees each C object that is owned and not freed."""
    registry = weakref.finalize._registry  # type: ignore[attr-defined]
    return [info.args[0] for info in list(registry.values()) if info.func is _free]


def live_objects() -> int:
    """Count the C objects that are owned and not freed; for the leak tests."""
    return len(_live())


class Pointer(Unique):
    """Base of the classes that have a `ptr`, for code that takes it as a number."""

    __slots__ = ()

    @property
    def ptr(self) -> Any:
        """The C pointer, for `llamacffi.lib`."""
        raise NotImplementedError

    @property
    def address(self) -> int:
        """The address in `ptr`, for C and C++ that CFFI does not know of.

        It keeps nothing alive: hold `ptr`, or this object open, as long as the address is used.

        Raises:
            ClosedError: Where `ptr` does.
        """
        return int(ffi.cast("uintptr_t", self.ptr))


class Handle(Pointer):
    """Base of the classes that own a C object: `ptr`, `close`, `closed` and ``with``."""

    __slots__ = ("__weakref__", "_children", "_generation", "_owner")

    def __init__(self, owner: Any, parent: Handle | None = None) -> None:
        self._owner: Any = owner
        self._generation = _generation
        self._children: weakref.WeakSet[Handle] = weakref.WeakSet()
        if parent is not None:
            parent._adopt(self)

    @property
    def ptr(self) -> Any:
        """The C pointer, for `llamacffi.lib`.  Whoever holds it keeps the object alive.

        Raises:
            ClosedError: After `close`, or when the interpreter exits.
            ForkError: In a process forked from the one that made the object.
        """
        owner = self._owner
        if owner is None:
            raise ClosedError(f"the {type(self).__name__} is closed")
        if self._generation != _generation:
            self._refuse()
        return owner

    def _refuse(self) -> NoReturn:
        name = type(self).__name__
        if not _ending or self._generation < _ours:
            raise _of_parent(name)
        _end_daemon()
        raise ClosedError(f"the {name} is closed: the interpreter exits")

    @property
    def closed(self) -> bool:
        """Whether `close` has been called, or the interpreter exits."""
        return self._owner is None or (_ending and self._generation != _generation)

    def _adopt(self, child: Handle) -> None:
        """Close ``child`` too when this is closed, and before."""
        self._children.add(child)

    def close(self) -> None:
        """Free the C object now, after everything made from it.  Idempotent.

        Only a call still running in another thread, or a live zero-copy array, delays the free
        until it is done.
        """
        for child in list(self._children):
            child.close()
        self._owner = None

    def __enter__(self) -> Self:
        self.ptr  # noqa: B018  raises if closed
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _of_parent(name: str) -> ForkError:
    return ForkError(
        f"this {name} belongs to the parent process; make a new one in the child, or start "
        "processes with the 'spawn' method"
    )


class Exclusive:
    """Lets one thread at a time in, and tells the others so instead of making them wait.

    llama.cpp's contexts and samplers are for one thread at a time.  A program that uses one from
    two threads has a bug, which waiting would hide.
    """

    __slots__ = ("_ended", "_generation", "_lock", "_name")

    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()
        self._name = name
        self._ended = False
        self._generation = _generation

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._refuse()

    def _refuse(self) -> NoReturn:
        if self._ended:
            self._leave()
        if self._generation < _ours:  # one of the parent's threads was inside
            raise _of_parent(self._name)
        raise BusyError(
            f"another thread is using this {self._name}; give each thread its own, "
            "or hold a lock around its use"
        )

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()
        if self._ended:
            self._leave()

    def _leave(self) -> NoReturn:
        _end_daemon()
        raise ClosedError(f"the {self._name} is closed: the interpreter exits")

    def ending(
        self,
        free: Callable[[Any], object],
        cancel: Callable[[], object] | None = None,
        in_use: Callable[[], bool] = bool,
    ) -> Callable[[Any], None]:
        """Return ``free`` for `own`, which at the exit waits for the thread inside.

        Only a daemon thread can be inside when the last reference is gone, and only then.  If it
        does not come out in time, nothing more is freed.

        Args:
            free: Frees the C object.
            cancel: Makes a call that is running return soon.
            in_use: Tells whether its memory is used otherwise: then it stays, at the exit.
        """
        return Ending(self, free, cancel, in_use)


class Ending:
    """What frees a C object that one thread at a time may use: see `Exclusive.ending`."""

    __slots__ = ("_cancel", "_exclusive", "_free", "_in_use")

    def __init__(
        self,
        exclusive: Exclusive,
        free: Callable[[Any], object],
        cancel: Callable[[], object] | None,
        in_use: Callable[[], bool],
    ) -> None:
        self._exclusive, self._free = exclusive, free
        self._cancel, self._in_use = cancel, in_use

    def stop(self) -> None:
        """Stop what is running, and let nobody in or go on."""
        self._exclusive._ended = True
        if self._cancel is not None:
            self._cancel()

    def __call__(self, ptr: Any) -> None:
        if not _ending:
            self._free(ptr)
            return
        self.stop()
        if not self._exclusive._lock.acquire(timeout=EXIT_SECONDS):
            _abandon()  # the call stands on the rest too
        elif not self._in_use():
            self._free(ptr)


class Together:
    """Holds several `Exclusive` as one: all of them or none."""

    __slots__ = ("_held", "first", "others")

    def __init__(self, first: Exclusive, *others: Exclusive) -> None:
        self.first: Exclusive = first
        self.others: tuple[Exclusive, ...] = others
        """For the next to come; changed only by who holds ``first``."""
        self._held: list[Exclusive] = []

    def __enter__(self) -> None:
        self.first.__enter__()
        held: list[Exclusive] = []
        for other in self.others:
            if not other._lock.acquire(blocking=False):
                self._release(held)
                other._refuse()
            held.append(other)
        self._held = held

    def __exit__(self, *exc_info: object) -> None:
        held = self._held
        self._release(held)
        for one in (self.first, *held):
            if one._ended:
                one._leave()

    def _release(self, others: list[Exclusive]) -> None:
        for other in others:
            other._lock.release()
        self.first._lock.release()
