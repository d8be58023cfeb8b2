"""Measure how sure a model is, from the logits where llama.cpp has them."""

from __future__ import annotations

import llamacffi  # before _reader: it loads the libraries that _reader needs
from llamacffi import Context

from . import _reader

__all__ = ["entropy"]

# What reader.cpp knows of structs and functions was true of this llama.cpp alone.
THERE = llamacffi.ffi.string(llamacffi.lib.llamacffi_built_commit()).decode()
if THERE != _reader.BUILT:
    raise ImportError(
        f"logit_reader was built for llama.cpp {_reader.BUILT}, not {THERE}: build it anew"
    )


def entropy(context: Context, i: int = -1) -> float:
    """Return the entropy of what comes after token ``i`` of the last batch, in nats."""
    _held = context.ptr  # until this returns, closing it in another thread frees nothing
    with context.lock:  # and nobody computes, which could move the logits
        return _reader.entropy(context.address, i)
