"""What only the compute graph of a context shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._native import ffi, lib
from ..errors import ContextError, NativeError, UnsupportedError
from ..log import with_log

if TYPE_CHECKING:
    from ..model.model import Model


def describe(ptr: Any, n_outputs_max: int, *, embeddings: bool, keep: bool) -> Any:
    """Build the graph of a context, and look at it.

    Args:
        ptr: The context.
        n_outputs_max: How many outputs its batches can have.
        embeddings: Whether to look at the graph that computes embeddings.
        keep: Whether the context computes embeddings.

    Returns:
        The ``struct llamacffi_graph``.

    Raises:
        ContextError: llama.cpp cannot build it, or the processor could not compute it.

    Source: ``llamacffi_graph_describe``.
    """
    graph = ffi.new("struct llamacffi_graph *")
    # So large as llama.cpp has made room for, so that it need not make room again.
    n_tokens = min(lib.llama_n_ctx(ptr), lib.llama_n_ubatch(ptr))
    n_outputs = min(n_tokens, n_outputs_max)
    lib.llama_set_embeddings(ptr, embeddings)
    try:
        lib.llamacffi_graph_describe(ptr, n_tokens, lib.llama_n_seq_max(ptr), n_outputs, graph)
    except NativeError as error:
        raise with_log(ContextError(f"llama.cpp cannot build the graph: {error}")) from error
    finally:
        lib.llama_set_embeddings(ptr, keep)
    if problem := ffi.string(graph.problem).decode(errors="replace"):
        raise ContextError(
            f"cannot create a context: {problem}; look at the metadata of the file, at "
            "kv_overrides and at the parameters of the context"
        )
    return graph


def check_widths(ptr: Any, graph: Any, model: Model) -> None:
    """Check that embeddings are as wide as llama.cpp says, and reads.

    Args:
        ptr: The context.
        graph: That which computes embeddings.
        model: The model.

    Raises:
        UnsupportedError: They are not, or there is no classifier to rank with.
    """
    if lib.llama_pooling_type(ptr) == lib.LLAMA_POOLING_TYPE_RANK:
        n_scores = lib.llama_model_n_cls_out(model.ptr)
        if graph.n_pooled != n_scores:
            raise UnsupportedError(
                f"{model!r} has no classifier of {n_scores} scores: pooling_type must not be rank"
            )
        return
    width = lib.llama_model_n_embd_out(model.ptr)
    if graph.n_pooled not in (0, width):
        raise UnsupportedError(
            f"llama.cpp cannot read the embeddings of {model!r}: they are {graph.n_pooled} wide, "
            f"and it takes them for {width}"
        )
