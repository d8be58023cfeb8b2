"""Tokenizers return upstream's ids, are lossless, and handle any text."""

from __future__ import annotations

import re
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import llamacffi
from llamacffi import ArgumentError, ClosedError, Model, TokenizeError, enums, generate

GOLDEN = [
    "bert-bge",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
]
# Without expected ids: upstream has only the vocabulary.
OTHERS = ["aquila", "baichuan", "gpt-neox", "nomic-bert-moe"]
SEPARATOR = "\n__ggml_vocab_test__\n"


def test_every_vocabulary_is_known_here(llama_cpp):
    files = (llama_cpp / "models").glob("ggml-vocab-*.gguf")
    names = {file.stem.removeprefix("ggml-vocab-") for file in files}
    assert names == {*GOLDEN, *OTHERS}
    for name in names:
        expected = (llama_cpp / "models" / f"ggml-vocab-{name}.gguf.inp").exists()
        assert expected == (name in GOLDEN), name


@pytest.mark.parametrize("name", GOLDEN)
def test_upstreams_expected_ids(llama_cpp, vocabularies, name):
    """The files of upstream's test-tokenizer-0: texts in .inp, a line of ids for each in .out."""
    file = llama_cpp / "models" / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{file}.inp").read_bytes().decode().removesuffix(SEPARATOR).split(SEPARATOR)
    lines = Path(f"{file}.out").read_text().splitlines()
    assert len(texts) == len(lines) > 30
    expected = [list(map(int, line.split())) for line in lines]
    vocab = vocabularies[name]
    assert [vocab.tokenize(text, add_special=False) for text in texts] == expected
    assert vocab.tokenize_batch(texts, add_special=False, n_threads=2) == expected


def test_text_and_its_bytes_are_the_same(vocabularies):
    vocab, text = vocabularies["llama-bpe"], "Ein Lama 🦙, zwei\0 Lamas"
    assert vocab.tokenize(text) == vocab.tokenize(text.encode())


@pytest.mark.parametrize(("text", "index"), [("\ud800", 0), ("ok\udfff", 2), ("a\ud83e\udd99", 1)])
def test_a_lone_surrogate_is_refused(vocabularies, text, index):
    with pytest.raises(TokenizeError, match=f"surrogate at index {index}"):
        vocabularies["llama-bpe"].tokenize(text)


@pytest.mark.parametrize("text", [5, None, ["a"]])
def test_other_types_than_text_are_refused(vocabularies, text):
    with pytest.raises(TypeError):
        vocabularies["llama-bpe"].tokenize(text)


def test_special_tokens_on_and_off(vocabularies):
    vocab = vocabularies["llama-bpe"]
    text = "<|begin_of_text|>hi<|eot_id|>"
    assert vocab.add_bos
    plain = vocab.tokenize(text, add_special=False)
    parsed = vocab.tokenize(text, add_special=False, parse_special=True)
    assert len(plain) > len(parsed) == 3
    assert (parsed[0], parsed[2]) == (vocab.bos, vocab.eot)
    assert vocab.tokenize("hi") == [vocab.bos, *vocab.tokenize("hi", add_special=False)]
    assert vocab.detokenize(parsed) == "hi"
    assert vocab.detokenize(parsed, unparse_special=True) == text
    assert vocab.detokenize(plain) == text
    assert vocab.piece(vocab.eot) == b"<|eot_id|>"
    assert vocab.piece(vocab.eot, special=False) == b""
    with_bos = vocab.tokenize("hi")
    assert vocab.detokenize(with_bos, unparse_special=True) == "<|begin_of_text|>hi"
    assert vocab.detokenize(with_bos, unparse_special=True, remove_special=True) == "hi"


def test_empty_text(vocabularies):
    for name in ("llama-bpe", "llama-spm", "bert-bge"):
        vocab = vocabularies[name]
        assert vocab.tokenize("", add_special=False) == vocab.tokenize(b"", add_special=False) == []
        assert vocab.detokenize([]) == ""
    assert vocabularies["llama-bpe"].tokenize("") == [vocabularies["llama-bpe"].bos]


ONE_TOKEN = {
    "piece": lambda vocab, token: vocab.piece(token),
    "text": lambda vocab, token: vocab.text(token),
    "score": lambda vocab, token: vocab.score(token),
    "attr": lambda vocab, token: vocab.attr(token),
    "is_eog": lambda vocab, token: vocab.is_eog(token),
    "is_control": lambda vocab, token: vocab.is_control(token),
    "detokenize": lambda vocab, token: vocab.detokenize([1, token]),
    "detokenize_bytes": lambda vocab, token: vocab.detokenize_bytes((token, 1)),
    "detokenize_batch": lambda vocab, token: vocab.detokenize_batch([[1], [1, token]]),
    "check": lambda vocab, token: vocab.check([token]),
    "a generator": lambda vocab, token: vocab.detokenize(one for one in (1, token)),
}


@pytest.mark.parametrize("call", ONE_TOKEN.values(), ids=ONE_TOKEN.keys())
def test_a_token_out_of_range(model, call):
    vocab = model.vocab
    for token in (-1, len(vocab), 2**31 - 1, 2**31, 2**70, -(2**40)):
        with pytest.raises(
            ArgumentError, match=f"token {token} is not in the vocabulary, which has ids 0 to 513"
        ):
            call(vocab, token)
    call(vocab, 0)
    call(vocab, len(vocab) - 1)


@pytest.mark.parametrize("call", ONE_TOKEN.values(), ids=ONE_TOKEN.keys())
def test_a_token_of_another_type(model, call):
    for token in (1.5, "1", None, True, np.True_, np.float32(1), Fraction(3), [1]):
        with pytest.raises(TypeError, match=re.escape(f"token must be an integer, not {token!r}")):
            call(model.vocab, token)
    for token in (np.int64(3), np.uint8(3), np.int32(3)):
        assert call(model.vocab, token) == call(model.vocab, 3)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("12", "tokens must be integers, not text"),
        (b"12", "tokens must be integers, not text"),
        (5, "tokens must be a sequence of integers, not 5"),
        (None, "tokens must be a sequence of integers, not None"),
        (np.zeros((2, 2), np.int32), "one-dimensional"),
        (np.array(3), "one-dimensional"),
        (np.array([1.0, 2.0]), "array of integers"),
        (np.array([True]), "array of integers"),
    ],
)
def test_tokens_of_another_type(model, tokens, message):
    for call in (model.vocab.detokenize, model.vocab.check):
        with pytest.raises(TypeError, match=message):
            call(tokens)


def test_arrays_of_tokens(model):
    vocab = model.vocab
    ids = vocab.tokenize("The llama is here")
    text = vocab.detokenize(ids)
    for dtype in (np.int32, np.int64, np.uint16, np.uint64, ">i4"):
        array = np.array(ids, dtype)
        assert vocab.detokenize(array) == text
        assert vocab.detokenize(array[::-1][::-1]) == text
        assert vocab.check(array) is array
    array = np.array(ids, np.int32)
    array.flags.writeable = False
    assert vocab.detokenize(array) == vocab.detokenize(memoryview(array)) == text
    assert vocab.detokenize(np.zeros(0)) == ""
    with pytest.raises(ArgumentError, match=r"token 514 is not .* \(at index 2\)"):
        vocab.detokenize(np.array([1, 2, 514, 600]))
    with pytest.raises(ArgumentError, match=f"token {2**40} is not in the vocabulary"):
        vocab.check(np.array([1, 2**40]))
    with pytest.raises(ArgumentError, match="token -1 is not in the vocabulary"):
        vocab.check(np.array([1, -1], np.int8))


def test_a_large_array_is_not_copied(model):
    tokens = np.full(1_000_000, 3 + ord("a"), np.int32)
    vocab = model.vocab
    vocab.detokenize_bytes(tokens[:10])
    tracemalloc.start()
    try:
        assert vocab.check(tokens) is tokens
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()
    assert vocab.detokenize_bytes(tokens) == b"a" * 1_000_000


@pytest.mark.parametrize("text", ["a", b"a", "", "é", "\0"])
def test_an_array_is_a_new_one(model, text):
    array = model.vocab.tokenize_array(text)
    assert (array.dtype, array.ndim, array.flags.owndata) == (np.int32, 1, True)
    array[:] = 0
    assert model.vocab.tokenize_array(text).tolist() == model.vocab.tokenize(text)


def test_properties_of_tokens(model):
    vocab = model.vocab
    assert len(vocab) == len(llamacffi.demo.vocabulary())
    assert vocab.type is enums.VocabType.SPM
    assert (vocab.bos, vocab.eos, vocab.sep, vocab.mask) == (1, 2, None, None)
    assert (vocab.add_bos, vocab.add_eos) == (True, False)
    assert [vocab.is_eog(token) for token in (1, 2, 3)] == [False, True, False]
    assert [vocab.is_control(token) for token in (1, 2, 3)] == [True, True, False]
    assert vocab.attr(1) == enums.TokenAttr.CONTROL
    assert vocab.attr(3) == enums.TokenAttr.BYTE
    for i, entry in enumerate(llamacffi.demo.vocabulary()):
        assert (vocab.text(i), vocab.score(i)) == (entry.text, entry.score)
    assert vocab.piece(3 + 0xE9) == b"\xe9"


def test_a_megabyte_of_text(vocabularies):
    text = "The quick brown llama jumps over 12345 lazy dogs.\n" * 20_000
    assert len(text) == 10**6
    for name in ("llama-bpe", "llama-spm"):
        vocab = vocabularies[name]
        ids = vocab.tokenize(text, add_special=False)
        assert vocab.detokenize(ids) == text


def test_a_vocabulary_keeps_its_model_and_closes_with_it(demo_path):
    vocab = Model(demo_path, vocab_only=True).vocab
    assert vocab.tokenize(" llama")
    vocab.model.close()
    for call in (
        lambda: vocab.ptr,
        lambda: vocab.tokenize("a"),
        lambda: vocab.tokenize_array("a"),
        lambda: vocab.tokenize_batch(["a"]),
        lambda: vocab.n_tokens("a"),
        lambda: vocab.detokenize([1]),
        lambda: vocab.detokenize_batch([[1]]),
        lambda: vocab.check([1]),
        lambda: vocab.is_eog(1),
        lambda: vocab.eog_tokens,
        lambda: vocab.suppress_tokens,
        lambda: vocab.piece(1),
        lambda: vocab.bos,
        lambda: vocab.type,
    ):
        with pytest.raises(ClosedError, match="Model is closed"):
            call()
    assert len(vocab) == 514


def test_a_model_has_one_vocabulary(model):
    vocab = model.vocab
    assert model.vocab is vocab


def test_a_second_bos_warns(model, new_context):
    """If the model adds BOS to a text that starts with it already."""
    context = new_context()
    with pytest.warns(UserWarning, match="begins with '<s>'.*leave it out") as warned:
        generate(context, "<s>The", max_tokens=1)
    assert [one.filename for one in warned] == [__file__]
    generate(context, "The", max_tokens=1).text()
    generate(context, "<s>The", max_tokens=1)  # continues a sequence: no BOS is added
    context.memory.clear()
    generate(context, [model.vocab.bos, model.vocab.bos], max_tokens=1)  # tokens are used as given
    ids = model.vocab.tokenize("The <s>", parse_special=True)
    model.vocab.warn_of_second_bos(ids)
    with pytest.warns(UserWarning, match="begins with") as warned:
        model.vocab.warn_of_second_bos([1, 1, 5])
    assert [one.filename for one in warned] == [__file__]


def test_no_warning_if_no_bos_is_added(vocabularies):
    vocab = vocabularies["qwen2"]
    assert not vocab.add_bos
    vocab.warn_of_second_bos([vocab.bos] * 3)
