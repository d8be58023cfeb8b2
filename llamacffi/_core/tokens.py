"""Token ids from Python, converted for C."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from .._native import ffi
from ..errors import ArgumentError
from .values import elements, integer, is_text, shown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    TokenIds: TypeAlias = Iterable[int] | npt.NDArray[np.integer[Any]]
    Tokens: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]


def outside(token: int, size: int) -> str:
    """Return the message for a token outside a vocabulary of ``size`` tokens."""
    if size == 0:
        return f"token {token} is not in the vocabulary, which is empty"
    return f"token {token} is not in the vocabulary, which has ids 0 to {size - 1}"


def refuse_text(tokens: object) -> None:
    """Raise TypeError for text or bytes in place of tokens."""
    if is_text(tokens):
        raise TypeError(
            f"tokens must be integers, not text or bytes: {shown(tokens)}; call tokenize() for "
            "text, or list() for bytes that are token ids"
        )


def token_sequence(tokens: TokenIds) -> list[int] | tuple[int, ...] | npt.NDArray[Any]:
    """Return tokens as a list, a tuple or a numpy array; their values are not checked.

    Raises:
        TypeError: They are not a sequence.
    """
    numpy = sys.modules.get("numpy")  # imported already if the caller has an array
    if isinstance(tokens, list | tuple) or (numpy and isinstance(tokens, numpy.ndarray)):
        return tokens
    refuse_text(tokens)
    return elements("tokens", tokens, "integers")


def token_array(tokens: TokenIds, size: int) -> tuple[Any, int]:
    """Return token ids as a C array, and their number.

    A contiguous numpy array of int32 is not copied.

    Args:
        tokens: The ids; whether they are in the vocabulary is not checked.
        size: The size of the vocabulary, for the message.

    Raises:
        TypeError: They are not integers.
        ArgumentError: One does not fit an int32.
    """
    ids = token_sequence(tokens)
    if not isinstance(ids, list | tuple):
        return _from_numpy(ids, size)
    if not set(map(type, ids)) <= {int}:
        ids = [integer("token", one) for one in ids]
    try:
        array = ffi.new("llama_token[]", ids)
    except OverflowError:
        raise _too_wide(min(ids), max(ids), size) from None
    return array, len(array)


def _from_numpy(tokens: npt.NDArray[Any], size: int) -> tuple[Any, int]:
    import numpy as np

    if tokens.ndim != 1 or (tokens.dtype.kind not in "iu" and tokens.size):
        raise TypeError(
            "tokens must be a one-dimensional array of integers, "
            f"not an array of {tokens.dtype} with shape {tokens.shape}"
        )
    if tokens.dtype.itemsize > 2 and tokens.dtype != np.int32 and tokens.size:
        limits, low, high = np.iinfo(np.int32), int(tokens.min()), int(tokens.max())
        if low < limits.min or high > limits.max:
            raise _too_wide(low, high, size)
    array = np.ascontiguousarray(tokens, np.int32)
    return ffi.from_buffer("llama_token[]", array), len(array)


def _too_wide(low: int, high: int, size: int) -> ArgumentError:
    return ArgumentError(outside(low if low < 0 else high, size))
