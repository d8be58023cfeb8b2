"""Whether the threads of a context wait for each other in vain."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from ..log import logger

try:
    import resource
except ImportError:  # not on every system
    resource = None  # type: ignore[assignment]  # no module

if TYPE_CHECKING:
    from types import TracebackType

# How much has to be measured before it is judged, in seconds of computation.
ENOUGH = 0.25
# How many processors the threads have to lack, and how often other work has to take one away from
# them in a second of their computation.  Threads that sleep or wait for the disk lack some too, but
# nobody takes them away; on a machine that does nothing else there are a few a second.
LACKING, SWITCHES = 0.25, 20
LACKING_ALONE = 0.5  # of a single thread, which need not wait for others
# Of computations of a single token, one of so many is measured; or each, where one takes so many
# seconds that this is nothing.
EVERY, SLOW = 16, 0.01


class Usage(NamedTuple):
    """How long a computation took, and what of the processors it got."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of all threads of the process on a processor."""
    caller: float
    """Seconds of the thread that calls; it computes as the others do."""
    switches: int
    """How often a thread of the process was taken off a processor for other work."""

    @classmethod
    def now(cls) -> Usage:
        """Return the clocks, of which differences count."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu = used.ru_utime + used.ru_stime
        return cls(time.perf_counter(), cpu, time.thread_time(), used.ru_nivcsw)

    def plus(self, end: Usage, start: Usage) -> Usage:
        """Return this with the time from ``start`` to ``end``."""
        return Usage(
            self.wall + end.wall - start.wall,
            self.cpu + end.cpu - start.cpu,
            self.caller + end.caller - start.caller,
            self.switches + end.switches - start.switches,
        )

    def lacking(self, n_threads: int) -> float:
        """Return how many processors ``n_threads`` threads lacked, if other work took them."""
        if self.wall < ENOUGH or self.switches < SWITCHES * self.cpu:
            return 0.0
        # The process may have other threads that compute: then the one that calls tells.
        lacking = max(n_threads - self.cpu / self.wall, 1 - self.caller / self.wall)
        return lacking if lacking > (LACKING if n_threads > 1 else LACKING_ALONE) else 0.0


NOTHING = Usage(0.0, 0.0, 0.0, 0)


class Contention:
    """Measures some computations of a context, and says once if its threads lack processors.

    It is held while C computes.
    """

    __slots__ = ("_began", "_n_left", "_n_threads", "_sum", "slow", "told")

    slow: bool
    """Whether the last computation that was measured was so slow that the next can be, too."""
    told: str | None
    """What was said; None if nothing was."""

    def __init__(self) -> None:
        self._sum = self._began = NOTHING
        self._n_threads = 0
        self._n_left = 1
        self.slow = False
        self.told = None

    def due(self) -> bool:
        """Return whether to measure this computation of a single token."""
        self._n_left -= 1
        if self._n_left and not self.slow:
            return False
        self._n_left = EVERY
        return True

    def of(self, n_threads: int) -> Contention:
        """Measure what so many threads compute while this is held."""
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
        if self.told is None and self._sum.lacking(self._n_threads):
            self._tell()
        self._sum = NOTHING

    def _tell(self) -> None:
        n, got = self._n_threads, self._sum.cpu / self._sum.wall
        self.told = f"other work has the processors: {n} threads computed with {got:.1f} of them"
        if n == 1:
            self.told = f"other work has the processors: the thread got {got:.0%} of one"
            return  # which is nobody's mistake
        self.told += "; they wait for each other by spinning, so that fewer are much faster"
        logger.warning("%s; try n_threads=1", self.told)
