"""How long std::regex may search for a pattern in the name of a tensor.

It tries one way after the other, and calls itself for each step.  Nothing can stop it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from .._core.regex import Back, Chars, Either, Group, Look, Node, Repeated, Sequenced, parse

# What a search from one place in a name may try: under a second for all names of a model, since few
# of the ways are open in a name that there is.
MAX_WAYS = 1_000_000
# Characters of the names for which that is counted.  There are longer ones, but what takes long for
# those because its ways double with each character is beyond all bounds here too.
LONGEST = 40

Counts = list[int]  # by how many characters: in how many ways so many can be behind


class _TooMany(Exception):
    """There are more ways than may be."""


@functools.lru_cache(1024)
def is_quick(pattern: str) -> bool:
    """Return whether a search for a pattern ends soon, whatever the name.

    Raises:
        ArgumentError: It is no regular expression.
    """
    node, counter = parse(pattern), _Counter()
    try:
        counter.count(node, [1, *[0] * LONGEST])
    except _TooMany:
        return False
    return True


class _Counter:
    """Counts the ways in which the parts of a pattern can be tried, as if every one fitted."""

    def __init__(self) -> None:
        self.ways = 0

    def count(self, node: Node, before: Counts) -> Counts:
        """Return the ways to be behind a part, of those to be before it."""
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
            case Back():  # of any length
                return [sum(before[: n + 1]) for n in range(len(before))]
        return before

    def repeated(self, node: Repeated, before: Counts) -> Counts:
        most = node.least + LONGEST if node.most is None else node.most
        behind = [] if node.least else [before]
        for n in range(1, most + 1):
            before = self.count(node.item, before)
            if n >= node.least:
                behind.append(before)
            if not any(before):
                break
        return _sum(behind) if behind else [0] * (LONGEST + 1)


def _sum(counts: Iterator[Counts] | list[Counts]) -> Counts:
    return [sum(column) for column in zip(*counts, strict=True)]
