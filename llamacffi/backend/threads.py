"""Thread pools of the CPU backend.

Every `Context` has a pool, and each pool has a lock.

upstream: ggml/src/ggml-cpu/ggml-cpu.c disposable_threadpool: without a pool, ggml starts new
threads for every graph.
upstream: ggml/src/ggml-cpu/ggml-cpu.c ggml_graph_compute: a pool runs one graph at a time, and
ggml does not check that.
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

# upstream: ggml/include/ggml.h poll: polling level from 0 (none) to 100 (aggressive)
MAX_POLL = 100
# The default polling level, measured with bench/threads.py.  From one token to the next it is as
# fast as ggml's own 50, and 0 is a tenth slower.  But after each graph 50 keeps the cores busy for
# a tenth of a second or more, and this for a few milliseconds.
POLL = 1
# A graph may have this many threads for each processor, or MOST_THREADS if that is more.
PER_PROCESSOR, MOST_THREADS = 4, 16


class Threadpool(Handle):
    """Threads that compute the graphs of contexts.

    Each context has a pool of its own.  Create one to choose the processors and the priority, or to
    share threads between contexts that never compute at the same time.  Contexts that do need two
    pools, or the second one gets `BusyError`.

    The thread that calls `Context.decode` is one of the ``n_threads``: while it computes, it takes
    on the processors and priority of the pool, and afterwards returns to its own.

    While they compute a graph, the threads wait for each other by spinning.  If other work takes
    the core of one thread, the others waste their time: on a busy machine fewer threads are much
    faster.
    """

    _why = "it stands for threads of this process"
    _instead = "create another Threadpool with the same arguments"

    __slots__ = ("_abort_flags", "cpus", "exclusive", "n_threads", "placement")

    n_threads: int
    """The number of threads that compute, including the calling one."""
    cpus: frozenset[int] | None
    """The processors that they may run on; None if none were chosen."""
    exclusive: CallLock
    """Held while a graph runs, and by `pause` and `resume`."""
    placement: Placement | None
    """What the calling thread takes on; None if neither processors nor a priority were chosen."""

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
            n_threads: The number of threads.  By default one for each of ``cpus`` or, without
                these, for each physical core that other programs leave free.
            cpus: The numbers of the processors to run on, each once (not a bit mask).  By default
                those that the calling thread may run on.
            priority: ``"low"``, ``"normal"``, ``"medium"``, ``"high"`` or ``"realtime"``; those
                above normal need a privilege.
            poll: How long a thread spins for the next graph before it sleeps, 0 to 100: at 0 not at
                all, at 1 a few milliseconds, at 100 a hundred times as long.
            strict_cpu: Bind each thread to a single one of ``cpus``.
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
        self.exclusive = CallLock("Threadpool")
        # The contexts own these flags; `register_abort_flag` adds them.
        self._abort_flags: weakref.WeakSet[Any] = weakref.WeakSet()
        cancel = functools.partial(_cancel, self._abort_flags)
        guard = ExitGuard(self.exclusive, cancel)
        self.placement = None
        if self.cpus is None and struct.prio == lib.GGML_SCHED_PRIO_NORMAL:
            owner = _start(struct, guard)
        else:
            # upstream: ggml/src/ggml-cpu/ggml-cpu.c ggml_threadpool_new_impl: it also binds the
            # thread that creates a pool, so that is one that ends right away
            with ThreadPoolExecutor(1) as thread:
                started = thread.submit(_start_placed, struct, self.cpus, guard)
                owner, self.placement = started.result()
        super().__init__(owner)
        drain()

    def __repr__(self) -> str:
        return f"<Threadpool of {self.n_threads}{', closed' if self.closed else ''}>"

    def pause(self) -> None:
        """Let the threads sleep.  The next graph wakes them.

        Raises:
            BusyError: A graph is running.

        Source: ``ggml_threadpool_pause``.
        """
        ptr = self.ptr
        # Without the lock, a thread might pause before its part of a graph, and the others wait.
        with self.exclusive:
            lib.ggml_threadpool_pause(ptr)

    def resume(self) -> None:
        """Wake the threads, so that they poll for the next graph.

        Raises:
            BusyError: A graph is running.

        Source: ``ggml_threadpool_resume``.
        """
        ptr = self.ptr
        with self.exclusive:
            lib.ggml_threadpool_resume(ptr)

    def close(self) -> None:
        """Free the C object, unless a call in another thread or a context still uses it.

        In that case it is freed when they are done.  Idempotent.

        Source: ``ggml_threadpool_free``.
        """
        super().close()
        self.exclusive.sweep()


def register_abort_flag(pool: Threadpool, abort_flag: Any) -> None:
    """Register the flag that stops a context's graph, for when the interpreter exits meanwhile."""
    pool._abort_flags.add(abort_flag)


class Placement(NamedTuple):
    """The processors and the scheduling priority of a thread."""

    cpus: frozenset[int]
    policy: int
    priority: int

    @classmethod
    def current(cls) -> Placement:
        """Return the placement of the calling thread."""
        cpus = frozenset(os.sched_getaffinity(0))
        return cls(cpus, os.sched_getscheduler(0), os.sched_getparam(0).sched_priority)

    def apply(self) -> None:
        """Apply it to the calling thread."""
        now = self.current()
        if now.cpus != self.cpus:
            os.sched_setaffinity(0, self.cpus)
        if now[1:] != self[1:]:
            os.sched_setscheduler(0, self.policy, os.sched_param(self.priority))


def check_n_threads(name: str, n_threads: int) -> None:
    """Raise ArgumentError unless ggml supports this number of threads."""
    integer(name, n_threads, 1, lib.GGML_MAX_N_THREADS)


def check_computing(name: str, n_threads: int) -> None:
    """Raise ArgumentError if a graph would have far more threads than processors.

    A few more threads than processors only log a warning.
    """
    check_n_threads(name, n_threads)
    available = processors()
    most = max(MOST_THREADS, PER_PROCESSOR * available)
    if n_threads > most:
        raise ArgumentError(
            f"{name}={n_threads} is more than {most}: this process may use {available} "
            f"processor{'s'[: available > 1]}, and threads that have to share one keep the others "
            f"waiting; use at most {name}={available}"
        )
    if n_threads > available:
        logger.warning(
            "%s=%d is more than the %d processors that this process may use: threads that have to "
            "share one keep the others waiting, so fewer are faster",
            *(name, n_threads, available),
        )


def _struct(params: dict[str, Any], cpus: frozenset[int] | None) -> Any:
    """Return checked parameters for ``ggml_threadpool_new``."""
    struct = ffi.new("struct ggml_threadpool_params *")
    struct[0] = lib.ggml_threadpool_params_default(1)
    limits = {"n_threads": (1, lib.GGML_MAX_N_THREADS), "poll": (0, MAX_POLL)}
    fill(struct, "ggml_threadpool_params", params, {}, limits=limits)
    if struct.strict_cpu and struct.n_threads > len(cpus or ()):
        raise ArgumentError(
            f"strict_cpu=True gives each of {struct.n_threads} threads its own processor, but cpus "
            f"has {len(cpus or ())}: name more, or use fewer threads"
        )
    for cpu in cpus or ():
        struct.cpumask[cpu] = True
    return struct


def _cpu_numbers(cpus: Iterable[int]) -> frozenset[int]:
    """Return the numbers of processors, if ggml supports them."""
    numbers = frozenset(checked_indices("cpus", cpus))
    if not numbers:
        raise ArgumentError("cpus is empty: name at least one processor")
    for cpu in (min(numbers), max(numbers)):
        integer("a processor in cpus", cpu, 0, lib.GGML_MAX_N_THREADS - 1)
    return numbers


def _start(struct: Any, guard: ExitGuard) -> Any:
    """Start the threads of a pool and return an owning pointer to it."""
    try:
        made = make(lib.ggml_threadpool_free, (guard,), lib.ggml_threadpool_new, struct)
    except NativeError as error:
        raise with_log(
            BackendUnavailableError(f"cannot start {struct.n_threads} threads: {error}")
        ) from error
    return own(made)


def _start_placed(
    struct: Any, cpus: frozenset[int] | None, guard: ExitGuard
) -> tuple[Any, Placement]:
    """Start a pool with chosen processors or priority, in a thread that is not needed later."""
    if not hasattr(os, "sched_setaffinity"):
        raise UnsupportedError(
            "this system supports neither the affinity nor the priority of threads: leave out cpus "
            "and priority"
        )
    before = Placement.current()
    if cpus is not None:
        _check_usable(cpus)
    owner = _start(struct, guard)
    placement = Placement.current()  # as set by ggml
    if struct.prio != lib.GGML_SCHED_PRIO_NORMAL and placement[1:] == before[1:]:
        raise UnsupportedError(
            "the system refuses this priority: Linux requires CAP_SYS_NICE or a higher rtprio limit"
        )
    return owner, placement


def _check_usable(cpus: frozenset[int]) -> None:
    """Raise ArgumentError unless this process may run on all these processors."""
    try:
        os.sched_setaffinity(0, cpus)
        refused = cpus - os.sched_getaffinity(0)
    except OSError:
        refused = cpus
    if refused:
        raise ArgumentError(
            f"cpus={sorted(refused)} cannot be used: these processors do not exist, or the "
            "affinity or the container of this process excludes them"
        )


def _cancel(abort_flags: Iterable[Any]) -> None:
    """Stop the graphs of the contexts that these abort flags belong to."""
    for flag in list(abort_flags):
        lib.llamacffi_abort_set(flag, True)
