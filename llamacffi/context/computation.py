"""What a context does: decode, encode, and stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from .._core.values import check_object, flag
from .._native import lib
from ..batch.arrays import Attempt
from ..errors import (
    AbortedError,
    ArgumentError,
    ContextError,
    DecodeError,
    NativeError,
    UnsupportedError,
    decode_error,
)
from ..log import drain, with_log
from .graph import check_widths, describe
from .params import architecture
from .pools import Threads, n_threads_for
from .recovery import ends, roll_back, settle, take_back
from .rejected import why_rejected

if TYPE_CHECKING:
    from ..batch.batch import Batch

ABORTED = 2  # of llama_decode
REJECTED = -1
SEES_ALL = "each of its tokens sees all others, so causal attention is not possible"
UNCHANGED = (1, REJECTED)  # its codes that leave the memory as it was


class Computation(Threads):
    """The part of a `Context` that computes batches."""

    __slots__ = ()

    def decode(self, batch: Batch) -> None:
        """Compute a batch of tokens and remember them.

        The outputs that the batch asks for can be read until the next call; with embeddings, all
        tokens have one.  A model without memory computes the batch as `encode` does.

        If it fails, the memory is consistent, and the error's `DecodeError.pos_max` tells where
        each sequence of the batch ends: finished micro-batches of `n_ubatch` tokens stay.  Of a
        recurrent model the sequences that were being computed are forgotten as a whole, since
        their state cannot go back; if they were several at once, all are.

        Args:
            batch: 1 to `n_batch` tokens.

        Raises:
            ArgumentError: The batch does not fit this context; nothing was computed.
            ContextError: An encoder-decoder model has not encoded the sequence.
            InvalidBatchError: llama.cpp rejected it, for example for positions that do not follow
                those in memory; memory is unchanged.
            ContextFullError: There is no room in memory; memory is unchanged.
            AbortedError: `cancel` was called, or the callback ``cb_eval`` returned False.
            DecodeError: The computation failed.
            NativeError: A check of llama.cpp failed; what the batch had added is removed.
            UnsupportedError: The model has an encoder alone.
            BufferError: An array of `logits_view` or `embeddings_view` is alive.
            BusyError: Another thread is using the context.

        Source: ``llama_decode``.
        """
        if self._memoryless:
            return self.encode(batch)
        ptr = self.ptr
        with self.computing(n := length(batch)):
            self._check_batch(batch, n)
            if n > 1:
                self._check_several(ptr, n)
            if self._special:
                self._check_special(ptr, batch, n)
            if n > 1 or self._contention.due():
                with self._contention.of(n_threads_for(ptr, n)):
                    self._run(ptr, batch, encode=False)
            else:
                self._run(ptr, batch, encode=False)
            embeddings = self._embeddings
            self._outputs = b"\1" * n if embeddings else batch.outputs()
            self._has = self._has_logits, embeddings
            self._bookkeeping.decoded(batch)
        drain()

    def encode(self, batch: Batch) -> None:
        """Compute a batch of tokens with the model's encoder, which remembers nothing.

        Each token sees all others of its sequence, and each has an output, which can be read until
        the next call.  Of an encoder-decoder model the output is kept for the decoder, in place of
        that of the call before: encode all sequences that you want to decode together, and clear
        what the decoder remembers of them first.

        Args:
            batch: 1 to `n_ubatch` tokens.

        Raises:
            ArgumentError: The batch does not fit this context; nothing was computed.
            UnsupportedError: The model has no encoder: use `decode`.
            InvalidBatchError: llama.cpp rejected the batch.
            AbortedError: `cancel` was called, or the callback ``cb_eval`` returned False.
            DecodeError: The computation failed.
            NativeError: A check of llama.cpp failed.
            BufferError: An array of `logits_view` or `embeddings_view` is alive.
            BusyError: Another thread is using the context.

        Source: ``llama_encode``.
        """
        ptr = self.ptr
        if not self._memoryless and not lib.llama_model_has_encoder(self.model.ptr):
            raise UnsupportedError(f"{self.model!r} has no encoder: use decode()")
        with self.computing(n := length(batch)):
            self._check_batch(batch, n)
            self._check_encode(ptr, batch, n)
            with self._contention.of(n_threads_for(ptr, n)):
                self._run(ptr, batch, encode=True)
            self._outputs = b"\1" * n
            feeds_decoder = self._feeds_decoder
            if feeds_decoder:
                self._encoded = frozenset(batch.starts())
            logits = self._has_logits and self._memoryless
            # What a draft model encodes is for itself.
            self._has = logits, (self._embeddings or feeds_decoder) and not self._drafts
        drain()

    def cancel(self) -> None:
        """Make the computation that is running, or else the next one, raise `AbortedError`.

        Any thread may call it.  On the CPU it takes effect within a node of the compute graph, on
        other devices between micro-batches.
        """
        lib.llamacffi_abort_set(self._abort, True)

    def synchronize(self) -> None:
        """Wait until all is computed, as reading the outputs does.

        Only devices that compute by themselves make `decode` return before.

        Source: ``llama_synchronize``.
        """
        ptr = self.ptr
        with self.lock:
            lib.llama_synchronize(ptr)

    @property
    def causal_attn(self) -> bool:
        """Whether tokens see only those before them.  Source: ``llama_get_causal_attn``."""
        return bool(lib.llama_get_causal_attn(self.ptr)) and not self._memoryless

    def set_causal_attn(self, causal: bool) -> None:
        """Let tokens see only those before them, or all of their batch, from the next batch on.

        Without causal attention a batch can have `n_ubatch` tokens.

        Raises:
            UnsupportedError: Causal attention, of a model without memory.

        Source: ``llama_set_causal_attn``.
        """
        causal, ptr = flag("causal", causal), self.ptr
        if causal and self._memoryless:
            raise UnsupportedError(f"{self.model!r} has no memory: {SEES_ALL}")
        with self.lock:
            lib.llama_set_causal_attn(ptr, causal)

    @property
    def embeddings_enabled(self) -> bool:
        """Whether the next batch computes embeddings."""
        self.ptr  # noqa: B018  raises if closed
        return self._embeddings

    def set_embeddings(self, embeddings: bool) -> None:
        """Compute embeddings from the next batch on, or no longer.

        The outputs of the last batch stay what they are.

        Raises:
            ArgumentError: This context cannot pool.
            ContextError: llama.cpp cannot compute them.
            UnsupportedError: llama.cpp cannot read those of this model.

        Source: ``llama_set_embeddings``.
        """
        embeddings, ptr = flag("embeddings", embeddings), self.ptr
        n_seq_max = lib.llama_n_seq_max(ptr)
        n_tokens = min(lib.llama_n_ctx(ptr), lib.llama_n_ubatch(ptr))
        if embeddings and pools_by_mean(ptr) and n_tokens % n_seq_max:
            raise ArgumentError(
                f"pooling by mean needs n_ubatch={self.n_ubatch} to be a multiple of n_seq_max="
                f"{n_seq_max}: create the Context so"
            )
        with self.lock:
            if embeddings and not self._embeddings:
                graph = describe(ptr, self._n_outputs_max, embeddings=True, keep=False)
                check_widths(ptr, graph, self.model)
            lib.llama_set_embeddings(ptr, embeddings)
            self._embeddings = embeddings
            self._special = self._special or embeddings

    def _check_batch(self, batch: Batch, n: int) -> None:
        """Check what every batch must be."""
        if self._exports.live:
            self._exports.check_none()
        n_batch, n_vocab, n_seq_max = self._sizes
        if n > n_batch:
            raise ArgumentError(
                f"{n} tokens are more than n_batch={n_batch}: divide them among batches, or create "
                "the Context with a larger n_batch"
            )
        if n < 1:
            raise ArgumentError("the batch is empty: add at least one token")
        try:
            batch.check(n_vocab, n_seq_max, self.kv_unified, self._drafts)
        except AttributeError:
            check_object("batch", batch, "Batch")
            raise

    def _check_several(self, ptr: Any, n: int) -> None:
        """Check what llama.cpp asserts of a batch of several tokens."""
        n_ubatch = lib.llama_n_ubatch(ptr)
        if n > n_ubatch and not lib.llama_get_causal_attn(ptr):
            raise ArgumentError(
                f"{n} tokens are more than n_ubatch={n_ubatch}: without causal attention they are "
                "computed at once; raise n_ubatch"
            )

    def _check_special(self, ptr: Any, batch: Batch, n: int) -> None:
        """Check what llama.cpp asserts, or gets wrong, of the batches of some contexts."""
        if not lib.llama_model_has_decoder(self.model.ptr):
            raise UnsupportedError(f"{self.model!r} has no decoder: use encode()")
        if self._drafts:
            self._check_draft(batch)
        self._check_positions(batch)
        n_outputs = n if self._embeddings else batch.outputs().count(1)
        if n_outputs > (most := self._n_outputs_max):
            raise ArgumentError(
                f"{n_outputs} outputs are more than n_outputs_max={most}: "
                + ("with embeddings each token has one; " if self._embeddings else "")
                + "create the Context with a larger n_outputs_max"
            )
        if self._feeds_decoder:
            self._check_encoded(batch)
        if self._embeddings:
            self._check_pooled(ptr, batch, n)

    def _check_draft(self, batch: Batch) -> None:
        """Check that a draft model gets all that it reads: the rest would be what was there."""
        if architecture(self.model) == "dflash":  # reads one or the other
            return
        if not (len(batch.tokens) and len(batch.embeddings)):
            raise ArgumentError(
                "a draft model reads tokens and the hidden states of its target: give both to "
                "Batch.add()"
            )

    def _check_pooled(self, ptr: Any, batch: Batch, n: int) -> None:
        """Check that sequences are computed at once: llama.cpp pools each micro-batch alone."""
        pooling = lib.llama_pooling_type(ptr)
        needs_first = pooling in (lib.LLAMA_POOLING_TYPE_MEAN, lib.LLAMA_POOLING_TYPE_CLS)
        if pooling == lib.LLAMA_POOLING_TYPE_RANK:  # of the first token, or else of the last
            needs_first = not lib.llama_get_causal_attn(ptr)
        if not needs_first:
            return
        if n > (n_ubatch := lib.llama_n_ubatch(ptr)):
            raise ArgumentError(
                f"{n} tokens are more than n_ubatch={n_ubatch}, and would be pooled in parts: "
                "raise n_ubatch"
            )
        if not self.kv_unified and len(batch.starts()) > 1:
            raise ArgumentError(
                "sequences with separate buffers would be pooled in parts: create the Context "
                "with kv_unified=True, or decode them one by one"
            )

    def _check_encoded(self, batch: Batch) -> None:
        """Check that the decoder has something to look at."""
        encoded = self._encoded
        if encoded is None:
            raise ContextError("the decoder reads what the encoder found: call encode() first")
        if missing := sorted(batch.starts().keys() - encoded):
            raise ContextError(
                f"sequence {missing[0]} was not in the last encode(), which had "
                f"{sorted(encoded)}: encode all sequences in one batch"
            )

    def _check_encode(self, ptr: Any, batch: Batch, n: int) -> None:
        """Check what llama.cpp asserts of the batch of an encoder."""
        n_ubatch = lib.llama_n_ubatch(ptr)
        if n > n_ubatch:
            raise ArgumentError(
                f"{n} tokens are more than n_ubatch={n_ubatch}: an encoder sees them all at once; "
                "raise n_ubatch"
            )
        if n > self._n_outputs_max:
            raise ArgumentError(
                f"{n} tokens are more than n_outputs_max={self._n_outputs_max}, and of an encoder "
                "each has an output: create the Context with a larger n_outputs_max"
            )
        self._check_positions(batch)
        if self._drafts and len(batch.tokens):
            raise ArgumentError("the encoder of a draft model reads embeddings: give no tokens")

    def _check_positions(self, batch: Batch) -> None:
        """Check that the model has learned the positions: it has a row of weights for each."""
        most = self._n_positions
        if most and (last := int(batch.positions.max())) >= most:
            raise ArgumentError(
                f"position {last} is not in 0 to {most - 1}: the model has learned no others"
            )

    def _run(self, ptr: Any, batch: Batch, *, encode: bool) -> None:
        """Let C compute, and leave the context consistent if it does not succeed."""
        if self._abort.requested:
            lib.llamacffi_abort_set(self._abort, False)
            raise AbortedError("cancelled before the computation began", ABORTED, ends(ptr, batch))
        attempt = Attempt()
        before, self._outputs = self._outputs, None
        causal = encode and lib.llama_get_causal_attn(ptr)
        try:
            if not self._active.planned:
                self._active.plan(ptr)
            if self._observer is not None:
                self._observer.begin(ptr, batch.starts())
            if self._other_context is None:
                code = batch.submit(ptr, encode, attempt)
            else:
                with self._other_context:
                    code = batch.submit(ptr, encode, attempt)
        except NativeError:
            self._active.plan_anew(ptr)
            if encode:  # llama.cpp has switched it off for the encoder
                lib.llama_set_causal_attn(ptr, causal)
            roll_back(ptr, batch, self._bookkeeping)
            if self._observer is not None:
                self._observer.finish()
            raise
        except BaseException:  # its own, Ctrl-C, or what the handler of a signal has raised
            if attempt.reached:
                self._interrupted(batch)
            else:
                self._outputs = before
            raise
        stopped, error = False, None
        if self._observer is not None:
            stopped, error = self._observer.finish()
        if code or stopped:
            if self._observer is not None and self._observer.torn:
                take_back(ptr, self._observer.before, self._bookkeeping)
            self._fail(ptr, batch, code or ABORTED, error, encode)
        self._computed(ptr)

    def _interrupted(self, batch: Batch) -> None:
        """Note that C may have computed a batch: an interrupt came when it returned, or before."""
        self._bookkeeping.interrupted(batch)
        if self._observer is not None and self._observer.finish()[0]:
            lib.llamacffi_abort_set(self._abort, False)

    def _fail(
        self, ptr: Any, batch: Batch, code: int, error: BaseException | None, encode: bool
    ) -> NoReturn:
        """Raise what a computation that did not succeed stands for."""
        lib.llamacffi_abort_set(self._abort, False)
        if code < -1:
            self._active.plan_anew(ptr)
        pos_max = ends(ptr, batch) if code in UNCHANGED else settle(ptr, batch, self._bookkeeping)
        function = "llama_encode" if encode else "llama_decode"
        why = why_rejected(ptr, batch, pos_max) if code == REJECTED else ""
        failure: DecodeError = with_log(decode_error(code, pos_max, function, why))
        if error is None:
            raise failure
        error.__context__ = failure  # the user's own; its context tells what became of the memory
        raise error


def length(batch: Batch) -> int:
    """Return the number of tokens in a batch.

    Raises:
        TypeError: It is no batch.
    """
    try:
        return len(batch)
    except TypeError:
        check_object("batch", batch, "Batch")
        raise


def pools_by_mean(ptr: Any) -> bool:
    """Return whether the embeddings of a sequence may be pooled by their mean."""
    pooling = lib.llama_pooling_type(ptr)
    return pooling in (lib.LLAMA_POOLING_TYPE_MEAN, lib.LLAMA_POOLING_TYPE_RANK)
