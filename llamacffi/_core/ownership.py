"""Ownership of C objects: each has one owner and is freed once, after everything that uses it.

The owner of a C object is a cdata (`own`), and each reference to it keeps the object alive: a
running call has one as an argument, a zero-copy array has one through its buffer, and a child has
one among the objects that it points into.  `Handle.close` only drops its own reference.  When the
last one goes, C frees the object.  No Python code runs for that, so an interrupt can neither
prevent the free nor get lost in it.

The moment of the free depends on CPython's reference counts.

When the interpreter exits, every object is freed, even if references to it remain and daemon
threads are using it.  So `_free_at_exit` first revokes access: from then on the main thread gets
`ClosedError`, and a daemon thread ends.  Running computations are told to stop, and the frees wait
until those calls return.  If one does not return in time, nothing is freed, and the process ends
without running the destructors of static objects.
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

    # The objects that a C object points into, and the pointer to it, whose destructor frees it.
    Made: TypeAlias = tuple[tuple[object, ...], Any]


def make(
    free: Callable[[Any], object],
    keep: tuple[object, ...],
    function: Callable[..., Any],
    *args: object,
) -> Made:
    """Call a C function that makes an object, for `own`.

    For the interpreter, this is a single step: an interrupt comes either before the call, or when
    the returned pointer already frees the object.

    Args:
        free: The C function that frees the object; not a Python wrapper around it.
        keep: What the object points into: parents, buffers, callback handles.  They outlive the
            object even when the garbage collector takes a whole cycle, and at interpreter exit.
        function: The C function that makes the object.
        *args: Its arguments.

    Returns:
        ``keep`` and the pointer.  If the pointer is NULL, the call has failed: raise the error
        instead of calling `own`.
    """
    pointers = map(ffi.gc, itertools.starmap(function, (args,)), (free,))
    return next(zip((keep,), pointers, strict=True))


def own(made: Made, *keep: object) -> Any:
    """Return the pointer that owns an object: C frees it when the last reference to that goes.

    Args:
        made: What `make` returned; its pointer must not be NULL.
        *keep: Anything else that the object points into from now on.
    """
    assert made[1] != ffi.NULL, "check for NULL first: only the caller knows the error"
    owner = ffi.cast(ffi.typeof(made[1]), made[1])  # a second cdata: the first has the destructor
    if not _registered:
        _register()
    # This dict is in no reference cycle, and its `pop`, called when the owner goes, is C.
    shutdown.owned[weakref.ref(owner, shutdown.owned.pop)] = (*keep, *made[0]), made[1]
    if shutdown.exiting:
        shutdown.end_daemon_thread()
    return owner


_registered = False
_after_frees: set[Callable[[], object]] = set()


def call_after_frees(function: Callable[[], object]) -> None:
    """Call a function once, when the interpreter exits and all objects have been freed.

    If a thread is still inside a C call, so that an object cannot be freed, the function is not
    called either: it would remove what the object depends on.
    """
    _after_frees.add(function)
    if not _registered:
        _register()


def _register() -> None:
    global _registered
    atexit.register(_free_at_exit)
    _registered = True


def live_objects() -> int:
    """Count the C objects that have not been freed yet; for the leak tests."""
    return len(shutdown.owned)


def _free_at_exit() -> None:
    """Revoke access to all objects, wait until no call is running, and free them."""
    shutdown.begin_exit()
    lib.llamacffi_guard_exit()
    if _wait_for_calls() and _free_all():
        for function in _after_frees:
            function()
    else:
        shutdown.abandon_all()


def _wait_for_calls() -> bool:
    """Wait until no other thread is inside a C call; return False if that takes too long."""
    if len(sys._current_frames()) == 1:
        return True
    for keep, _ptr in list(shutdown.owned.values()):
        for one in keep:
            if isinstance(one, ExitGuard):
                one.stop()
    deadline, quiet = time.monotonic() + shutdown.EXIT_SECONDS, 0
    # A thread may already hold a pointer that it is about to pass to C: let each thread run first.
    while quiet < shutdown.EXIT_POLLS + len(sys._current_frames()):
        if time.monotonic() > deadline:
            return False
        time.sleep(shutdown.EXIT_POLL)
        quiet = 0 if lib.llamacffi_n_calls() > 0 else quiet + 1
    return True


def _free_all() -> bool:
    """Free all objects, the newest first; return False if a call is still using one of them."""
    while shutdown.owned:
        # Drops the weak reference too, whose callback would remove the entry a second time.
        keep, ptr = made = shutdown.owned.popitem()[1]
        guards = [one for one in keep if isinstance(one, ExitGuard)]
        for guard in guards:
            guard.stop()
        if not all(guard.wait() for guard in guards):
            shutdown.never_free(made)
            return False  # the running call depends on the remaining objects too
        if any(guard.in_use() for guard in guards):
            shutdown.never_free(made)
        elif not any(one is shutdown.ABANDONED for one in keep):
            ffi.release(ptr)
    return True


class Pointer:
    """Base of the classes that have a `ptr`; also gives it as a number.

    Like those of `Unique`, its objects cannot be copied or pickled.
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
        """The address in `ptr` as an integer, for C and C++ code outside CFFI.

        The number does not keep the C object alive: hold on to `ptr`, or keep this object open,
        while the address is in use.

        Raises:
            ClosedError: The object is closed.
        """
        return int(ffi.cast("uintptr_t", self.ptr))


class Handle(Pointer):
    """Base of the classes that own a C object: `ptr`, `close`, `closed` and ``with``."""

    __slots__ = ("__weakref__", "_children", "_generation", "_owner")

    def __init__(self, owner: Any) -> None:
        """Take over an owner; see `own`.  An object with a parent calls `_join` once complete."""
        self._owner: Any = owner
        self._generation = shutdown.generation
        self._children: set[weakref.ref[Handle]] = set()

    def _join(self, parent: Handle) -> None:
        """Close this object when ``parent`` is closed.

        Raises:
            ClosedError: The parent is closed already; then this object gets closed too.
        """
        parent._adopt(self)
        if parent.closed:
            self.close()
            parent.ptr  # noqa: B018  raises

    @property
    def ptr(self) -> Any:
        """The C pointer, for `llamacffi.lib`.  A reference to it keeps the C object alive.

        Raises:
            ClosedError: After `close`, or once the interpreter is exiting.
            ForkError: The object belongs to the parent of this forked process.
        """
        owner = self._owner
        if owner is None:
            raise ClosedError(f"the {self._noun()} is closed")
        if self._generation != shutdown.generation:
            self._refuse()
        return owner

    def _noun(self) -> str:
        """Return the name of the object in error messages."""
        return type(self).__name__

    def _refuse(self) -> NoReturn:
        name = self._noun()
        if not shutdown.exiting or self._generation < shutdown.first_own_generation:
            raise shutdown.parent_process_error(name)
        shutdown.refuse_at_exit(name)

    @property
    def closed(self) -> bool:
        """Whether `close` has been called, or the interpreter is exiting."""
        return self._owner is None or (shutdown.exiting and self._generation != shutdown.generation)

    def _adopt(self, child: Handle) -> None:
        """Close ``child`` before this object, whenever this object is closed."""
        self._children.add(weakref.ref(child, self._children.discard))

    def close(self) -> None:
        """Free the C object now, after everything that was made from it.  Idempotent.

        If a call is still running in another thread, or a zero-copy array is alive, the C object is
        freed when that is done.
        """
        # A child that joins from now on finds its parent closed.  The local variable keeps the
        # owner alive until all children are closed.
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
