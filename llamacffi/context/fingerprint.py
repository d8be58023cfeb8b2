"""What the state of a context depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._native import ffi, lib
from ..model.info import fingerprint_of

if TYPE_CHECKING:
    from .base import ContextBase
    from .reserve import ActiveAdapters

# Parameters that change what is in memory, beside those that `_layout` looks at.
FIELDS = (
    *("type_k", "type_v", "attention_type", "rope_scaling_type", "rope_freq_base"),
    *("rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast"),
    *("yarn_beta_slow", "yarn_orig_ctx"),
)


def identity(context: ContextBase) -> dict[str, Any]:
    """Return what a saved state must have in common with a context, ready for JSON.

    ``params`` is what it computes with: a recurrent state depends on none of that.  The number of
    sequences and their lengths are for `fits_surely` only.
    """
    ptr, model = context.ptr, context.model
    applied = context._active
    return {
        "llama.cpp": ffi.string(lib.ggml_commit()).decode(),
        "model": fingerprint_of(model),
        "params": {} if lib.llama_model_is_recurrent(model.ptr) else _layout(context),
        "adapters": _adapters(applied),
        "control vector": _control_vector(applied),
        "n_ctx_seq": lib.llama_n_ctx_seq(ptr),
        "n_seq_max": lib.llama_n_seq_max(ptr),
    }


def _adapters(applied: ActiveAdapters) -> list[list[Any]]:
    """Return the digests of the adapters in use, with their scales."""
    if not applied.adapters:
        return []
    from ..adapter.adapter import digest_of

    return sorted([digest_of(one), scale] for one, scale in applied.adapters.items() if scale)


def _control_vector(applied: ActiveAdapters) -> list[list[Any]]:
    """Return the digest of the control vector in use, if any, with its scale."""
    if applied.vector is None:
        return []
    from ..adapter.control_vector import digest_of

    return [[digest_of(applied.vector), 1.0]]


def _layout(context: ContextBase) -> dict[str, Any]:
    """Return the parameters that decide what keys and values are, and how they are stored."""
    from .._generated.enums import ENUMS
    from .._generated.params import KINDS

    struct, kinds = context._params, KINDS["llama_context_params"]
    layout: dict[str, Any] = {}
    for field in FIELDS:
        value = getattr(struct, field)
        enum = ENUMS.get(kinds[field])
        layout[field] = value if enum is None else enum(value).name
    # Values are stored transposed without it.
    disabled = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    layout["flash_attn"] = struct.flash_attn_type != disabled
    # Sequences have one buffer, or one each.
    layout["n_buffers"] = 1 if struct.kv_unified else lib.llama_n_seq_max(context.ptr)
    layout["long_context"] = _is_long(context)
    return layout


def _is_long(context: ContextBase) -> bool:
    """Return whether positions are computed as for long contexts, by a model that has two ways."""
    metadata = context.model.metadata
    prefix = f"{metadata.get('general.architecture')}.rope.scaling"
    if metadata.get(f"{prefix}.type") != "longrope":
        return False
    trained = metadata.get(f"{prefix}.original_context_length", context.model.n_ctx_train)
    return bool(lib.llama_n_ctx_seq(context.ptr) > int(trained))
