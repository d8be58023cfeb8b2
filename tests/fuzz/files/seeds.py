"""The files that are changed: small, valid, of every kind, and always the same."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llamacffi import Batch, Context, Gguf, Model, demo, quantize, shards
from llamacffi.tools.imatrix import Imatrix, Squares
from tests.facade import loras, random_models
from tests.facade.imatrices import legacy
from tests.facade.vocabularies import BYTES, CONTROL, UNKNOWN, USER_DEFINED, Entry, write_vocab

MODEL_USES = ("2", "read", "embeddings", "small", "apart")
SPECIAL: list[Entry] = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
TOKENS = [1, 5, 9, 60]
CONTEXT = {"n_ctx": 64, "n_batch": 32, "n_ubatch": 32, "n_seq_max": 2, "n_threads": 1}
CONTEXT |= {"n_threads_batch": 1, "kv_unified": True}


@dataclass
class Seed:
    """A valid file, and what can be done with it."""

    name: str
    path: Path
    uses: tuple[str, ...]

    @functools.cached_property
    def data(self) -> bytes:
        """The valid file."""
        return self.path.read_bytes()


def write(directory: Path) -> dict[str, Seed]:
    """Write all of them."""
    found = [*_models(directory), *_vocabularies(directory), *_additions(directory)]
    found += [*_states(directory), *_splits(directory)]
    return {seed.name: seed for seed in found}


def more(directory: Path, most_bytes: int = 2**23) -> dict[str, Seed]:
    """Return models in a directory, such as those of every architecture."""
    uses = (*(["model"] * 4), *(f"model {one}" for one in MODEL_USES))
    paths = sorted(path for path in directory.glob("*.gguf") if path.stat().st_size < most_bytes)
    return {path.stem: Seed(path.stem, path, uses) for path in paths}


def base(directory: Path) -> Path:
    """Return the model that adapters and states are for."""
    return directory / "demo.gguf"


def _models(directory: Path) -> list[Seed]:
    uses = (*(["model"] * 4), *(f"model {one}" for one in MODEL_USES), "gguf", "quantize")
    seeds = []
    for kind in random_models.KINDS:
        if kind == "eagle3":  # for another model
            continue
        path = random_models.write(directory / f"model-{kind}.gguf", kind)
        without = ("model embeddings", "model apart") if kind == "t5" else ()  # it cannot
        seeds.append(Seed(kind, path, tuple(use for use in uses if use not in without)))
    demo.write(base(directory))
    seeds.append(Seed("demo", base(directory), uses))
    for name in ("Q4_0", "Q8_0", "Q4_K_M", "F16", "BF16", "IQ4_NL", "Q2_K", "Q5_1", "MXFP4_MOE"):
        path = directory / f"model-{name}.gguf"
        quantize(base(directory), path, name)
        seeds.append(Seed(name, path, uses))
    return seeds


def _vocabularies(directory: Path) -> list[Seed]:
    pads: list[Entry] = [("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN)]
    words: list[Entry] = ["▁", "▁ab", "a", "b", "ab", ("<mark>", USER_DEFINED), "<unused0>", "é"]
    bpe: list[Entry] = [
        *SPECIAL,
        "a",
        "b",
        "ab",
        "Ġ",
        "Ġa",
        "abb",
        ("<|im_end|>", CONTROL),
        "1",
        "2",
    ]
    bytes_: list[Entry] = [f"\\x{byte:02x}" for byte in range(256) if byte != ord("\n")]
    wpm: list[Entry] = [
        ("[PAD]", CONTROL),
        ("[UNK]", CONTROL),
        ("[CLS]", CONTROL),
        ("[SEP]", CONTROL),
    ]
    kinds: dict[str, tuple[str, list[Entry], dict[str, Any]]] = {
        "spm": ("llama", [*SPECIAL, *BYTES, *words], {"add_space_prefix": True}),
        "bpe": ("gpt2", bpe, {"merges": ["a b", "ab b", "Ġ a"], "eos_token_id": 2}),
        "wpm": (
            "bert",
            [*wpm, "▁a", "b", "▁ab", "c", "▁1"],
            {"unknown_token_id": 1, "bos_token_id": 2, "seperator_token_id": 3},
        ),
        "ugm": ("t5", [*pads, "▁", "a", "▁a", "b"], {"add_space_prefix": True}),
        "rwkv": ("rwkv", [("<s>", CONTROL), *bytes_, "\\n", "ab", "xy"], {}),
        "plamo2": ("plamo2", [*SPECIAL, ("<pad>", CONTROL), *BYTES, "a", "ab", "中"], {}),
    }
    seeds = []
    for name, (model, entries, metadata) in kinds.items():
        path = write_vocab(directory / f"vocab-{name}.gguf", model, entries, **metadata)
        seeds.append(Seed(name, path, ("vocab", "vocab", "vocab", "gguf")))
    return seeds


def _additions(directory: Path) -> list[Seed]:
    width = demo.width()
    weights = {"blk.0.attn_output.weight": (width, width), "blk.0.ffn_up.weight": (width, width)}
    with Gguf.open(base(directory)) as gguf:
        weights = {name: gguf.tensors[name].shape for name in weights if name in gguf.tensors}
    lora = loras.write_lora(directory / "lora.gguf", weights, alpha=8.0)
    alora = loras.write_lora(directory / "alora.gguf", weights, alpha=2.0, invocation=[5, 9])
    vector = directory / "control.gguf"
    loras.write_control_vector(vector, {1: [0.1] * random_models.N_EMBD})
    names = list(weights)
    squares = {name: Squares(np.ones((1, width), np.float32), np.array([7])) for name in names}
    matrix = directory / "imatrix.gguf"
    Imatrix(squares, ["text"], 2, 512).save(matrix)
    older = directory / "imatrix.dat"
    entries = dict.fromkeys(names, (3, [0.5] * width))
    older.write_bytes(legacy(entries, n_chunks=2, dataset="text"))
    return [
        Seed("lora", lora, ("lora", "lora", "merge lora", "gguf")),
        Seed("alora", alora, ("lora",)),
        Seed("control", vector, ("control",)),
        Seed("imatrix", matrix, ("imatrix",)),
        Seed("imatrix.dat", older, ("imatrix",)),
    ]


def _states(directory: Path) -> list[Seed]:
    seeds = []
    for kind, model in (("demo", base(directory)), ("mamba", directory / "model-mamba.gguf")):
        with Model(model, n_gpu_layers=0) as loaded, Context(loaded, **CONTEXT) as context:
            context.decode(Batch.from_tokens(TOKENS))
            context.decode(Batch.from_tokens(TOKENS[:2], seq_ids=(1,)))
            for name, seq_id, plain in (
                ("all", None, False),
                ("one", 0, False),
                ("plain", None, True),
                ("sequence", 1, True),
            ):
                path = directory / f"state-{kind}-{name}"
                context.save_file(path, TOKENS, seq_id=seq_id, plain=plain)
                seeds.append(Seed(path.name, path, (f"state {kind}",)))
    return seeds


def _splits(directory: Path) -> list[Seed]:
    paths = shards.split(directory / "model-llama.gguf", directory / "split", max_tensors=8)
    return [Seed(f"split {i}", path, ("split",)) for i, path in enumerate(paths)]
