"""Checks of a new context that need its compute graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._core.text import c_text
from .._native import ffi, lib
from ..errors import ContextError, NativeError, UnsupportedError
from ..log import with_log

if TYPE_CHECKING:
    from ..model.model import Model


def describe(ptr: Any, n_outputs_max: int, *, embeddings: bool, keep: bool) -> Any:
    """Build the compute graph of a context and describe it.

    Args:
        ptr: The context.
        n_outputs_max: The largest number of outputs of a batch.
        embeddings: Whether to build the graph that computes embeddings.
        keep: Whether the context computes embeddings; it is set again afterwards.

    Returns:
        The ``struct llamacffi_graph``.

    Raises:
        ContextError: llama.cpp cannot build it, or the CPU cannot compute it.

    Source: ``llamacffi_graph_describe``.
    """
    graph = ffi.new("struct llamacffi_graph *")
    # The size that llama.cpp has reserved memory for: a larger graph would make it reserve anew.
    n_tokens = min(lib.llama_n_ctx(ptr), lib.llama_n_ubatch(ptr))
    n_outputs = min(n_tokens, n_outputs_max)
    lib.llama_set_embeddings(ptr, embeddings)
    try:
        lib.llamacffi_graph_describe(ptr, n_tokens, lib.llama_n_seq_max(ptr), n_outputs, graph)
    except NativeError as error:
        raise with_log(
            ContextError(f"llama.cpp cannot build the compute graph: {error}")
        ) from error
    finally:
        lib.llama_set_embeddings(ptr, keep)
    if problem := c_text(graph.problem):
        raise ContextError(
            f"cannot create a context: {problem}; check the metadata of the file, kv_overrides "
            "and the parameters of the context"
        )
    return graph


def check_widths(ptr: Any, graph: Any, model: Model) -> None:
    """Check that embeddings have the width with which llama.cpp reads them.

    Args:
        ptr: The context.
        graph: The graph that computes embeddings.
        model: The model.

    Raises:
        UnsupportedError: They have another width, or the model has no classifier for ranking.
    """
    if lib.llama_pooling_type(ptr) == lib.LLAMA_POOLING_TYPE_RANK:
        n_scores = lib.llama_model_n_cls_out(model.ptr)
        if graph.n_pooled != n_scores:
            raise UnsupportedError(
                f"{model!r} has no classifier for {n_scores} scores: use another pooling_type "
                'than "rank"'
            )
        return
    width = lib.llama_model_n_embd_out(model.ptr)
    if graph.n_pooled not in (0, width):
        raise UnsupportedError(
            f"llama.cpp cannot read the embeddings of {model!r}: they have {graph.n_pooled} "
            f"numbers each, but it expects {width}"
        )
