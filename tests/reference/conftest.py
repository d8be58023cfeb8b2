"""Models that the independent gguf package writes, and upstream's programs to compare with."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.timing import HANGS

N_EMBD, N_FF, N_LAYER, N_HEAD, N_HEAD_KV = 64, 160, 2, 4, 2
N_CTX = 512

ONE = np.ones(N_EMBD, np.float32)


@pytest.fixture(scope="session")
def completion_program(root: Path) -> Path:
    """Upstream's llama-completion, built from the same tree by ``make reference``."""
    found = sorted(root.glob("build/*/bin/llama-completion"))
    if not found:
        pytest.skip("llama-completion is not built: run `make reference`")
    return found[0]


@pytest.fixture(scope="session")
def programs(root: Path) -> Path:
    """The directory of upstream's programs."""
    found = sorted(root.glob("build/*/bin/test-llama-archs"))
    if not found:
        pytest.skip("upstream's programs are not built: run `make reference`")
    return found[0].parent


@pytest.fixture(scope="session")
def models(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a model of each architecture; some 900 MB, removed at the end."""
    directory = tmp_path_factory.mktemp("architectures")
    command = [programs / "test-llama-archs", "-s", "1234", "-o", directory]
    subprocess.run(command, check=True, capture_output=True, timeout=HANGS)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def random_model(
    llama_cpp: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """Return a function that writes a model of an architecture with an upstream vocabulary."""

    def write(architecture: str, vocabulary: str) -> Path:
        path = tmp_path_factory.mktemp("random") / f"{architecture}-{vocabulary}.gguf"
        source = llama_cpp / "models" / f"ggml-vocab-{vocabulary}.gguf"
        ARCHITECTURES[architecture](path, source)
        return path

    return write


def write_llama(path: Path, vocabulary: Path) -> None:
    """Write a llama with random weights and the tokenizer of another file."""
    writer, n_vocab = writer_with_tokenizer(path, "llama", vocabulary)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    kv = N_EMBD // N_HEAD * N_HEAD_KV
    tensors: dict[str, Any] = {
        "token_embd": (n_vocab, N_EMBD),
        "output_norm": ONE,
        "output": (n_vocab, N_EMBD),
    }
    for i in range(N_LAYER):
        tensors |= {
            f"blk.{i}.attn_norm": ONE,
            f"blk.{i}.attn_q": (N_EMBD, N_EMBD),
            f"blk.{i}.attn_k": (kv, N_EMBD),
            f"blk.{i}.attn_v": (kv, N_EMBD),
            f"blk.{i}.attn_output": (N_EMBD, N_EMBD),
            f"blk.{i}.ffn_norm": ONE,
            f"blk.{i}.ffn_gate": (N_FF, N_EMBD),
            f"blk.{i}.ffn_up": (N_FF, N_EMBD),
            f"blk.{i}.ffn_down": (N_EMBD, N_FF),
        }
    finish(writer, {f"{name}.weight": tensor for name, tensor in tensors.items()}, scale=0.3)


def write_mamba(path: Path, vocabulary: Path) -> None:
    """Write a mamba, which is recurrent, in the same way."""
    inner, state, conv, rank = 2 * N_EMBD, 16, 4, 4
    writer, n_vocab = writer_with_tokenizer(path, "mamba", vocabulary)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(conv)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    tensors: dict[str, Any] = {
        "token_embd.weight": (n_vocab, N_EMBD),
        "output_norm.weight": ONE,
        "output.weight": (n_vocab, N_EMBD),
    }
    for i in range(N_LAYER):
        tensors |= {
            f"blk.{i}.attn_norm.weight": ONE,
            f"blk.{i}.ssm_in.weight": (2 * inner, N_EMBD),
            f"blk.{i}.ssm_conv1d.weight": (inner, conv),
            f"blk.{i}.ssm_conv1d.bias": np.zeros(inner, np.float32),
            f"blk.{i}.ssm_x.weight": (rank + 2 * state, inner),
            f"blk.{i}.ssm_dt.weight": (inner, rank),
            f"blk.{i}.ssm_dt.bias": np.zeros(inner, np.float32),
            f"blk.{i}.ssm_a": np.full((inner, state), -1, np.float32),
            f"blk.{i}.ssm_d": np.ones(inner, np.float32),
            f"blk.{i}.ssm_out.weight": (N_EMBD, inner),
        }
    finish(writer, tensors, scale=0.2)


ARCHITECTURES = {"llama": write_llama, "mamba": write_mamba}


def writer_with_tokenizer(path: Path, architecture: str, vocabulary: Path) -> tuple[Any, int]:
    """Begin a file with the tokenizer of another; return its size too."""
    import gguf

    reader = gguf.GGUFReader(vocabulary)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_layer_norm_rms_eps(1e-5)
    copy_metadata(reader, writer, "tokenizer.")
    return writer, len(reader.fields["tokenizer.ggml.tokens"].data)


def copy_metadata(reader: Any, writer: Any, prefix: str) -> None:
    """Copy the keys that begin with ``prefix``."""
    import gguf

    for key, field in reader.fields.items():
        if key.startswith(prefix) and not key.startswith("GGUF."):
            kind = field.types[0]
            sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub_type)


def finish(writer: Any, tensors: dict[str, Any], scale: float) -> None:
    """Write tensors: arrays as they are, shapes filled with random numbers."""
    random = np.random.default_rng(1)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            tensor = random.standard_normal(tensor, np.float32) * np.float32(scale)
        writer.add_tensor(name, tensor)
    close(writer)


def close(writer: Any) -> None:
    """Write what was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
