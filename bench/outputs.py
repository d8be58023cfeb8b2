"""Outputs: the cost of getting the logits of a large vocabulary.

Question: how much slower than a ``memcpy`` of the same bytes is `Context.logits`?  A reused
array is compared with copying into one buffer, a new array with copying into a new buffer, which
the system allocates page by page.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import llamacffi
from llamacffi import ffi

from .measure import alternately, nanoseconds, ratio, row

N_VOCAB, N_EMBD = 152_000, 32
CALLS = 500


def run() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "wide.gguf"
        write_wide(path)
        with (
            llamacffi.Model(path) as model,
            llamacffi.Context(model, n_ctx=256, n_threads=1, embeddings=True) as context,
        ):
            batch = llamacffi.Batch(4)
            batch.add([1, 2, 3, 4], logits="all")
            context.decode(batch)
            measure(context)


def measure(context: llamacffi.Context) -> None:
    """Compare the ways to get the logits of one token."""
    view = context.logits_view()
    source, n_bytes = ffi.from_buffer(view), view.nbytes
    out, other = np.empty(N_VOCAB, np.float32), np.empty(N_VOCAB, np.float32)
    target = ffi.from_buffer(other)

    def copy() -> None:
        ffi.memmove(target, source, n_bytes)

    def copy_to_new() -> None:
        ffi.memmove(ffi.from_buffer(np.empty(N_VOCAB, np.float32)), source, n_bytes)

    compare(f"memcpy of {N_VOCAB} floats", copy, "logits(out=...)", lambda: context.logits(out=out))
    compare("memcpy into a new array", copy_to_new, "logits()", context.logits)
    row("logits_view()", [time_of(context.logits_view) for _ in range(15)], "us")
    row("embeddings()", [time_of(context.embeddings) for _ in range(15)], "us")


def compare(first: str, copy: Callable[[], object], second: str, get: Callable[[], object]) -> None:
    """Print the times of two ways and their ratio."""
    copies, gets = alternately(lambda: time_of(copy), lambda: time_of(get))
    row(first, copies, "us")
    row(second, gets, "us")
    ratio(f"  {second}, speed relative to it", copies, gets)


def time_of(function: Callable[[], object]) -> float:
    """Return the time of one call in microseconds."""
    return nanoseconds(function, CALLS) / 1e3


def write_wide(path: Path) -> None:
    """Write a llama of one small layer with a large vocabulary and no tokenizer."""
    with llamacffi.Gguf.new() as gguf:
        gguf["general.architecture"] = "llama"
        gguf["tokenizer.ggml.model"] = "no_vocab"
        for key, value in {
            "vocab_size": N_VOCAB,
            "block_count": 1,
            "context_length": 256,
            "embedding_length": N_EMBD,
            "feed_forward_length": N_EMBD,
            "attention.head_count": 1,
            "attention.layer_norm_rms_epsilon": 1e-5,
        }.items():
            gguf[f"llama.{key}"] = value
        square, wide = (N_EMBD, N_EMBD), (N_VOCAB, N_EMBD)
        names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
        shapes = {"token_embd": wide, "output": wide, **{f"blk.0.{name}": square for name in names}}
        random = np.random.default_rng(1)
        for name, shape in shapes.items():
            gguf.add_tensor(f"{name}.weight", random.standard_normal(shape, np.float32))
        for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
            gguf.add_tensor(f"{name}.weight", np.ones(N_EMBD, np.float32))
        gguf.write(path)


if __name__ == "__main__":
    run()
