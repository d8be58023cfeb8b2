"""What older llama.cpp have not: there it is as if nobody asked for it."""

from __future__ import annotations

from typing import Any

from .._native import lib

HAS_ROLLBACK = hasattr(lib, "llama_n_rs_seq")


def n_rs_seq(ptr: Any) -> int:
    """Return how many tokens a recurrent sequence can go back.  Source: ``llama_n_rs_seq``."""
    return int(lib.llama_n_rs_seq(ptr)) if HAS_ROLLBACK else 0


def is_draft(params: Any) -> bool:
    """Tell whether a context predicts several tokens at once: ``ctx_type``."""
    return hasattr(params, "ctx_type") and params.ctx_type == lib.LLAMA_CONTEXT_TYPE_MTP


def param_or_zero(params: Any, name: str) -> int:
    """Return a number of the parameters; 0 where there is no such parameter."""
    return int(getattr(params, name, 0))
