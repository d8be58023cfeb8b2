"""Differences between versions of llama.cpp, and between kinds of models."""

from __future__ import annotations

from typing import Any

from .._native import lib

# The architectures of draft models whose contexts use the context of their target.
SHARING = ("gemma4-assistant", "eagle3", "dflash")

HAS_ROLLBACK = hasattr(lib, "llama_n_rs_seq")


def n_rs_seq(ptr: Any) -> int:
    """Return how many tokens a recurrent sequence can be rolled back; 0 in older llama.cpp.

    Source: ``llama_n_rs_seq``.
    """
    return int(lib.llama_n_rs_seq(ptr)) if HAS_ROLLBACK else 0


def is_draft(params: Any) -> bool:
    """Return whether a context is for multi-token prediction (``ctx_type``)."""
    return hasattr(params, "ctx_type") and params.ctx_type == lib.LLAMA_CONTEXT_TYPE_MTP


def param_or_zero(params: Any, name: str) -> int:
    """Return a parameter that is a number; 0 where an older llama.cpp lacks it."""
    return int(getattr(params, name, 0))
