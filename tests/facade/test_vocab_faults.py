"""Vocabularies that would hang llama.cpp or end the process are refused before it reads them."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest

from llamacffi import Gguf, LoadError, Model
from tests.facade import random_models
from tests.facade.vocabularies import BYTES, CONTROL, UNKNOWN, Entry, write_vocab

SPECIAL: list[Entry] = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
FAULTS: dict[str, tuple[str, list[Entry], str]] = {
    "rwkv, a newline is not there": ("rwkv", ["\\nab", "b"], "token 0 .* begins with a newline"),
    "rwkv, nor in hexadecimal": ("rwkv", ["a", "\\x0ab"], "token 1 .* begins with a newline"),
    "rwkv, nor plainly": ("rwkv", ["a", "b", "\n\n"], "token 2 .* begins with a newline"),
    "rwkv, a long token": ("rwkv", ["\\n", "a" * 60_000], "token 1 .* has 60000 bytes"),
    "t5, a long token": ("t5", [*SPECIAL, "é" * 200], "token 3 .* has 400 bytes, and 256"),
    "bert, a long token": ("bert", ["a", "b" * 5000], "token 1 .* has 5000 bytes, and 1024"),
    "plamo2, a long token": ("plamo2", [*SPECIAL, *BYTES, "a" * 13_000], "13000 characters"),
    "plamo2, long tokens": (
        *("plamo2", [*SPECIAL, *BYTES, *(f"{i:03}" * 100 for i in range(50))]),
        "up to 273, which has 300 characters.* add up to 4.05e.08, and above 4e.08 ",
    ),
    "plamo2, not UTF-8": ("plamo2", [*SPECIAL, *BYTES, "a\udc80"], "token 259 .* is not UTF-8"),
    "llama, the same twice": ("llama", ["a", "b", "a"], "tokens 0 and 2 .* have the same text"),
}


@pytest.fixture(params=FAULTS.values(), ids=FAULTS.keys())
def fault(request, tmp_path) -> tuple[Path, str]:
    kind, entries, message = request.param
    path = tmp_path / "vocab.gguf"
    if any("\udc80" in str(one) for one in entries):
        made = Gguf.open(write_vocab(path, kind, [*entries[:-1], "?"]))
        made["tokenizer.ggml.tokens"] = [*made["tokenizer.ggml.tokens"][:-1], entries[-1]]
        made.write(path)
    else:
        write_vocab(path, kind, entries)
    return path, message


def test_it_is_refused_however_it_is_loaded(fault):
    path, message = fault
    for door in (
        lambda: Model(path, vocab_only=True),
        lambda: Model(path),
        lambda: Model.from_splits([path], vocab_only=True),
        lambda: Model.from_file(io.BytesIO(path.read_bytes()), vocab_only=True),
        lambda: Model.from_gguf(Gguf.open(path), vocab_only=True),
        lambda: Model.from_gguf(Gguf.open(path), fill=lambda _name, _array: None),
    ):
        with pytest.raises(LoadError, match=message):
            door()


@pytest.mark.parametrize("kind", ["test", "llama", "rwkv", "bert", "t5", "plamo2"])
def test_no_tokens(tmp_path, kind):
    path = write_vocab(tmp_path / "vocab.gguf", kind, ["a"])
    made = Gguf.open(path)
    made["tokenizer.ggml.tokens"] = []
    made.write(path)
    with pytest.raises(LoadError, match="has no tokens"):
        Model(path, vocab_only=True)


@pytest.mark.parametrize("kind", ["rwkv", "t5"])
def test_vocabularies_at_the_limits(tmp_path, kind):
    """Also loaded and freed in a thread with a small stack."""
    longest = ["c" * 256, "é" * 128]
    entries: list[Entry] = [*SPECIAL, "\\n" if kind == "rwkv" else "▁", *longest, "c", "é"]
    path = write_vocab(tmp_path / "vocab.gguf", kind, entries)
    found: list[int] = []

    def work() -> None:
        with Model(path, vocab_only=True) as model:
            found.extend(model.vocab.tokenize("c" * 256, add_special=False))

    work()
    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert found == [4, 4]


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_scores_that_are_not_numbers(tmp_path, kind, score):
    path = write_vocab(tmp_path / "vocab.gguf", kind, [*SPECIAL, "a", "b"])
    made = Gguf.open(path)
    scores = np.array(made["tokenizer.ggml.scores"], np.float32)
    scores[4] = score
    made["tokenizer.ggml.scores"] = scores
    made.write(path)
    with pytest.raises(LoadError, match=f"the score of token 4 .* is {score}"):
        Model(path, vocab_only=True)


def test_a_normalizer_that_expands_a_character_too_much(tmp_path):
    path = write_vocab(tmp_path / "vocab.gguf", "t5", [*SPECIAL, "a"])
    made = Gguf.open(path)
    data = bytes([0, 4, 0, 0]) + bytes(1024) + b"a" * 1024 + b"\0"
    made["tokenizer.ggml.precompiled_charsmap"] = np.frombuffer(data, np.uint8)
    made.write(path)
    Model(path, vocab_only=True).close()
    made["tokenizer.ggml.precompiled_charsmap"] = np.frombuffer(data[:-1] + b"a\0", np.uint8)
    made.write(path)
    with pytest.raises(LoadError, match="precompiled_charsmap replaces a character by more than"):
        Model(path, vocab_only=True)


def test_overridden_metadata_are_checked(tmp_path):
    """The overrides set the type and size of the vocabulary that is checked."""
    path = write_vocab(tmp_path / "vocab.gguf", "llama", [*SPECIAL, "\\nx"])
    Model(path, vocab_only=True).close()
    for overrides, message in (
        ({"tokenizer.ggml.model": "rwkv"}, "begins with a newline"),
        ({"tokenizer.ggml.model": "none", "llama.vocab_size": 2**32 - 1}, "4294967295 tokens"),
        ({"tokenizer.ggml.model": "no_vocab", "llama.vocab_size": -1}, "4294967295 tokens"),
    ):
        with pytest.raises(LoadError, match=message):
            Model(path, vocab_only=True, kv_overrides=overrides)


def test_too_many_dummy_tokens(tmp_path):
    path = random_models.write(tmp_path / "random.gguf", "llama")
    made = Gguf.open(path)
    made["llama.vocab_size"] = np.uint32(2**31 - 1)
    made.write(path)
    with pytest.raises(LoadError, match="2147483647 tokens without texts is too large"):
        Model(path, vocab_only=True)


def test_a_failed_load_says_why_once(tmp_path):
    """Although the metadata is read twice."""
    path = write_vocab(tmp_path / "vocab.gguf", "llama", [*SPECIAL, "a"])
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(LoadError, match="failed to read key-value pairs") as caught:
        Model(path, vocab_only=True)
    assert "".join(caught.value.__notes__).count("failed to read key-value pairs") == 1
