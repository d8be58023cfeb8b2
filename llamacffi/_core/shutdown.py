"""The life of this process, as far as C objects depend on it: its forks, and its end."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import Any, NoReturn

from .._native import ffi, lib
from ..errors import ClosedError, ForkError

# How long the exit of the interpreter waits for daemon threads to come out of C.
EXIT_SECONDS = 5.0
# How often it looks, and how often in a row there must be no call.
EXIT_POLL, EXIT_POLLS = 0.002, 3

# Objects of an earlier generation cannot be used: a fork begins a new one, and so does the exit.
generation = 0
# The first generation whose objects this process may free.
ours = 0
# Whether the interpreter exits.
ending = False

# What is owned, by weak references to the owners: what the object points into, and the pointer,
# whose destructor frees it.  A tuple lets go of its last element first.
owned: dict[weakref.ref[Any], tuple[tuple[object, ...], Any]] = {}

# What stands before what an object points into that is not freed.
ABANDONED = object()

_left_alone: list[tuple[tuple[object, ...], Any]] = []


def leave_alone(made: tuple[tuple[object, ...], Any]) -> None:
    """Never free an object, nor what it points into."""
    ffi.gc(made[1], None)
    _left_alone.append(made)


def abandon() -> None:
    """Leave all objects as they are: they are not used again, and not freed."""
    global generation, ours
    generation += 1
    ours = generation
    for ref, (keep, ptr) in list(owned.items()):
        ffi.gc(ptr, None)
        owned[ref] = (ABANDONED, keep), ptr


def _forked() -> None:
    """Leave the objects to the parent: what they are here is a copy without its threads."""
    abandon()
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


if sys.platform != "win32":
    os.register_at_fork(
        before=lib.llamacffi_planning_stop,
        after_in_parent=lib.llamacffi_planning_go_on,
        after_in_child=lib.llamacffi_planning_begin,
    )


def begin_end() -> None:
    """Take all objects away from their users: the interpreter exits."""
    global ending, generation
    ending = True
    generation += 1


def end_daemon() -> None:
    """End the calling thread at the exit, unless it is the main thread."""
    if threading.get_ident() != threading.main_thread().ident:
        raise SystemExit  # silent, and it releases the locks that the thread has


def leave(name: str) -> NoReturn:
    """Let nobody use an object at the exit."""
    end_daemon()
    raise ClosedError(f"the {name} is closed: the interpreter exits")


def of_parent(name: str) -> ForkError:
    """Return the error for an object of another process."""
    return ForkError(f"this {name} belongs to the parent process; {_advice(has_gpu())}")


def _advice(gpu: bool) -> str:
    if gpu:
        return (
            "start processes with the 'spawn' method: a GPU that the parent has used cannot be "
            "used in a forked process, not even by new objects"
        )
    return "make a new one in the child, or start processes with the 'spawn' method"


def has_gpu() -> bool:
    """Return whether a backend for another device than the processor is loaded."""
    devices = (lib.ggml_backend_dev_get(i) for i in range(lib.ggml_backend_dev_count()))
    integrated = getattr(lib, "GGML_BACKEND_DEVICE_TYPE_IGPU", None)  # not in an older llama.cpp
    gpus = lib.GGML_BACKEND_DEVICE_TYPE_GPU, integrated
    return any(lib.ggml_backend_dev_type(device) in gpus for device in devices)
