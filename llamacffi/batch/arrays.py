"""The arrays of a `Batch`: its memory, and how it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._core.locks import CallLock
from .._core.ownership import Pointer
from .._core.values import integer
from .._native import ffi
from ..errors import ArgumentError
from .input import INT32, pointer

if TYPE_CHECKING:
    import numpy.typing as npt

# What the entries of a batch are: all the same, as llama.cpp wants it.
TOKENS, EMBEDDINGS, BOTH = "tokens", "embeddings", "tokens with embeddings"


class Attempt:
    """One try to have C compute a batch."""

    __slots__ = ("reached",)

    def __init__(self) -> None:
        self.reached: bool = False
        """Whether C may have got the batch: what is raised after that says nothing of it."""


class BatchArrays(Pointer):
    """The base of `Batch`: memory that belongs to Python, and into which a C struct points."""

    _why = "C reads its arrays where they are"
    _instead = "make another Batch, and add() the same"

    __slots__ = (
        *("_content", "_embd", "_first_pos", "_first_token", "_lock", "_logits", "_n_seq_id"),
        *("_n_rows", "_pos", "_rows", "_sections", "_single"),
        *("_seq_id", "_struct", "_token", "_value", "is_coupled", "n_embd"),
        *("_n_seq_id_max", "_outputs", "_seq_id_max", "_token_range"),
    )

    _embd: npt.NDArray[np.float32]
    _outputs: bytes | None  # what `outputs` returns; None if it is not known
    _pos: npt.NDArray[np.int32]
    _sections: npt.NDArray[np.int32] | None
    _single: int | None  # the sequence, if `set_one` has filled it
    _token: npt.NDArray[np.int32]
    _token_range: tuple[int, int] | None  # least and greatest; None if they are not known
    is_coupled: bool
    """Whether a token belongs to several sequences."""
    n_embd: int
    """How wide the embeddings are; 0 for a batch of tokens alone."""

    def __init__(self, capacity: int, n_seq_max: int = 1, n_embd: int = 0) -> None:
        """Make room for ``capacity`` entries; see `Batch`."""
        sizes = {"capacity": capacity, "n_seq_max": n_seq_max, "n_embd": n_embd}
        capacity, n_seq_max, n_embd = (integer(name, size) for name, size in sizes.items())
        if not (1 <= capacity <= INT32.max and 1 <= n_seq_max <= INT32.max):
            raise ArgumentError(
                f"capacity={capacity} and n_seq_max={n_seq_max} must both be at least 1, and fit "
                "32 bits"
            )
        if n_embd < 0:
            raise ArgumentError(f"n_embd={n_embd} must be at least 0")
        self.n_embd = n_embd
        self._token = np.zeros(capacity, np.int32)
        self._pos = np.zeros(capacity, np.int32)
        self._n_seq_id = np.zeros(capacity, np.int32)
        self._seq_id = np.zeros((capacity, n_seq_max), np.int32)
        self._logits = np.zeros(capacity, np.int8)
        self._embd = np.zeros((capacity, n_embd), np.float32)
        self._sections = None  # made for the first that needs it
        self._rows = np.zeros(capacity, np.uintp)  # a pointer for each row of _seq_id
        self._n_rows = 0  # those that are set: memory that is not used is not touched
        self._lock: CallLock = CallLock("Batch")  # held while C reads the arrays
        self._content = ""
        self._struct = ffi.new("struct llama_batch *")
        self._value = self._struct[0]  # the same memory, as C's functions take it
        self._first_token = pointer("llama_token *", self._token)
        self._first_pos = self._value.pos = pointer("llama_pos *", self._pos)
        self._value.n_seq_id = pointer("int32_t *", self._n_seq_id)
        self._value.seq_id = pointer("llama_seq_id **", self._rows)
        self._value.logits = pointer("int8_t *", self._logits)

    @property
    def ptr(self) -> Any:
        """The ``struct llama_batch *``, valid as long as this object.

        Positions with sections are not in it: C has another place for those.
        """
        return self._struct

    @property
    def capacity(self) -> int:
        """How many tokens fit."""
        return len(self._token)

    @property
    def n_left(self) -> int:
        """How many more fit."""
        return len(self._token) - len(self)

    @property
    def n_seq_max(self) -> int:
        """To how many sequences one token may belong."""
        return int(self._seq_id.shape[1])

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """A copy of the tokens; empty for embeddings alone."""
        return np.array(self._token[: 0 if self._content == EMBEDDINGS else len(self)], np.int32)

    @property
    def embeddings(self) -> npt.NDArray[np.float32]:
        """A copy of the embeddings: ``[len(batch), n_embd]``, without rows for tokens alone."""
        return np.array(self._embd[: 0 if self._content == TOKENS else len(self)], np.float32)

    @property
    def positions(self) -> npt.NDArray[np.int32]:
        """A copy of the positions, of those with sections the first."""
        return np.array(self._pos[: len(self)], np.int32)

    @property
    def seq_ids(self) -> list[list[int]]:
        """The sequences of each token."""
        counts, rows = self._n_seq_id[: len(self)], self._seq_id[: len(self)]
        return [ids[:n] for n, ids in zip(counts.tolist(), rows.tolist(), strict=True)]

    def _known(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], int | None]:
        """Return views of the tokens, none if there are only embeddings, and of their positions.

        The last is the sequence that all belong to; None if there are several.
        """
        n = len(self)
        first, seq_ids = int(self._seq_id[0, 0]), self._seq_id[:n, 0]
        alone = not self.is_coupled and (self._single is not None or (seq_ids == first).all())
        tokens = self._token[: 0 if self._content == EMBEDDINGS else n]
        return tokens, self._pos[:n], first if alone else None

    def __len__(self) -> int:
        return int(self._value.n_tokens)

    def __repr__(self) -> str:
        return f"<Batch of {len(self)} of {self.capacity} {self._content}>"

    def starts(self) -> dict[int, int]:
        """Return the sequences of the batch, each with its first position."""
        starts: dict[int, int] = {}
        for pos, ids in zip(self.positions.tolist(), self.seq_ids, strict=True):
            for seq_id in ids:
                starts[seq_id] = min(pos, starts.get(seq_id, pos))
        return starts

    def outputs(self) -> bytes:
        """Return which tokens have an output: for each token a byte, 1 or 0."""
        if self._outputs is None:
            self._outputs = self._logits[: len(self)].tobytes()
        return self._outputs

    def _set_rows(self, n: int) -> None:
        """Set the pointers to the rows of the first ``n`` entries."""
        done, self._n_rows = self._n_rows, min(2 * n, self.capacity)
        first, step = self._seq_id.ctypes.data, self._seq_id.strides[0]
        self._rows[done : self._n_rows] = (
            np.arange(done, self._n_rows, dtype=np.uintp) * step + first
        )
