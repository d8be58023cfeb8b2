"""Models that the independent gguf package writes, and upstream's programs to compare with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

N_EMBD, N_FF, N_LAYER, N_HEAD, N_HEAD_KV = 64, 160, 2, 4, 2


@pytest.fixture(scope="session")
def completion_program(root: Path) -> Path:
    """Upstream's llama-completion, built from the same tree by ``make reference``."""
    found = sorted(root.glob("build/*/bin/llama-completion"))
    if not found:
        pytest.skip("llama-completion is not built: run `make reference`")
    return found[0]


def write_random_llama(path: Path, vocabulary: Path, seed: int) -> None:
    """Write a llama with random weights and the tokenizer of another file."""
    import gguf

    reader = gguf.GGUFReader(vocabulary)
    tokenizer = [key for key in reader.fields if key.startswith("tokenizer.")]
    n_vocab = len(reader.fields["tokenizer.ggml.tokens"].data)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_block_count(N_LAYER)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_layer_norm_rms_eps(1e-5)
    for key in tokenizer:
        field = reader.fields[key]
        kind = field.types[0]
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type)
    random = np.random.default_rng(seed)
    kv = N_EMBD // N_HEAD * N_HEAD_KV
    shapes = {"token_embd": (n_vocab, N_EMBD), "output": (n_vocab, N_EMBD)}
    for i in range(N_LAYER):
        shapes |= {
            f"blk.{i}.attn_q": (N_EMBD, N_EMBD),
            f"blk.{i}.attn_k": (kv, N_EMBD),
            f"blk.{i}.attn_v": (kv, N_EMBD),
            f"blk.{i}.attn_output": (N_EMBD, N_EMBD),
            f"blk.{i}.ffn_gate": (N_FF, N_EMBD),
            f"blk.{i}.ffn_up": (N_FF, N_EMBD),
            f"blk.{i}.ffn_down": (N_EMBD, N_FF),
        }
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{norm}.weight", np.ones(N_EMBD, np.float32))
    for name, shape in shapes.items():
        values = random.standard_normal(shape, np.float32) * 0.3
        writer.add_tensor(f"{name}.weight", values)
    writer.add_tensor("output_norm.weight", np.ones(N_EMBD, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
