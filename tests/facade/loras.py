"""LoRA adapters and control vectors in GGUF files, and models that have them merged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from llamacffi import Gguf

Pair = tuple[np.ndarray, np.ndarray]
RANK = 4


def random_pair(n_out: int, n_in: int, seed: int = 0, rank: int = RANK) -> Pair:
    """Return ``lora_a`` and ``lora_b``, whose product changes a weight strongly."""
    random = np.random.default_rng(seed)
    a = random.standard_normal((rank, n_in)).astype(np.float32)
    b = random.standard_normal((n_out, rank)).astype(np.float32)
    return a * np.float32(0.3), b * np.float32(0.3)


def write_lora(
    path: Path,
    weights: Mapping[str, Pair | tuple[int, int]],
    *,
    alpha: float | None = None,
    architecture: str = "llama",
    invocation: list[int] | None = None,
    **metadata: str,
) -> Path:
    """Write an adapter.

    Args:
        path: The file.
        weights: The pair of matrices for each weight, or the shape of the weight for random ones.
        alpha: What they are multiplied with.
        architecture: Of the model.
        invocation: The tokens that switch it on.
        metadata: More keys, with ``_`` for each dot.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    if invocation is not None:
        kinds = gguf.GGUFValueType
        key = "adapter.alora.invocation_tokens"
        writer.add_key_value(key, invocation, kinds.ARRAY, kinds.UINT32)
    for key, value in metadata.items():
        writer.add_string(key.replace("_", "."), value)
    for i, (name, pair) in enumerate(weights.items()):
        a, b = pair if isinstance(pair[0], np.ndarray) else random_pair(*pair, seed=i)  # type: ignore[arg-type,misc]
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    finish(writer)
    return path


def merge(source: Path, target: Path, changes: Mapping[str, np.ndarray]) -> Path:
    """Write a model with something added to each weight."""
    with Gguf.open(source) as model:
        for name, change in changes.items():
            model.replace_tensor(name, model.tensors[name].dequantize() + change)
        model.write(target)
    return target


def write_control_vector(path: Path, directions: Mapping[int, Any]) -> Path:
    """Write a control vector as upstream's program does."""
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(directions))
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", np.asarray(direction))
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    """Write what was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
