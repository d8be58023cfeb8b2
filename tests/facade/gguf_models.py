"""Small models with random weights, and changed ones, made with `Gguf` itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llamacffi import Gguf, demo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

N_VOCAB, N_LAYER, N_HEAD, N_CTX = 96, 2, 4, 256


def edited(source: bytes | Path, change: Callable[[Gguf], object]) -> bytes:
    """Return a file that a function has changed."""
    with Gguf.from_bytes(source) if isinstance(source, bytes) else Gguf.open(source) as gguf:
        change(gguf)
        return gguf.to_bytes()


def write_altered(path: Path, *, spoil: float | None = None, **metadata: object) -> Path:
    """Write the built-in model with other metadata, or a wrong number in its output.

    Args:
        path: The file.
        spoil: The number.
        metadata: More keys, with ``__`` for each dot.
    """

    def change(gguf: Gguf) -> None:
        gguf.update({name.replace("__", "."): value for name, value in metadata.items()})
        if spoil is not None:
            array = np.array(demo.weights()["output.weight"])
            array[7] = spoil
            gguf.replace_tensor("output.weight", array)

    path.write_bytes(edited(demo.to_bytes(), change))
    return path


def write_llama(
    path: Path,
    *,
    n_embd: int = 256,
    n_layer: int = N_LAYER,
    n_expert: int = 0,
    tied: bool = False,
    dtype: str = "f32",
) -> Path:
    """Write a llama without a tokenizer, whose rows fill whole blocks.

    Args:
        path: The file.
        n_embd: Its width, and that of its feed-forward layers.
        n_layer: How many layers it has.
        n_expert: How many experts a layer has; it is a mixture then, which uses two.
        tied: Leave the output matrix out: it is that of the embeddings.
        dtype: The type of the matrices.
    """
    random = np.random.default_rng(11)
    square = (n_embd, n_embd)
    layer = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), square)
    if n_expert:
        layer["ffn_gate_inp"] = (n_expert, n_embd)
        experts = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
        layer |= dict.fromkeys(experts, (n_expert, *square))
    else:
        layer |= dict.fromkeys(("ffn_gate", "ffn_up", "ffn_down"), square)
    shapes = {"token_embd": (N_VOCAB, n_embd)}
    for i in range(n_layer):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    if not tied:
        shapes["output"] = (N_VOCAB, n_embd)
    with Gguf.new() as gguf:
        gguf["general.architecture"] = "llama"
        gguf["tokenizer.ggml.model"] = "no_vocab"
        gguf["llama.vocab_size"] = N_VOCAB
        gguf["llama.context_length"] = N_CTX
        gguf["llama.embedding_length"] = n_embd
        gguf["llama.feed_forward_length"] = n_embd
        gguf["llama.block_count"] = n_layer
        gguf["llama.attention.head_count"] = N_HEAD
        gguf["llama.attention.layer_norm_rms_epsilon"] = 1e-5
        if n_expert:
            gguf["llama.expert_count"] = n_expert
            gguf["llama.expert_used_count"] = 2
        for name, shape in shapes.items():
            matrix = random.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5)
            gguf.add_tensor(f"{name}.weight", matrix, type=dtype)
        norms = ["output_norm", *(f"blk.{i}.{n}_norm" for i in range(n_layer) for n in NORMS)]
        for name in norms:
            gguf.add_tensor(f"{name}.weight", np.ones(n_embd, np.float32))
        gguf.write(path)
    return path


NORMS = ("attn", "ffn")
