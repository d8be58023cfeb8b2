"""Detection of other processes that take the CPUs away from a context's threads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from ..log import logger

try:
    import resource
except ImportError:  # Windows does not have it
    resource = None  # type: ignore[assignment]  # stands for a missing module

if TYPE_CHECKING:
    from types import TracebackType

# The seconds of computation to measure before judging.
ENOUGH = 0.25
# There is contention if the threads lack at least this many CPUs, and are preempted at least this
# often per second of CPU time.  Threads that sleep or wait for the disk lack CPUs too, but are not
# preempted; on an idle machine a thread is preempted a few times a second.
LACKING, SWITCHES = 0.25, 20
LACKING_ALONE = 0.5  # for a single thread, which never waits for others
# Of the computations of a single token, one in EVERY is measured; all of them, if one takes more
# than SLOW seconds, so that measuring costs next to nothing.
EVERY, SLOW = 16, 0.01


class Usage(NamedTuple):
    """How long a computation took, and how much CPU time it got."""

    wall: float
    """Elapsed time in seconds."""
    cpu: float
    """CPU time of all threads of the process, in seconds."""
    caller: float
    """CPU time of the calling thread in seconds; it computes like the other threads."""
    switches: int
    """How often a thread of the process was preempted."""

    @classmethod
    def now(cls) -> Usage:
        """Read the clocks; only differences between two readings are meaningful."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu = used.ru_utime + used.ru_stime
        return cls(time.perf_counter(), cpu, time.thread_time(), used.ru_nivcsw)

    def plus(self, end: Usage, start: Usage) -> Usage:
        """Return the sum of this usage and that from ``start`` to ``end``."""
        return Usage(
            self.wall + end.wall - start.wall,
            self.cpu + end.cpu - start.cpu,
            self.caller + end.caller - start.caller,
            self.switches + end.switches - start.switches,
        )

    def lacking(self, n_threads: int) -> float:
        """Return how many CPUs ``n_threads`` threads lacked because of other work."""
        if self.wall < ENOUGH or self.switches < SWITCHES * self.cpu:
            return 0.0
        # Other threads of the process may compute too, so look at the calling thread as well.
        lacking = max(n_threads - self.cpu / self.wall, 1 - self.caller / self.wall)
        return lacking if lacking > (LACKING if n_threads > 1 else LACKING_ALONE) else 0.0


NOTHING = Usage(0.0, 0.0, 0.0, 0)


class Contention:
    """Measures some computations of a context, and warns once if its threads lack CPUs.

    Use it as a context manager around a computation in C.
    """

    __slots__ = ("_began", "_n_left", "_n_threads", "_sum", "reason", "slow")

    slow: bool
    """Whether the last measured computation was so slow that the next can be measured too."""
    reason: str | None
    """Why the threads are slow; None if they lacked no CPUs so far."""

    def __init__(self) -> None:
        self._sum = self._began = NOTHING
        self._n_threads = 0
        self._n_left = 1
        self.slow = False
        self.reason = None

    def due(self) -> bool:
        """Return whether to measure this computation of a single token."""
        self._n_left -= 1
        if self._n_left and not self.slow:
            return False
        self._n_left = EVERY
        return True

    def of(self, n_threads: int) -> Contention:
        """Return this object, to measure a computation with ``n_threads`` threads."""
        if n_threads != self._n_threads:
            self._sum, self._n_threads = NOTHING, n_threads
        return self

    def __enter__(self) -> None:
        if resource is not None:
            self._began = Usage.now()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if resource is None:
            return
        now = Usage.now()
        self.slow = now.wall - self._began.wall > SLOW
        self._sum = self._sum.plus(now, self._began)
        if self._sum.wall < ENOUGH:
            return
        if self.reason is None and self._sum.lacking(self._n_threads):
            self._warn()
        self._sum = NOTHING

    def _warn(self) -> None:
        n, got = self._n_threads, self._sum.cpu / self._sum.wall
        if n == 1:  # fewer threads are impossible, so a warning would not help
            self.reason = f"other work uses the CPUs: the thread got {got:.0%} of one"
            return
        self.reason = (
            f"other work uses the CPUs: {n} threads got {got:.1f} CPUs on average; they wait for "
            "each other by spinning, so fewer threads are much faster"
        )
        logger.warning("%s; try n_threads=1", self.reason)
