"""Tokens on their way into a context."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ._ffi import ffi
from .errors import ArgumentError

if TYPE_CHECKING:
    import numpy.typing as npt

    Tokens: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]

INT32 = np.iinfo(np.int32)


class Batch:
    """Up to ``capacity`` tokens, each with its position, its sequences and its output flag.

    The arrays belong to Python and the ``struct llama_batch`` points into them, so there is nothing
    to close.  A batch can be cleared and used again.
    """

    __slots__ = (
        *("_arrays", "_logits", "_n_seq_id", "_pos", "_seq_id", "_struct", "_token"),
        *("_n_seq_id_max", "_seq_id_max", "_token_max", "_token_min"),
    )

    def __init__(self, capacity: int, n_seq_max: int = 1) -> None:
        """Make an empty batch.

        Args:
            capacity: How many tokens fit, at least 1.
            n_seq_max: To how many sequences one token may belong, at least 1.
        """
        if capacity < 1 or n_seq_max < 1:
            raise ArgumentError(
                f"capacity={capacity} and n_seq_max={n_seq_max} must both be at least 1"
            )
        self._token = np.zeros(capacity, np.int32)
        self._pos = np.zeros(capacity, np.int32)
        self._n_seq_id = np.zeros(capacity, np.int32)
        self._seq_id = np.zeros((capacity, n_seq_max), np.int32)
        self._logits = np.zeros(capacity, np.int8)
        # Kept while adding, so that `check` need not look at each token.
        self._token_min = self._token_max = self._seq_id_max = self._n_seq_id_max = 0
        self._struct = ffi.new("struct llama_batch *")
        rows = ffi.new("llama_seq_id *[]", [_ptr(row) for row in self._seq_id])
        pointers = {
            "token": _ptr(self._token),
            "pos": _ptr(self._pos),
            "n_seq_id": _ptr(self._n_seq_id),
            "logits": ffi.cast("int8_t *", self._logits.ctypes.data),
            "seq_id": rows,
        }
        for field, pointer in pointers.items():
            setattr(self._struct, field, pointer)
        self._arrays = rows  # the struct points into it; the numpy arrays are attributes

    @property
    def ptr(self) -> Any:
        """The ``struct llama_batch *``, valid as long as this object."""
        return self._struct

    @property
    def capacity(self) -> int:
        """How many tokens fit."""
        return len(self._token)

    @property
    def n_seq_max(self) -> int:
        """To how many sequences one token may belong."""
        return int(self._seq_id.shape[1])

    def __len__(self) -> int:
        return int(self._struct.n_tokens)

    def __repr__(self) -> str:
        return f"<Batch of {len(self)} of {self.capacity} tokens>"

    def add(
        self,
        tokens: Tokens,
        pos: int = 0,
        seq_ids: Iterable[int] = (0,),
        logits: Literal["last", "all", "none"] = "last",
    ) -> range:
        """Append tokens at consecutive positions.  If it raises, the batch is as before.

        Args:
            tokens: Token ids; an integer array is the fastest.
            pos: The position of the first.
            seq_ids: The sequences that they all belong to, 1 to `n_seq_max`.
            logits: Which of them get an output.

        Returns:
            Their indices in the batch, for `Context.logits`.

        Raises:
            ArgumentError: They do not fit, or a value is out of range.
            TypeError: ``tokens``, ``pos`` or ``seq_ids`` are no integers.
        """
        ids, pos = sorted(set(map(operator.index, seq_ids))), operator.index(pos)
        array = _token_array(tokens)
        start, stop = len(self), len(self) + len(array)
        if stop > self.capacity:
            raise ArgumentError(
                f"{len(array)} tokens do not fit: {self.capacity - start} of {self.capacity} left"
            )
        if not 1 <= len(ids) <= self.n_seq_max or not 0 <= ids[0] <= ids[-1] <= INT32.max:
            raise ArgumentError(f"seq_ids must be 1 to {self.n_seq_max} ids >= 0, not {ids}")
        if not 0 <= pos <= INT32.max - len(array):
            raise ArgumentError(f"pos={pos} is out of range: 0 to {INT32.max - len(array)}")
        if logits not in ("last", "all", "none"):
            raise ArgumentError(f"logits must be 'last', 'all' or 'none', not {logits!r}")
        self._token[start:stop] = array
        self._pos[start:stop] = np.arange(pos, pos + len(array), dtype=np.int32)
        self._n_seq_id[start:stop] = len(ids)
        self._seq_id[start:stop, : len(ids)] = ids
        self._logits[start:stop] = logits == "all"
        if logits == "last" and stop > start:
            self._logits[stop - 1] = 1
        if stop > start:
            self._token_min = min(self._token_min, int(array.min()))
            self._token_max = max(self._token_max, int(array.max()))
            self._seq_id_max = max(self._seq_id_max, ids[-1])
            self._n_seq_id_max = max(self._n_seq_id_max, len(ids))
        self._struct.n_tokens = stop
        return range(start, stop)

    def clear(self) -> None:
        """Remove all tokens."""
        self._struct.n_tokens = 0
        self._token_min = self._token_max = self._seq_id_max = self._n_seq_id_max = 0

    def set_one(self, token: int, pos: int, seq_id: int = 0) -> None:
        """Make the batch one token with an output: `clear` and `add`, for a loop over tokens.

        The values must fit int32, as those that `Context` and `SamplerChain` return do.
        """
        self._token[0] = token
        self._pos[0] = pos
        self._n_seq_id[0] = 1
        self._seq_id[0, 0] = seq_id
        self._logits[0] = 1
        self._token_min = self._token_max = token
        self._seq_id_max, self._n_seq_id_max = seq_id, 1
        self._struct.n_tokens = 1

    def check(self, n_vocab: int, n_seq_max: int, kv_unified: bool = True) -> None:
        """Raise `ArgumentError` unless all tokens and sequences can exist in a context."""
        if self._token_min < 0 or self._token_max >= n_vocab:
            tokens = self._token[: len(self)]
            i = int(np.argmax((tokens < 0) | (tokens >= n_vocab)))
            raise ArgumentError(f"token {tokens[i]} at index {i} is not in 0 to {n_vocab - 1}")
        if self._seq_id_max >= n_seq_max:
            raise ArgumentError(
                f"seq_id {self._seq_id_max} is not in 0 to {n_seq_max - 1}: "
                "create the Context with a larger n_seq_max"
            )

        if self._n_seq_id_max > 1 and not kv_unified:
            raise ArgumentError(
                f"a token belongs to {self._n_seq_id_max} sequences, which have separate buffers: "
                "create the Context with kv_unified=True"
            )

    def starts(self) -> dict[int, int]:
        """Return the sequences of the batch, each with its first position."""
        starts: dict[int, int] = {}
        for i in range(len(self)):
            for seq_id in self._seq_id[i, : self._n_seq_id[i]].tolist():
                starts[seq_id] = min(int(self._pos[i]), starts.get(seq_id, INT32.max))
        return starts

    def outputs(self) -> bytes:
        """Return which tokens have an output: for each token a byte, 1 or 0."""
        return self._logits[: len(self)].tobytes()


def _token_array(tokens: Tokens) -> npt.NDArray[np.integer[Any]]:
    """Return token ids as an array whose values fit int32."""
    array = np.asarray(tokens)
    if array.size == 0:
        return np.empty(0, np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(f"tokens must be a sequence of integers, not {tokens!r}")
    # Assigning a wider array to an int32 one would wrap silently.
    if array.dtype != np.int32 and not INT32.min <= array.min() <= array.max() <= INT32.max:
        raise ArgumentError(f"tokens do not fit 32 bits: {array.min()} to {array.max()}")
    return array


def _ptr(array: npt.NDArray[np.int32]) -> Any:
    """Return a pointer to the data of an array, which the caller keeps alive."""
    return ffi.cast("int32_t *", array.ctypes.data)
