"""What a fork and the exit of the interpreter mean for C objects."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import Any, NoReturn

from .._native import ffi, lib
from ..errors import ClosedError, ForkError

# How long the exit of the interpreter waits for daemon threads to return from C.
EXIT_SECONDS = 5.0
# Seconds between two checks, and how many checks in a row must find no running call.
EXIT_POLL, EXIT_POLLS = 0.002, 3

# Each fork, and the exit, begins a new generation; objects of earlier ones cannot be used.
generation = 0
# The first generation whose objects belong to this process; earlier ones are its parent's.
first_own_generation = 0
# Whether the interpreter is exiting.
exiting = False

# All owned objects, by weak references to their owners: what each object points into, and the
# pointer, whose destructor frees it.  The pointer comes last, since a tuple drops its last element
# first.
owned: dict[weakref.ref[Any], tuple[tuple[object, ...], Any]] = {}

# Marks objects that are never freed: it precedes what such an object points into.
ABANDONED = object()

_never_freed: list[tuple[tuple[object, ...], Any]] = []


def never_free(made: tuple[tuple[object, ...], Any]) -> None:
    """Keep an object, and all that it points into, until the process ends."""
    ffi.gc(made[1], None)
    _never_freed.append(made)


def abandon_all() -> None:
    """Make all objects unusable, and never free them."""
    global generation, first_own_generation
    generation += 1
    first_own_generation = generation
    for ref, (keep, ptr) in list(owned.items()):
        ffi.gc(ptr, None)
        owned[ref] = (ABANDONED, keep), ptr


def _abandon_in_child() -> None:
    """Leave the objects to the parent: a forked child has copies of them, without their threads."""
    abandon_all()
    lib.llamacffi_forget_calls()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_abandon_in_child)


def hold_at_fork(lock: Any) -> Any:
    """Hold a lock during each fork, so that the child never inherits it locked; return the lock."""
    if sys.platform != "win32":
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )
    return lock


if sys.platform != "win32":
    os.register_at_fork(
        before=lib.llamacffi_reserve_lock,
        after_in_parent=lib.llamacffi_reserve_unlock,
        after_in_child=lib.llamacffi_reserve_new_lock,
    )


def begin_exit() -> None:
    """Make all objects unusable: the interpreter is exiting."""
    global exiting, generation
    exiting = True
    generation += 1


def end_daemon_thread() -> None:
    """End the calling thread during the exit, unless it is the main thread."""
    if threading.get_ident() != threading.main_thread().ident:
        raise SystemExit  # silent, and releases the locks that the thread holds


def refuse_at_exit(name: str) -> NoReturn:
    """Refuse the use of an object during the exit: raise `ClosedError`, or end a daemon thread."""
    end_daemon_thread()
    raise ClosedError(f"the {name} is closed: the interpreter is exiting")


def parent_process_error(name: str) -> ForkError:
    """Return the error for an object that belongs to the parent process."""
    return ForkError(f"this {name} belongs to the parent process; {_advice(has_gpu())}")


def _advice(gpu: bool) -> str:
    if gpu:
        return (
            "start processes with the 'spawn' method: after a fork, a GPU that the parent has used "
            "does not work in the child, not even for new objects"
        )
    return "make a new one in the child, or start processes with the 'spawn' method"


def has_gpu() -> bool:
    """Return whether a loaded backend has a GPU."""
    devices = (lib.ggml_backend_dev_get(i) for i in range(lib.ggml_backend_dev_count()))
    integrated = getattr(lib, "GGML_BACKEND_DEVICE_TYPE_IGPU", None)  # missing in older llama.cpp
    gpus = lib.GGML_BACKEND_DEVICE_TYPE_GPU, integrated
    return any(lib.ggml_backend_dev_type(device) in gpus for device in devices)
