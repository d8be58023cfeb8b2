"""Computing batches, one token or many, and what happens when that fails."""

from __future__ import annotations

from sys import _getframe as here
from typing import TYPE_CHECKING, Any, NoReturn

from .._native import lib
from ..batch.arrays import TOKENS
from ..errors import (
    AbortedError,
    ArgumentError,
    DecodeError,
    NativeError,
    UnsupportedError,
    decode_error,
)
from ..log import drain, with_log
from .batch_checks import check_decode, check_encode, check_several, check_size
from .compat import param_or_zero
from .contention import Contention
from .graph import check_widths, describe
from .pools import n_threads_for
from .recovery import Recovery, ends
from .rejected import why_rejected

if TYPE_CHECKING:
    from .._core.locks import CallLock
    from ..backend.tensor import Observer
    from ..batch.arrays import BatchArrays
    from ..sampling.native_chain import NativeChain
    from .adapters import ActiveAdapters
    from .bookkeeping import Bookkeeping
    from .last_batch import LastBatch
    from .pools import Computing
    from .traits import ContextTraits

# What llama_decode returns.
ABORTED = 2
REJECTED = -1
UNCHANGED = (1, REJECTED)  # the codes that leave the memory as it was


class Decoder:
    """Computes batches in a context; the first argument is the ``struct llama_context *``."""

    __slots__ = (
        *("_abort", "_adapters", "_bookkeeping", "_complex", "_computing", "_last", "_observer"),
        *("_other", "_recovery", "_special", "_traits", "contention", "embeddings"),
    )

    embeddings: bool
    """Whether the next batch computes embeddings."""
    contention: Contention
    """Detects that the threads lack CPUs."""

    def __init__(
        self,
        traits: ContextTraits,
        computing: Computing,
        last: LastBatch,
        bookkeeping: Bookkeeping,
        adapters: ActiveAdapters,
        abort: Any,
        observer: Observer | None,
        other: CallLock | None,
    ) -> None:
        """Describe a decoder.

        Args:
            traits: Of the context.
            computing: Held while C computes.
            last: Records the outputs of a batch.
            bookkeeping: Records how a batch changes sequences.
            adapters: The adapters, which change the compute graph.
            abort: The ``struct llamacffi_abort_flag *`` that C polls.
            observer: Sees the nodes of the graph.
            other: The lock of the context whose memory or weights this one uses.
        """
        self._traits, self._computing, self._last = traits, computing, last
        self._bookkeeping, self._adapters = bookkeeping, adapters
        self._abort, self._observer, self._other = abort, observer, other
        self._recovery = Recovery(traits, bookkeeping)
        self.contention = Contention()
        self.embeddings = bool(traits.params.embeddings)
        limited = param_or_zero(traits.params, "n_outputs_max") or traits.n_positions
        # Whether batches need more checks than those of an ordinary model.
        self._special = bool(traits.encodes or limited or self.embeddings or traits.drafts)
        # Whether `decode` may have more to do for a token than to compute it.
        self._complex = traits.memoryless or not traits.has_logits or bookkeeping.watches
        self._complex = self._complex or observer is not None or other is not None

    def decode(self, ptr: Any, batch: BatchArrays) -> None:
        """Compute a batch, and add it to memory; see `Context.decode`."""
        traits, last = self._traits, self._last
        if traits.memoryless:
            return self.encode(ptr, batch)
        n: int = batch.value.n_tokens
        # Like a ``with`` block, but without its function calls, which slow down a loop that decodes
        # token by token.  A variable for the frame would be a reference cycle.
        pools = self._computing.enter(here(), n)
        try:
            self._check(batch, n)
            if n > 1:
                check_several(traits, ptr, n)
            if self._special:
                check_decode(traits, ptr, batch, self.embeddings, last.encoded)
            if n > 1 or self.contention.due():
                with self.contention.of(n_threads_for(ptr, n)):
                    self._compute(ptr, batch, encode=False)
            else:
                self._compute(ptr, batch, encode=False)
            if pools.left:
                pools.computed(ptr)
            last.flags = b"\1" * n if self.embeddings else batch.output_flags or batch.outputs()
            last.logits, last.embeddings = traits.has_logits, self.embeddings
            self._bookkeeping.decoded(batch)
        finally:
            self._computing.leave(here(), pools)
        drain()

    def encode(self, ptr: Any, batch: BatchArrays) -> None:
        """Compute a batch with the encoder; see `Context.encode`."""
        traits, last = self._traits, self._last
        if not traits.memoryless and not traits.encodes:
            raise UnsupportedError(f"{traits.model!r} has no encoder: use decode()")
        n: int = batch.value.n_tokens
        pools = self._computing.enter(here(), n)
        try:
            self._check(batch, n)
            check_encode(traits, batch)
            with self.contention.of(n_threads_for(ptr, n)):
                self._compute(ptr, batch, encode=True)
            if pools.left:
                pools.computed(ptr)
            last.flags, last.logits = b"\1" * n, traits.has_logits and traits.memoryless
            if traits.feeds_decoder:
                last.encoded = frozenset(batch.starts())
            # A draft model encodes for its own decoder only.
            last.embeddings = (self.embeddings or traits.feeds_decoder) and not traits.drafts
        finally:
            self._computing.leave(here(), pools)
        drain()

    def decode_and_sample(
        self, ptr: Any, batch: BatchArrays, chain: NativeChain, version: int
    ) -> int | None:
        """Decode one token and sample the next, for `generate`: `decode` and `SamplerChain.sample`.

        It is equivalent, with a third of the function calls, as long as both only need to call C.
        The weights of a small model stream through the CPU's cache and evict the interpreter, so
        each call of a Python function takes a microsecond.

        Args:
            ptr: The context.
            batch: One token with an output, in the vocabulary.
            chain: Samples the next token.
            version: The entry of `Bookkeeping.versions` when the last token was decoded.

        Returns:
            What ``llamacffi_chain_sample`` returns; None if nothing was done, because more work is
            needed or the version has changed.

        Source: ``llama_decode``, ``llamacffi_chain_sample``.
        """
        last, bookkeeping, traits = self._last, self._bookkeeping, self._traits
        seq_id, pools = batch.single, self._computing.current or self._computing.pools
        outer, inner = pools.locks.first, chain.lock
        if outer.holders.setdefault(0, here()) is not here():
            outer.enter(here())
        try:
            if inner.holders.setdefault(0, here()) is not here():
                inner.enter(here())
            try:
                owner = chain.owner  # keeps it alive while C uses it
                if (
                    self._complex
                    or self._special
                    or not pools.alone
                    or last.exports.live
                    or self._abort.requested
                    or not self._adapters.reserved
                    or bookkeeping.rotating
                    or seq_id is None
                    or bookkeeping.versions[seq_id] != version
                    or owner is None
                    or chain.attachment is not None
                    or chain.prepared() is not traits.vocab
                ):
                    return None
                last.flags = None
                try:
                    code = lib.llama_decode(ptr, batch.value)
                except NativeError:
                    self._recovery.after_exception(ptr, batch)
                    raise
                if code:
                    self._fail(ptr, batch, code, None, encode=False)
                last.flags, last.logits, last.embeddings = b"\1", True, False
                chosen: int = lib.llamacffi_chain_sample(chain.struct, ptr, -1)
            finally:
                inner.leave()
        finally:
            outer.leave()
        bookkeeping.tokens.one(seq_id, batch.first_pos[0], batch.first_token[0])
        drain()
        return chosen

    def set_embeddings(self, ptr: Any, lock: CallLock, embeddings: bool) -> None:
        """Compute embeddings or not; see `Context.set_embeddings`."""
        traits = self._traits
        n_tokens = min(traits.n_ctx, traits.n_ubatch)
        by_mean = (lib.LLAMA_POOLING_TYPE_MEAN, lib.LLAMA_POOLING_TYPE_RANK)
        if embeddings and traits.pooling in by_mean and n_tokens % traits.n_seq_max:
            raise ArgumentError(
                f"n_ubatch={traits.n_ubatch} must be a multiple of n_seq_max={traits.n_seq_max} to "
                "pool by mean: create the Context with other values"
            )
        with lock:
            if embeddings and not self.embeddings:
                graph = describe(ptr, traits.n_outputs_max, embeddings=True, keep=False)
                check_widths(ptr, graph, traits.model)
            lib.llama_set_embeddings(ptr, embeddings)
            self.embeddings = embeddings
            self._special = self._special or embeddings

    def _check(self, batch: BatchArrays, n: int) -> None:
        """Check what every batch must be."""
        traits, tokens = self._traits, batch.token_range
        if self._last.exports.live:
            self._last.exports.check_none()
        if not 1 <= n <= traits.n_batch:
            check_size(n, traits.n_batch)
        if (
            tokens is None
            or not 0 <= tokens[0] <= tokens[1] < traits.n_vocab
            or batch.content is not TOKENS
            or batch.seq_id_max >= traits.n_seq_max
            or batch.coupled
        ):
            batch.check(traits.n_vocab, traits.n_seq_max, traits.kv_unified, traits.drafts)

    def _compute(self, ptr: Any, batch: BatchArrays, *, encode: bool) -> None:
        """Let C compute, and make the context consistent again if it fails."""
        last, observer = self._last, self._observer
        if self._abort.requested:
            lib.llamacffi_abort_set(self._abort, False)
            raise AbortedError("cancelled before the computation began", ABORTED, ends(ptr, batch))
        reached: list[bool] = []
        before, last.flags = last.flags, None
        causal = encode and lib.llama_get_causal_attn(ptr)
        try:
            if not self._adapters.reserved:
                self._adapters.reserve(ptr)
            if observer is not None:
                observer.begin(ptr, batch.starts())
            if self._other is None:
                code = batch.submit(ptr, encode, reached)
            else:
                with self._other:
                    code = batch.submit(ptr, encode, reached)
        except NativeError:
            self._adapters.reserve_anew(ptr)
            # upstream: src/llama-context.cpp causal_attn_org: it disables causal attention to
            # encode, and does not restore it after an exception; so we do.
            if encode:
                lib.llama_set_causal_attn(ptr, causal)
            self._recovery.after_exception(ptr, batch)
            if observer is not None:
                observer.finish()
            raise
        except BaseException:  # a failed check, or the exception of a signal handler
            if reached:
                self._interrupted(batch)
            else:
                last.flags = before
            raise
        if code or observer is not None:
            self._finish(ptr, batch, code, encode)

    def _finish(self, ptr: Any, batch: BatchArrays, code: int, encode: bool) -> None:
        """Raise if a computation did not succeed."""
        observer, stopped, error = self._observer, False, None
        if observer is not None:
            stopped, error = observer.finish()
        if code or stopped:
            if observer is not None and observer.torn:
                self._recovery.take_back(ptr, observer.before)
            self._fail(ptr, batch, code or ABORTED, error, encode)

    def _interrupted(self, batch: BatchArrays) -> None:
        """Record that an interrupt came during the call, and C may have computed the batch."""
        self._bookkeeping.interrupted(batch)
        if self._observer is not None and self._observer.finish()[0]:
            lib.llamacffi_abort_set(self._abort, False)

    def _fail(
        self, ptr: Any, batch: BatchArrays, code: int, error: BaseException | None, encode: bool
    ) -> NoReturn:
        """Raise the error that a return code stands for.

        Args:
            ptr: The context.
            batch: The batch.
            code: The return code of C.
            error: The exception of a callback.
            encode: Whether it was the encoder.
        """
        lib.llamacffi_abort_set(self._abort, False)
        if code < -1:
            self._adapters.reserve_anew(ptr)
        unchanged = code in UNCHANGED
        pos_max = ends(ptr, batch) if unchanged else self._recovery.after_failure(ptr, batch)
        function = "llama_encode" if encode else "llama_decode"
        why = why_rejected(ptr, batch, pos_max) if code == REJECTED else ""
        failure: DecodeError = with_log(decode_error(code, pos_max, function, why))
        if error is None:
            raise failure
        error.__context__ = failure  # the user's exception; its context has the state of the memory
        raise error
