"""A context: where a model computes and what it remembers meanwhile."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

from .._core.locks import CallLock, ExitGuard
from .._core.ownership import make, own
from .._core.views import Exports
from .._native import ffi, lib
from ..errors import ArgumentError, ContextError, ForkError, NativeError, UnsupportedError
from ..log import drain, recent, with_log
from .adapters import Adapters
from .backend_sampling import BackendSampling, WeakOutputs
from .bookkeeping import Bookkeeping
from .compat import is_draft, n_rs_seq, param_or_zero
from .computation import SEES_ALL
from .contention import Contention
from .graph import check_widths, describe
from .graph_samplers import GraphSamplers
from .memory import Memory
from .params import SHARING, ContextRequest, architecture
from .perf import Performance
from .pools import Computing, Pools, own_pools
from .reserve import ActiveAdapters
from .snapshot import Snapshots
from .state import States

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._core.ownership import Made
    from .._generated.context_params import ContextParams
    from ..model.model import Model


class Context(BackendSampling, Performance, Adapters, States, Snapshots):
    """A place to compute with a `Model`, with memory for its sequences.

    It owns the ``struct llama_context``: the memory, the buffers to compute in, the outputs of the
    last batch, and threads.  The weights are the model's, which it keeps alive; any number of
    contexts use them at once.  Closing the model closes its contexts.

    A batch of tokens goes in by `decode` (or `encode`, for models with an encoder), its results
    come out by `logits` and `embeddings` until the next batch, and what was computed stays in
    `memory`.

    It is for one thread at a time: a second one gets `BusyError`.  Only `cancel` may be called from
    any thread, to stop what is running.  If a call fails, the context can be used on: errors say
    what became of the memory.
    """

    __slots__ = ()

    def __init__(self, model: Model, **params: Unpack[ContextParams]) -> None:
        """Create a context.  It is closed when ``model`` is.

        llama.cpp adjusts some parameters: what they have become is told by `n_ctx`, `n_batch`,
        `n_ubatch` and others.  Those that say where and how to store something (``type_k``,
        ``offload_kqv``, ``swa_full`` and the like) do nothing where there is nothing to store.
        Others that the model would ignore are refused.

        Args:
            model: The model.
            **params: Fields of ``llama_context_params``; llama.cpp's defaults for the others, but
                for ``n_threads`` and ``n_threads_batch``: the number of physical cores that other
                work leaves now, or 1 if all layers and the cache are on a GPU, since llama.cpp's
                default knows neither the machine nor the model; and for ``n_ctx``: the length that
                the model was trained with for each sequence, but at most 4096 in all, or 256 for
                each if that is more, since llama.cpp's default of 512 is too short for a
                conversation, and the full length may need more memory than there is.  ``n_ctx=0``
                is the full length.  ``cb_eval`` is a Python function, called with each node of the
                compute graph as a `TensorView` and whether it is only asked for: if it returns True
                then, it is called again when the node is computed, and stops the computation if it
                returns False; what it raises is raised by `decode`.  ``ctx_other`` is the `Context`
                of the target, for the context of a draft model; it closes this one, and one of the
                two can compute at a time. ``samplers`` are a `SamplerChain` for each sequence that
                is to be sampled in the graph; see `set_sampler`.

        Raises:
            ArgumentError: A value is out of range, or does not fit the others.
            TypeError: A parameter is unknown, or of another type.
            ContextError: llama.cpp cannot create it, for example for lack of memory.
            UnsupportedError: The model cannot do that, or was loaded without its weights.

        Source: ``llama_init_from_model``, ``llama_attach_threadpool``.
        """
        request = ContextRequest(model, params)
        # Whoever closes the model meanwhile, this keeps it.
        struct, vocab, model_ptr = request.struct, model.vocab, model.ptr
        self._abort, self._observer = request.abort, request.observer
        threads = own_pools(struct.n_threads, struct.n_threads_batch)
        self.lock: CallLock = CallLock("Context")
        pools = Pools(self.lock)
        self._computing = Computing(pools, 0), Computing(pools, 1)
        cancel = functools.partial(lib.llamacffi_abort_set, self._abort, True)
        self._exports = exports = Exports()
        ending = ExitGuard(self.lock, cancel, lambda: bool(exports.live))
        self._params, self._active, self._snapshots = struct, ActiveAdapters(), {}
        self._graph_samplers = GraphSamplers(vocab, self.lock, pools, self._active)
        # C reads the flag, the pools, the model's weights, the adapters, the samplers and what the
        # parameters point to until the context is freed.
        keep = ending, model_ptr, self._abort, pools.pointers, self._active, request.keep
        with self._graph_samplers.given(request.chains, struct):
            ptr = own(_create(model_ptr, struct, (*keep, self._graph_samplers.owners)))
        super().__init__(ptr)
        other = request.other
        self._other_context = None if other is None else other.lock
        pools.attach(ptr, threads, self._abort, own=True)
        self.model = model
        self.kv_unified: bool = bool(struct.kv_unified)
        self._bookkeeping = Bookkeeping(
            struct.n_seq_max,
            recurrent=lib.llama_model_is_recurrent(model_ptr),
            rolls_back=n_rs_seq(ptr) > 0,
        )
        self._vocab = vocab
        self.__llama_outputs__: WeakOutputs = WeakOutputs(self, vocab)
        self._outputs: bytes | None = None
        self._has = False, False
        self._contention = Contention()
        self._perf_offset = None
        try:
            self._graph_samplers.created(self, request.chains)
            self._learn(ptr, struct)
            for parent in (model, *([] if other is None else [other])):
                self._join(parent)
        except BaseException:
            self.close()
            raise
        drain()

    def _learn(self, ptr: Any, struct: Any) -> None:
        """Find out what the context can do, and refuse what llama.cpp has silently ignored."""
        model = self.model
        encodes = lib.llama_model_has_encoder(model.ptr)
        decodes = lib.llama_model_has_decoder(model.ptr)
        drafts = architecture(model) in SHARING
        self._drafts = drafts or is_draft(struct)
        self._memoryless = lib.llama_get_memory(ptr) == ffi.NULL
        if self._graph_samplers.chains:
            self._graph_samplers.check_memory(ptr)
        self._feeds_decoder = encodes and decodes and not drafts
        self._encoded = None
        self._embeddings = bool(struct.embeddings)
        n_batch = lib.llama_n_batch(ptr)
        self._sizes = n_batch, len(self._vocab), lib.llama_n_seq_max(ptr)
        self._n_outputs_max = param_or_zero(struct, "n_outputs_max") or n_batch
        n_kept = param_or_zero(struct, "n_rs_seq")
        if n_kept and not n_rs_seq(ptr):
            raise UnsupportedError(
                f"{model!r} has no recurrent state to go back to: leave out n_rs_seq"
            )
        if n_kept and (n_ubatch := lib.llama_n_ubatch(ptr)) < n_kept + 2:
            raise ArgumentError(
                f"n_rs_seq={n_kept} needs an n_ubatch of at least {n_kept + 2}, "
                f"not {n_ubatch}: the tokens to go back over are computed at once"
            )
        if self._memoryless and struct.attention_type == lib.LLAMA_ATTENTION_TYPE_CAUSAL:
            raise UnsupportedError(f"{model!r} has no memory: {SEES_ALL}")
        ranks = lib.llama_pooling_type(ptr) == lib.LLAMA_POOLING_TYPE_RANK
        looks = self._embeddings or ranks  # a classifier is in the graph only with embeddings
        graph = describe(ptr, self._n_outputs_max, embeddings=looks, keep=self._embeddings)
        self._graph, self._turning = graph, None
        self._has_logits, self._n_positions = graph.has_logits, graph.n_positions
        if looks:
            check_widths(ptr, graph, model)
        limited = param_or_zero(struct, "n_outputs_max") or self._n_positions or self._embeddings
        self._special = bool(encodes or limited or self._drafts)

    def __repr__(self) -> str:
        try:
            state = "closed" if self.closed else f"n_ctx={self.n_ctx}"
        except ForkError:
            state = "of the parent process"
        return f"<Context of {self.model!r}, {state}>"

    @property
    def memory(self) -> Memory:
        """The tokens that it remembers."""
        return Memory(self)  # new each time: as an attribute it would be a reference cycle


def _reason() -> str:
    """Return why llama.cpp has made no context, as its log says; "" if that does not say so."""
    failed = "failed to initialize the context: "
    lines = (line.partition(failed)[2] for line in recent(logging.ERROR))
    reason = next(filter(None, lines), "")
    if "GGML_ASSERT" in reason:
        reason += (
            "; the types and shapes of the weights, the metadata of the file, kv_overrides and the "
            "parameters of the context do not fit each other"
        )
    return reason


def _create(model: Any, struct: Any, keep: tuple[object, ...]) -> Made:
    """Create a context, for `own`."""
    try:
        made = make(lib.llama_free, keep, lib.llamacffi_context_new, model, struct)
    except NativeError as error:
        raise with_log(ContextError(f"cannot create a context: {error}")) from error
    if made[1] == ffi.NULL:
        hint = ""
        n_outputs_max = param_or_zero(struct, "n_outputs_max")
        if struct.embeddings and (n_outputs_max or struct.n_ubatch % struct.n_seq_max):
            hint = (
                "; pooling by mean needs an n_ubatch that is a multiple of n_seq_max, and no "
                "n_outputs_max"
            )
        elif reason := _reason():
            hint = f": {reason}"
        raise with_log(ContextError(f"cannot create a context{hint}"))
    return made
