"""Hostile adapters, control vectors and importance matrices raise only documented errors."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llamacffi import (
    Adapter,
    AdapterError,
    ArgumentError,
    Batch,
    Context,
    ControlVector,
    Gguf,
    GgufError,
    Imatrix,
    LlamaError,
    LoadError,
    Model,
    merge_lora,
)
from tests.facade.imatrices import legacy
from tests.facade.loras import write_control_vector, write_lora

N_EMBD, N_FF = 64, 96
NUMBERS = (0, 1, 2, 3, 4, 8, 31, 32, 63, 64, 65, 255, 256, -1, -2, 2**31 - 1, -(2**31), 2**20)
SIZES = (1, 2, 4, 32, 63, 64, 65, 96, 128)
TYPES = (
    *("F32", "F16", "BF16", "F64", "I8", "I32", "I64", "Q4_0", "Q8_0", "IQ4_NL", "Q5_1"),
    *("TQ2_0", "MXFP4", "IQ2_XS", "Q6_K"),
)
VALUES = (
    *(0, 1, -1, 2**31, 2.5, float("nan"), float("inf"), "lora", "adapter", "x" * 3000, True),
    *([1, 2], ["a", "b"], [1.5], "llama", ""),
)
NAMES = (
    *("token_embd.weight.lora_a", "output.weight.lora_b", "blk.0.attn_norm.weight.lora_a"),
    *(".lora_a", "a.lora_a.lora_b", "direction.0", "direction.999999", "direction.2", "\x1b[1m"),
)
BASE = {
    "lora": lambda path: write_lora(
        path,
        {"blk.0.attn_q.weight": (N_EMBD, N_EMBD), "blk.1.ffn_up.weight": (N_FF, N_EMBD)},
        alpha=8.0,
        invocation=[3, 4],
    ),
    "vector": lambda path: write_control_vector(path, {1: np.ones(N_EMBD, np.float32)}),
    "imatrix": lambda path: write_imatrix(path),
    "legacy": lambda path: write_legacy(path),
}


def write_imatrix(path: Path) -> Path:
    squares = {
        name: (np.ones((1, n), np.float32), np.array([5]))
        for name, n in {"blk.0.attn_q.weight": N_EMBD, "blk.1.ffn_down.weight": N_FF}.items()
    }
    with Gguf.new() as gguf:
        gguf["general.type"] = "imatrix"
        gguf.set("imatrix.datasets", ["a"], type="str")
        gguf.set("imatrix.chunk_count", 3, type="u32")
        gguf.set("imatrix.chunk_size", 512, type="u32")
        for name, (sums, counts) in squares.items():
            gguf.add_tensor(f"{name}.in_sum2", sums)
            gguf.add_tensor(f"{name}.counts", counts[:, None].astype(np.float32))
        gguf.write(path)
    return path


def write_legacy(path: Path) -> Path:
    names = ("blk.0.attn_q.weight", "blk.1.ffn_up.weight")
    path.write_bytes(legacy(dict.fromkeys(names, (3, [1.0] * N_EMBD)), dataset="data"))
    return path


def restructured(base: Path, target: Path, chance: random.Random) -> None:
    """Write the file with changed keys, names, types and shapes."""
    with Gguf.open(base) as gguf:
        metadata = {key: gguf[key] for key in gguf}
        tensors = [(tensor.name, np.array(tensor.data)) for tensor in gguf.tensors.values()]
    with Gguf.new() as made:
        for key, value in metadata.items():
            if chance.random() > 0.06:
                made[key] = chance.choice(VALUES) if chance.random() < 0.08 else value
        for name, array in tensors:
            kind = chance.choice(TYPES) if chance.random() < 0.2 else None
            if chance.random() < 0.25:
                shape = [chance.choice(SIZES) for _ in range(chance.choice((1, 1, 2, 2, 3)))]
                array = np.ones(shape, np.float32)
            if chance.random() < 0.08:
                array = np.full_like(array, chance.choice((np.nan, np.inf, 3e38, -1, 0)))
            try:
                called = chance.choice(NAMES) if chance.random() < 0.08 else name
                made.add_tensor(called, array, type=kind)
            except LlamaError:  # the file does not exist
                continue
        made.write(target)


def damaged(base: Path, target: Path, chance: random.Random) -> None:
    """Write the file with changed bytes, most of them in its header."""
    data = bytearray(base.read_bytes())
    for _ in range(chance.choice((1, 1, 2, 3))):
        end = min(len(data), 900) if chance.random() < 0.85 else len(data)
        at, kind = chance.randrange(max(end, 1)), chance.random()
        if kind < 0.4:
            data[at : at + 4] = struct.pack("<i", chance.choice(NUMBERS))
        elif kind < 0.55:
            data[at : at + 8] = struct.pack("<q", chance.choice((*NUMBERS, 2**40, 2**62)))
        elif kind < 0.8 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind < 0.9:
            del data[at:]
        else:
            data[at:at] = bytes(chance.randrange(1, 40))
    target.write_bytes(data)


@pytest.fixture
def use(random_path, tmp_path) -> Callable[[str, Path], None]:
    """Return a function that loads a file and uses it."""

    def use_one(kind: str, path: Path) -> None:
        if kind in ("imatrix", "legacy"):
            imatrix = Imatrix.open(path)
            assert len([imatrix[name] for name in imatrix]) == len(imatrix.merge(imatrix))
            imatrix.save(tmp_path / "saved.gguf")
            return
        with (
            Model(random_path("llama"), n_gpu_layers=0) as model,
            Context(model, n_ctx=64, n_threads=1, n_threads_batch=1) as context,
        ):
            if kind == "lora":
                with Adapter(model, path) as adapter:
                    activated = bool(adapter.invocation_tokens)
                    context.adapters = {adapter: 1.0}
                    context.decode(Batch.from_tokens([1, 2, 3]))
                if not activated:
                    merge_lora(random_path("llama"), {path: 0.5}, tmp_path / "merged.gguf")
            else:
                context.control_vector = ControlVector.from_file(path)
                context.decode(Batch.from_tokens([1, 2, 3]))

    return use_one


@pytest.mark.filterwarnings("ignore:.*float64")
@pytest.mark.parametrize("kind", BASE)
def test_a_hostile_file_raises_only_documented_errors(use, tmp_path, kind):
    chance = random.Random(kind)
    base, path = BASE[kind](tmp_path / "base"), tmp_path / "hostile"
    used = 0
    for i in range(120):
        make = restructured if kind != "legacy" and i % 2 else damaged
        make(base, path, chance)
        try:
            use(kind, path)
        except (AdapterError, LoadError, GgufError, ArgumentError):
            continue
        used += 1
    assert 12 <= used <= 108  # some are refused, and some can be used


@pytest.mark.parametrize("key", ["general.type", "adapter.type", "general.architecture"])
@pytest.mark.parametrize("value", [[1, 2], ["adapter", "lora"], 1, True])
def test_metadata_of_another_type_are_refused(use, tmp_path, key, value):
    path = BASE["lora"](tmp_path / "base")
    with Gguf.open(path) as gguf:
        del gguf[key]  # also removes its type
        gguf[key] = value
        gguf.write(tmp_path / "other")
    with pytest.raises(AdapterError, match=key):
        use("lora", tmp_path / "other")


@pytest.mark.parametrize("kind", ["F64", "I8", "I32", "I64"])
def test_matrices_that_cannot_be_multiplied_are_refused(use, tmp_path, kind):
    dtype = {"F64": "f8", "I8": "i1", "I32": "i4", "I64": "i8"}[kind]
    weights = {"blk.0.attn_q.weight": (np.ones((4, N_EMBD), dtype), np.ones((N_EMBD, 4), dtype))}
    with pytest.raises(AdapterError, match=f"is {kind}"):
        use("lora", write_lora(tmp_path / "lora", weights))


def test_a_direction_for_a_huge_layer_allocates_no_memory(tmp_path):
    rows = {1: np.ones(N_EMBD, np.float32), 999_999: np.ones(N_EMBD, np.float32)}
    with pytest.raises(AdapterError, match="layer 999999, but no model has more than"):
        ControlVector.from_file(write_control_vector(tmp_path / "vector", rows))


@pytest.mark.parametrize("count", [np.nan, np.inf, -1, 1e30])
def test_invalid_counts_are_refused(tmp_path, count):
    path = write_imatrix(tmp_path / "imatrix")
    with Gguf.open(path) as gguf:
        gguf.replace_tensor("blk.0.attn_q.weight.counts", np.full((1, 1), count, np.float32))
        gguf.write(tmp_path / "other")
    with pytest.raises(GgufError, match="invalid numbers in the sums or counts"):
        Imatrix.open(tmp_path / "other")


def test_a_negative_number_of_values_does_not_mean_all(tmp_path):
    entry = struct.pack("<iii", 0, 1, -1)
    (tmp_path / "legacy").write_bytes(struct.pack("<i", 2**31 - 1) + entry * 200_000)
    with pytest.raises(GgufError, match="it has -1 numbers"):
        Imatrix.open(tmp_path / "legacy")
