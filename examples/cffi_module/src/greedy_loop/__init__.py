"""Generate text greedily with a loop in C, in a llamacffi context."""

from __future__ import annotations

import llamacffi
from llamacffi import Batch, Context

from ._loop import ffi, lib

__all__ = ["generate"]


def _text(pointer: object) -> str:
    return ffi.string(pointer).decode()


# loop.c was compiled for the structs and functions of exactly this llama.cpp.
BUILT = _text(lib.LLAMACFFI_LLAMA_CPP_COMMIT)
THERE = _text(llamacffi.lib.llamacffi_built_commit())
if BUILT != THERE:
    raise ImportError(f"greedy_loop was built for llama.cpp {BUILT}, not {THERE}: rebuild it")


def generate(context: Context, prompt: str, max_tokens: int) -> str:
    """Return the most likely continuation of ``prompt``."""
    vocab = context.model.vocab
    *before, last = vocab.tokenize(prompt)
    context.memory.clear()
    if before:
        context.decode(Batch.from_tokens(before))
    # The C function neither checks its arguments nor has a guard around its calls.
    if len(before) + max_tokens >= context.n_ctx_seq:
        raise ValueError(f"{len(before)} + {max_tokens} tokens do not fit {context.n_ctx_seq}")
    out = ffi.new("llama_token[]", max_tokens)
    with context.exclusive:  # a context serves one thread at a time
        n = lib.greedy_loop(context.ptr, last, out, max_tokens)
    if n < 0:
        raise RuntimeError("llama.cpp cannot decode")
    return vocab.detokenize(list(out[0:n]))
