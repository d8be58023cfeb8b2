"""Measure how certain a model is, from the logits in llama.cpp's memory."""

from __future__ import annotations

import llamacffi  # before _reader: it loads the libraries that _reader needs
from llamacffi import Context

from . import _reader

__all__ = ["entropy"]

# reader.cpp was compiled for the structs and functions of exactly this llama.cpp.
THERE = llamacffi.ffi.string(llamacffi.lib.llamacffi_built_commit()).decode()
if THERE != _reader.BUILT:
    raise ImportError(
        f"logit_reader was built for llama.cpp {_reader.BUILT}, not {THERE}: rebuild it"
    )


def entropy(context: Context, i: int = -1) -> float:
    """Return the entropy of the prediction after token ``i`` of the last batch, in nats."""
    _held = context.ptr  # keeps the context alive if another thread closes it
    with context.exclusive:  # no other thread computes, which could move the logits
        return _reader.entropy(context.address, i)
