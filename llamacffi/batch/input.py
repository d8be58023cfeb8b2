"""Arguments of `Batch`, checked and converted to arrays."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from .._core.tokens import refuse_text
from .._core.values import INT32_MAX, INT32_MIN, as_array, checked_indices, is_text
from .._native import ffi, lib
from ..errors import ArgumentError

if TYPE_CHECKING:
    import numpy.typing as npt

    from .._core.tokens import Tokens as Tokens

    Integers: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]
    Positions: TypeAlias = int | Integers | Sequence[Sequence[int]]
    Logits: TypeAlias = (
        Literal["last", "all", "none"] | Sequence[bool] | Integers | npt.NDArray[np.bool_]
    )


# The number of positions of an embedding with M-RoPE: time, height, width and a zero.
SECTIONS: int = lib.GGML_MROPE_SECTIONS


def token_array(tokens: Tokens) -> npt.NDArray[np.integer[Any]]:
    """Return token ids as an array whose values fit int32."""
    refuse_text(tokens)
    array = _integer_array("tokens", tokens)
    if array.size == 0:
        return np.empty(0, np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu" or _has_bools(tokens):
        raise TypeError(f"tokens must be a sequence of integers, not {tokens!r:.80}")
    # Assigning a wider array to an int32 one would wrap silently.
    if array.dtype != np.int32 and not INT32_MIN <= array.min() <= array.max() <= INT32_MAX:
        raise ArgumentError(f"tokens must fit 32 bits, not {array.min()} to {array.max()}")
    return array


def single_token(
    tokens: object, pos: object, seq_ids: object, logits: object
) -> tuple[int, int, int] | None:
    """Return the token, the position and the sequence of one token with an output.

    For loops that decode token by token, where arrays would take ten times as long.  The result is
    None for anything unusual or invalid, which the functions for arrays handle.
    """
    if type(tokens) is not list or len(tokens) != 1 or type(logits) is not str or logits != "last":
        return None
    if not (isinstance(seq_ids, (tuple, list)) and len(seq_ids) == 1):
        return None
    token, seq_id = tokens[0], seq_ids[0]
    if type(token) is not int or type(pos) is not int or type(seq_id) is not int:
        return None
    in_range = 0 <= token <= INT32_MAX and 0 <= pos < INT32_MAX and 0 <= seq_id <= INT32_MAX
    return (token, pos, seq_id) if in_range else None


def _integer_array(name: str, values: Any) -> npt.NDArray[Any]:
    """Return values as an array; refuse integers that are too large for numpy."""
    if is_text(values):
        raise TypeError(f"{name} must be integers, not text or bytes: {values!r:.80}")
    array = as_array(name, values)
    if array.dtype.kind == "O" and array.size and all(isinstance(one, int) for one in array.flat):
        raise ArgumentError(f"{name} must fit 32 bits, not {min(array.flat)} to {max(array.flat)}")
    return array


def embedding_rows(embeddings: npt.ArrayLike, n_embd: int) -> npt.NDArray[np.float32]:
    """Return embeddings as float32 of shape ``[n, n_embd]``, all finite."""
    array = as_array("embeddings", embeddings)
    if array.dtype.kind != "f":
        raise TypeError(f"embeddings must be an array of floats, not of {array.dtype}")
    if array.ndim != 2 or array.shape[1] != n_embd:
        raise ArgumentError(
            f"embeddings must have the shape (n, n_embd={n_embd}), not {array.shape}: the width "
            "is that of Batch(capacity, n_embd=...)"
        )
    with np.errstate(over="ignore"):  # overflows are found below
        rows = array.astype(np.float32, copy=False)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise ArgumentError(
            f"embeddings must be finite 32-bit floats, but row {int(finite.argmin())} is not"
        )
    return rows


def position_array(pos: Positions, n: int, sections: bool) -> npt.NDArray[np.integer[Any]]:
    """Return the positions of ``n`` entries, as ``[n]`` or, where allowed, ``[SECTIONS, n]``."""
    if isinstance(pos, bool):
        raise TypeError(f"pos must be an integer or an array of integers, not {pos!r}")
    try:
        first = operator.index(pos)  # type: ignore[arg-type]  # raises for others
    except TypeError:
        pass
    else:
        if not 0 <= first <= INT32_MAX - n:
            raise ArgumentError(f"pos must be between 0 and {INT32_MAX - n}, not {first}")
        return np.arange(first, first + n, dtype=np.int32)
    array = _integer_array("pos", pos)
    if (array.dtype.kind not in "iu" and array.size) or _has_bools(pos):
        raise TypeError(f"pos must be an integer or an array of integers, not {pos!r:.80}")
    shapes = [(n,), (SECTIONS, n)] if sections else [(n,)]
    if array.shape not in shapes:
        raise ArgumentError(
            f"pos must have the shape {' or '.join(map(str, shapes))}, not {array.shape}"
        )
    if n and not 0 <= array.min() <= array.max() < INT32_MAX:
        raise ArgumentError(
            f"pos must be between 0 and {INT32_MAX - 1}, not {array.min()} to {array.max()}"
        )
    return array


def output_flags(logits: Logits, n: int) -> npt.NDArray[np.bool_] | bool | None:
    """Return which of ``n`` entries have an output, one flag for all, or None for only the last."""
    if isinstance(logits, str):
        if logits not in ("last", "all", "none"):
            raise ArgumentError(f"logits must be 'last', 'all', 'none' or an array, not {logits!r}")
        return None if logits == "last" else logits == "all"
    array = _integer_array("logits", logits)
    if array.ndim == 1 and array.dtype.kind == "b" and len(array) == n:
        return array
    if array.ndim == 1 and (array.dtype.kind in "iu" or not array.size):
        flags = np.zeros(n, np.bool_)
        if array.size:
            if looks_like_flags(array, n) or _has_bools(logits):
                raise ArgumentError(
                    f"logits looks like flags of 0 and 1, but integers are indices: pass a mask of "
                    f"{n} booleans (np.asarray(logits, bool)) or each index once, not {logits!r}"
                )
            if not -n <= array.min() <= array.max() < n:
                raise ArgumentError(
                    f"logits has indices from {array.min()} to {array.max()}, but there are {n} "
                    "tokens"
                )
            flags[array] = True
        return flags
    raise ArgumentError(
        f"logits must be 'last', 'all', 'none', a mask of {n} booleans, or indices, not {logits!r}"
    )


def looks_like_flags(indices: npt.NDArray[np.integer[Any]], n: int) -> bool:
    """Return whether integers are a 0 or 1 for each of ``n`` entries, rather than indices.

    An index is given only once.  For two entries, ``[0, 1]`` are indices and ``[1, 0]`` are flags;
    both are flags as integers of 8 bits, which llama.cpp uses for its own flags.
    """
    if len(np.unique(indices)) < len(indices):
        return True
    if len(indices) != n or indices.max() > 1 or indices.min() < 0:
        return False
    return indices.dtype.itemsize == 1 or indices[0] > indices[-1]


def _has_bools(values: object) -> bool:
    """Return whether a list contains bools, which numpy converts if there are integers too."""
    return isinstance(values, (list, tuple)) and bool in set(map(type, values))


def sequence_ids(seq_ids: Iterable[int], n_seq_max: int) -> list[int]:
    """Return the sequences of an entry, each once and in order."""
    ids = sorted(checked_indices("seq_ids", seq_ids))
    if not 1 <= len(ids) <= n_seq_max or not 0 <= ids[0] <= ids[-1] <= INT32_MAX:
        raise ArgumentError(
            f"seq_ids must have between 1 and n_seq_max={n_seq_max} ids, each at least 0, not {ids}"
        )
    return ids


def section_rows(positions: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int32]:
    """Return positions as ``[n, SECTIONS]``; expand single ones in the same way as llama.cpp."""
    rows = np.zeros((positions.shape[-1], SECTIONS), np.int32)
    if positions.ndim == 2:
        rows[:] = positions.T
    else:
        rows[:, :-1] = positions[:, None]
    return rows


def pointer(kind: str, array: npt.NDArray[Any]) -> Any:
    """Return a C pointer to the data of an array; the caller keeps the array alive."""
    return ffi.cast(kind, array.ctypes.data)
