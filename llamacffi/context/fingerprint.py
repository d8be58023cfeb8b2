"""The facts about a context that a saved state must match."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._core.text import c_text
from .._native import lib
from ..model.info import fingerprint_of

if TYPE_CHECKING:
    from ..model.model import Model
    from .adapters import ActiveAdapters
    from .traits import ContextTraits

# Parameters that change the contents of memory, besides those that `_layout` computes.
FIELDS = (
    *("type_k", "type_v", "attention_type", "rope_scaling_type", "rope_freq_base"),
    *("rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast"),
    *("yarn_beta_slow", "yarn_orig_ctx"),
)


def fingerprint(ptr: Any, traits: ContextTraits, adapters: ActiveAdapters) -> dict[str, Any]:
    """Return what a saved state must have in common with a context, ready for JSON.

    ``params`` holds what keys and values depend on; a recurrent state does not depend on it.  The
    number of sequences and their lengths are only for `fits_surely`.
    """
    model = traits.model
    return {
        "llama.cpp": c_text(lib.ggml_commit()),
        "model": fingerprint_of(model),
        "params": {} if traits.recurrent else _layout(ptr, traits),
        "adapters": _adapters(adapters),
        "control vector": _control_vector(adapters),
        "n_ctx_seq": lib.llama_n_ctx_seq(ptr),
        "n_seq_max": traits.n_seq_max,
    }


def _adapters(active: ActiveAdapters) -> list[list[Any]]:
    """Return the digests of the adapters in use, with their scales."""
    if not active.adapters:
        return []
    from ..adapter.adapter import digest_of

    return sorted([digest_of(one), scale] for one, scale in active.adapters.items() if scale)


def _control_vector(active: ActiveAdapters) -> list[list[Any]]:
    """Return the digest of the control vector in use, if any, with its scale."""
    if active.vector is None:
        return []
    from ..adapter.control_vector import digest_of

    return [[digest_of(active.vector), 1.0]]


def _layout(ptr: Any, traits: ContextTraits) -> dict[str, Any]:
    """Return the parameters that determine keys and values, and how they are stored."""
    from .._generated.enums import ENUMS
    from .._generated.params import KINDS

    struct, kinds = traits.params, KINDS["llama_context_params"]
    layout: dict[str, Any] = {}
    for field in FIELDS:
        value = getattr(struct, field)
        enum = ENUMS.get(kinds[field])
        layout[field] = value if enum is None else enum(value).name
    # Without flash attention values are stored transposed.
    disabled = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    layout["flash_attn"] = struct.flash_attn_type != disabled
    # The sequences share one buffer, or each has its own.
    layout["n_buffers"] = 1 if traits.kv_unified else traits.n_seq_max
    layout["long_context"] = _is_long(ptr, traits.model)
    return layout


def _is_long(ptr: Any, model: Model) -> bool:
    """Return whether a LongRoPE model uses its factors for long contexts."""
    metadata = model.metadata
    prefix = f"{model.architecture}.rope.scaling"
    if metadata.get(f"{prefix}.type") != "longrope":
        return False
    trained = metadata.get(f"{prefix}.original_context_length", model.n_ctx_train)
    return bool(lib.llama_n_ctx_seq(ptr) > int(trained))
