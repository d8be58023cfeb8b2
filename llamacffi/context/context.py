"""A context: computes with a model, and holds the memory of its sequences."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

from .._core.locks import CallLock, ExitGuard
from .._core.ownership import make, own
from .._core.values import check_object
from .._native import ffi, lib
from ..batch.batch import Batch, arrays_of
from ..errors import ContextError, ForkError, NativeError
from ..log import drain, recent, with_log
from .adapters import ActiveAdapters
from .bookkeeping import Bookkeeping
from .compat import n_rs_seq, param_or_zero
from .decoding import Decoder
from .graph_samplers import GraphSamplers, forget
from .handle import ContextHandle, lock_of
from .k_shift import KShift
from .last_batch import LastBatch
from .memory import Memory
from .output_methods import OutputMethods
from .outputs import Outputs
from .params import ContextRequest
from .perf import PerfCounters, warm_up
from .pools import Computing, Pools, own_pools
from .setting_methods import SettingMethods
from .snapshot import Snapshots
from .state import States
from .state_io import StateAccess
from .state_methods import StateMethods
from .traits import examine

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._core.ownership import Made
    from .._generated.context_params import ContextParams
    from .._generated.enums import PoolingType
    from ..model.model import Model
    from .perf_types import ContextPerf


class Context(ContextHandle, OutputMethods, SettingMethods, StateMethods):
    """Computes with a `Model`, and holds the memory of its sequences.

    It owns the ``struct llama_context``: the memory, compute buffers, the outputs of the last
    batch, and threads.  It uses the weights of the model and keeps the model alive; any number of
    contexts can share a model.  Closing the model closes its contexts.

    `decode` computes a batch of tokens (`encode` does, for models with an encoder).  `logits` and
    `embeddings` return its results until the next batch, and `memory` keeps the tokens.

    Only one thread can use it at a time: a second one gets `BusyError`.  But any thread may call
    `cancel`, to stop a running computation.  After a failed call the context is still usable;
    the error says what happened to the memory.
    """

    __slots__ = ()

    def __init__(self, model: Model, **params: Unpack[ContextParams]) -> None:
        """Create a context.  Closing ``model`` closes it.

        llama.cpp adjusts some parameters: `n_ctx`, `n_batch`, `n_ubatch` and others return the
        actual values.  Parameters that say where and how the KV cache is stored (``type_k``,
        ``offload_kqv``, ``swa_full`` and the like) have no effect for a model without one.  Other
        parameters that the model would ignore are refused.

        Args:
            model: The model.
            **params: Fields of ``llama_context_params``.  The others keep llama.cpp's defaults,
                with these exceptions.  ``n_threads`` and ``n_threads_batch`` default to the number
                of physical cores that other work leaves free, or to 1 if all layers and the cache
                are on a GPU.  ``n_ctx`` defaults to the length that the model was trained with, for
                each sequence, but at most 4096 in total, or 256 for each if that is more:
                llama.cpp's default of 512 is too short for a conversation, and the full length may
                need too much memory.  ``n_ctx=0`` means the full length.

                ``cb_eval`` is a Python function that gets each node of the compute graph as a
                `TensorView`, and a flag.  It is first called with True, before the node is
                computed; if it returns True, it is called again with False afterwards, and then
                stops the computation by returning False.  `decode` raises its exceptions.
                ``ctx_other``, for the context of a draft model, is the `Context` of its target;
                closing that closes this one, and only one of the two can compute at a time.
                ``samplers`` maps each sequence to sample in the graph to its `SamplerChain`; see
                `set_sampler`.

        Raises:
            ArgumentError: A value is out of range, or does not fit the others.
            TypeError: A parameter is unknown, or has the wrong type.
            ContextError: llama.cpp cannot create it, for example for lack of memory.
            UnsupportedError: The model does not support a parameter, or was loaded without its
                weights.

        Source: ``llama_init_from_model``, ``llama_attach_threadpool``.
        """
        request = ContextRequest(model, params)
        # The pointer keeps the model alive even if another thread closes it now.
        struct, model_ptr = request.struct, model.ptr
        self._abort = abort = request.abort
        self._lock = lock = CallLock("Context")
        self._last, self._adapters, self._k_shift = LastBatch(), ActiveAdapters(), KShift()
        threads = own_pools(struct.n_threads, struct.n_threads_batch)
        pools = Pools(lock, abort)
        self._computing = Computing(pools)
        self._graph_samplers = GraphSamplers(
            model, lock, self._last, self._adapters, self._computing
        )
        # C reads all of these until the context is freed.
        keep = (
            *(self._exit_guard(), model_ptr, abort, pools.pointers, self._adapters.pointers),
            *(self._graph_samplers.owners, request.keep),
        )
        with self._graph_samplers.given(request.chains, struct):
            ptr = own(_create(model_ptr, struct, keep))
        super().__init__(ptr)
        try:
            pools.attach(ptr, threads, own=True)
            self._build(ptr, request, model)
            for parent in (model, *([] if request.other is None else [request.other])):
                self._join(parent)
        except BaseException:  # also an interrupt: chains and pools must be free again
            self.close()
            raise
        drain()

    def _exit_guard(self) -> ExitGuard:
        cancel = functools.partial(lib.llamacffi_abort_set, self._abort, True)
        exports = self._last.exports
        return ExitGuard(self._lock, cancel, lambda: bool(exports.live))

    def _build(self, ptr: Any, request: ContextRequest, model: Model) -> None:
        """Make the parts that depend on what C has created."""
        self._graph_samplers.attach(self, request.chains)
        self._traits = traits = examine(ptr, model, model.vocab, request.struct)
        last, computing, adapters = self._last, self._computing, self._adapters
        self._bookkeeping = bookkeeping = Bookkeeping(
            traits.n_seq_max, recurrent=traits.recurrent, rolls_back=traits.n_rs_seq > 0
        )
        self.__llama_outputs__: Outputs = Outputs(traits, self._lock, last, self._graph_samplers)
        other = None if request.other is None else lock_of(request.other)
        self._decoder = Decoder(
            *(traits, computing, last, bookkeeping, adapters, self._abort),
            *(request.observer, other),
        )
        self._counters = PerfCounters(traits, self._lock)
        access = StateAccess(traits, computing, last, bookkeeping, adapters, self._abort)
        self._states = States(traits, access, bookkeeping, adapters)
        self._snapshots = Snapshots(traits, access, bookkeeping)

    def __repr__(self) -> str:
        try:
            state = "closed" if self.closed else f"n_ctx={self.n_ctx}"
        except ForkError:
            state = "of the parent process"
        return f"<Context of {self.model!r}, {state}>"

    @property
    def model(self) -> Model:
        """The model of this context."""
        return self._traits.model

    @property
    def kv_unified(self) -> bool:
        """Whether all sequences share one buffer."""
        return self._traits.kv_unified

    @property
    def exclusive(self) -> CallLock:
        """The lock that each call holds, because only one thread can use a context at a time."""
        return self._lock

    @property
    def memory(self) -> Memory:
        """The memory: the tokens of its sequences."""
        return Memory(self)  # new each time, because an attribute would be a reference cycle

    @property
    def n_ctx(self) -> int:
        """Maximum number of tokens in memory, over all sequences.  Source: ``llama_n_ctx``."""
        return int(lib.llama_n_ctx(self.ptr))

    @property
    def n_ctx_seq(self) -> int:
        """Maximum number of tokens of one sequence.  Source: ``llama_n_ctx_seq``."""
        return int(lib.llama_n_ctx_seq(self.ptr))

    @property
    def n_batch(self) -> int:
        """Maximum number of tokens of a batch.  Source: ``llama_n_batch``."""
        return int(lib.llama_n_batch(self.ptr))

    @property
    def n_ubatch(self) -> int:
        """Maximum number of tokens computed at once.  Source: ``llama_n_ubatch``."""
        return int(lib.llama_n_ubatch(self.ptr))

    @property
    def n_seq_max(self) -> int:
        """Maximum number of sequences.  Source: ``llama_n_seq_max``."""
        return int(lib.llama_n_seq_max(self.ptr))

    @property
    def n_rs_seq(self) -> int:
        """Maximum number of tokens by which a recurrent sequence can be rolled back.

        Source: ``llama_n_rs_seq``.
        """
        return n_rs_seq(self.ptr)

    @property
    def n_outputs_max(self) -> int:
        """Maximum number of outputs of a batch."""
        self.ptr  # noqa: B018  raises if closed
        return self._traits.n_outputs_max

    @property
    def pooling_type(self) -> PoolingType:
        """How the embeddings of a sequence are pooled.  Source: ``llama_pooling_type``."""
        from .._generated.enums import PoolingType

        return PoolingType(lib.llama_pooling_type(self.ptr))

    def decode(self, batch: Batch) -> None:
        """Compute a batch of tokens, and add them to memory.

        The outputs that the batch requests can be read until the next call; if embeddings are
        computed, every token has an output.  A model without memory computes the batch as `encode`
        does.

        After a failure the memory is consistent: finished micro-batches of `n_ubatch` tokens stay,
        and `DecodeError.pos_max` has the last position of each sequence of the batch.  With a
        recurrent model, the sequence that was being computed is removed, because its state cannot
        be rolled back; if there were several, all sequences are removed.

        Args:
            batch: 1 to `n_batch` tokens.

        Raises:
            ArgumentError: The batch does not fit this context; nothing was computed.
            ContextError: An encoder-decoder model has not encoded the sequence.
            InvalidBatchError: llama.cpp rejected it, for example for positions that do not follow
                those in memory; memory is unchanged.
            ContextFullError: Memory is full; it is unchanged.
            AbortedError: `cancel` was called, or the callback ``cb_eval`` returned False.
            DecodeError: The computation failed.
            NativeError: An assertion of llama.cpp failed; the tokens of the batch are removed.
            UnsupportedError: The model has only an encoder.
            BufferError: An array of `logits_view` or `embeddings_view` is alive.
            BusyError: Another thread is using the context.

        Source: ``llama_decode``.
        """
        if not isinstance(batch, Batch):
            check_object("batch", batch, "Batch")  # raises
        self._decoder.decode(self.ptr, arrays_of(batch))

    def encode(self, batch: Batch) -> None:
        """Compute a batch of tokens with the model's encoder; memory is unchanged.

        Each token attends to all others of its sequence, and each has an output, which can be read
        until the next call.  For an encoder-decoder model the output also replaces the one that the
        decoder reads: encode all sequences that you want to decode in one batch, and clear the
        decoder's memory of them first.

        Args:
            batch: 1 to `n_ubatch` tokens.

        Raises:
            ArgumentError: The batch does not fit this context; nothing was computed.
            UnsupportedError: The model has no encoder: use `decode`.
            InvalidBatchError: llama.cpp rejected the batch.
            AbortedError: `cancel` was called, or the callback ``cb_eval`` returned False.
            DecodeError: The computation failed.
            NativeError: An assertion of llama.cpp failed.
            BufferError: An array of `logits_view` or `embeddings_view` is alive.
            BusyError: Another thread is using the context.

        Source: ``llama_encode``.
        """
        check_object("batch", batch, "Batch")
        self._decoder.encode(self.ptr, arrays_of(batch))

    def cancel(self) -> None:
        """Make the running computation, or otherwise the next one, raise `AbortedError`.

        Any thread may call it.  On the CPU it takes effect within a node of the compute graph; on
        other devices, between micro-batches.
        """
        lib.llamacffi_abort_set(self._abort, True)

    def synchronize(self) -> None:
        """Wait until the computation is finished; reading the outputs waits too.

        `decode` returns before that only on devices that compute asynchronously.

        Source: ``llama_synchronize``.
        """
        ptr = self.ptr
        with self._lock:
            lib.llama_synchronize(ptr)

    def perf(self) -> ContextPerf:
        """Return how long computations took.

        llama.cpp measures only if the context was created with ``no_perf=False``.  It counts at the
        end of a computation; single tokens whose outputs are not read before the next token count
        as a prompt.

        Raises:
            ContextError: The context was created with ``no_perf=True``, which is the default.

        Source: ``llama_perf_context``.
        """
        return self._counters.read(self.ptr)

    def reset_perf(self) -> None:
        """Reset the counters to zero.  Source: ``llama_perf_context_reset``."""
        self._counters.reset(self.ptr)

    def warmup(self) -> None:
        """Compute a few tokens and discard them, so that the first real tokens are not slower.

        This loads the weights into memory and starts the threads.  Memory and counters are
        unchanged afterwards; the outputs of an earlier batch are gone.

        Raises:
            ContextError: The memory is not empty, or an encoder's output is kept for the decoder.
            UnsupportedError: A draft model cannot compute without its target.

        Source: ``llama_decode``, ``llama_encode``, ``llama_memory_clear``.
        """
        warm_up(
            *(self.ptr, self._traits, self._lock, self._decoder, self._last, self._bookkeeping),
            self._counters,
        )

    def close(self) -> None:
        """Free the C object now, after everything made from it.  Idempotent.

        Only a call still running in another thread, or a live zero-copy array, delays the free
        until it is done.
        """
        chains = self._graph_samplers.take_all()
        super().close()
        self._computing.close()
        self._adapters.close()
        self._lock.sweep()
        forget(chains)


def _reason() -> str:
    """Return the reason from llama.cpp's log why it created no context; "" if it has none."""
    failed = "failed to initialize the context: "
    lines = (line.partition(failed)[2] for line in recent(logging.ERROR))
    reason = next(filter(None, lines), "")
    if "GGML_ASSERT" in reason:
        reason += (
            "; the types and shapes of the weights, the metadata of the file, kv_overrides and the "
            "parameters of the context do not fit together"
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
