"""A context: where a model computes, and what it remembers meanwhile."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

from .._core.locks import CallLock, ExitGuard
from .._core.ownership import make, own
from .._core.values import check_object
from .._native import ffi, lib
from ..batch.batch import arrays_of
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
    from ..batch.batch import Batch
    from ..model.model import Model
    from .perf_types import ContextPerf


class Context(ContextHandle, OutputMethods, SettingMethods, StateMethods):
    """A place to compute with a `Model`, with memory for its sequences.

    It owns the ``struct llama_context``: the memory, the buffers to compute in, the outputs of the
    last batch, and threads.  The weights are the model's, which it keeps alive; any number of
    contexts use them at once.  Closing the model closes its contexts.

    A batch of tokens goes in by `decode` (or `encode`, for models with an encoder), its results
    come out by `logits` and `embeddings` until the next batch, and what was computed stays in
    `memory`.

    It is for one thread at a time: a second one gets `BusyError`.  Only `cancel` may be called from
    any thread, to stop what is running.  After a call has failed, the context is still usable:
    errors say what became of the memory.
    """

    __slots__ = ()

    def __init__(self, model: Model, **params: Unpack[ContextParams]) -> None:
        """Create a context.  It is closed when ``model`` is.

        llama.cpp adjusts some parameters: `n_ctx`, `n_batch`, `n_ubatch` and others return what
        they have become.  Parameters that say where and how to store something (``type_k``,
        ``offload_kqv``, ``swa_full`` and the like) do nothing for a model that stores nothing.
        Others that the model would ignore are refused.

        Args:
            model: The model.
            **params: Fields of ``llama_context_params``; llama.cpp's defaults for the others,
                except ``n_threads`` and ``n_threads_batch``: the number of physical cores that
                other work leaves now, or 1 if all layers and the cache are on a GPU, since
                llama.cpp's default knows neither the machine nor the model; and except ``n_ctx``:
                the length that the model was trained with for each sequence, but at most 4096 in
                all, or 256 for each if that is more, since llama.cpp's default of 512 is too short
                for a conversation, and the full length may need more memory than there is.
                ``n_ctx=0`` is the full length.  ``cb_eval`` is a Python function, called with each
                node of the compute graph as a `TensorView`, and with whether it is only asked: if
                it then returns True, it is called again when the node is computed, and stops the
                computation if it returns False; `decode` raises what it raises.  ``ctx_other`` is
                the `Context` of the target, for the context of a draft model; it closes this one,
                and one of the two can compute at a time.  ``samplers`` are a `SamplerChain` for
                each sequence that is to be sampled in the graph; see `set_sampler`.

        Raises:
            ArgumentError: A value is out of range, or does not suit the others.
            TypeError: A parameter is unknown, or of another type.
            ContextError: llama.cpp cannot create it, for example for lack of memory.
            UnsupportedError: The model cannot do that, or was loaded without its weights.

        Source: ``llama_init_from_model``, ``llama_attach_threadpool``.
        """
        request = ContextRequest(model, params)
        # The pointer keeps the model, even if somebody closes it meanwhile.
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
        except BaseException:
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
        """The model that it computes with."""
        return self._traits.model

    @property
    def kv_unified(self) -> bool:
        """Whether all sequences share one buffer."""
        return self._traits.kv_unified

    @property
    def exclusive(self) -> CallLock:
        """Held during each call: a context is for one thread at a time."""
        return self._lock

    @property
    def memory(self) -> Memory:
        """The tokens that it remembers."""
        return Memory(self)  # new each time: as an attribute it would be a reference cycle

    @property
    def n_ctx(self) -> int:
        """Number of tokens that it can remember, over all sequences.  Source: ``llama_n_ctx``."""
        return int(lib.llama_n_ctx(self.ptr))

    @property
    def n_ctx_seq(self) -> int:
        """Number of tokens that one sequence can have.  Source: ``llama_n_ctx_seq``."""
        return int(lib.llama_n_ctx_seq(self.ptr))

    @property
    def n_batch(self) -> int:
        """Number of tokens that one batch can have.  Source: ``llama_n_batch``."""
        return int(lib.llama_n_batch(self.ptr))

    @property
    def n_ubatch(self) -> int:
        """Number of tokens that are computed at once.  Source: ``llama_n_ubatch``."""
        return int(lib.llama_n_ubatch(self.ptr))

    @property
    def n_seq_max(self) -> int:
        """Number of sequences that it can have.  Source: ``llama_n_seq_max``."""
        return int(lib.llama_n_seq_max(self.ptr))

    @property
    def n_rs_seq(self) -> int:
        """Number of tokens that a recurrent sequence can be rolled back.

        Source: ``llama_n_rs_seq``.
        """
        return n_rs_seq(self.ptr)

    @property
    def n_outputs_max(self) -> int:
        """Number of outputs that one batch can have."""
        self.ptr  # noqa: B018  raises if closed
        return self._traits.n_outputs_max

    @property
    def pooling_type(self) -> PoolingType:
        """How the embeddings of a sequence are made one.  Source: ``llama_pooling_type``."""
        from .._generated.enums import PoolingType

        return PoolingType(lib.llama_pooling_type(self.ptr))

    def decode(self, batch: Batch) -> None:
        """Compute a batch of tokens and remember them.

        The outputs that the batch asks for can be read until the next call; with embeddings, all
        tokens have one.  A model without memory computes the batch as `encode` does.

        If it fails, the memory is consistent, and the error's `DecodeError.pos_max` has the last
        position of each sequence of the batch: finished micro-batches of `n_ubatch` tokens stay.
        Of a recurrent model the sequences that were being computed are removed completely, since
        their state cannot go back; if there were several, all sequences are.

        Args:
            batch: 1 to `n_batch` tokens.

        Raises:
            ArgumentError: The batch does not suit this context; nothing was computed.
            ContextError: An encoder-decoder model has not encoded the sequence.
            InvalidBatchError: llama.cpp rejected it, for example for positions that do not follow
                those in memory; memory is unchanged.
            ContextFullError: Memory is full; it is unchanged.
            AbortedError: `cancel` was called, or the callback ``cb_eval`` returned False.
            DecodeError: The computation failed.
            NativeError: A check of llama.cpp failed; what the batch had added is removed.
            UnsupportedError: The model has only an encoder.
            BufferError: An array of `logits_view` or `embeddings_view` is alive.
            BusyError: Another thread is using the context.

        Source: ``llama_decode``.
        """
        try:
            arrays = arrays_of(batch)
        except AttributeError:
            check_object("batch", batch, "Batch")
            raise
        self._decoder.decode(self.ptr, arrays)

    def encode(self, batch: Batch) -> None:
        """Compute a batch of tokens with the model's encoder, which remembers nothing.

        Each token sees all others of its sequence, and each has an output, which can be read until
        the next call.  Of an encoder-decoder model the output is kept for the decoder, in place of
        that of the call before: encode all sequences that you want to decode together, and first
        clear what the decoder remembers of them.

        Args:
            batch: 1 to `n_ubatch` tokens.

        Raises:
            ArgumentError: The batch does not suit this context; nothing was computed.
            UnsupportedError: The model has no encoder: use `decode`.
            InvalidBatchError: llama.cpp rejected the batch.
            AbortedError: `cancel` was called, or the callback ``cb_eval`` returned False.
            DecodeError: The computation failed.
            NativeError: A check of llama.cpp failed.
            BufferError: An array of `logits_view` or `embeddings_view` is alive.
            BusyError: Another thread is using the context.

        Source: ``llama_encode``.
        """
        check_object("batch", batch, "Batch")
        self._decoder.encode(self.ptr, arrays_of(batch))

    def cancel(self) -> None:
        """Make the computation that is running, or else the next one, raise `AbortedError`.

        Any thread may call it.  On the CPU it takes effect within a node of the compute graph, on
        other devices between micro-batches.
        """
        lib.llamacffi_abort_set(self._abort, True)

    def synchronize(self) -> None:
        """Wait until everything is computed, as reading the outputs does.

        `decode` returns earlier only for devices that compute asynchronously.

        Source: ``llama_synchronize``.
        """
        ptr = self.ptr
        with self._lock:
            lib.llama_synchronize(ptr)

    def perf(self) -> ContextPerf:
        """Return how long computations took.

        llama.cpp measures only on request: create the context with ``no_perf=False``.  It counts at
        the end of a computation; single tokens whose outputs are not read before the next one count
        as a prompt.

        Raises:
            ContextError: The context was created with ``no_perf=True``, which is the default.

        Source: ``llama_perf_context``.
        """
        return self._counters.read(self.ptr)

    def reset_perf(self) -> None:
        """Count from zero.  Source: ``llama_perf_context_reset``."""
        self._counters.reset(self.ptr)

    def warmup(self) -> None:
        """Compute a few tokens and forget them, so that the first real ones take no longer.

        That reads the weights into memory and wakes the threads.  Afterwards memory and counters
        are as before; outputs of an earlier batch are gone.

        Raises:
            ContextError: The memory is not empty, or an encoder's output is kept for the decoder.
            UnsupportedError: The context of a draft model computes nothing without its target.

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
