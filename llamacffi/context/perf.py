"""The performance counters of a context, and the warm-up, which they exclude."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from .._native import lib
from ..batch.batch import Batch, arrays_of
from ..errors import ContextError, UnsupportedError
from .perf_types import ContextPerf

if TYPE_CHECKING:
    from .._core.locks import CallLock
    from .bookkeeping import Bookkeeping
    from .decoding import Decoder
    from .last_batch import LastBatch
    from .traits import ContextTraits

# The counters that increase with each computation.
GROWING = ("t_p_eval_ms", "t_eval_ms", "n_p_eval", "n_eval", "n_reused")


class PerfCounters:
    """Reads llama.cpp's counters.

    The first argument of its methods is the ``struct llama_context *``.
    """

    __slots__ = ("_lock", "_skipped", "_traits")

    def __init__(self, traits: ContextTraits, lock: CallLock) -> None:
        self._traits, self._lock = traits, lock
        self._skipped: ContextPerf | None = None  # to subtract from the counters

    def read(self, ptr: Any) -> ContextPerf:
        """Return the counters; see `Context.perf`."""
        if self._traits.params.no_perf:
            raise ContextError("performance is not measured: create the Context with no_perf=False")
        with self._lock:
            counted = _counters(ptr)
            return counted if self._skipped is None else _minus(counted, self._skipped)

    def reset(self, ptr: Any) -> None:
        """Count from zero; see `Context.reset_perf`."""
        with self._lock:
            lib.llama_synchronize(ptr)  # unfinished work must not count
            lib.llama_perf_context_reset(ptr)
            self._skipped = None

    def now(self, ptr: Any) -> ContextPerf:
        """Return the counters for a later `skip`; the caller holds the context."""
        return _counters(ptr)

    def skip(self, ptr: Any, before: ContextPerf) -> None:
        """Exclude what was computed since ``before``; the caller holds the context."""
        skipped = _minus(_counters(ptr), before)
        self._skipped = skipped if self._skipped is None else _plus(skipped, self._skipped)


def warm_up(
    ptr: Any,
    traits: ContextTraits,
    lock: CallLock,
    decoder: Decoder,
    last: LastBatch,
    bookkeeping: Bookkeeping,
    counters: PerfCounters,
) -> None:
    """Compute a few tokens and forget them; see `Context.warmup`."""
    if traits.drafts:
        raise UnsupportedError("a draft model cannot compute without its target")
    memory = lib.llama_get_memory(ptr)
    with lock:
        if last.encoded is not None or any(
            lib.llama_memory_seq_pos_max(memory, i) >= 0
            for i in range(0 if traits.memoryless else traits.n_seq_max)
        ):
            raise ContextError("the memory is not empty: call warmup() before the first batch")
        before = counters.now(ptr)
    try:
        _compute_any(ptr, traits, decoder)
    finally:
        with lock:
            last.flags = last.encoded = None
            lib.llama_memory_clear(memory, True)
            bookkeeping.cleared()
            counters.skip(ptr, before)


def _compute_any(ptr: Any, traits: ContextTraits, decoder: Decoder) -> None:
    """Compute a short prompt and a single token with all parts of the model."""
    vocab = lib.llama_model_get_vocab(traits.model.ptr)
    token = max(0, lib.llama_vocab_bos(vocab))
    n = min(2, traits.n_ubatch)
    prompt = arrays_of(Batch.from_tokens([token] * n))
    if traits.encodes:
        decoder.encode(ptr, prompt)
    if traits.decodes:
        decoder.decode(ptr, prompt)
        if not traits.memoryless:
            decoder.decode(ptr, arrays_of(Batch.from_tokens([token], n)))


def _counters(ptr: Any) -> ContextPerf:
    """Return llama.cpp's counters."""
    lib.llama_synchronize(ptr)
    data = lib.llama_perf_context(ptr)
    counted = ContextPerf(
        **{field.name: getattr(data, field.name) for field in fields(ContextPerf)}
    )
    # upstream: src/llama-context.cpp perf_get_data: it returns at least 1 token, to divide by; so
    # we set 0 where no time was spent.
    if not counted.t_p_eval_ms:
        counted = replace(counted, n_p_eval=0)
    return counted if counted.t_eval_ms else replace(counted, n_eval=0)


def _minus(one: ContextPerf, other: ContextPerf) -> ContextPerf:
    return replace(one, **{name: getattr(one, name) - getattr(other, name) for name in GROWING})


def _plus(one: ContextPerf, other: ContextPerf) -> ContextPerf:
    return replace(one, **{name: getattr(one, name) + getattr(other, name) for name in GROWING})
