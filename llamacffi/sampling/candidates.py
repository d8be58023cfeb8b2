"""Candidates: the tokens to choose from with their logits, as a numpy array."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from .._core.ownership import Pointer
from .._core.text import new_uncleared
from .._core.values import INT32_MAX, as_array, flag, integer
from .._native import ffi, lib
from ..errors import ArgumentError, ClosedError, ContextError, LlamaError
from ..log import with_log
from .outputs import outputs_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Self

    from .outputs import HasOutputs as Context  # the part of it that this module uses


class Candidates(Pointer):
    """The tokens to choose from: an array of ``(id, logit, p)``, in memory that samplers change.

    `data`, `id`, `logit` and `p` are views of that memory, not copies: samplers see what you write
    into them, and you see what samplers change.  A sampler may also remove or reorder candidates;
    read the properties again after that.  To remove candidates yourself, use `keep`.
    """

    _instead = "Candidates(candidates.logit, ids=candidates.id) makes a copy"

    __slots__ = ("_base", "_memory", "_sorted_declared", "_struct")

    def __init__(self, logits: npt.ArrayLike, *, ids: npt.ArrayLike | None = None) -> None:
        """Copy logits into new candidates.

        Args:
            logits: The logits, ``[n]``; ``-inf`` rules a token out.
            ids: The tokens, ``[n]``; 0, 1, 2 and so on if omitted.

        Raises:
            ArgumentError: ``logits`` is empty, contains NaN or inf, or ``ids`` has another length.
        """
        import numpy as np

        scores = as_array("logits", logits, np.float32)
        if scores.ndim != 1 or not scores.size:
            raise ArgumentError(
                "logits must be a one-dimensional array that is not empty, not of shape "
                f"{scores.shape}"
            )
        if not (scores < np.inf).all():
            raise ArgumentError(
                "logits contain NaN or inf: use finite numbers, or -inf to rule a token out"
            )
        self._own(scores.size)
        self._memory["id"] = _token_ids(ids, scores.size)
        self._memory["logit"] = scores
        self._memory["p"] = 0

    @classmethod
    def from_context(cls, context: Context, i: int = -1) -> Self:
        """Copy the logits of a context.

        If the output was sampled in the graph, these are the candidates that remained there.

        Args:
            context: The context that decoded the batch.
            i: Index into the batch, in tokens; -1 is the last output.

        Raises:
            IndexError: Token ``i`` was added without an output.
            ContextError: The logits contain NaN or inf.

        Source: ``llama_get_logits_ith``, ``llama_get_sampled_logits_ith``.
        """
        outputs = outputs_of(context)
        self = cls.__new__(cls)
        self._own(len(outputs.vocab))
        with outputs.lock:
            ptr = context.ptr
            outputs.check_scores(i)
            n = lib.llamacffi_candidates(ptr, i, self._struct.data)
        if n < 0:
            raise problem(n)
        self._struct.size = n
        return self

    @classmethod
    def _over(cls, struct: Any, memory: npt.NDArray[Any], base: int) -> Self:
        """Return candidates that view a ``llama_token_data_array`` whose data lie in ``memory``."""
        self = cls.__new__(cls)
        self._struct, self._memory, self._base = struct, memory, base
        self._sorted_declared = False
        return self

    def _own(self, n: int) -> None:
        """Allocate memory for ``n`` candidates."""
        self._memory, pointer = token_data(n)
        self._base = int(ffi.cast("uintptr_t", pointer))
        self._struct = ffi.new("llama_token_data_array *")
        self._struct.data, self._struct.size, self._struct.selected = pointer, n, -1
        self._sorted_declared = False

    def _release(self) -> None:
        """Make every later use raise `ClosedError`."""
        self._struct = None

    @property
    def ptr(self) -> Any:
        """The ``llama_token_data_array *``, for `llamacffi.lib`.

        Raises:
            ClosedError: They were lent to a sampler's ``apply``, which has returned.
        """
        if self._struct is None:
            raise ClosedError(
                "these candidates were valid only until apply() returned: copy what you need"
            )
        return self._struct

    @property
    def data(self) -> npt.NDArray[Any]:
        """All candidates, ``[size]``, with fields ``id`` (int32), ``logit`` and ``p`` (float32)."""
        struct = self.ptr
        # Samplers may also move the start.
        offset = int(ffi.cast("uintptr_t", struct.data)) - self._base
        start: int = offset // self._memory.itemsize
        return self._memory[start : start + struct.size]

    @property
    def id(self) -> npt.NDArray[np.int32]:
        """The tokens, ``[size]`` int32."""
        return self.data["id"]

    @property
    def logit(self) -> npt.NDArray[np.float32]:
        """The logits, ``[size]`` float32; ``-inf`` means ruled out."""
        return self.data["logit"]

    @property
    def p(self) -> npt.NDArray[np.float32]:
        """The probabilities, ``[size]`` float32, as the last sampler that needed them left them.

        Samplers compute them from the logits, so writing to them has no effect.
        """
        return self.data["p"]

    @property
    def size(self) -> int:
        """Number of candidates.  Lower it to remove the last ones."""
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
        """The index of the chosen candidate; None before one is chosen."""
        selected: int = self.ptr.selected
        return None if selected < 0 else selected

    @selected.setter
    def selected(self, selected: int | None) -> None:
        if selected is not None:
            selected = integer("selected", selected, 0, self.size - 1)
        self.ptr.selected = -1 if selected is None else selected

    @property
    def token(self) -> int | None:
        """The chosen token; None before one is chosen."""
        selected = self.selected
        return None if selected is None else int(self.id[selected])

    @property
    def sorted(self) -> bool:
        """Whether they are marked as sorted by logit, best first.

        A sampler in Python that sorts them may set this; samplers after it then skip sorting.
        """
        return bool(self.ptr.sorted)

    @sorted.setter
    def sorted(self, sorted: bool) -> None:
        self.ptr.sorted = flag("sorted", sorted)
        self._sorted_declared = True

    def keep(self, which: npt.ArrayLike) -> None:
        """Keep the selected candidates and remove all others.

        Args:
            which: A numpy index: a bool mask ``[size]``, or indices in the new order, each once.
                Integers are always indices: turn flags of 0 and 1 into a mask with
                ``flags.astype(bool)``.

        Raises:
            ArgumentError: No candidate would remain, an index repeats, or the integers look like
                flags.
            IndexError: An index is out of range.
        """
        import numpy as np

        data = self.data
        index = as_array("which", which)
        if index.ndim == 1 and index.size and index.dtype.kind in "iu":
            _check_indices(index, data.size)
        kept = data[index if index.size else np.zeros(0, int)]
        if kept.ndim != 1 or not 1 <= kept.size <= data.size:
            raise ArgumentError(
                f"cannot keep {kept.size} of {data.size} candidates: keep at least one, and each "
                "only once"
            )
        data[: kept.size] = kept
        self.ptr.size, self.ptr.selected = kept.size, -1
        if index.dtype != bool:
            self.ptr.sorted = False

    def __repr__(self) -> str:
        if self._struct is None:
            return "<Candidates (no longer valid)>"
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
    """Allocate ``n`` candidates; return an array and the pointer that owns its memory."""
    import numpy as np

    pointer = new_uncleared("llama_token_data[]", n)
    return np.frombuffer(ffi.buffer(pointer), token_data_type()), pointer


def _token_ids(ids: npt.ArrayLike | None, n: int) -> npt.NDArray[Any]:
    """Return ``n`` tokens, checked as far as possible without a vocabulary."""
    import numpy as np

    if ids is None:
        return np.arange(n)
    tokens = as_array("ids", ids)
    if tokens.dtype.kind not in "iu":
        raise TypeError(f"ids must be integers, not {tokens.dtype}")
    if tokens.shape != (n,):
        raise ArgumentError(f"ids must have shape ({n},), one token per logit, not {tokens.shape}")
    for token in (tokens.min(), tokens.max()):
        integer("a token in ids", token, 0, INT32_MAX)
    return tokens


def _check_indices(index: npt.NDArray[Any], n: int) -> None:
    """Raise ArgumentError for integers that repeat one of ``n`` candidates, or look like flags."""
    import numpy as np

    # An index and a negative one may name the same candidate; flags have one byte per candidate.
    twice = len(np.unique(np.where(index < 0, index + np.int64(n), index))) < len(index)
    flags = index.dtype.itemsize == 1 and len(index) == n and index.max() <= 1
    if twice or flags:
        raise ArgumentError(
            "keep() takes indices, each once, or a bool mask, such as flags.astype(bool), not "
            f"{index!r:.200}"
        )


def lend(
    struct: Any, memory: npt.NDArray[Any], base: int, use: Callable[[Candidates], object]
) -> None:
    """Let a function use C's candidates, until it returns.

    Args:
        struct: The ``llama_token_data_array *``.
        memory: The array in which its data lie.
        base: The address of that array.
        use: The function.
    """
    candidates = Candidates._over(struct, memory, base)
    try:
        use(candidates)
    finally:
        declared = candidates._sorted_declared
        candidates._release()
    if not declared:
        struct.sorted = False


def problem(code: int) -> LlamaError:
    """Return the error for an error code about candidates, ``LLAMACFFI_SAMPLE_...``."""
    if code == lib.LLAMACFFI_SAMPLE_LOGITS:
        return with_log(ContextError("llama.cpp has no logits for this output"))
    if code == lib.LLAMACFFI_SAMPLE_NAN:
        return ContextError(
            "a logit is NaN or inf: the model, an adapter or a sampler has computed invalid numbers"
        )
    if code == lib.LLAMACFFI_SAMPLE_ID:
        return ArgumentError("a candidate's id is outside the vocabulary")
    raise AssertionError(f"unknown code {code}")
