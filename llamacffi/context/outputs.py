"""The outputs of the last batch of a context: logits and embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._core.values import integer
from .._core.views import float_view
from .._native import ffi, lib
from ..errors import ArgumentError, ContextError, UnsupportedError
from ..log import with_log

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    import numpy as np
    import numpy.typing as npt

    from .._core.locks import CallLock
    from ..vocab.vocab import Vocab
    from .graph_samplers import GraphSamplers
    from .last_batch import LastBatch
    from .traits import ContextTraits

    Floats: TypeAlias = npt.NDArray[np.float32]


class Outputs:
    """Reads the outputs of the last batch of a context.

    They stay until the next batch is computed, even if that fails.  The first argument of most
    methods is the ``struct llama_context *``.
    """

    __slots__ = ("_graph_samplers", "_last", "_traits", "lock", "vocab")

    lock: CallLock
    """Held while C reads or moves the outputs."""
    vocab: Vocab
    """The vocabulary of the logits."""

    def __init__(
        self, traits: ContextTraits, lock: CallLock, last: LastBatch, graph_samplers: GraphSamplers
    ) -> None:
        self._traits, self._last, self._graph_samplers = traits, last, graph_samplers
        self.lock, self.vocab = lock, traits.vocab

    @property
    def n_outputs(self) -> int:
        """Number of tokens of the last batch that have outputs."""
        flags = self._last.flags
        return 0 if flags is None else flags.count(1)

    def logits(self, ptr: Any, i: int, out: Floats | None) -> Floats:
        """Return a copy of the logits of one output; see `Context.logits`."""
        array = _array((self._traits.n_vocab,), out)
        with self.lock:
            ffi.memmove(array, self._logits_ptr(ptr, i), array.nbytes)
        return array

    def logits_view(self, ptr: Any, i: int) -> Floats:
        """Return the logits of one output without a copy; see `Context.logits_view`."""
        with self.lock:
            shape = (self._traits.n_vocab,)
            return float_view(self._logits_ptr(ptr, i), shape, ptr, self._last.exports)

    def logits_all(self, ptr: Any, out: Floats | None) -> Floats:
        """Return a copy of the logits of all outputs; see `Context.logits_all`."""
        with self.lock:
            self._logits_ptr(ptr, -1)
            for i in range(-self.n_outputs, 0) if self._graph_samplers.chains else ():
                self._logits_ptr(ptr, i)  # raises for one that was sampled in the graph
            array = _array((self.n_outputs, self._traits.n_vocab), out)
            ffi.memmove(array, lib.llama_get_logits(ptr), array.nbytes)
        return array

    def embeddings(self, ptr: Any, i: int, out: Floats | None) -> Floats:
        """Return a copy of the embedding of one output; see `Context.embeddings`."""
        array = _array((self._n_embd_out(),), out)
        with self.lock:
            ffi.memmove(array, self._embeddings_ptr(ptr, i), array.nbytes)
        return array

    def embeddings_view(self, ptr: Any, i: int) -> Floats:
        """Return the embedding of one output without a copy; see `Context.embeddings_view`."""
        with self.lock:
            shape = (self._n_embd_out(),)
            return float_view(self._embeddings_ptr(ptr, i), shape, ptr, self._last.exports)

    def embeddings_all(self, ptr: Any, out: Floats | None) -> Floats:
        """Return a copy of the embeddings of all outputs; see `Context.embeddings_all`."""
        with self.lock:
            self._embeddings_ptr(ptr, -1)
            array = _array((self.n_outputs, self._n_embd_out()), out)
            ffi.memmove(array, lib.llama_get_embeddings(ptr), array.nbytes)
        return array

    def embeddings_seq(self, ptr: Any, seq_id: int) -> Floats:
        """Return a copy of the embedding of a sequence; see `Context.embeddings_seq`."""
        import numpy as np

        traits = self._traits
        seq_id = integer("seq_id", seq_id, 0, traits.n_seq_max - 1)
        with self.lock:
            self._check_embeddings(pooled=True)
            pointer = lib.llama_get_embeddings_seq(ptr, seq_id)
            if pointer == ffi.NULL:
                raise IndexError(f"sequence {seq_id} was not in the last batch")
            # The number of a classifier's scores differs from the width of embeddings.
            ranks = traits.pooling == lib.LLAMA_POOLING_TYPE_RANK
            width = lib.llama_model_n_cls_out(traits.model.ptr) if ranks else self._n_embd_out()
            array = np.empty(width, np.float32)
            ffi.memmove(array, pointer, array.nbytes)
        return array

    def sampled_token(self, ptr: Any, i: int) -> int | None:
        """Return the token that was sampled in the graph; see `Context.sampled_token`."""
        i = integer("i", i)
        with self.lock:
            self.check_output(i)
            token: int = lib.llama_get_sampled_token_ith(ptr, i)
        return None if token == lib.LLAMA_TOKEN_NULL else token

    def sampled_logits(self, ptr: Any, i: int) -> npt.NDArray[np.float32] | None:
        """Return the logits that are left; see `Context.sampled_logits`."""
        get, count = lib.llama_get_sampled_logits_ith, lib.llama_get_sampled_logits_count_ith
        return self._sampled(ptr, i, get, count, "f4")

    def sampled_probs(self, ptr: Any, i: int) -> npt.NDArray[np.float32] | None:
        """Return the probabilities that are left; see `Context.sampled_probs`."""
        get, count = lib.llama_get_sampled_probs_ith, lib.llama_get_sampled_probs_count_ith
        return self._sampled(ptr, i, get, count, "f4")

    def sampled_candidates(self, ptr: Any, i: int) -> npt.NDArray[np.int32] | None:
        """Return the tokens that are left; see `Context.sampled_candidates`."""
        # As many as logits; where all tokens are left, llama.cpp does not count them.
        logits = self.sampled_logits(ptr, i)
        if logits is None:
            return None
        get = lib.llama_get_sampled_candidates_ith
        return self._sampled(ptr, i, get, lambda _ptr, _i: len(logits), "i4")

    def _sampled(
        self,
        ptr: Any,
        i: int,
        get: Callable[..., Any],
        count: Callable[..., int],
        dtype: str,
    ) -> npt.NDArray[Any] | None:
        """Return a copy of what a getter points to."""
        import numpy as np

        i = integer("i", i)
        with self.lock:
            self.check_output(i)
            if (
                not self._graph_samplers.chains
                or lib.llama_get_sampled_logits_ith(ptr, i) == ffi.NULL
            ):
                return None
            pointer, n = get(ptr, i), count(ptr, i)
            if pointer == ffi.NULL or not n:
                return None
            found: npt.NDArray[Any] = np.frombuffer(ffi.buffer(pointer, n * 4), dtype)
            return np.array(found)

    def check_output(self, i: int) -> None:
        """Raise IndexError unless the last batch has an output at index ``i``."""
        if type(i) is not int:
            integer("i", i)
        flags = self._last.flags
        if flags is None:
            raise IndexError("there are no outputs: decode a batch first")
        if not (flags.count(1) >= -i if i < 0 else flags[i : i + 1] == b"\1"):
            raise IndexError(
                f"token {i} has no output: the last batch had {len(flags)} tokens, and outputs at "
                f"{[j for j, output in enumerate(flags) if output]}"
            )

    def check_scores(self, i: int) -> None:
        """Raise an error unless the last batch has logits for an output at index ``i``."""
        flags = self._last.flags
        # The most frequent case first, for a loop that decodes token by token.
        if flags != b"\1" or i != -1 or type(i) is not int:
            self.check_output(i)
        if not self._last.logits:
            if self._traits.has_logits:
                raise ContextError("the encoder computes no logits: decode a batch first")
            raise UnsupportedError(
                f"{self._traits.model!r} computes embeddings instead of logits: read those"
            )

    def _n_embd_out(self) -> int:
        return int(lib.llama_model_n_embd_out(self._traits.model.ptr))

    def _logits_ptr(self, ptr: Any, i: int) -> Any:
        i = integer("i", i)
        self.check_scores(i)
        sampled = lib.llama_get_sampled_logits_ith
        if self._graph_samplers.chains and sampled(ptr, i) != ffi.NULL:
            # The getter would return these, which may be fewer and belong to other tokens.
            raise ContextError(
                f"output {i} was sampled in the graph: read sampled_logits() and "
                "sampled_candidates(), or Candidates.from_context()"
            )
        # upstream: src/llama-context.cpp output_reorder: the first getter after a decode puts the
        # rows in order, so we call the getter each time.
        pointer = lib.llama_get_logits_ith(ptr, i)
        if pointer == ffi.NULL:
            raise with_log(ContextError(f"llama.cpp has no logits for output {i}"))
        return pointer

    def _embeddings_ptr(self, ptr: Any, i: int) -> Any:
        i = integer("i", i)
        self._check_embeddings(pooled=False)
        self.check_output(i)
        pointer = lib.llama_get_embeddings_ith(ptr, i)
        if pointer == ffi.NULL:
            raise with_log(ContextError(f"llama.cpp has no embeddings for output {i}"))
        return pointer

    def _check_embeddings(self, *, pooled: bool) -> None:
        """Check that the last batch has embeddings: of sequences, or of tokens."""
        if self._last.flags is None:
            raise IndexError("there are no outputs: decode a batch first")
        if not self._last.embeddings:
            raise ContextError(
                "the last batch was computed without embeddings: create the Context with "
                "embeddings=True, or call set_embeddings(True) before decode()"
            )
        if pooled == (self._traits.pooling == lib.LLAMA_POOLING_TYPE_NONE):
            raise ContextError(
                "each token has its own embedding (pooling_type is none): use embeddings()"
                if pooled
                else "each sequence has one embedding, pooled from its tokens: use "
                "embeddings_seq(), or create the Context with pooling_type='none'"
            )


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
