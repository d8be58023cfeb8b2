"""The files that the pages of the documentation use: small models with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llamacffi import Gguf, demo
from tests.facade import random_models

# The vocabulary of the encoders: special tokens, and some words.
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = "the a llama eats grass river hill sky is green runs wide question answer what where"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
NORMAL, CONTROL = 1, 3  # the types of tokens


def write(directory: Path) -> Path:
    """Write the files."""
    for kind, name in (("bert", "encoder"), ("bert+classifier", "reranker")):
        plain = random_models.write(directory / f"{kind}.part", kind)
        with Gguf.open(plain) as gguf:
            if name == "reranker":
                _score_once(gguf)
            _give_vocabulary(gguf)
            gguf.write(directory / f"{name}.gguf")
        plain.unlink()
    _write_adapter(directory / "adapter.gguf")
    return directory


def _give_vocabulary(gguf: Gguf) -> None:
    filler = [f"[unused{i}]" for i in range(random_models.N_VOCAB)]
    tokens = [*SPECIAL, *(SPACE + word for word in TEXT.split()), *filler][: random_models.N_VOCAB]
    del gguf["bert.vocab_size"]
    gguf["tokenizer.ggml.model"] = "bert"
    gguf["tokenizer.ggml.tokens"] = tokens
    gguf["tokenizer.ggml.token_type"] = [CONTROL if t in SPECIAL else NORMAL for t in tokens]
    for i, name in enumerate(("padding", "unknown", "cls", "seperator", "mask")):
        gguf[f"tokenizer.ggml.{name}_token_id"] = i
    gguf["tokenizer.ggml.bos_token_id"] = SPECIAL.index("[CLS]")


def _score_once(gguf: Gguf) -> None:
    """Turn a classifier with several scores into a reranker, which has one."""
    del gguf["bert.classifier.output_labels"]
    for name in ("cls.output.weight", "cls.output.bias"):
        gguf.replace_tensor(name, np.array(gguf.tensors[name].data[:1]))


def _write_adapter(path: Path) -> None:
    """Write an adapter for the built-in model that makes one word more likely."""
    entries = demo.vocabulary()
    n_vocab, width = len(entries), demo.width()
    word = next(i for i, entry in enumerate(entries) if entry.text == f"{SPACE}dreams")
    a = np.ones((1, width), np.float32)
    b = np.zeros((n_vocab, 1), np.float32)
    b[word] = 30
    with Gguf.new() as gguf:
        gguf["general.architecture"] = "llama"
        gguf["general.type"] = "adapter"
        gguf["adapter.type"] = "lora"
        gguf["adapter.lora.alpha"] = 1.0
        gguf.add_tensor("output.weight.lora_a", a)
        gguf.add_tensor("output.weight.lora_b", b)
        gguf.write(path)
