"""Whether the keys in the memory of a context can be turned to other positions.

Of what backends can do, llama.cpp says only what it believes: that the processor turns keys of any
type.  It cannot: a type that it has no code for ends the process on a worker thread.  And not all
that can be turned comes out right.  So it is tried, on a few keys in memory of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._native import ffi, lib

if TYPE_CHECKING:
    from .base import ContextBase

CAN_TRY = hasattr(lib, "llamacffi_try_turning")
# What any llama.cpp can turn on any device: what it stores keys in by default.
SURE = lib.llama_context_default_params().type_k


def why_not(context: ContextBase) -> str | None:
    """Return why the keys of a context cannot be turned, in words; None if they can.

    The caller holds the context, which has a memory.

    Source: ``llamacffi_try_turning``.
    """
    if context._turning is None:
        context._turning = _try(context)
    return context._turning or None


def _try(context: ContextBase) -> str:
    """Find out; an empty text means that they can be turned."""
    if context._n_positions:  # which llama.cpp takes for none
        return (
            "the model has learned positions, and what it has computed depends on those where it "
            "was computed"
        )
    params = context._params
    name = ffi.string(lib.ggml_type_name(params.type_k)).decode()
    remedy = 'create the Context with another type_k, such as "f16"'
    if not CAN_TRY:
        sure = params.type_k in (SURE, lib.GGML_TYPE_F32)
        return "" if sure else f"it is not known whether keys in {name} can be turned: {remedy}"
    reason = ffi.new("char[]", 256)
    found = lib.llamacffi_try_turning(
        context.ptr, params.type_k, params.offload_kqv, context._graph, reason, len(reason)
    )
    if found == lib.LLAMACFFI_TURNS_NOT:
        text = ffi.string(reason).decode(errors="replace")
        return f"llama.cpp cannot turn its keys in {name} ({text}): {remedy}"
    if found == lib.LLAMACFFI_TURNS_AND_SCALES:
        return (
            "llama.cpp would make its keys larger or smaller each time it turns them, because of "
            "YaRN or an attention factor"
        )
    if found == lib.LLAMACFFI_TURNS_OTHERS:
        return (
            "llama.cpp would also turn keys that this model does not turn by their positions, or "
            "turns in another way"
        )
    if found == lib.LLAMACFFI_TURNS_NOTHING:
        return (
            "one of its caches has no layer with rotary positions, as where all layers have a "
            "sliding window, and there llama.cpp fails"
        )
    return ""
