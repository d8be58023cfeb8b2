"""Ownership of C objects: one owner each, freed once, after everything that stands on it.

The owner of a C object is a cdata with a finalizer (`own`).  Whoever holds the cdata keeps the
object alive: a running call holds it as an argument, a zero-copy array through its buffer, a child
in the arguments of its own finalizer.  `Handle.close` only lets go of it.

This relies on CPython's reference counts for the moment of the free.  At interpreter exit contexts
and sampler chains wait for a daemon thread that is inside (`Exclusive.ending`); one that is inside
another call, such as `Vocab.tokenize`, is not protected.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from ._ffi import ffi
from .errors import BusyError, ClosedError, ForkError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

# How long the exit of the interpreter waits for a daemon thread to come out of a C object.
EXIT_SECONDS = 5.0

# Counts the forks between the first process and this one.
_generation = 0


def _forked() -> None:
    global _generation
    _generation += 1


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forked)


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
    owner = ffi.cast(ffi.typeof(ptr), ptr)  # a second cdata: the finalizer has the first
    weakref.finalize(owner, _free, free, ptr, keep, _generation)
    return owner


def _free(
    free: Callable[[Any], object], ptr: Any, keep: tuple[object, ...], generation: int
) -> None:
    if generation == _generation:  # a forked child has a copy without its threads: leave it alone
        free(ptr)
    # `keep` goes when this frame does, hence after the object.


def live_objects() -> int:
    """Count the C objects that are owned and not freed; for the leak tests."""
    registry = weakref.finalize._registry  # type: ignore[attr-defined]
    return sum(info.func is _free for info in registry.values())


class Handle:
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
            ClosedError: After `close`.
            ForkError: In a process forked from the one that made the object.
        """
        owner = self._owner
        if owner is None:
            raise ClosedError(f"the {type(self).__name__} is closed")
        if self._generation != _generation:
            raise ForkError(
                f"this {type(self).__name__} belongs to the parent process; make a new one in "
                "the child, or start processes with the 'spawn' method"
            )
        return owner

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._owner is None

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


class Exclusive:
    """Lets one thread at a time in, and tells the others so instead of making them wait.

    llama.cpp's contexts and samplers are for one thread at a time.  A program that uses one from
    two threads has a bug, which waiting would hide.
    """

    __slots__ = ("_ended", "_lock", "_name")

    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()
        self._name = name
        self._ended = False

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._refuse()

    def _refuse(self) -> NoReturn:
        if self._ended:
            _park()
        raise BusyError(
            f"another thread is using this {self._name}; give each thread its own, "
            "or hold a lock around its use"
        )

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()
        if self._ended:
            _park()

    def ending(
        self, free: Callable[[Any], object], cancel: Callable[[], object] | None = None
    ) -> Callable[[Any], None]:
        """Return ``free`` for `own`, which first waits for the thread inside and lets no more in.

        Only a daemon thread can be inside when the last reference is gone: at interpreter exit,
        which frees everything.  If it does not come out in time, nothing more is freed.

        Args:
            free: Frees the C object.
            cancel: Makes a call that is running return soon.
        """

        def end(ptr: Any) -> None:
            if threading.main_thread().is_alive():  # not the exit
                free(ptr)
                return
            self._ended = True
            if cancel is not None:
                cancel()
            if self._lock.acquire(timeout=EXIT_SECONDS):
                free(ptr)
            else:
                _forked()  # leave the rest alone too, as a child does: the call stands on it

        return end


class Together:
    """Holds several `Exclusive` as one: all of them or none, even when it parks."""

    __slots__ = ("_held", "first", "others")

    def __init__(self, first: Exclusive, *others: Exclusive) -> None:
        self.first = first
        self.others = others
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
                _park()

    def _release(self, others: list[Exclusive]) -> None:
        for other in others:
            other._lock.release()
        self.first._lock.release()


def _park() -> NoReturn:
    """Stop this daemon thread for good, as the interpreter itself does with one at its exit."""
    while True:
        time.sleep(3600)
