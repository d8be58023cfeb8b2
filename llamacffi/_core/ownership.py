"""Ownership of C objects: one owner each, freed once, after everything that stands on it.

The owner of a C object is a cdata (`own`).  Whoever holds it keeps the object alive: a running call
holds it as an argument, a zero-copy array through its buffer, a child among what it points into.
`Handle.close` only lets go of it.  When the last reference goes, C frees the object: no Python runs
for that, so that an interrupt can neither prevent it nor be lost in it.

This relies on CPython's reference counts for the moment of the free.

At interpreter exit everything is freed, whoever still refers to it, and daemon threads may be
using it.  So first (`_end`) it is taken away from all: the main thread gets `ClosedError`, a daemon
thread ends.  What computes is told to stop, and the frees wait for the calls that are running.  If
one does not end in time nothing is freed, and the process ends without the destructors of static
objects.
"""

from __future__ import annotations

import atexit
import itertools
import sys
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from .._native import ffi, lib
from ..errors import ClosedError
from . import shutdown
from .locks import ExitGuard
from .unique import INSTEAD, WHY, refuse_copy

if TYPE_CHECKING:
    from types import TracebackType
    from typing import TypeAlias

    from typing_extensions import Self

    # What an object points into, and the pointer to it, whose destructor frees the object.
    Made: TypeAlias = tuple[tuple[object, ...], Any]


def make(
    free: Callable[[Any], object],
    keep: tuple[object, ...],
    function: Callable[..., Any],
    *args: object,
) -> Made:
    """Call a C function that makes an object, for `own`.

    All of it is one step for the interpreter: an interrupt comes before the call, or when the
    object is freed with what is returned here.

    Args:
        free: The C function that frees it, itself: it must run no Python.
        keep: What the C object points into: parents, buffers, callback handles.  It outlives the
            object even when the garbage collector takes a whole cycle, and at interpreter exit.
        function: The C function that makes it.
        *args: Its arguments.

    Returns:
        ``keep`` and the pointer.  If that is NULL, there is nothing to own: only the caller knows
        the error.
    """
    pointers = map(ffi.gc, itertools.starmap(function, (args,)), (free,))
    return next(zip((keep,), pointers, strict=True))


def own(made: Made, *keep: object) -> Any:
    """Return the pointer that owns an object: C frees it when the last reference to that goes.

    Args:
        made: What `make` has returned; not NULL.
        *keep: What else the object points into from now on.
    """
    assert made[1] != ffi.NULL, "check for NULL first: only the caller knows the error"
    owner = ffi.cast(ffi.typeof(made[1]), made[1])  # a second cdata: the first has the destructor
    if not _registered:
        _register()
    # Outside of all cycles; what C calls when the owner goes is C too.
    shutdown.owned[weakref.ref(owner, shutdown.owned.pop)] = (*keep, *made[0]), made[1]
    if shutdown.ending:
        shutdown.end_daemon()
    return owner


_registered = False
_afterwards: set[Callable[[], object]] = set()


def after_end(function: Callable[[], object]) -> None:
    """Call a function, once, when the interpreter exits and all objects are freed.

    If one cannot be freed, since a thread is in a call of C, the function is not called either: it
    takes away what objects stand on.
    """
    _afterwards.add(function)
    if not _registered:
        _register()


def _register() -> None:
    global _registered
    atexit.register(_end)
    _registered = True


def live_objects() -> int:
    """Count the C objects that are owned and not freed; for the leak tests."""
    return len(shutdown.owned)


def _end() -> None:
    """Take all objects away from their users, wait until no call is running, and free them."""
    shutdown.begin_end()
    lib.llamacffi_guard_exit()
    if _is_quiet() and _free_all():
        for function in _afterwards:
            function()
    else:
        shutdown.abandon()


def _is_quiet() -> bool:
    """Wait until no other thread is in a call of C; return whether that has become so in time."""
    if len(sys._current_frames()) == 1:
        return True
    for keep, _ptr in list(shutdown.owned.values()):
        for one in keep:
            if isinstance(one, ExitGuard):
                one.stop()
    deadline, quiet = time.monotonic() + shutdown.EXIT_SECONDS, 0
    # A thread may have a pointer already, but not have called yet: let each of them run.
    while quiet < shutdown.EXIT_POLLS + len(sys._current_frames()):
        if time.monotonic() > deadline:
            return False
        time.sleep(shutdown.EXIT_POLL)
        quiet = 0 if lib.llamacffi_n_calls() > 0 else quiet + 1
    return True


def _free_all() -> bool:
    """Free all objects, the last first; return whether nobody was inside."""
    while shutdown.owned:
        # Without its weak reference, which would want to take it out again.
        keep, ptr = made = shutdown.owned.popitem()[1]
        endings = [one for one in keep if isinstance(one, ExitGuard)]
        for ending in endings:
            ending.stop()
        if not all(ending.wait() for ending in endings):
            shutdown.leave_alone(made)
            return False  # the call that runs stands on the rest too
        if any(ending.in_use() for ending in endings):
            shutdown.leave_alone(made)
        elif not any(one is shutdown.ABANDONED for one in keep):
            ffi.release(ptr)
    return True


class Pointer:
    """Base of the classes that have a `ptr`, for code that takes it as a number.

    As with `Unique`, `copy` and `pickle` refuse them.
    """

    __slots__ = ()

    _why: ClassVar[str] = WHY
    _instead: ClassVar[str] = INSTEAD

    def __reduce__(self) -> NoReturn:
        """Raise TypeError for `copy.copy`, `copy.deepcopy` and `pickle`."""
        refuse_copy(self, self._why, self._instead)

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

    def __init__(self, owner: Any) -> None:
        """Take an owner; see `own`.  Who has a parent says so when it is whole, by `_join`."""
        self._owner: Any = owner
        self._generation = shutdown.generation
        self._children: set[weakref.ref[Handle]] = set()

    def _join(self, parent: Handle) -> None:
        """Be closed when ``parent`` is, from now on.

        Raises:
            ClosedError: It has been closed meanwhile; then this is closed too.
        """
        parent._adopt(self)
        if parent.closed:
            self.close()
            parent.ptr  # noqa: B018  raises

    @property
    def ptr(self) -> Any:
        """The C pointer, for `llamacffi.lib`.  Whoever holds it keeps the object alive.

        Raises:
            ClosedError: After `close`, or when the interpreter exits.
            ForkError: In a process forked from the one that made the object.
        """
        owner = self._owner
        if owner is None:
            raise ClosedError(f"the {self._noun()} is closed")
        if self._generation != shutdown.generation:
            self._refuse()
        return owner

    def _noun(self) -> str:
        """Return what errors call the object."""
        return type(self).__name__

    def _refuse(self) -> NoReturn:
        name = self._noun()
        if not shutdown.ending or self._generation < shutdown.ours:
            raise shutdown.of_parent(name)
        shutdown.leave(name)

    @property
    def closed(self) -> bool:
        """Whether `close` has been called, or the interpreter exits."""
        return self._owner is None or (shutdown.ending and self._generation != shutdown.generation)

    def _adopt(self, child: Handle) -> None:
        """Close ``child`` too when this is closed, and before."""
        self._children.add(weakref.ref(child, self._children.discard))

    def close(self) -> None:
        """Free the C object now, after everything made from it.  Idempotent.

        Only a call still running in another thread, or a live zero-copy array, delays the free
        until it is done.
        """
        # Who joins from now on sees that this is closed; the owner stays until the children are.
        _owner, self._owner = self._owner, None
        for child in [ref() for ref in self._children.copy()]:
            if child is not None:
                child.close()

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
