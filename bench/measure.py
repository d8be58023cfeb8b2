"""How the benchmarks measure and print: pairs, medians, spreads."""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Callable

PAIRS = 15
CALLS = 100_000


def row(what: str, values: list[float], unit: str) -> float:
    """Print the median of some values and their spread; return the median."""
    deciles = statistics.quantiles(values, n=10)
    median = statistics.median(values)
    print(f"{what:52} {median:10.3f} {deciles[0]:10.3f} .. {deciles[-1]:.3f} {unit}", flush=True)
    return median


def nanoseconds(function: Callable[[], object], calls: int = CALLS) -> float:
    """Time one call, as the mean of many."""
    return timeit.timeit(function, number=calls) / calls * 1e9


def alternately(
    first: Callable[[], float], second: Callable[[], float], pairs: int = PAIRS
) -> tuple[list[float], list[float]]:
    """Measure two things alternately, so that a busy machine disturbs both alike.

    The order changes with each pair.
    """
    firsts, seconds = [], []
    for i in range(pairs):
        if i % 2:
            seconds.append(second())
            firsts.append(first())
        else:
            firsts.append(first())
            seconds.append(second())
    return firsts, seconds


def ratio(what: str, reference: list[float], measured: list[float]) -> float:
    """Print the speed relative to a reference: 1.0 is as fast, 0.5 takes twice the time."""
    return row(what, [a / b for a, b in zip(reference, measured, strict=True)], "x")
