"""The samplers of a chain that are written in Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .._native import ffi
from .base import Sampler
from .callbacks import CandidateBuffer, ChainedRunner


class ChainRunners:
    """The runners of one chain in C, in the order of the chain; see `ChainedRunner`."""

    __slots__ = ("_runners", "handles")

    handles: list[Any]
    """The handles by which C finds the runners: keep them as long as the chain in C exists."""

    def __init__(self, handles: list[Any]) -> None:
        self.handles = handles
        self._runners: list[ChainedRunner] = [ffi.from_handle(one) for one in handles]

    def __bool__(self) -> bool:
        return bool(self._runners)

    def join(self, chain: Any) -> None:
        """Tell the runners which ``struct llamacffi_chain`` they belong to."""
        for one in self._runners:
            one.chain = chain

    def share(self, buffer: CandidateBuffer) -> None:
        """Give the runners the candidate buffer of the chain."""
        for one in self._runners:
            one.room = buffer

    def samplers(self) -> Iterator[Sampler]:
        """Yield the descriptions of the samplers."""
        return (one.runner.sampler for one in self._runners)

    def take_clones(self) -> list[Any]:
        """Return the handles of the clones that C has just made."""
        found = [one.clones.pop() for one in self._runners if one.clones]
        for one in self._runners:
            one.clones.clear()
        return found

    def raise_stored(self) -> None:
        """Raise the first exception that a runner has stored, and forget them all."""
        errors = [one.error for one in self._runners if one.error is not None]
        for one in self._runners:
            one.error = None
        if errors:
            raise errors[0]
