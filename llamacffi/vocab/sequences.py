"""Tokenize many texts, or detokenize many sequences, in one C call."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .._core.ownership import make, own
from .._core.text import c_text
from .._core.tokens import token_array
from .._core.values import INT32_MAX, elements, integer
from .._native import ffi, lib
from ..backend import registry as backend

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .._core.ownership import Made
    from .._core.tokens import TokenIds


class SequenceError(Exception):
    """The first sequence or text that failed, and the reason."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


def thread_count(n_threads: int | None) -> int:
    """Return the largest number of threads to use."""
    if n_threads is None:
        return backend.physical_cores()
    return integer("n_threads", n_threads, 1, INT32_MAX)


def tokenize_all(
    tokenizer: Any, texts: Sequence[bytes], flags: tuple[bool, bool, int], n_threads: int
) -> tuple[npt.NDArray[np.int32], list[int]]:
    """Return the tokens of all texts, the index where each text starts, and the end of the last.

    The caller must hold the model.
    """
    import numpy as np

    starts = _starts([len(text) for text in texts])
    args = tokenizer, b"".join(texts), _int64(starts), len(texts), *flags, n_threads
    made = make(lib.llamacffi_sequences_free, (), lib.llamacffi_tokenize_all, *args)
    return _collect(made, len(texts), np.int32)


def join_tokens(
    sequences: Iterable[TokenIds], n_vocab: int
) -> tuple[list[int], npt.NDArray[np.int32]]:
    """Return the lengths of sequences of tokens, and all their tokens in one array."""
    import numpy as np

    given = elements("sequences", sequences, "sequences of tokens")
    arrays = [
        np.frombuffer(ffi.buffer(array), np.int32, n)
        for array, n in (token_array(tokens, n_vocab) for tokens in given)
    ]
    return list(map(len, arrays)), np.concatenate([*arrays, np.empty(0, np.int32)])


def detokenize_all(
    vocab: Any,
    tokens: npt.NDArray[np.int32],
    lengths: list[int],
    style: Any,
    n_threads: int,
) -> tuple[bytes, list[int]]:
    """Return the texts of all sequences, the index where each starts, and the end of the last.

    The caller must hold the model.
    """
    import numpy as np

    ids = ffi.from_buffer("llama_token[]", tokens)
    args = vocab, ids, _int64(_starts(lengths)), len(lengths), style, n_threads
    made = make(lib.llamacffi_sequences_free, (), lib.llamacffi_detokenize_all, *args)
    text, starts = _collect(made, len(lengths), np.uint8)
    return text.tobytes(), starts


def split(elements: Any, starts: list[int]) -> list[Any]:
    """Split the result of `tokenize_all` or `detokenize_all` into one element per text."""
    return [elements[start:stop] for start, stop in itertools.pairwise(starts)]


def _starts(lengths: list[int]) -> npt.NDArray[np.int64]:
    """Return the start of each of several consecutive sequences, and the end of the last."""
    import numpy as np

    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _collect(one: Made, n: int, dtype: type[np.generic]) -> tuple[npt.NDArray[Any], list[int]]:
    """Return the elements that C made, the start of each sequence, and the end of the last."""
    import numpy as np

    made = own(one)
    failed = lib.llamacffi_sequences_failed(made)
    if failed >= 0:
        reason = c_text(lib.llamacffi_sequences_error(made))
        raise SequenceError(failed, reason)
    elements = np.empty(lib.llamacffi_sequences_size(made), dtype)
    starts = np.empty(n + 1, np.int64)
    lib.llamacffi_sequences_copy(made, ffi.from_buffer(elements), _int64(starts))
    return elements, starts.tolist()


def _int64(array: npt.NDArray[np.int64]) -> Any:
    return ffi.from_buffer("int64_t[]", array)
