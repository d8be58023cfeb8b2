"""Tokens and embeddings on their way into a context."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core.ownership import Pointer
from .._core.values import INT32_MAX, elements, integer
from ..errors import ArgumentError
from .arrays import BOTH, EMBEDDINGS, TOKENS, BatchArrays
from .input import (
    embedding_rows,
    output_flags,
    position_array,
    sequence_ids,
    single_token,
    token_array,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from typing_extensions import Self

    from .input import Logits, Positions, Tokens


class Batch(Pointer):
    """Up to ``capacity`` tokens, each with its position, its sequences and its output flag.

    Instead of tokens it can hold embeddings, or both for a draft model that also reads the hidden
    state of its target.  The arrays belong to Python and C reads them, so there is nothing to
    close.  A batch can be cleared and reused.  It is for one thread at a time.
    """

    _why = "C reads its arrays where they are"
    _instead = "make another Batch, and add() the same tokens"

    __slots__ = ("_arrays",)

    def __init__(self, capacity: int, n_seq_max: int = 1, n_embd: int = 0) -> None:
        """Make an empty batch.

        Args:
            capacity: Number of tokens that fit, at least 1.
            n_seq_max: Number of sequences that one token may belong to, at least 1.
            n_embd: The width of embeddings, `Model.n_embd` for most models; 0 for tokens alone.
        """
        self._arrays = BatchArrays(
            integer("capacity", capacity, 1, INT32_MAX),
            integer("n_seq_max", n_seq_max, 1, INT32_MAX),
            integer("n_embd", n_embd, 0, INT32_MAX),
        )

    @classmethod
    def from_tokens(
        cls,
        tokens: Tokens,
        pos: Positions = 0,
        seq_ids: Iterable[int] = (0,),
        logits: Logits = "last",
    ) -> Self:
        """Make a batch of exactly these tokens; the arguments are those of `add`.

        To go on where a sequence ends, give ``pos=context.memory.next_pos(seq_id)``.
        """
        ids, array = elements("seq_ids", seq_ids, "integers"), token_array(tokens)
        batch = cls(max(len(array), 1), max(len(ids), 1))
        batch.add(array, pos, ids, logits)
        return batch

    @property
    def ptr(self) -> Any:
        """The ``struct llama_batch *``, valid as long as this object.

        It does not contain the positions of M-RoPE: C has another place for those.
        """
        return self._arrays.struct

    @property
    def capacity(self) -> int:
        """Number of tokens that fit."""
        return len(self._arrays.token)

    @property
    def n_left(self) -> int:
        """Number of tokens that still fit."""
        return len(self._arrays.token) - len(self)

    @property
    def n_seq_max(self) -> int:
        """Number of sequences that one token may belong to."""
        return int(self._arrays.seq_id.shape[1])

    @property
    def n_embd(self) -> int:
        """The width of the embeddings; 0 for a batch of tokens alone."""
        return self._arrays.n_embd

    @property
    def is_coupled(self) -> bool:
        """Whether some token belongs to several sequences."""
        return self._arrays.coupled

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """A copy of the tokens; empty for embeddings alone."""
        return np.array(self._arrays.tokens, np.int32)

    @property
    def embeddings(self) -> npt.NDArray[np.float32]:
        """A copy of the embeddings: ``[len(batch), n_embd]``; no rows for tokens alone."""
        arrays = self._arrays
        return np.array(arrays.embd[: 0 if arrays.content == TOKENS else len(self)], np.float32)

    @property
    def positions(self) -> npt.NDArray[np.int32]:
        """A copy of the positions; with M-RoPE, of the first section."""
        return np.array(self._arrays.positions, np.int32)

    @property
    def seq_ids(self) -> list[list[int]]:
        """The sequences of each token."""
        return self._arrays.seq_ids

    def __len__(self) -> int:
        return int(self._arrays.value.n_tokens)

    def __repr__(self) -> str:
        return f"<Batch of {len(self)} of {self.capacity} {self._arrays.content}>"

    def starts(self) -> dict[int, int]:
        """Return the sequences of the batch, each with its lowest position."""
        return self._arrays.starts()

    def outputs(self) -> bytes:
        """Return which tokens have an output: a byte for each token, 1 or 0."""
        return self._arrays.outputs()

    def add(
        self,
        tokens: Tokens,
        pos: Positions = 0,
        seq_ids: Iterable[int] = (0,),
        logits: Logits = "last",
        *,
        embeddings: npt.ArrayLike | None = None,
    ) -> range:
        """Append tokens.  If it raises, the batch is unchanged.

        Args:
            tokens: Token ids; an integer array is the fastest.
            pos: The position of the first, and the others follow; or an array of all positions.
            seq_ids: The sequences that they all belong to, 1 to `n_seq_max`.
            logits: Which of them get an output: the last, all, none; or a mask of booleans, one
                for each; or indices into ``tokens``, each once.  Integers are always indices:
                llama.cpp's own flags, 0 and 1, become a mask with ``flags.astype(bool)``.
            embeddings: The hidden state of each, ``[len(tokens), n_embd]``: only for the contexts
                of draft models (``ctx_type="mtp"``, or ``ctx_other``).

        Returns:
            Their indices in the batch, for `Context.logits`.

        Raises:
            ArgumentError: They do not fit, a value is out of range, ``logits`` looks like flags of
                0 and 1, or the batch has embeddings alone.
            TypeError: ``tokens``, ``pos`` or ``seq_ids`` are not integers, or ``embeddings`` are
                not floats.
            BusyError: Another thread is decoding the batch.
        """
        arrays = self._arrays
        if embeddings is None and not arrays.value.n_tokens:
            single = single_token(tokens, pos, seq_ids, logits)
            if single is not None:
                arrays.set_one(*single)
                return range(1)
        array = token_array(tokens)
        rows = None if embeddings is None else embedding_rows(embeddings, arrays.n_embd)
        if rows is not None and len(rows) != len(array):
            raise ArgumentError(
                f"{len(array)} tokens and {len(rows)} rows of embeddings: each token needs one row"
            )
        start, stop = self._place(
            len(array), TOKENS if rows is None else BOTH, pos, seq_ids, logits
        )
        arrays.token[start:stop] = array
        arrays.token_range = None
        if rows is not None:
            arrays.embd[start:stop] = rows
        arrays.value.n_tokens = stop
        return range(start, stop)

    def add_embeddings(
        self,
        embeddings: npt.ArrayLike,
        pos: Positions = 0,
        seq_ids: Iterable[int] = (0,),
        logits: Logits = "last",
    ) -> range:
        """Append embeddings instead of tokens, such as those of a picture.

        If it raises, the batch is unchanged.

        Args:
            embeddings: ``[n, n_embd]``, floats; float32 is copied as it is.  All must be finite:
                a NaN or an infinity would spoil every sequence that shares its memory.
            pos: The position of the first, and the others follow; or an array of all; or, for a
                model with M-RoPE, ``[4, n]``: time, height, width and a zero.
            seq_ids: The sequences that they all belong to, 1 to `n_seq_max`.
            logits: Which of them get an output, as in `add`.

        Returns:
            Their indices in the batch, for `Context.logits`.

        Raises:
            ArgumentError: They do not fit, a value is out of range or not finite, or the batch has
                tokens.
            TypeError: The embeddings are not floats, or ``pos`` or ``seq_ids`` are not integers.
            BusyError: Another thread is decoding the batch.
        """
        arrays = self._arrays
        rows = embedding_rows(embeddings, arrays.n_embd)
        start, stop = self._place(len(rows), EMBEDDINGS, pos, seq_ids, logits)
        arrays.embd[start:stop] = rows
        arrays.value.n_tokens = stop
        return range(start, stop)

    def truncate(self, n: int) -> None:
        """Keep only the first ``n`` entries."""
        n = integer("n", n, 0, len(self), ": the batch has no more entries")
        self._arrays.lock.check()
        if n == 0:
            self._arrays.clear()
        else:
            self._arrays.truncate(n)

    def clear(self) -> None:
        """Remove all entries."""
        arrays = self._arrays
        if arrays.lock.holders:
            arrays.lock.check()
        arrays.clear()

    def set_one(self, token: int, pos: int, seq_id: int = 0) -> None:
        """Make the batch one token with an output: `clear` and `add`, for a loop over tokens.

        Raises:
            ArgumentError: ``pos`` or ``seq_id`` is below 0, or a value does not fit 32 bits.
            BusyError: Another thread is decoding the batch.
        """
        if not (type(token) is int and type(pos) is int and type(seq_id) is int):
            token, pos = integer("token", token), integer("pos", pos)
            seq_id = integer("seq_id", seq_id)
        if not (0 <= pos <= INT32_MAX and 0 <= seq_id <= INT32_MAX):
            raise ArgumentError(
                f"pos and seq_id must be between 0 and {INT32_MAX}, not {pos} and {seq_id}"
            )
        if not -INT32_MAX <= token <= INT32_MAX:  # `check` compares it with the vocabulary
            raise ArgumentError(f"token must be between 0 and {INT32_MAX}, not {token}")
        self._arrays.set_one(token, pos, seq_id)

    def check(
        self, n_vocab: int, n_seq_max: int, kv_unified: bool = True, drafts: bool = True
    ) -> None:
        """Raise `ArgumentError` unless all tokens and sequences can exist in a context.

        Args:
            n_vocab: Number of tokens in its vocabulary.
            n_seq_max: Number of its sequences.
            kv_unified: Whether its sequences share one buffer.
            drafts: Whether it reads embeddings beside tokens, as draft models do.
        """
        self._arrays.check(n_vocab, n_seq_max, kv_unified, drafts)

    def _place(
        self, n: int, content: str, pos: Positions, seq_ids: Iterable[int], logits: Logits
    ) -> tuple[int, int]:
        """Check what all kinds of entries have, and write it behind the last entry.

        Returns:
            The range of the new entries, which exist only when the caller counts them.
        """
        arrays = self._arrays
        arrays.lock.check()
        start, stop = len(self), len(self) + n
        if stop > self.capacity:
            raise ArgumentError(
                f"{n} tokens do not fit: {self.n_left} of capacity={self.capacity} are left; make "
                "a larger Batch, or decode() and clear() this one"
            )
        if start and content != arrays.content:
            raise ArgumentError(
                f"the batch has {arrays.content}, and cannot also have {content}: use another Batch"
            )
        ids = sequence_ids(seq_ids, self.n_seq_max)
        positions = position_array(pos, n, content == EMBEDDINGS)
        flags = output_flags(logits, n)
        if n:
            arrays.place(stop, content, positions, ids, flags)
        return start, stop


# For the rest of the package.  It is C's: a Python function would cost a tenth of a decode's check.
arrays_of: Callable[[Any], BatchArrays] = attrgetter("_arrays")
"""Return the memory of a `Batch`; raises AttributeError for anything else."""
