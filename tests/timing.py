"""Limits on the time that something takes, for machines of any speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

# After so many seconds by the clock something waits without end, on however slow a machine.
HANGS = 300.0
# What `_work` takes of the processor of the machine that the limits were measured on, in seconds.
USUAL = 0.01


class Cpu:
    """Measures the processor time of a block, of all threads of the process."""

    seconds: float

    def __enter__(self) -> Cpu:
        """Begin."""
        self._start = time.process_time()
        return self

    def __exit__(self, *_error: object) -> None:
        """End, whether or not the block has raised."""
        self.seconds = time.process_time() - self._start


def slowness() -> float:
    """Return how many times the usual this machine takes for some work now; at least 1."""
    taken = []
    for _ in range(9):
        with Cpu() as cpu:
            _work()
        taken.append(cpu.seconds)
    return max(1.0, sorted(taken)[4] / USUAL)


def _work() -> int:
    """Do what a test with a limit does: call Python, and C."""
    return sum(len(str(number)) for number in range(100_000))


@contextmanager
def limited(seconds: float) -> Iterator[Cpu]:
    """Fail if a block takes more processor time; on a slower machine it may take more."""
    cpu = Cpu()
    with cpu:
        yield cpu
    within(cpu.seconds, seconds)


def within(taken: float, limit: float) -> None:
    """Fail if a measured time is over its limit, which is longer on a slower machine."""
    if taken >= limit:  # only then is the speed worth measuring
        assert taken < limit * slowness()
