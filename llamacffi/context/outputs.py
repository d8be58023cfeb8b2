"""What a context has computed: scores of the tokens to come, and embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._core.values import integer
from .._core.views import float_view
from .._native import ffi, lib
from ..errors import ArgumentError, ContextError, UnsupportedError
from ..log import with_log
from .base import ContextBase

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    import numpy.typing as npt

    Floats: TypeAlias = npt.NDArray[np.float32]


class Outputs(ContextBase):
    """The part of a `Context` that reads the outputs of the last batch.

    They are there until the next call of `decode` or `encode`, also if that fails.
    """

    __slots__ = ()

    @property
    def n_outputs(self) -> int:
        """How many tokens of the last batch have outputs; 0 before the first, or if it failed."""
        self.ptr  # noqa: B018  raises if closed
        outputs = self._outputs
        return 0 if outputs is None else outputs.count(1)

    def logits(self, i: int = -1, *, out: Floats | None = None) -> Floats:
        """Return the scores of every token to come after one token of the last batch.

        Args:
            i: Index into the batch decoded last, in tokens; -1 is the last output.
            out: Array to fill, float32, C-contiguous, shape ``[n_vocab]``.  New if omitted.

        Returns:
            ``[n_vocab]`` float32, log-odds, not normalised.  The caller's own copy: later calls do
            not change it.  See `logits_view` to avoid the copy.

        Raises:
            IndexError: Token ``i`` was added without an output.
            ArgumentError: ``out`` does not fit.
            UnsupportedError: The model computes embeddings, and no logits.
            ContextError: The last call was `encode`, of a model that has a decoder.

        Source: ``llama_get_logits_ith``.
        """
        array = _array((len(self._vocab),), out)
        with self.lock:
            ptr = self.ptr
            ffi.memmove(array, self._logits_ptr(ptr, i), array.nbytes)
        return array

    def logits_view(self, i: int = -1) -> Floats:
        """Return the scores of `logits` without a copy, as a read-only array.

        While it is alive, `decode` raises BufferError, since llama.cpp may move the memory.

        Source: ``llama_get_logits_ith``.
        """
        with self.lock:
            ptr = self.ptr
            n_vocab = len(self._vocab)
            return float_view(self._logits_ptr(ptr, i), (n_vocab,), ptr, self._exports)

    def logits_all(self, *, out: Floats | None = None) -> Floats:
        """Return the scores after each token of the last batch that has an output.

        Args:
            out: Array to fill, as in `logits`, of shape ``[n_outputs, n_vocab]``.

        Returns:
            ``[n_outputs, n_vocab]`` float32, in the order of the batch; the caller's own.

        Raises:
            IndexError: There are no outputs.
            ArgumentError: ``out`` does not fit.
            UnsupportedError: As in `logits`.
            ContextError: As in `logits`.

        Source: ``llama_get_logits``.
        """
        with self.lock:
            ptr = self.ptr
            self._logits_ptr(ptr, -1)
            for i in range(-self.n_outputs, 0) if self._graph_samplers.chains else ():
                self._logits_ptr(ptr, i)  # those that were sampled in the graph are not there
            array = _array((self.n_outputs, len(self._vocab)), out)
            ffi.memmove(array, lib.llama_get_logits(ptr), array.nbytes)
        return array

    def embeddings(self, i: int = -1, *, out: Floats | None = None) -> Floats:
        """Return the embedding of one token of the last batch: its last hidden state.

        Args:
            i: Index into the batch computed last, in tokens; -1 is the last output.
            out: Array to fill, as in `logits`, of shape ``[model.n_embd_out]``.

        Returns:
            ``[n_embd_out]`` float32, not normalised; the caller's own.

        Raises:
            IndexError: There are no outputs, or token ``i`` has none.
            ContextError: No embeddings were computed, or only one for each sequence.
            ArgumentError: ``out`` does not fit.

        Source: ``llama_get_embeddings_ith``.
        """
        array = _array((lib.llama_model_n_embd_out(self.model.ptr),), out)
        with self.lock:
            ptr = self.ptr
            ffi.memmove(array, self._embeddings_ptr(ptr, i), array.nbytes)
        return array

    def embeddings_view(self, i: int = -1) -> Floats:
        """Return the embedding of `embeddings` without a copy, as a read-only array.

        While it is alive, `decode` raises BufferError, since llama.cpp may move the memory.

        Source: ``llama_get_embeddings_ith``.
        """
        with self.lock:
            ptr = self.ptr
            width = lib.llama_model_n_embd_out(self.model.ptr)
            return float_view(self._embeddings_ptr(ptr, i), (width,), ptr, self._exports)

    def embeddings_all(self, *, out: Floats | None = None) -> Floats:
        """Return the embeddings of all tokens of the last batch that have an output.

        Args:
            out: Array to fill, as in `logits`, of shape ``[n_outputs, model.n_embd_out]``.

        Returns:
            ``[n_outputs, n_embd_out]`` float32, in the order of the batch; the caller's own.

        Raises:
            IndexError: There are no outputs.
            ContextError: As in `embeddings`.
            ArgumentError: ``out`` does not fit.

        Source: ``llama_get_embeddings``.
        """
        with self.lock:
            ptr = self.ptr
            self._embeddings_ptr(ptr, -1)
            array = _array((self.n_outputs, lib.llama_model_n_embd_out(self.model.ptr)), out)
            ffi.memmove(array, lib.llama_get_embeddings(ptr), array.nbytes)
        return array

    def embeddings_seq(self, seq_id: int = 0) -> Floats:
        """Return the embedding of one sequence of the last batch, pooled as `pooling_type` says.

        It is made of the tokens that were in that batch.

        Args:
            seq_id: The sequence.

        Returns:
            ``[n_embd_out]`` float32, not normalised; with pooling by rank, the scores of the
            classifier, ``[n_cls_out]``.  The caller's own.

        Raises:
            IndexError: There are no outputs, or the sequence was not in the batch.
            ContextError: No embeddings were computed, or one for each token.

        Source: ``llama_get_embeddings_seq``.
        """
        import numpy as np

        seq_id, model = index(seq_id, "seq_id"), self.model.ptr
        with self.lock:
            ptr = self.ptr
            self._check_embeddings(pooled=True)
            if not 0 <= seq_id < lib.llama_n_seq_max(ptr):
                raise ArgumentError(f"seq_id {seq_id} is not in 0 to {self.n_seq_max - 1}")
            pointer = lib.llama_get_embeddings_seq(ptr, seq_id)
            if pointer == ffi.NULL:
                raise IndexError(f"sequence {seq_id} was not in the last batch")
            # Of another width than those of tokens: what is read behind it is somebody else's.
            ranks = lib.llama_pooling_type(ptr) == lib.LLAMA_POOLING_TYPE_RANK
            width = (lib.llama_model_n_cls_out if ranks else lib.llama_model_n_embd_out)(model)
            array = np.empty(width, np.float32)
            ffi.memmove(array, pointer, array.nbytes)
        return array

    def check_output(self, i: int) -> None:
        """Raise IndexError unless the last batch has an output at index ``i``."""
        if type(i) is not int:
            integer("i", i)
        outputs = self._outputs
        if outputs is None:
            raise IndexError("there are no outputs: decode a batch first")
        if not (outputs.count(1) >= -i if i < 0 else outputs[i : i + 1] == b"\1"):
            raise IndexError(
                f"no output at index {i}: the last batch had {len(outputs)} tokens, of which "
                f"{[j for j, output in enumerate(outputs) if output]} have outputs"
            )

    def check_scores(self, i: int) -> None:
        """Raise an error unless the last batch has logits for an output at index ``i``."""
        self.check_output(i)
        if not self._has[0]:
            self._explain_no_logits()

    def _logits_ptr(self, ptr: Any, i: int) -> Any:
        i = index(i, "i")
        self.check_scores(i)
        if self._graph_samplers.chains and lib.llama_get_sampled_logits_ith(ptr, i) != ffi.NULL:
            # The getter would return these, which may be fewer, and of other tokens.
            raise ContextError(
                f"output {i} was sampled in the graph: read sampled_logits() and "
                "sampled_candidates(), or Candidates.from_context()"
            )
        # Through the getter each time: the first one after a decode puts the rows in order.
        pointer = lib.llama_get_logits_ith(ptr, i)
        if pointer == ffi.NULL:
            raise with_log(ContextError(f"llama.cpp has no logits for output {i}"))
        return pointer

    def _explain_no_logits(self) -> None:
        if self._has_logits:
            raise ContextError("the encoder computes no logits: decode a batch first")
        raise UnsupportedError(f"{self.model!r} computes embeddings, and no logits: read those")

    def _embeddings_ptr(self, ptr: Any, i: int) -> Any:
        i = index(i, "i")
        self._check_embeddings(pooled=False)
        self.check_output(i)
        pointer = lib.llama_get_embeddings_ith(ptr, i)
        if pointer == ffi.NULL:
            raise with_log(ContextError(f"llama.cpp has no embeddings for output {i}"))
        return pointer

    def _check_embeddings(self, *, pooled: bool) -> None:
        """Check that the last batch has embeddings: of sequences, or of tokens."""
        if self._outputs is None:
            raise IndexError("there are no outputs: decode a batch first")
        if not self._has[1]:
            raise ContextError(
                "the last batch was computed without embeddings: create the Context with "
                "embeddings=True, or call set_embeddings(True) before"
            )
        pooling = lib.llama_pooling_type(self.ptr)
        if pooled == (pooling == lib.LLAMA_POOLING_TYPE_NONE):
            raise ContextError(
                "each token has its own embedding (pooling_type is none): use embeddings()"
                if pooled
                else "each sequence has one embedding, pooled from its tokens: use "
                "embeddings_seq(), or create the Context with pooling_type='none'"
            )


def index(value: Any, name: str) -> int:
    """Return an integer; a bool is none, since it is a mask or a mistake."""
    return integer(name, value)


def _array(shape: tuple[int, ...], out: Floats | None) -> Floats:
    """Return ``out`` if it can be filled, or a new array."""
    import numpy as np

    if out is None:
        return np.empty(shape, np.float32)
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be an array, not {out!r}")
    if out.shape != shape or out.dtype != np.float32 or not out.flags.carray:
        raise ArgumentError(
            f"out must be a writeable, contiguous float32 array of shape {shape}, "
            f"not {out.dtype} of shape {out.shape}"
        )
    return out
