"""A change between two APIs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Action: TypeAlias = Literal[
    "added", "removed", "renamed", "changed", "deprecated", "no longer deprecated"
]
What: TypeAlias = Literal[
    "function", "struct", "union", "field", "enumerator", "constant", "typedef"
]
Level: TypeAlias = Literal["nothing", "compatible", "breaking"]


@dataclass(frozen=True, slots=True, order=True)
class Use:
    """A place in our own code that uses what changed."""

    kind: str
    """facade, native, tests, docs, ..."""
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Change:
    """One change.

    It is *breaking* if a program that was right before may not compile, link or compute the same
    after it: something is gone, or has another type, value, size or place.
    """

    action: Action
    what: What
    name: str
    """The name before, if there was one; of a field as ``struct.field``."""
    breaking: bool
    old: str = ""
    """The declaration or value before; empty if there was none."""
    new: str = ""
    new_name: str = ""
    """The name after, if it is another: a guess."""
    details: tuple[str, ...] = ()
    """What exactly is different, in words."""
    uses: tuple[Use, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names that code may have for it."""
        return tuple(filter(None, (self.name, self.new_name)))


def level_of(changes: Iterable[Change]) -> Level:
    """Return the worst of ``changes``."""
    levels = {one.breaking for one in changes}
    return "breaking" if True in levels else "compatible" if levels else "nothing"
