"""Thread pools of the CPU backend.

Without a pool ggml starts its threads anew for every graph, so every `Context` has one.  A pool
runs one graph at a time; ggml does not check that, so each has a lock.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from .._core.hints import hinting
from .._core.locks import CallLock, ExitGuard
from .._core.ownership import Handle, make, own
from .._core.params import enum_number, fill
from .._core.values import checked_indices, integer
from .._native import ffi, lib
from ..errors import ArgumentError, BackendUnavailableError, NativeError, UnsupportedError
from ..log import drain, logger, with_log
from . import registry as backend
from .cores import free_cores, processors

if TYPE_CHECKING:
    from .._generated.enums import GgmlSchedPriority

# The comment on ggml_threadpool_params.poll: 0 is no polling, 100 is aggressive polling.
MAX_POLL = 100
# How long threads spin by default; measured with bench/threads.py.  From one token to the next this
# is as fast as ggml's own 50, and 0 is slower by a tenth; but after each graph 50 keeps the cores
# busy for a tenth of a second or more, and this for some milliseconds.
POLL = 1
# How many threads of a graph are refused: more for each processor, and more at all.
PER_PROCESSOR, MOST_THREADS = 4, 16


class Threadpool(Handle):
    """Threads that compute, to be attached to contexts.

    A context has a pool of its own; make one to choose the processors and the priority, or to
    share the threads of contexts that never compute at once.  Two contexts that compute at once
    need two pools: the second to come gets `BusyError`.

    The thread that calls `Context.decode` is one of the ``n_threads``: while it computes, it too
    has the pool's processors and priority, and afterwards its own again.

    Within a graph the threads wait for each other by spinning.  If other work takes the core of
    one, the others spin in vain: on a busy machine fewer threads are much faster.
    """

    _why = "it stands for threads of this process"
    _instead = "make another Threadpool with the same arguments"

    __slots__ = ("_flags", "cpus", "lock", "n_threads", "placement")

    n_threads: int
    """How many threads compute, with the one that calls."""
    cpus: frozenset[int] | None
    """The processors that they may run on; None if that was not chosen."""
    lock: CallLock
    """Held while a graph runs, and by `pause` and `resume`."""
    placement: Placement | None
    """What the thread that calls takes on; None if neither processors nor priority were chosen."""

    @hinting
    def __init__(
        self,
        n_threads: int | None = None,
        *,
        cpus: Iterable[int] | None = None,
        priority: GgmlSchedPriority | int | str = "normal",
        poll: int = POLL,
        strict_cpu: bool = False,
        paused: bool = False,
    ) -> None:
        """Start the threads.

        Args:
            n_threads: How many; one for each of ``cpus`` or, without them, for each physical core
                that other work leaves.
            cpus: The numbers of the processors to run on, each once; a mask is none.  Without
                them, where the calling thread may run.
            priority: ``"low"``, ``"normal"``, ``"medium"``, ``"high"`` or ``"realtime"``; those
                above normal need a privilege.
            poll: How long a thread spins for the next graph before it sleeps, 0 to 100: not at all,
                at 1 a few milliseconds, at 100 a hundred times as long.
            strict_cpu: Give each thread one of ``cpus`` for itself.
            paused: Let the threads sleep until the first graph.

        Raises:
            ArgumentError: A value is out of range, or this process may not use one of ``cpus``.
            UnsupportedError: The system refuses the priority, or cannot bind threads.
            BackendUnavailableError: The threads cannot be started.

        Source: ``ggml_threadpool_new``.
        """
        self.cpus = None if cpus is None else _cpu_numbers(cpus)
        if n_threads is None:
            n_threads = free_cores() if self.cpus is None else len(self.cpus)
        prio = enum_number("GgmlSchedPriority", "priority", priority)
        params = {"n_threads": n_threads, "prio": prio, "poll": poll}
        params |= {"strict_cpu": strict_cpu, "paused": paused}
        backend.load()
        struct = _struct(params, self.cpus)
        self.n_threads = struct.n_threads
        self.lock = CallLock("Threadpool")
        # Weak, for they belong to the contexts: see `attached_to`.
        self._flags: weakref.WeakSet[Any] = weakref.WeakSet()
        cancel = functools.partial(_cancel, self._flags)
        ending = ExitGuard(self.lock, cancel)
        self.placement = None
        if self.cpus is None and struct.prio == lib.GGML_SCHED_PRIO_NORMAL:
            owner = _start(struct, ending)
        else:
            # ggml binds the thread that makes a pool too: let that be one that ends at once.
            with ThreadPoolExecutor(1) as thread:
                made = thread.submit(_start_placed, struct, self.cpus, ending)
                owner, self.placement = made.result()
        super().__init__(owner)
        drain()

    def __repr__(self) -> str:
        return f"<Threadpool of {self.n_threads}{', closed' if self.closed else ''}>"

    def pause(self) -> None:
        """Let the threads sleep.  The next graph wakes them by itself.

        Raises:
            BusyError: A graph is running.

        Source: ``ggml_threadpool_pause``.
        """
        ptr = self.ptr
        # A thread that saw the pause before its part of a graph would keep the others waiting.
        with self.lock:
            lib.ggml_threadpool_pause(ptr)

    def resume(self) -> None:
        """Wake the threads, so that they wait for the next graph as the pool's ``poll`` says.

        Raises:
            BusyError: A graph is running.

        Source: ``ggml_threadpool_resume``.
        """
        ptr = self.ptr
        with self.lock:
            lib.ggml_threadpool_resume(ptr)

    def close(self) -> None:
        """Free the C object now, after everything made from it.  Idempotent.

        Only a call still running in another thread, or a context that has it, delays the free until
        it is done.
        """
        super().close()
        self.lock.sweep()

    def attached_to(self, abort_flag: Any) -> None:
        """Remember what stops a graph, for an exit of the interpreter while one runs."""
        self._flags.add(abort_flag)


class Placement(NamedTuple):
    """Where a thread may run, and how urgently."""

    cpus: frozenset[int]
    policy: int
    priority: int

    @classmethod
    def current(cls) -> Placement:
        """Return that of the calling thread."""
        cpus = frozenset(os.sched_getaffinity(0))
        return cls(cpus, os.sched_getscheduler(0), os.sched_getparam(0).sched_priority)

    def apply(self) -> None:
        """Give it to the calling thread."""
        now = self.current()
        if now.cpus != self.cpus:
            os.sched_setaffinity(0, self.cpus)
        if now[1:] != self[1:]:
            os.sched_setscheduler(0, self.policy, os.sched_param(self.priority))


def check_n_threads(name: str, n_threads: int) -> None:
    """Raise ArgumentError unless ggml can have so many threads."""
    integer(name, n_threads, 1, lib.GGML_MAX_N_THREADS)


def check_computing(name: str, n_threads: int) -> None:
    """Raise ArgumentError for more threads of a graph than can be of use to anybody.

    Some more than there are processors are a warning in the log.
    """
    check_n_threads(name, n_threads)
    there = processors()
    most = max(MOST_THREADS, PER_PROCESSOR * there)
    if n_threads > most:
        raise ArgumentError(
            f"{name}={n_threads} is more than {most}: this process may use {there} "
            f"processor{'s'[: there > 1]}, and threads without one of their own keep the others "
            f"waiting; give at most {name}={there}"
        )
    if n_threads > there:
        logger.warning(
            "%s=%d is more than the %d processors that this process may use: threads without one "
            "of their own keep the others waiting, so fewer are faster",
            *(name, n_threads, there),
        )


def _struct(params: dict[str, Any], cpus: frozenset[int] | None) -> Any:
    """Return checked parameters for ``ggml_threadpool_new``."""
    struct = ffi.new("struct ggml_threadpool_params *")
    struct[0] = lib.ggml_threadpool_params_default(1)
    limits = {"n_threads": (1, lib.GGML_MAX_N_THREADS), "poll": (0, MAX_POLL)}
    fill(struct, "ggml_threadpool_params", params, {}, limits=limits)
    if struct.strict_cpu and struct.n_threads > len(cpus or ()):
        raise ArgumentError(
            f"strict_cpu=True gives each of {struct.n_threads} threads a processor, but cpus has "
            f"{len(cpus or ())}: name more, or use fewer threads"
        )
    for cpu in cpus or ():
        struct.cpumask[cpu] = True
    return struct


def _cpu_numbers(cpus: Iterable[int]) -> frozenset[int]:
    """Return the numbers of some processors, if ggml can have them."""
    numbers = frozenset(checked_indices("cpus", cpus))
    if not numbers:
        raise ArgumentError("cpus is empty: name at least one processor")
    for cpu in (min(numbers), max(numbers)):
        integer("a processor in cpus", cpu, 0, lib.GGML_MAX_N_THREADS - 1)
    return numbers


def _start(struct: Any, ending: ExitGuard) -> Any:
    """Start the threads of a pool and return an owning pointer to it."""
    try:
        made = make(lib.ggml_threadpool_free, (ending,), lib.ggml_threadpool_new, struct)
    except NativeError as error:
        raise with_log(
            BackendUnavailableError(f"cannot start {struct.n_threads} threads: {error}")
        ) from error
    return own(made)


def _start_placed(
    struct: Any, cpus: frozenset[int] | None, ending: ExitGuard
) -> tuple[Any, Placement]:
    """Do that with processors or a priority, in a thread that is not needed afterwards."""
    if not hasattr(os, "sched_setaffinity"):
        raise UnsupportedError(
            "this system cannot bind threads to processors, or rank them: leave out cpus and "
            "priority"
        )
    before = Placement.current()
    if cpus is not None:
        _check_usable(cpus)
    owner = _start(struct, ending)
    placement = Placement.current()  # as ggml has made it
    if struct.prio != lib.GGML_SCHED_PRIO_NORMAL and placement[1:] == before[1:]:
        raise UnsupportedError(
            "the system refuses this priority: on Linux it needs CAP_SYS_NICE or a limit of rtprio"
        )
    return owner, placement


def _check_usable(cpus: frozenset[int]) -> None:
    """Raise ArgumentError unless this process may run on all of some processors."""
    try:
        os.sched_setaffinity(0, cpus)
        refused = cpus - os.sched_getaffinity(0)
    except OSError:
        refused = cpus
    if refused:
        raise ArgumentError(
            f"cpus={sorted(refused)} cannot be used: there are no such processors, or this process "
            "is kept from them"
        )


def _cancel(flags: Iterable[Any]) -> None:
    """Stop the graphs of the contexts that these abort flags belong to."""
    for flag in list(flags):
        lib.llamacffi_abort_set(flag, True)
