"""A context: where a model computes and what it remembers meanwhile."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from . import backend
from ._adapters import Adapters, Applied
from ._ffi import ffi, lib
from ._handle import Exclusive, own
from ._lineage import Lineage
from ._outputs import Outputs
from ._params import fill
from ._threads import Computing, Pools, Threads, own_pools
from ._views import Exports
from .errors import (
    AbortedError,
    ArgumentError,
    ContextError,
    NativeError,
    UnsupportedError,
    decode_error,
)
from .log import drain, with_log
from .memory import Memory

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._generated.params import ContextParams
    from .batch import Batch
    from .model import Model

# Fields of llama_context_params that `Context` fills itself.
OWNED = {
    "abort_callback": "use Context.cancel()",
    "abort_callback_data": "use Context.cancel()",
}


class Context(Outputs, Threads, Adapters):
    """A place to compute with a `Model`, with memory for its sequences.

    It owns the ``struct llama_context`` and its threads, and keeps the model's weights alive.  It
    is for one thread at a time: a second one gets `BusyError`.  Only `cancel` may be called from
    any.
    """

    __slots__ = ()

    def __init__(self, model: Model, **params: Unpack[ContextParams]) -> None:
        """Create a context.  It is closed when ``model`` is.

        Args:
            model: The model.
            **params: Fields of ``llama_context_params``; llama.cpp's defaults for the others, but
                for ``n_threads`` and ``n_threads_batch``: the number of physical cores, since
                llama.cpp's default does not know the machine.  ``n_ctx=0`` is the length that the
                model was trained with.

        Raises:
            ArgumentError: A value is out of range.
            ContextError: llama.cpp cannot create it, for example for lack of memory.
            UnsupportedError: The model was loaded without its weights.

        Source: ``llama_init_from_model``, ``llama_attach_threadpool``.
        """
        struct = ffi.new("struct llama_context_params *")
        struct[0] = lib.llama_context_default_params()
        struct.n_threads = min(backend.physical_cores(), lib.GGML_MAX_N_THREADS)
        keep = fill(struct, "llama_context_params", params, OWNED)
        if "n_threads_batch" not in params:
            struct.n_threads_batch = struct.n_threads
        _check_params(struct)
        if model.without_weights:
            raise UnsupportedError(f"{model!r} was loaded with {model.without_weights}=True")
        self._abort = ffi.new("struct llamacffi_abort_flag *")
        struct.abort_callback = lib.llamacffi_abort_requested
        struct.abort_callback_data = self._abort
        threads = own_pools(struct.n_threads, struct.n_threads_batch)
        ptr = _create(model, struct)
        self.exclusive = Exclusive("Context")
        pools = Pools(self.exclusive)
        self._computing = Computing(pools, 0), Computing(pools, 1)
        cancel = functools.partial(lib.llamacffi_abort_set, self._abort, True)
        free = self.exclusive.ending(lib.llama_free, cancel)
        self._params, self._applied, self._snapshots = struct, Applied(), {}
        # C reads the flag, the pools, the model's weights, the adapters and what the parameters
        # point to until the context is freed.
        kept = model.ptr, self._abort, pools.held, self._applied, keep
        super().__init__(own(ptr, free, *kept), parent=model)
        pools.attach(ptr, threads, self._abort, own=True)
        self.model = model
        self.kv_unified = bool(struct.kv_unified)
        mtp = struct.ctx_type == lib.LLAMA_CONTEXT_TYPE_MTP
        self._drafts = mtp or struct.ctx_other != ffi.NULL
        self._lineage = Lineage(
            struct.n_seq_max,
            recurrent=lib.llama_model_is_recurrent(model.ptr),
            rolls_back=lib.llama_n_rs_seq(ptr) > 0,
        )
        self._vocab = model.vocab
        self._exports = Exports()
        self._outputs: bytes | None = None
        drain()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"n_ctx={self.n_ctx}"
        return f"<Context of {self.model!r}, {state}>"

    @property
    def memory(self) -> Memory:
        """The tokens that it remembers."""
        return Memory(self)  # new each time: as an attribute it would be a reference cycle

    @property
    def n_ctx(self) -> int:
        """How many tokens it can remember, over all sequences.  Source: ``llama_n_ctx``."""
        return int(lib.llama_n_ctx(self.ptr))

    @property
    def n_ctx_seq(self) -> int:
        """How many tokens one sequence can have.  Source: ``llama_n_ctx_seq``."""
        return int(lib.llama_n_ctx_seq(self.ptr))

    @property
    def n_batch(self) -> int:
        """How many tokens one batch can have.  Source: ``llama_n_batch``."""
        return int(lib.llama_n_batch(self.ptr))

    @property
    def n_ubatch(self) -> int:
        """How many tokens are computed at once.  Source: ``llama_n_ubatch``."""
        return int(lib.llama_n_ubatch(self.ptr))

    @property
    def n_seq_max(self) -> int:
        """How many sequences it can have.  Source: ``llama_n_seq_max``."""
        return int(lib.llama_n_seq_max(self.ptr))

    def decode(self, batch: Batch) -> None:
        """Compute a batch of tokens and remember them.

        The outputs that the batch asks for can be read until the next call.

        Args:
            batch: 1 to `n_batch` tokens.

        Raises:
            ArgumentError: The batch does not fit this context; nothing was computed.
            InvalidBatchError: llama.cpp rejected it, for example for positions that do not follow
                those in memory; memory is unchanged.
            ContextFullError: There is no room in memory; memory is unchanged.
            AbortedError: `cancel` was called; micro-batches that were finished stay in memory:
                `Memory.pos_max` tells.
            DecodeError: The computation failed; as with `AbortedError`.
            NativeError: A check of llama.cpp failed; what the batch had added is removed.
            BufferError: An array of `logits_view` is alive.
            BusyError: Another thread is using the context.

        Source: ``llama_decode``.
        """
        ptr = self.ptr
        with self.computing(n := len(batch)):
            self._exports.check_none()
            if not 1 <= n <= lib.llama_n_batch(ptr):
                raise ArgumentError(f"{n} tokens are not in 1 to n_batch={self.n_batch}")
            batch.check(len(self._vocab), lib.llama_n_seq_max(ptr), self.kv_unified, self._drafts)
            self._check_cancelled()
            before, self._outputs = self._outputs, None
            try:
                code = batch.submit(ptr)
            except ArgumentError:  # nothing was computed
                self._outputs = before
                raise
            except NativeError:
                self._roll_back(ptr, batch)
                raise
            if code:
                lib.llamacffi_abort_set(self._abort, False)
                if code not in (1, -1):  # with those, memory is as before
                    self._interrupted(ptr, batch)
                raise with_log(decode_error(code))
            self._outputs = batch.outputs()
            self._lineage.decoded(batch)
        drain()

    def cancel(self) -> None:
        """Make the computation that is running, or else the next one, raise `AbortedError`.

        Any thread may call it.  On the CPU it takes effect within a node of the compute graph.
        """
        lib.llamacffi_abort_set(self._abort, True)

    def _roll_back(self, ptr: Any, batch: Batch) -> None:
        """Remove the tokens of a batch from memory, where an exception kept llama.cpp from it."""
        memory = lib.llama_get_memory(ptr)
        for seq_id, pos in batch.starts().items() if memory != ffi.NULL else ():
            if not lib.llama_memory_seq_rm(memory, seq_id, pos, -1):
                lib.llama_memory_seq_rm(memory, seq_id, -1, -1)  # a whole one can always go
        self._interrupted(ptr, batch)

    def _interrupted(self, ptr: Any, batch: Batch) -> None:
        """Remove the sequences whose keys may have been spoilt, when they were to be turned."""
        memory = lib.llama_get_memory(ptr)
        for seq_id in self._lineage.interrupted(batch) if memory != ffi.NULL else ():
            lib.llama_memory_seq_rm(memory, seq_id, -1, -1)
            self._lineage.removed(seq_id, 0)

    def _check_cancelled(self) -> None:
        if self._abort.requested:
            lib.llamacffi_abort_set(self._abort, False)
            raise AbortedError("cancelled before the computation began", 2)


def _check_params(struct: Any) -> None:
    """Check what llama.cpp would assert, or fail at without a word."""
    n_seq_limit = lib.llama_max_parallel_sequences()
    for name, least, most in (
        ("n_batch", 1, 2**31 - 1),
        ("n_ubatch", 1, 2**31 - 1),
        ("n_ctx", 0, 2**31 - 1),
        ("n_seq_max", 1, n_seq_limit),
        ("n_threads", 1, lib.GGML_MAX_N_THREADS),
        ("n_threads_batch", 1, lib.GGML_MAX_N_THREADS),
    ):
        value = getattr(struct, name)
        if not least <= value <= most:
            raise ArgumentError(f"{name}={value} is not in {least} to {most}")
    if struct.n_samplers and struct.samplers == ffi.NULL:
        raise ArgumentError(f"n_samplers={struct.n_samplers} without samplers")
    for name in ("type_k", "type_v"):
        _check_cache_type(name, getattr(struct, name))


def _check_cache_type(name: str, number: int) -> None:
    """Check that attention can compute with a type: some are only for weights or indices.

    Without these functions llama.cpp would call NULL.
    """
    known = 0 <= number < lib.GGML_TYPE_COUNT
    plain = number == lib.GGML_TYPE_F32  # used as it is
    if known and not plain:
        on_cpu = lib.ggml_get_type_traits_cpu(number)
        reads = on_cpu.vec_dot if name == "type_k" else lib.ggml_get_type_traits(number).to_float
        known = on_cpu.from_float != ffi.NULL and reads != ffi.NULL
    if not known:
        raise ArgumentError(f"{name}={number} is not a type that a cache can have")


def _create(model: Model, struct: Any) -> Any:
    """Create a context and return the pointer that nobody owns yet."""
    try:
        ptr = lib.llama_init_from_model(model.ptr, struct[0])
    except NativeError as error:
        raise with_log(ContextError(f"cannot create a context: {error}")) from error
    if ptr == ffi.NULL:
        raise with_log(ContextError("cannot create a context"))
    return ptr
