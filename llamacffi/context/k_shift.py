"""Whether the keys in the KV cache of a context can be rotated to other positions (K-shift).

llama.cpp assumes that the CPU can rotate keys of any type.  A type that it cannot rotate aborts the
process on a worker thread, and some rotations give wrong results.  So we try it on a few keys in
separate memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._core.text import c_text
from .._native import ffi, lib

if TYPE_CHECKING:
    from .traits import ContextTraits

CAN_TRY = hasattr(lib, "llamacffi_try_k_shift")
# What any llama.cpp can rotate on any device: the type that it stores keys in by default.
SURE = lib.llama_context_default_params().type_k


class KShift:
    """Remembers whether the keys of a context can be rotated."""

    __slots__ = ("_reason",)

    def __init__(self) -> None:
        self._reason: str | None = None  # "" if they can be rotated; None before the test

    def why_not(self, ptr: Any, traits: ContextTraits) -> str | None:
        """Return the reason why keys cannot be rotated; None if they can.

        The caller holds the context, which has a memory.

        Source: ``llamacffi_try_k_shift``.
        """
        if self._reason is None:
            self._reason = _try(ptr, traits)
        return self._reason or None


def _try(ptr: Any, traits: ContextTraits) -> str:
    """Find out; an empty text means that keys can be rotated."""
    # upstream: src/llama-kv-cache.cpp get_can_shift: it does not consider learned positions.
    if traits.n_positions:
        return "the model has learned positions, and its keys depend on where they were computed"
    params = traits.params
    name = c_text(lib.ggml_type_name(params.type_k))
    remedy = 'create the Context with another type_k, such as "f16"'
    if not CAN_TRY:
        sure = params.type_k in (SURE, lib.GGML_TYPE_F32)
        return "" if sure else f"it is not known whether keys in {name} can be rotated: {remedy}"
    reason = ffi.new("char[]", 256)
    found = lib.llamacffi_try_k_shift(
        ptr, params.type_k, params.offload_kqv, traits.graph, reason, len(reason)
    )
    if found == lib.LLAMACFFI_K_SHIFT_FAILS:
        text = c_text(reason)
        return f"llama.cpp cannot rotate its keys in {name} ({text}): {remedy}"
    if found == lib.LLAMACFFI_K_SHIFT_SCALES:
        return (
            "llama.cpp would scale its keys each time it rotates them, because of YaRN or an "
            "attention factor"
        )
    if found == lib.LLAMACFFI_K_SHIFT_OTHER_KEYS:
        return (
            "llama.cpp would also rotate keys that this model does not rotate by their positions, "
            "or rotates in another way"
        )
    if found == lib.LLAMACFFI_K_SHIFT_NO_LAYER:
        return (
            "one of its caches has no layer with rotary positions, for example where all layers "
            "have a sliding window, and there llama.cpp fails"
        )
    return ""
