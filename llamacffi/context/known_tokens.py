"""The tokens of each sequence, which llama.cpp does not keep."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..batch.arrays import BatchArrays

# One number holds the position (high bits) and the token: numbers sort by position, and an
# interrupt cannot separate the two.
BITS = 32
MASK = 2**BITS - 1
Line: TypeAlias = "array[int]"


class KnownTokens:
    """The decoded tokens, by sequence and position.

    `generate` lets its samplers accept the whole text of a sequence, not only the last turn.
    Tokens that were decoded as embeddings, or loaded from a state saved without tokens, are
    missing.
    """

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[int, Line] = {}

    def before(self, seq_id: int, end: int) -> list[int]:
        """Return the known tokens of a sequence at positions before ``end``."""
        line = self._line(seq_id)
        return [one & MASK for one in line[: bisect_left(line, end << BITS)]]

    def one(self, seq_id: int, pos: int, token: int) -> None:
        """Record one decoded token."""
        line, packed = self._lines.get(seq_id), pos << BITS
        if line and line[-1] < packed:
            line.append(packed | token)
        else:
            self._put(seq_id, array("q", [packed | token]))

    def put(self, seq_id: int, tokens: Sequence[int]) -> None:
        """Record all tokens of a sequence, from position 0."""
        self._put(seq_id, array("q", [p << BITS | t for p, t in enumerate(tokens)]))

    def _put(self, seq_id: int, added: Line) -> None:
        """Record tokens of a sequence, replacing all from the position of the first on."""
        line = self._lines.get(seq_id)
        if line and line[-1] < added[0] & ~MASK:
            line.extend(added)  # in place: copying a long text for each token would be slow
        else:
            line = self._line(seq_id)
            self._lines[seq_id] = line[: bisect_left(line, added[0] & ~MASK)] + added

    def decoded(self, batch: BatchArrays) -> None:
        """Record the tokens of a batch."""
        tokens = batch.tokens
        if not len(tokens):  # only embeddings
            return
        added = array("q", (batch.positions.astype("q") << BITS | tokens).tobytes())
        if (seq_id := batch.only_sequence) is not None:
            return self._put(seq_id, added)
        found: dict[int, Line] = {}
        for one, ids in zip(added, batch.seq_ids, strict=True):
            for seq_id in ids:
                found.setdefault(seq_id, array("q")).append(one)
        for seq_id, line in found.items():
            self._put(seq_id, line)

    def cleared(self) -> None:
        """Forget everything."""
        self._lines.clear()

    def removed(self, seq_id: int, start: int, end: int) -> None:
        """Forget the tokens of a sequence at positions ``start`` to ``end``."""
        line = self._line(seq_id)
        del line[bisect_left(line, start << BITS) : bisect_left(line, end << BITS)]

    def copied(self, source: int, target: int, start: int, end: int) -> None:
        """Record that the tokens in a range also belong to another sequence."""
        line = self._line(source)
        part = line[bisect_left(line, start << BITS) : bisect_left(line, end << BITS)]
        # The target keeps its own tokens.
        self._lines[target] = array("q", sorted({*self._line(target), *part}))

    def moved(self, seq_id: int, start: int, end: int, delta: int) -> None:
        """Add ``delta`` to the positions in a range."""
        line = self._line(seq_id)
        first, last = bisect_left(line, start << BITS), bisect_left(line, end << BITS)
        moved = [one + (delta << BITS) for one in line[first:last]]
        self._lines[seq_id] = array("q", sorted([*line[:first], *moved, *line[last:]]))

    def kept(self, seq_id: int) -> Line:
        """Return a copy of the known tokens of a sequence, for `restored`."""
        return self._line(seq_id)[:]

    def restored(self, seq_id: int, line: Line) -> None:
        """Replace the known tokens of a sequence."""
        self._lines[seq_id] = line[:]

    def _line(self, seq_id: int) -> Line:
        found = self._lines.get(seq_id)
        return array("q") if found is None else found
