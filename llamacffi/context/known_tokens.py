"""Which tokens the sequences in a memory consist of, as far as they are known."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..batch.batch import Batch

# A token with its position, in one number: so they are in order, and no exception can come between
# the two.
BITS = 32
MASK = 2**BITS - 1
Line: TypeAlias = "array[int]"


class KnownTokens:
    """The tokens that were decoded, by sequence and position.

    llama.cpp keeps what it has computed of a token, not which one it was; and `generate` tells its
    samplers of the whole text, not only of the last turn.  What came as embeddings, or from a saved
    state without its tokens, is missing here.
    """

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[int, Line] = {}

    def before(self, seq_id: int, end: int) -> list[int]:
        """Return the known tokens of a sequence at positions before ``end``."""
        line = self._line(seq_id)
        return [one & MASK for one in line[: bisect_left(line, end << BITS)]]

    def one(self, seq_id: int, pos: int, token: int) -> None:
        """Note a token that was decoded; for a loop over tokens."""
        line, packed = self._lines.get(seq_id), pos << BITS
        if line and line[-1] < packed:
            line.append(packed | token)
        else:
            self._put(seq_id, array("q", [packed | token]))

    def put(self, seq_id: int, tokens: Sequence[int]) -> None:
        """Note the tokens that a sequence consists of, from position 0 on."""
        self._put(seq_id, array("q", [p << BITS | t for p, t in enumerate(tokens)]))

    def _put(self, seq_id: int, added: Line) -> None:
        """Note tokens at the end of a sequence: what was known of later positions is gone."""
        line = self._lines.get(seq_id)
        if line and line[-1] < added[0] & ~MASK:
            line.extend(added)  # a copy of a long text for each token would cost more than C does
        else:
            line = self._line(seq_id)
            self._lines[seq_id] = line[: bisect_left(line, added[0] & ~MASK)] + added

    def decoded(self, batch: Batch) -> None:
        """Note the tokens of a batch."""
        if batch._single is not None:  # the fast way, for a loop over tokens
            return self.one(batch._single, batch._first_pos[0], batch._first_token[0])
        tokens, positions, seq_id = batch._known()
        if not len(tokens):  # embeddings alone
            return
        added = array("q", (positions.astype("q") << BITS | tokens).tobytes())
        if seq_id is not None:
            return self._put(seq_id, added)
        found: dict[int, Line] = {}
        for one, ids in zip(added, batch.seq_ids, strict=True):
            for seq_id in ids:
                found.setdefault(seq_id, array("q")).append(one)
        for seq_id, line in found.items():
            self._put(seq_id, line)

    def cleared(self) -> None:
        """Forget all."""
        self._lines.clear()

    def removed(self, seq_id: int, start: int, end: int) -> None:
        """Forget the tokens of a sequence at positions ``start`` to ``end``."""
        line = self._line(seq_id)
        del line[bisect_left(line, start << BITS) : bisect_left(line, end << BITS)]

    def copied(self, source: int, target: int, start: int, end: int) -> None:
        """Note that the tokens in a range belong to another sequence too."""
        line = self._line(source)
        part = line[bisect_left(line, start << BITS) : bisect_left(line, end << BITS)]
        # What belongs to it already stays what it is.
        self._lines[target] = array("q", sorted({*self._line(target), *part}))

    def moved(self, seq_id: int, start: int, end: int, delta: int) -> None:
        """Add ``delta`` to the positions of a range."""
        line = self._line(seq_id)
        first, last = bisect_left(line, start << BITS), bisect_left(line, end << BITS)
        moved = [one + (delta << BITS) for one in line[first:last]]
        self._lines[seq_id] = array("q", sorted([*line[:first], *moved, *line[last:]]))

    def kept(self, seq_id: int) -> Line:
        """Return a copy of what is known of a sequence, for `restored`."""
        return self._line(seq_id)[:]

    def restored(self, seq_id: int, line: Line) -> None:
        """Replace what is known of a sequence."""
        self._lines[seq_id] = line[:]

    def _line(self, seq_id: int) -> Line:
        found = self._lines.get(seq_id)
        return array("q") if found is None else found
