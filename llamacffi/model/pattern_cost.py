"""Limit how long std::regex can search for a pattern in the name of a tensor.

It backtracks through every way to match, recursing at each step, and cannot be interrupted.

upstream: src/llama-model-loader.cpp "std::regex_search(tensor_name, pattern)": the search.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from .._core.regex import Back, Chars, Either, Group, Look, Node, Repeated, Sequenced, parse

# The most ways that a search from one position may try: less than a second for all names of a
# model, since real names allow few of them.
MAX_WAYS = 1_000_000
# The length of name that is counted for.  Real names can be longer, but a pattern that is slow for
# them because its ways double with each character exceeds the limit at this length already.
LONGEST = 40

Counts = list[int]  # index: characters consumed; value: number of ways to consume them


class _TooMany(Exception):
    """The pattern can match in more than MAX_WAYS ways."""


@functools.lru_cache(1024)
def is_quick(pattern: str) -> bool:
    """Return whether a search for the pattern is fast in any name.

    Raises:
        ArgumentError: The pattern is not a regular expression.
    """
    node, counter = parse(pattern), _Counter()
    try:
        counter.count(node, [1, *[0] * LONGEST])
    except _TooMany:
        return False
    return True


class _Counter:
    """Counts the ways in which the parts of a pattern can be tried, as if each part matched."""

    def __init__(self) -> None:
        self.ways = 0

    def count(self, node: Node, before: Counts) -> Counts:
        """Return the ways to get past a part, from the ways to reach it."""
        self.ways += sum(before)
        if self.ways > MAX_WAYS:
            raise _TooMany
        match node:
            case Chars():
                return [0, *before[:-1]]
            case Sequenced(items):
                for item in items:
                    before = self.count(item, before)
                return before
            case Either(choices):
                return _sum(self.count(one, before) for one in choices)
            case Repeated():
                return self.repeated(node, before)
            case Group(item):
                return self.count(item, before)
            case Look(item):
                self.count(item, before)
            case Back():  # matches text of any length
                return [sum(before[: n + 1]) for n in range(len(before))]
        return before

    def repeated(self, node: Repeated, before: Counts) -> Counts:
        most = node.least + LONGEST if node.most is None else node.most
        after = [] if node.least else [before]
        for n in range(1, most + 1):
            before = self.count(node.item, before)
            if n >= node.least:
                after.append(before)
            if not any(before):
                break
        return _sum(after) if after else [0] * (LONGEST + 1)


def _sum(counts: Iterator[Counts] | list[Counts]) -> Counts:
    return [sum(column) for column in zip(*counts, strict=True)]
