"""The methods of `Context` that read the outputs of the last batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    import numpy.typing as npt

    from .outputs import Outputs

    Floats: TypeAlias = npt.NDArray[np.float32]


class OutputMethods:
    """Reads logits, embeddings, and what was sampled in the graph."""

    __slots__ = ()

    __llama_outputs__: Outputs
    if TYPE_CHECKING:

        @property
        def ptr(self) -> Any:
            """Of `ContextHandle`."""

    @property
    def n_outputs(self) -> int:
        """Number of tokens of the last batch that have outputs; 0 before the first batch."""
        self.ptr  # noqa: B018  raises if closed
        return self.__llama_outputs__.n_outputs

    def logits(self, i: int = -1, *, out: Floats | None = None) -> Floats:
        """Return the logits of one output of the last batch: the scores of every next token.

        Args:
            i: Index into the batch decoded last, in tokens; -1 is the last output.
            out: Array to fill, float32, C-contiguous, shape ``[n_vocab]``.  New if omitted.

        Returns:
            ``[n_vocab]`` float32, log-odds, not normalised.  The caller's own copy: later calls do
            not change it.  See `logits_view` to avoid the copy.

        Raises:
            IndexError: Token ``i`` was added without an output.
            ArgumentError: ``out`` does not fit.
            UnsupportedError: The model computes embeddings instead of logits.
            ContextError: The last call was `encode`, of a model that has a decoder.

        Source: ``llama_get_logits_ith``.
        """
        return self.__llama_outputs__.logits(self.ptr, i, out)

    def logits_view(self, i: int = -1) -> Floats:
        """Return the logits of `logits` without a copy, as a read-only array.

        While it is alive, `decode` raises BufferError, since llama.cpp may move the memory.

        Source: ``llama_get_logits_ith``.
        """
        return self.__llama_outputs__.logits_view(self.ptr, i)

    def logits_all(self, *, out: Floats | None = None) -> Floats:
        """Return the logits of all outputs of the last batch.

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
        return self.__llama_outputs__.logits_all(self.ptr, out)

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
        return self.__llama_outputs__.embeddings(self.ptr, i, out)

    def embeddings_view(self, i: int = -1) -> Floats:
        """Return the embedding of `embeddings` without a copy, as a read-only array.

        While it is alive, `decode` raises BufferError, since llama.cpp may move the memory.

        Source: ``llama_get_embeddings_ith``.
        """
        return self.__llama_outputs__.embeddings_view(self.ptr, i)

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
        return self.__llama_outputs__.embeddings_all(self.ptr, out)

    def embeddings_seq(self, seq_id: int = 0) -> Floats:
        """Return the embedding of one sequence of the last batch, pooled as `pooling_type` says.

        It is made of the tokens of that batch.

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
        return self.__llama_outputs__.embeddings_seq(self.ptr, seq_id)

    def sampled_token(self, i: int = -1) -> int | None:
        """Return the token that was sampled in the graph; None if the graph does not choose.

        `SamplerChain.sample` returns it too, and accepts it.

        Args:
            i: Index into the batch decoded last, in tokens; -1 is the last output.

        Raises:
            IndexError: Token ``i`` was added without an output.

        Source: ``llama_get_sampled_token_ith``.
        """
        return self.__llama_outputs__.sampled_token(self.ptr, i)

    def sampled_logits(self, i: int = -1) -> npt.NDArray[np.float32] | None:
        """Return the logits that the samplers in the graph have left.

        Returns:
            float32, in the order of `sampled_candidates`, ``-inf`` for those ruled out; the
            caller's own.  None if the output was not sampled in the graph.

        Source: ``llama_get_sampled_logits_ith``, ``llama_get_sampled_logits_count_ith``.
        """
        return self.__llama_outputs__.sampled_logits(self.ptr, i)

    def sampled_probs(self, i: int = -1) -> npt.NDArray[np.float32] | None:
        """Return the probabilities that the graph has sampled from.

        Returns:
            float32, in the order of `sampled_candidates`; the caller's own.  None if the graph has
            not chosen, or not by probability.

        Source: ``llama_get_sampled_probs_ith``, ``llama_get_sampled_probs_count_ith``.
        """
        return self.__llama_outputs__.sampled_probs(self.ptr, i)

    def sampled_candidates(self, i: int = -1) -> npt.NDArray[np.int32] | None:
        """Return the tokens that the samplers in the graph have left.

        Returns:
            int32; the caller's own.  None if the output was not sampled in the graph.

        Source: ``llama_get_sampled_candidates_ith``, ``llama_get_sampled_logits_count_ith``.
        """
        return self.__llama_outputs__.sampled_candidates(self.ptr, i)
