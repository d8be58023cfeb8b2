"""The counters of a context, and a run that does not count."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from .._native import lib
from ..errors import ContextError, UnsupportedError
from .computation import Computation
from .perf_types import ContextPerf


class Performance(Computation):
    """The part of a `Context` that measures, and warms up."""

    __slots__ = ()

    def perf(self) -> ContextPerf:
        """Return how long computations took.

        llama.cpp measures only if it is told to: create the context with ``no_perf=False``.  It
        counts at the end of a computation; single tokens whose outputs are not read before the
        next count as a prompt.

        Raises:
            ContextError: The context was created with ``no_perf=True``, which is the default.

        Source: ``llama_perf_context``.
        """
        ptr = self.ptr
        if self._params.no_perf:
            raise ContextError("nothing was measured: create the Context with no_perf=False")
        with self.lock:
            counted = _counters(ptr)
            return counted if self._perf_offset is None else _minus(counted, self._perf_offset)

    def reset_perf(self) -> None:
        """Count from zero.  Source: ``llama_perf_context_reset``."""
        ptr = self.ptr
        with self.lock:
            lib.llama_synchronize(ptr)  # what is computed until now does not count
            lib.llama_perf_context_reset(ptr)
            self._perf_offset = None

    def warmup(self) -> None:
        """Compute a few tokens and forget them, so that the first real ones take no longer.

        That reads the weights into memory and wakes the threads.  Memory and counters are
        afterwards as before; outputs of an earlier batch are gone.

        Raises:
            ContextError: The memory is not empty, or an encoder's output is kept for the decoder.
            UnsupportedError: The context of a draft model computes nothing without its target.

        Source: ``llama_decode``, ``llama_encode``, ``llama_memory_clear``.
        """
        if self._drafts:
            raise UnsupportedError("a draft model computes nothing without its target")
        ptr = self.ptr
        memory = lib.llama_get_memory(ptr)
        with self.lock:
            if self._encoded is not None or any(
                lib.llama_memory_seq_pos_max(memory, i) >= 0
                for i in range(0 if self._memoryless else lib.llama_n_seq_max(ptr))
            ):
                raise ContextError("there is something in memory: warm up before the first batch")
            before = _counters(ptr)
        try:
            self._compute_any()
        finally:
            with self.lock:
                self._outputs, self._encoded = None, None
                lib.llama_memory_clear(memory, True)
                self._bookkeeping.cleared()
                skipped = _minus(_counters(ptr), before)
                if self._perf_offset is not None:
                    skipped = _plus(skipped, self._perf_offset)
                self._perf_offset = skipped

    def _compute_any(self) -> None:
        """Compute a short prompt and a single token, by all parts of the model."""
        from ..batch.batch import Batch

        vocab = lib.llama_model_get_vocab(self.model.ptr)
        token = max(0, lib.llama_vocab_bos(vocab))
        n = min(2, self.n_ubatch)
        prompt = Batch.from_tokens([token] * n)
        if lib.llama_model_has_encoder(self.model.ptr):
            self.encode(prompt)
        if lib.llama_model_has_decoder(self.model.ptr):
            self.decode(prompt)
            if not self._memoryless:
                one = Batch(1)
                one.set_one(token, n)
                self.decode(one)


def _counters(ptr: Any) -> ContextPerf:
    """Return what llama.cpp has counted."""
    lib.llama_synchronize(ptr)
    data = lib.llama_perf_context(ptr)
    counted = ContextPerf(
        **{field.name: getattr(data, field.name) for field in fields(ContextPerf)}
    )
    # It counts nothing as one, so as to divide by it; nothing takes no time.
    if not counted.t_p_eval_ms:
        counted = replace(counted, n_p_eval=0)
    return counted if counted.t_eval_ms else replace(counted, n_eval=0)


# The counters that grow with each computation.
GROWING = ("t_p_eval_ms", "t_eval_ms", "n_p_eval", "n_eval", "n_reused")


def _minus(one: ContextPerf, other: ContextPerf) -> ContextPerf:
    return replace(one, **{name: getattr(one, name) - getattr(other, name) for name in GROWING})


def _plus(one: ContextPerf, other: ContextPerf) -> ContextPerf:
    return replace(one, **{name: getattr(one, name) + getattr(other, name) for name in GROWING})
