"""Candidates: the tokens to choose from, with their scores, as a numpy array."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from .._core.ownership import Pointer
from .._core.text import new_uncleared
from .._core.values import INT32_MAX, as_array, check_object, flag, integer
from .._native import ffi, lib
from ..errors import ArgumentError, ClosedError, ContextError, LlamaError
from ..log import with_log

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Self

    from ..context.context import Context


class Candidates(Pointer):
    """The tokens to choose from: an array of ``(id, logit, p)``, in memory that samplers change.

    `data`, `id`, `logit` and `p` are arrays over that memory, not copies: what is written into them
    is what samplers see, and what samplers change is seen in them.  A sampler may also remove
    candidates or order them anew; then ask for the arrays again.  To remove candidates yourself,
    use `keep`.
    """

    _instead = "Candidates(candidates.logit, ids=candidates.id) makes another of the same"

    __slots__ = ("_base", "_memory", "_sorted_is_told", "_struct")

    def __init__(self, logits: npt.ArrayLike, *, ids: npt.ArrayLike | None = None) -> None:
        """Copy scores into new candidates.

        Args:
            logits: The scores, log-odds; ``-inf`` for what is ruled out.
            ids: Their tokens; 0, 1, 2 and so on if omitted.

        Raises:
            ArgumentError: There are none, a score is no number, or there is not a token for each.
        """
        import numpy as np

        scores = as_array("logits", logits, np.float32)
        if scores.ndim != 1 or not scores.size:
            raise ArgumentError(f"logits must have one dimension, and not be empty: {scores.shape}")
        if not (scores < np.inf).all():
            raise ArgumentError("logits must be numbers, or -inf: there is nan or inf among them")
        self._own(scores.size)
        self._memory["id"] = _token_ids(ids, scores.size)
        self._memory["logit"] = scores
        self._memory["p"] = 0

    @classmethod
    def from_context(cls, context: Context, i: int = -1) -> Self:
        """Copy the scores of a context.

        If they were sampled in its graph, these are the candidates that were left there.

        Args:
            context: What has decoded a batch.
            i: Index into the batch, in tokens; -1 is the last output.

        Raises:
            IndexError: Token ``i`` was added without an output.
            ContextError: The scores are not numbers.

        Source: ``llama_get_logits_ith``, ``llama_get_sampled_logits_ith``.
        """
        check_object("context", context, "Context")
        self = cls.__new__(cls)
        self._own(len(context._vocab))
        with context.lock:
            ptr = context.ptr
            context.check_scores(i)
            n = lib.llamacffi_candidates(ptr, i, self._struct.data)
        if n < 0:
            raise problem(n)
        self._struct.size = n
        return self

    @classmethod
    def _over(cls, struct: Any, memory: npt.NDArray[Any], base: int) -> Self:
        """Return the candidates of a ``llama_token_data_array`` whose data are in ``memory``."""
        self = cls.__new__(cls)
        self._struct, self._memory, self._base = struct, memory, base
        self._sorted_is_told = False
        return self

    def _own(self, n: int) -> None:
        """Make room for ``n`` candidates."""
        self._memory, pointer = token_data(n)
        self._base = int(ffi.cast("uintptr_t", pointer))
        self._struct = ffi.new("llama_token_data_array *")
        self._struct.data, self._struct.size, self._struct.selected = pointer, n, -1
        self._sorted_is_told = False

    def _release(self) -> None:
        """End the time in which they can be used."""
        self._struct = None

    @property
    def ptr(self) -> Any:
        """The ``llama_token_data_array *``, for `llamacffi.lib`.

        Raises:
            ClosedError: They were those of a sampler's ``apply``, which is over.
        """
        if self._struct is None:
            raise ClosedError("these candidates are there only until apply() returns: copy them")
        return self._struct

    @property
    def data(self) -> npt.NDArray[Any]:
        """All of them, ``[size]`` with the fields ``id`` (int32), ``logit`` and ``p`` (float32)."""
        struct = self.ptr
        # Samplers move the beginning too.
        offset = int(ffi.cast("uintptr_t", struct.data)) - self._base
        start: int = offset // self._memory.itemsize
        return self._memory[start : start + struct.size]

    @property
    def id(self) -> npt.NDArray[np.int32]:
        """Their tokens, ``[size]`` int32."""
        return self.data["id"]

    @property
    def logit(self) -> npt.NDArray[np.float32]:
        """Their scores, ``[size]`` float32; ``-inf`` is ruled out."""
        return self.data["logit"]

    @property
    def p(self) -> npt.NDArray[np.float32]:
        """Their probabilities, ``[size]`` float32, as the last sampler that needed them left them.

        A sampler computes them from the scores, so writing them has no effect.
        """
        return self.data["p"]

    @property
    def size(self) -> int:
        """How many there are.  It can be lowered, which removes the last ones."""
        return int(self.ptr.size)

    @size.setter
    def size(self, size: int) -> None:
        self.ptr.size = size = integer("size", size, 1, self.size)
        if self.ptr.selected >= size:
            self.ptr.selected = -1

    def __len__(self) -> int:
        return self.size

    @property
    def selected(self) -> int | None:
        """The index of the one that was chosen; None if none is."""
        selected: int = self.ptr.selected
        return None if selected < 0 else selected

    @selected.setter
    def selected(self, selected: int | None) -> None:
        if selected is not None:
            selected = integer("selected", selected, 0, self.size - 1)
        self.ptr.selected = -1 if selected is None else selected

    @property
    def token(self) -> int | None:
        """The token that was chosen; None if none is."""
        selected = self.selected
        return None if selected is None else int(self.id[selected])

    @property
    def sorted(self) -> bool:
        """Whether they are in the order of their scores, the best first, as far as is known.

        A sampler in Python that sorts them may say so; samplers after it then need not.
        """
        return bool(self.ptr.sorted)

    @sorted.setter
    def sorted(self, sorted: bool) -> None:
        self.ptr.sorted = flag("sorted", sorted)
        self._sorted_is_told = True

    def keep(self, which: npt.ArrayLike) -> None:
        """Remove all others.

        Args:
            which: As numpy selects: a mask ``[size]`` of bool, or indices in their new order, each
                once.  Integers are always indices: flags of 0 and 1 become a mask with
                ``flags.astype(bool)``.

        Raises:
            ArgumentError: None would be left, one is named twice, or the integers are flags.
            IndexError: There is no such index.
        """
        import numpy as np

        data = self.data
        index = as_array("which", which)
        if index.ndim == 1 and index.size and index.dtype.kind in "iu":
            _check_indices(index, data.size)
        kept = data[index if index.size else np.zeros(0, int)]
        if kept.ndim != 1 or not 1 <= kept.size <= data.size:
            raise ArgumentError(
                f"cannot keep {kept.size} of {data.size} candidates: keep at least one, each once"
            )
        data[: kept.size] = kept
        self.ptr.size, self.ptr.selected = kept.size, -1
        if index.dtype != bool:
            self.ptr.sorted = False

    def __repr__(self) -> str:
        if self._struct is None:
            return "<Candidates that are gone>"
        return f"<{self.size} Candidates, selected={self.selected}>"


@cache
def token_data_type() -> np.dtype[Any]:
    """Return the numpy type of a ``llama_token_data``."""
    import numpy as np

    fields = {"id": "i4", "logit": "f4", "p": "f4"}
    return np.dtype(
        {
            "names": list(fields),
            "formats": list(fields.values()),
            "offsets": [ffi.offsetof("llama_token_data", name) for name in fields],
            "itemsize": ffi.sizeof("llama_token_data"),
        }
    )


def token_data(n: int) -> tuple[npt.NDArray[Any], Any]:
    """Return room for ``n`` candidates: an array, and the pointer to its memory, which keeps it."""
    import numpy as np

    pointer = new_uncleared("llama_token_data[]", n)
    return np.frombuffer(ffi.buffer(pointer), token_data_type()), pointer


def _token_ids(ids: npt.ArrayLike | None, n: int) -> npt.NDArray[Any]:
    """Return ``n`` tokens, checked as far as can be without a vocabulary."""
    import numpy as np

    if ids is None:
        return np.arange(n)
    tokens = as_array("ids", ids)
    if tokens.dtype.kind not in "iu":
        raise TypeError(f"ids must be integers, not {tokens.dtype}")
    if tokens.shape != (n,):
        raise ArgumentError(f"ids must have one token for each of {n} logits: {tokens.shape}")
    for token in (tokens.min(), tokens.max()):
        integer("a token in ids", token, 0, INT32_MAX)
    return tokens


def _check_indices(index: npt.NDArray[Any], n: int) -> None:
    """Raise ArgumentError for integers that name one of ``n`` candidates twice, or are flags."""
    import numpy as np

    # Indices of both signs can be of the same; flags are as long as there are candidates.
    twice = len(np.unique(np.where(index < 0, index + np.int64(n), index))) < len(index)
    flags = index.dtype.itemsize == 1 and len(index) == n and index.max() <= 1
    if twice or flags:
        raise ArgumentError(
            "a candidate is kept once: give the index of each once, or a mask of bools, which "
            f"flags.astype(bool) is; not {index!r:.200}"
        )


def problem(code: int) -> LlamaError:
    """Return the error for what is wrong with the candidates: ``LLAMACFFI_SAMPLE_...``."""
    if code == lib.LLAMACFFI_SAMPLE_LOGITS:
        return with_log(ContextError("llama.cpp has no logits for that output"))
    if code == lib.LLAMACFFI_SAMPLE_NAN:
        return ContextError(
            "a score is not a number, or infinitely high: the model, an adapter or a sampler has "
            "computed nonsense"
        )
    if code == lib.LLAMACFFI_SAMPLE_ID:
        return ArgumentError("a candidate is not a token of the vocabulary")
    raise AssertionError(f"unknown code {code}")
