"""Models for the benchmarks: random weights behind a real vocabulary."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import llamacffi
from ffigen.vendor import ensure_tree

ROOT = Path(__file__).parent.parent


@contextmanager
def random_llama(*, n_layer: int, n_embd: int, n_ff: int) -> Iterator[llamacffi.Model]:
    """Yield a llama with heads of 32 or more and a vocabulary of 32,000; float16."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "random.gguf"
        write_random_llama(path, n_layer, n_embd, n_ff)
        with llamacffi.Model(path) as model:
            yield model


def write_random_llama(path: Path, n_layer: int, n_embd: int, n_ff: int) -> None:
    """Write the file of `random_llama`."""
    with (
        llamacffi.Gguf.open(
            ensure_tree(ROOT).path / "models" / "ggml-vocab-llama-spm.gguf"
        ) as vocab,
        llamacffi.Gguf.new() as gguf,
    ):
        gguf["general.architecture"] = "llama"
        for key, value in {
            "block_count": n_layer,
            "context_length": 2048,
            "embedding_length": n_embd,
            "feed_forward_length": n_ff,
            "attention.head_count": max(1, n_embd // 64),
            "attention.layer_norm_rms_epsilon": 1e-5,
        }.items():
            gguf[f"llama.{key}"] = value
        for key, value in vocab.items():
            if key.startswith("tokenizer."):
                gguf.set(key, value, type=vocab.type(key))
        n_vocab = len(gguf["tokenizer.ggml.tokens"])
        for name, shape in shapes(n_layer, n_embd, n_ff, n_vocab).items():
            gguf.add_tensor(f"{name}.weight", weights(name, shape))
        gguf.write(path)


def shapes(n_layer: int, n_embd: int, n_ff: int, n_vocab: int) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a llama."""
    square = (n_embd, n_embd)
    tensors: dict[str, tuple[int, ...]] = {
        "token_embd": (n_vocab, n_embd),
        "output_norm": (n_embd,),
        "output": (n_vocab, n_embd),
    }
    for i in range(n_layer):
        tensors |= {f"blk.{i}.{name}": square for name in ("attn_q", "attn_k", "attn_v")}
        tensors |= {f"blk.{i}.attn_output": square}
        tensors |= {f"blk.{i}.{name}_norm": (n_embd,) for name in ("attn", "ffn")}
        tensors |= {f"blk.{i}.{name}": (n_ff, n_embd) for name in ("ffn_gate", "ffn_up")}
        tensors |= {f"blk.{i}.ffn_down": (n_embd, n_ff)}
    return tensors


def weights(name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return random numbers, the same in each run; norms are ones."""
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    random = np.random.default_rng(list(name.encode()))
    return (random.standard_normal(shape, np.float32) / shape[-1] ** 0.5).astype(np.float16)
