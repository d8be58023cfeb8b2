"""Checks of a batch before C computes it: llama.cpp would abort, or compute wrong results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._native import lib
from ..batch.arrays import TOKENS
from ..errors import ArgumentError, ContextError, UnsupportedError

if TYPE_CHECKING:
    from ..batch.arrays import BatchArrays
    from .traits import ContextTraits


def check_size(n: int, n_batch: int) -> None:
    """Raise ArgumentError unless a batch of ``n`` tokens fits."""
    if n < 1:
        raise ArgumentError("the batch is empty: add at least one token")
    if n > n_batch:
        raise ArgumentError(
            f"the batch has {n} tokens, but n_batch is {n_batch}: split the batch, or create the "
            "Context with a larger n_batch"
        )


def check_several(traits: ContextTraits, ptr: Any, n: int) -> None:
    """Check a batch of several tokens, on which llama.cpp could fail an assertion."""
    if n > traits.n_ubatch and not lib.llama_get_causal_attn(ptr):
        raise ArgumentError(
            f"the batch has {n} tokens, but n_ubatch is {traits.n_ubatch}: without causal "
            "attention they are computed at once, so raise n_ubatch"
        )


def check_decode(
    traits: ContextTraits,
    ptr: Any,
    batch: BatchArrays,
    embeddings: bool,
    encoded: frozenset[int] | None,
) -> None:
    """Check a batch for `decode` of a context that is not an ordinary one.

    Args:
        traits: Of the context.
        ptr: The ``struct llama_context *``.
        batch: The batch.
        embeddings: Whether embeddings are computed.
        encoded: The sequences that the encoder has read.
    """
    if not traits.decodes:
        raise UnsupportedError(f"{traits.model!r} has no decoder: use encode()")
    if traits.drafts:
        _check_draft(traits, batch)
    _check_positions(traits, batch)
    n_outputs = len(batch) if embeddings else batch.outputs().count(1)
    if n_outputs > traits.n_outputs_max:
        raise ArgumentError(
            f"the batch has {n_outputs} outputs, but n_outputs_max is {traits.n_outputs_max}: "
            + ("with embeddings each token has one; " if embeddings else "")
            + "create the Context with a larger n_outputs_max"
        )
    if traits.feeds_decoder:
        _check_encoded(batch, encoded)
    if embeddings:
        _check_pooled(traits, ptr, batch)


def check_encode(traits: ContextTraits, batch: BatchArrays) -> None:
    """Check a batch for `encode`."""
    n = len(batch)
    if n > traits.n_ubatch:
        raise ArgumentError(
            f"the batch has {n} tokens, but n_ubatch is {traits.n_ubatch}: an encoder computes all "
            "tokens at once, so raise n_ubatch"
        )
    if n > traits.n_outputs_max:
        raise ArgumentError(
            f"the batch has {n} tokens, but n_outputs_max is {traits.n_outputs_max}, and every "
            "token of an encoder has an output: create the Context with a larger n_outputs_max"
        )
    _check_positions(traits, batch)
    if traits.drafts and len(batch.tokens):
        raise ArgumentError("the encoder of a draft model reads embeddings: leave out the tokens")


def _check_draft(traits: ContextTraits, batch: BatchArrays) -> None:
    """Check that a draft model gets everything it reads; C would read stale memory for the rest."""
    if traits.model.architecture == "dflash":  # reads one or the other
        return
    if not (len(batch.tokens) and batch.content != TOKENS):
        raise ArgumentError(
            "a draft model reads tokens and the hidden states of its target: give both to "
            "Batch.add()"
        )


def _check_positions(traits: ContextTraits, batch: BatchArrays) -> None:
    """Check that the model has learned positions for all tokens; it has weights for each."""
    most = traits.n_positions
    if most and (last := int(batch.positions.max())) >= most:
        raise ArgumentError(
            f"positions must be between 0 and {most - 1}, which the model has learned, not {last}"
        )


def _check_encoded(batch: BatchArrays, encoded: frozenset[int] | None) -> None:
    """Check that the encoder has read the sequences of a batch."""
    if encoded is None:
        raise ContextError("the decoder reads the output of the encoder: call encode() first")
    if missing := sorted(batch.starts().keys() - encoded):
        raise ContextError(
            f"sequence {missing[0]} was not in the last encode(), which had {sorted(encoded)}: "
            "encode all sequences in one batch"
        )


def _check_pooled(traits: ContextTraits, ptr: Any, batch: BatchArrays) -> None:
    """Check that each sequence is in one micro-batch, because llama.cpp pools each separately."""
    needs_first = traits.pooling in (lib.LLAMA_POOLING_TYPE_MEAN, lib.LLAMA_POOLING_TYPE_CLS)
    if traits.pooling == lib.LLAMA_POOLING_TYPE_RANK:  # of the first token, or else of the last
        needs_first = not lib.llama_get_causal_attn(ptr)
    if not needs_first:
        return
    if (n := len(batch)) > traits.n_ubatch:
        raise ArgumentError(
            f"the batch has {n} tokens, but n_ubatch is {traits.n_ubatch}, and embeddings would be "
            "pooled in parts: raise n_ubatch"
        )
    if not traits.kv_unified and len(batch.starts()) > 1:
        raise ArgumentError(
            "sequences with separate buffers would be pooled in parts: create the Context with "
            "kv_unified=True, or decode the sequences one by one"
        )
