"""The methods of `Context` that change how it computes from the next batch on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .._core.values import flag
from .._native import lib
from ..errors import UnsupportedError
from .traits import SEES_ALL

if TYPE_CHECKING:
    from .._core.locks import CallLock
    from ..adapter.adapter import Adapter
    from ..adapter.control_vector import ControlVector
    from ..backend.threads import Threadpool
    from ..sampling.chain import SamplerChain
    from .adapters import ActiveAdapters
    from .decoding import Decoder
    from .graph_samplers import GraphSamplers
    from .pools import Computing
    from .traits import ContextTraits


class SettingMethods:
    """Chooses threads, adapters, the control vector, samplers in the graph, and attention."""

    __slots__ = ()

    _adapters: ActiveAdapters
    _computing: Computing
    _decoder: Decoder
    _graph_samplers: GraphSamplers
    _lock: CallLock
    _traits: ContextTraits
    if TYPE_CHECKING:

        @property
        def ptr(self) -> Any:
            """Of `ContextHandle`."""

    @property
    def n_threads(self) -> int:
        """Number of threads that compute a single token.

        Setting it replaces the context's own pool; an attached one must be large enough.

        Source: ``llama_n_threads``, ``llama_set_n_threads``.
        """
        return int(lib.llama_n_threads(self.ptr))

    @n_threads.setter
    def n_threads(self, n_threads: int) -> None:
        self._computing.pools.resize(self.ptr, n_threads, self.n_threads_batch)

    @property
    def n_threads_batch(self) -> int:
        """Number of threads that compute several tokens.

        Setting it replaces the context's own pool; an attached one must be large enough.

        Source: ``llama_n_threads_batch``, ``llama_set_n_threads``.
        """
        return int(lib.llama_n_threads_batch(self.ptr))

    @n_threads_batch.setter
    def n_threads_batch(self, n_threads_batch: int) -> None:
        self._computing.pools.resize(self.ptr, self.n_threads, n_threads_batch)

    def attach_threadpool(self, pool: Threadpool, batch_pool: Threadpool | None = None) -> None:
        """Compute with the threads of ``pool`` instead of the context's own.

        The context keeps the pools alive, even if they are closed.

        Args:
            pool: For single tokens; at least `n_threads` threads.
            batch_pool: For several tokens; at least `n_threads_batch` threads.  ``pool`` if
                omitted.

        Raises:
            ArgumentError: A pool has too few threads.
            BusyError: Another thread is using the context.

        Source: ``llama_attach_threadpool``.
        """
        pools = pool, pool if batch_pool is None else batch_pool
        self._computing.pools.replace(self.ptr, pools)

    def detach_threadpool(self) -> None:
        """Compute with the context's own threads again.

        Raises:
            BusyError: Another thread is using the context.

        Source: ``llama_attach_threadpool``.
        """
        self._computing.pools.restore(self.ptr)

    @property
    def adapters(self) -> Mapping[Adapter, float]:
        """The adapters in use, each with its scale; set a mapping, or None for none.

        Setting takes microseconds, but the next computation reserves its memory anew, which takes
        about as long as creating a context.  What was computed before stays in `memory`: remove it,
        unless the adapters are meant to continue it.  Without adapters the results are exactly
        those of the model alone.

        Raises:
            AdapterError: An adapter was loaded for another model.
            ClosedError: An adapter is closed.
            ArgumentError: A scale is not a finite 32-bit number.
            BusyError: Another thread is using the context.

        Source: ``llama_set_adapters_lora``.
        """
        self.ptr  # noqa: B018  raises if closed
        return self._adapters.adapters

    @adapters.setter
    def adapters(self, adapters: Mapping[Adapter, float] | None) -> None:
        scales, ptr = self._adapters.scales(adapters, self._traits.model), self.ptr
        owners = [adapter.ptr for adapter in scales]
        active = self._adapters
        with self._lock:
            active.use_adapters(ptr, scales, owners)

    @property
    def control_vector(self) -> ControlVector | None:
        """The control vector in use; set None for none.

        As with `adapters`, the next computation reserves its memory anew, and what is in `memory`
        stays.  Some architectures have no place for control vectors: llama.cpp accepts them and
        leaves the results unchanged.

        Raises:
            AdapterError: It is for another width, or for layers that the model does not have.
            BusyError: Another thread is using the context.

        Source: ``llama_set_adapter_cvec``.
        """
        self.ptr  # noqa: B018  raises if closed
        return self._adapters.vector

    @control_vector.setter
    def control_vector(self, vector: ControlVector | None) -> None:
        active, ptr = self._adapters, self.ptr
        arguments = active.vector_arguments(vector, self._traits.model)
        with self._lock:
            active.use_vector(ptr, vector, arguments)

    @property
    def samplers(self) -> Mapping[int, SamplerChain]:
        """The chains that sample in the compute graph, by sequence."""
        self.ptr  # noqa: B018  raises if closed
        return MappingProxyType(dict(self._graph_samplers.chains))

    def set_sampler(self, seq_id: int, chain: SamplerChain | None) -> None:
        """Sample a sequence in the compute graph from the next batch on, or stop doing so.

        llama.cpp runs as many samplers there as it can, beginning with the first; in
        `SamplerChain.names` they have a ``+``.  `SamplerChain.sample` runs the others, or returns
        the token that was chosen if all were.  The probabilities are the same as without this,
        except for rounding.

        The same seed usually gives the same tokens.  They may differ where the order of the
        candidates matters: after `TopK`, which does not sort them in the graph, and after `TopP`,
        or for `Greedy` and ``Temp(0)``, where several have the same score.  And they may differ
        where the last bit decides: at the limit of `TopP` and `MinP`, and in `TempExt`, `Penalties`
        and `Dist`, since a device adds and multiplies in an order of its own; a GPU more often than
        the CPU.

        Meanwhile the chain belongs to this sequence of this context; closing it takes it out of
        the graph.  The outputs of the last batch are gone.  A sequence can have
        ``n_outputs_max_per_seq`` outputs in a batch.  Creating the context with ``samplers`` is
        faster than setting them afterwards.

        Args:
            seq_id: The sequence.
            chain: Its samplers; None removes them.

        Raises:
            ArgumentError: The chain is in a graph already, or for another vocabulary.
            UnsupportedError: llama.cpp cannot run the first sampler in the graph, or the model has
                no memory.

        Source: ``llama_set_sampler``.
        """
        self._graph_samplers.set(self.ptr, seq_id, chain)

    @property
    def causal_attn(self) -> bool:
        """Whether tokens attend only to earlier ones.  Source: ``llama_get_causal_attn``."""
        return bool(lib.llama_get_causal_attn(self.ptr)) and not self._traits.memoryless

    def set_causal_attn(self, causal: bool) -> None:
        """Let tokens attend only to earlier ones, or to their whole batch, from the next batch on.

        Without causal attention a batch can have `n_ubatch` tokens.

        Raises:
            UnsupportedError: Causal attention was requested for a model without memory.

        Source: ``llama_set_causal_attn``.
        """
        causal, ptr = flag("causal", causal), self.ptr
        if causal and self._traits.memoryless:
            raise UnsupportedError(f"{self._traits.model!r} has no memory: {SEES_ALL}")
        with self._lock:
            lib.llama_set_causal_attn(ptr, causal)

    @property
    def embeddings_enabled(self) -> bool:
        """Whether the next batch computes embeddings."""
        self.ptr  # noqa: B018  raises if closed
        return self._decoder.embeddings

    def set_embeddings(self, embeddings: bool) -> None:
        """Turn the computation of embeddings on or off, from the next batch on.

        The outputs of the last batch are unchanged.

        Raises:
            ArgumentError: This context cannot pool.
            ContextError: llama.cpp cannot compute them.
            UnsupportedError: llama.cpp cannot read the embeddings of this model.

        Source: ``llama_set_embeddings``.
        """
        embeddings = flag("embeddings", embeddings)
        self._decoder.set_embeddings(self.ptr, self._lock, embeddings)
