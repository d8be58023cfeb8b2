"""Sampling in the graph of a context: on the device, before anything is copied from it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .._native import lib
from .graph_samplers import free
from .outputs import Outputs, index
from .pools import Threads

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .._core.locks import CallLock
    from ..sampling.chain import SamplerChain
    from ..vocab.vocab import Vocab
    from .graph_samplers import Array


class BackendSampling(Outputs, Threads):
    """The part of a `Context` that samples in its graph."""

    __slots__ = ()

    @property
    def samplers(self) -> Mapping[int, SamplerChain]:
        """The chains that it samples with in its graph, by sequence."""
        self.ptr  # noqa: B018  raises if closed
        return MappingProxyType(dict(self._graph_samplers.chains))

    def set_sampler(self, seq_id: int, chain: SamplerChain | None) -> None:
        """Sample a sequence in the graph, from the next batch on, or no longer.

        llama.cpp runs as many samplers there as it can, from the first on; `SamplerChain.names`
        shows them with a ``+``.  `SamplerChain.sample` runs the others, or takes the token that was
        chosen if all were.  The probabilities are the same as without this, but for rounding.

        From the same seed come the same tokens as a rule.  They may be others where the candidates
        are in another order: after `TopK`, which has them in none here, and after `TopP`, or for
        `Greedy` and ``Temp(0)``, where some have the same score.  And they may be others where the
        last bit decides: at the limit of `TopP` and `MinP`, and in `TempExt`, `Penalties` and
        `Dist`, since a device adds and multiplies in an order of its own; a GPU more often than
        the processor.

        Meanwhile the chain is for this sequence of this context alone; closing it takes it back.
        The outputs of the last batch are gone.  A sequence can have ``n_outputs_max_per_seq``
        outputs in a batch.  To create the context with ``samplers`` is faster than to set them
        afterwards.

        Args:
            seq_id: The sequence.
            chain: Its samplers; None for none.

        Raises:
            ArgumentError: The chain is in use like this already, or for another vocabulary.
            UnsupportedError: llama.cpp cannot run even its first sampler in the graph, or the model
                has no memory.

        Source: ``llama_set_sampler``.
        """
        self._graph_samplers.set(self, self.ptr, seq_id, chain, self._settle_outputs)

    def sampled_token(self, i: int = -1) -> int | None:
        """Return the token that was chosen in the graph; None if the graph does not choose.

        `SamplerChain.sample` returns it too, and has it accepted.

        Args:
            i: Index into the batch decoded last, in tokens; -1 is the last output.

        Raises:
            IndexError: Token ``i`` was added without an output.

        Source: ``llama_get_sampled_token_ith``.
        """
        i = index(i, "i")
        with self.lock:
            ptr = self.ptr
            self.check_output(i)
            return self._graph_samplers.token(ptr, i)

    def sampled_logits(self, i: int = -1) -> npt.NDArray[np.float32] | None:
        """Return the scores that the samplers in the graph have left.

        Returns:
            float32, in the order of `sampled_candidates`, ``-inf`` for what is ruled out; the
            caller's own.  None if the output was not sampled in the graph.

        Source: ``llama_get_sampled_logits_ith``, ``llama_get_sampled_logits_count_ith``.
        """
        return self._sampled(i, self._graph_samplers.logits)

    def sampled_probs(self, i: int = -1) -> npt.NDArray[np.float32] | None:
        """Return the probabilities by which the graph has chosen.

        Returns:
            float32, in the order of `sampled_candidates`; the caller's own.  None if the graph has
            not chosen, or not by probability.

        Source: ``llama_get_sampled_probs_ith``, ``llama_get_sampled_probs_count_ith``.
        """
        return self._sampled(i, self._graph_samplers.probs)

    def sampled_candidates(self, i: int = -1) -> npt.NDArray[np.int32] | None:
        """Return the tokens that the samplers in the graph have left.

        Returns:
            int32; the caller's own.  None if the output was not sampled in the graph.

        Source: ``llama_get_sampled_candidates_ith``, ``llama_get_sampled_logits_count_ith``.
        """
        return self._sampled(i, self._graph_samplers.candidates)

    def close(self) -> None:
        """Free the C object now, after everything made from it.  Idempotent.

        Only a call still running in another thread, or a live zero-copy array, delays the free
        until it is done.
        """
        chains = self._graph_samplers.close()
        super().close()
        free(chains)

    def _sampled(self, i: int, read: Callable[[Any, int], Array | None]) -> Array | None:
        i = index(i, "i")
        with self.lock:
            ptr = self.ptr
            self.check_output(i)
            return read(ptr, i)

    def _settle_outputs(self, ptr: Any) -> None:
        self._exports.check_none()
        if self._outputs is not None:
            # Puts the rows in order while it is known which of them were sampled.
            lib.llama_get_logits(ptr)
        self._outputs = None


class WeakOutputs:
    """The `OutputSource` of a context, which it does not keep alive."""

    __slots__ = ("_context", "lock", "vocab")

    def __init__(self, context: Outputs, vocab: Vocab) -> None:
        self.vocab: Vocab = vocab
        self.lock: CallLock = context.lock
        self._context = weakref.ref(context)

    def check_scores(self, i: int) -> None:
        """Raise an error unless the last batch has logits for an output at index ``i``."""
        context = self._context()
        if context is not None:
            context.check_scores(i)
