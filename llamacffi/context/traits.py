"""What never changes while a context lives: its sizes, and what its model can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._native import ffi, lib
from ..errors import ArgumentError, UnsupportedError
from .compat import SHARING, is_draft, n_rs_seq, param_or_zero
from .graph import check_widths, describe

if TYPE_CHECKING:
    from ..model.model import Model
    from ..vocab.vocab import Vocab

SEES_ALL = "each of its tokens sees all others, so causal attention is not possible"


@dataclass(frozen=True, slots=True)
class ContextTraits:
    """Facts about a context that its parts share."""

    model: Model
    vocab: Vocab
    params: Any
    """The ``struct llama_context_params *`` that the context was created with."""
    graph: Any
    """The ``struct llamacffi_graph *``: the description of its compute graph."""
    n_vocab: int
    n_ctx: int
    n_batch: int
    n_ubatch: int
    n_seq_max: int
    n_outputs_max: int
    n_rs_seq: int
    """Number of tokens that a recurrent sequence can be rolled back."""
    n_positions: int
    """Number of positions that the model has learned; 0 without such a limit."""
    pooling: int
    kv_unified: bool
    """Whether all sequences share one buffer."""
    recurrent: bool
    """Whether a sequence is stored as a recurrent state only."""
    has_state: bool
    """Whether the model has recurrent layers, perhaps besides layers with a KV cache."""
    keeps_state: bool
    """Whether a sequence in memory has a recurrent state.  The layers for multi-token prediction
    have none, whatever the other layers of their model have."""
    memoryless: bool
    """Whether the context processes each batch on its own."""
    encodes: bool
    decodes: bool
    feeds_decoder: bool
    """Whether the output of the encoder is for the decoder."""
    drafts: bool
    """Whether its model is a draft, which reads embeddings from its target besides tokens."""
    has_logits: bool
    """Whether its graph computes logits."""


def examine(ptr: Any, model: Model, vocab: Vocab, struct: Any) -> ContextTraits:
    """Find out what a new context can do, and refuse parameters that llama.cpp would ignore.

    Raises:
        ArgumentError: A parameter does not fit the others.
        ContextError: llama.cpp cannot build the graph.
        UnsupportedError: The model cannot do what was asked for.
    """
    encodes = bool(lib.llama_model_has_encoder(model.ptr))
    decodes = bool(lib.llama_model_has_decoder(model.ptr))
    shares = model.architecture in SHARING
    recurrent = bool(lib.llama_model_is_recurrent(model.ptr))
    has_state = recurrent or bool(lib.llama_model_is_hybrid(model.ptr))
    memoryless = lib.llama_get_memory(ptr) == ffi.NULL
    n_batch = lib.llama_n_batch(ptr)
    n_outputs_max = param_or_zero(struct, "n_outputs_max") or n_batch
    _check_rollback(ptr, model, struct)
    if memoryless and struct.attention_type == lib.LLAMA_ATTENTION_TYPE_CAUSAL:
        raise UnsupportedError(f"{model!r} has no memory: {SEES_ALL}")
    pooling, embeddings = lib.llama_pooling_type(ptr), bool(struct.embeddings)
    # The graph has the classifier only if it computes embeddings.
    looks = embeddings or pooling == lib.LLAMA_POOLING_TYPE_RANK
    graph = describe(ptr, n_outputs_max, embeddings=looks, keep=embeddings)
    if looks:
        check_widths(ptr, graph, model)
    return ContextTraits(
        model=model,
        vocab=vocab,
        params=struct,
        graph=graph,
        n_vocab=len(vocab),
        n_ctx=lib.llama_n_ctx(ptr),
        n_batch=n_batch,
        n_ubatch=lib.llama_n_ubatch(ptr),
        n_seq_max=lib.llama_n_seq_max(ptr),
        n_outputs_max=n_outputs_max,
        n_rs_seq=n_rs_seq(ptr),
        n_positions=graph.n_positions,
        pooling=pooling,
        kv_unified=bool(struct.kv_unified),
        recurrent=recurrent,
        has_state=has_state,
        keeps_state=has_state and not is_draft(struct),
        memoryless=memoryless,
        encodes=encodes,
        decodes=decodes,
        feeds_decoder=encodes and decodes and not shares,
        drafts=shares or is_draft(struct),
        has_logits=bool(graph.has_logits),
    )


def _check_rollback(ptr: Any, model: Model, struct: Any) -> None:
    """Check that ``n_rs_seq`` has an effect."""
    n_kept = param_or_zero(struct, "n_rs_seq")
    if n_kept and not n_rs_seq(ptr):
        raise UnsupportedError(f"{model!r} has no recurrent state to roll back: leave out n_rs_seq")
    if n_kept and (n_ubatch := lib.llama_n_ubatch(ptr)) < n_kept + 2:
        raise ArgumentError(
            f"n_ubatch must be at least {n_kept + 2} with n_rs_seq={n_kept}, not {n_ubatch}: the "
            "tokens to roll back are computed at once"
        )
