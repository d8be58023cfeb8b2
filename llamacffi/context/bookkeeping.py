"""Sequence bookkeeping that llama.cpp does not expose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._core.values import INT32_MAX
from .known_tokens import KnownTokens

if TYPE_CHECKING:
    from ..batch.arrays import BatchArrays

END = INT32_MAX  # after every position


class Bookkeeping:
    """Which sequences share tokens, which recurrent ones can be rolled back, and which were moved.

    A token that several sequences share has one position in all of them: moving it in one moves it
    in the others.  A recurrent sequence can be rolled back only to a state that was kept while its
    last batch was computed; beyond that llama.cpp uses whatever the buffer contains.  Keys are
    rotated to their new positions just before the next batch; if that is cancelled midway, they are
    corrupt.  llama.cpp has no functions that return any of this.
    """

    __slots__ = (
        *("_n_seq_max", "_recurrent", "_rolled_back", "_rolls_back", "_shared", "_undo"),
        *("tokens", "rotating", "versions", "watches"),
    )

    def __init__(self, n_seq_max: int, *, recurrent: bool, rolls_back: bool) -> None:
        """Start with an empty memory.

        Args:
            n_seq_max: Number of sequences.
            recurrent: Whether a sequence is one state, which is its own after each batch.
            rolls_back: Whether earlier states are kept (``n_rs_seq``).
        """
        self._n_seq_max = n_seq_max
        self._recurrent = recurrent
        self._rolls_back = rolls_back
        self.watches: bool = recurrent or rolls_back
        """Whether every batch changes this bookkeeping, not only batches with shared tokens."""
        self.tokens: KnownTokens = KnownTokens()
        """The tokens of each sequence."""
        self.versions: list[int] = [0] * n_seq_max
        """For each sequence a number that changes when anything but a batch changes the sequence:
        when its end is removed, or it is moved, cleared, loaded, or copied to."""
        self.cleared()

    def cleared(self) -> None:
        """Record that the memory was cleared."""
        self.tokens.cleared()
        self._shared: dict[int, int] = {}  # by sequence: the position where sharing ends
        self._undo: dict[int, int] = {}  # by sequence: the number of tokens that can be undone
        self._rolled_back: set[int] = set()
        self.rotating: set[int] = set()
        """The sequences whose keys llama.cpp rotates before the next batch."""
        self.versions[:] = [version + 1 for version in self.versions]

    def decoded(self, batch: BatchArrays) -> None:
        """Record the tokens that a batch added."""
        if batch.single is None:
            self.tokens.decoded(batch)
        else:  # for a loop that decodes token by token
            self.tokens.one(batch.single, batch.first_pos[0], batch.first_token[0])
        if self.rotating:
            self.rotating = set()
        if not (batch.coupled or self._rolls_back or (self._recurrent and self._shared)):
            return
        counts: dict[int, int] = {}
        for pos, ids in zip(batch.positions.tolist(), batch.seq_ids, strict=True):
            for seq_id in ids:
                counts[seq_id] = counts.get(seq_id, -1) + 1
                if len(ids) > 1:
                    self._shared[seq_id] = max(self._shared.get(seq_id, 0), pos + 1)
                elif self._recurrent:
                    self._shared.pop(seq_id, None)
        if self._rolls_back:
            self._undo |= counts
            self._rolled_back.difference_update(counts)

    def interrupted(self, batch: BatchArrays) -> set[int]:
        """Record a batch of which only a part may have been computed.

        Returns:
            The sequences whose keys may be corrupt.
        """
        spoilt = self.rotating
        self.decoded(batch)
        for seq_id in batch.starts():
            self._undo.pop(seq_id, None)
        return spoilt

    def copied(self, source: int, target: int, end: int) -> None:
        """Record that two sequences share the tokens before position ``end``."""
        for seq_id in (source, target):
            self._shared[seq_id] = max(self._shared.get(seq_id, 0), end)
        self._undo.pop(target, None)
        self.versions[target] += 1

    def moved(self, seq_id: int) -> None:
        """Record that the keys of a sequence will be rotated."""
        self.rotating.add(seq_id)
        self.versions[seq_id] += 1

    def removed(self, seq_id: int, start: int) -> None:
        """Record that a sequence now ends before position ``start``."""
        self.tokens.removed(seq_id, start, END)
        self.versions[seq_id] += 1
        self._undo.pop(seq_id, None)
        if self._rolls_back and start:
            self._rolled_back.add(seq_id)
        else:
            self._rolled_back.discard(seq_id)
        if not start:
            self.rotating.discard(seq_id)
        end = min(self._shared.pop(seq_id, 0), start)
        if end:
            self._shared[seq_id] = end
        elif len(self._shared) == 1:  # no other sequence is left to share with
            self._shared.clear()

    def loaded(self, seq_id: int | None = None) -> None:
        """Record that a sequence was loaded; None means all, and any tokens may be shared."""
        if seq_id is not None:
            self.removed(seq_id, 0)
        else:
            self.cleared()
            self._shared = dict.fromkeys(range(self._n_seq_max), END)

    def put_back(self) -> None:
        """Record that sequences were restored from a copy, and cannot be rolled back."""
        self._undo.clear()

    def shared_until(self, seq_id: int) -> int:
        """Return the position before which tokens may be shared with other sequences."""
        return self._shared.get(seq_id, 0)

    def can_undo(self, seq_id: int, n: int) -> bool:
        """Return whether a recurrent sequence can be rolled back by ``n`` tokens."""
        return seq_id not in self._shared and n <= self._undo.get(seq_id, 0)

    def is_rolled_back(self, seq_id: int) -> bool:
        """Return whether a recurrent sequence was rolled back, and not decoded since."""
        return seq_id in self._rolled_back
