"""Tokenizers give upstream's ids, lose nothing, and take no harm from any text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import llamacffi
from llamacffi import ArgumentError, ClosedError, Model, TokenizeError, Vocab, enums

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

LoadVocab = Callable[[str], Vocab]


@pytest.fixture(scope="module")
def vocab_file(llama_cpp: Path) -> Callable[[str], Path]:
    return lambda name: llama_cpp / "models" / f"ggml-vocab-{name}.gguf"


@pytest.fixture(scope="module")
def load_vocab(vocab_file: Callable[[str], Path]) -> Iterator[LoadVocab]:
    """Load vocabularies by name, each once."""
    models: dict[str, Model] = {}

    def load(name: str) -> Vocab:
        if name not in models:
            models[name] = Model(vocab_file(name), vocab_only=True)
        return models[name].vocab

    for name in ("llama-spm", "llama-bpe", "gpt-2", "bert-bge", "falcon", "qwen2"):
        load(name)  # before the leak check of a single test begins
    yield load
    for model in models.values():
        model.close()


def test_every_vocabulary_is_known_here(llama_cpp):
    files = (llama_cpp / "models").glob("ggml-vocab-*.gguf")
    names = {file.stem.removeprefix("ggml-vocab-") for file in files}
    assert names == {*GOLDEN, *OTHERS}
    for name in names:
        expected = (llama_cpp / "models" / f"ggml-vocab-{name}.gguf.inp").exists()
        assert expected == (name in GOLDEN), name


@pytest.mark.parametrize("name", GOLDEN)
def test_upstreams_expected_ids(vocab_file, name):
    """As upstream's test-tokenizer-0 reads them: texts in .inp, a line of ids for each in .out."""
    file = vocab_file(name)
    texts = Path(f"{file}.inp").read_bytes().decode().removesuffix(SEPARATOR).split(SEPARATOR)
    lines = Path(f"{file}.out").read_text().splitlines()
    assert len(texts) == len(lines) > 30
    with Model(file, vocab_only=True) as model:
        for text, line in zip(texts, lines, strict=True):
            ids = list(map(int, line.split()))
            assert model.vocab.tokenize(text, add_special=False) == ids, text


# Some lose bytes by design: WPM (bert) blanks and case, falcon and starcoder some bytes.
@pytest.mark.parametrize("name", ["llama-bpe", "gpt-2", "qwen2"])
@settings(max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@example(text="a\0b")
@example(text="  two  blanks \n\n\t\r\n")
@example(text="🦙 é e\u0301 \ufffd \U0010ffff")
@example(text="<|endoftext|> is text here")
def test_bpe_loses_nothing(load_vocab, name, text):
    vocab = load_vocab(name)
    ids = vocab.tokenize(text, add_special=False)
    assert vocab.detokenize(ids, unparse_special=True) == text
    assert b"".join(map(vocab.piece, ids)) == text.encode()


@settings(max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@example(text="a\0b")
@example(text=" leading")
@example(text="</s> is text here")
def test_spm_loses_nothing_but_its_blank(load_vocab, text):
    """SPM puts a blank before the text (add_space_prefix), and detokenize takes it away."""
    vocab = load_vocab("llama-spm")
    # Its own sign for a blank is read as one.
    clean = text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
    ids = vocab.tokenize(text, add_special=False)
    assert vocab.detokenize(ids) == clean
    pieces = b"".join(vocab.piece(one) for one in ids)
    assert pieces == (f" {clean}".encode() if text else b"")


@pytest.mark.parametrize("name", ["llama-spm", "llama-bpe", "gpt-2", "falcon", "bert-bge"])
@settings(max_examples=40)
@given(data=st.binary(max_size=40))
@example(data=b"\xff\xfe\0\xc3")
@example(data=b"\xed\xa0\x80 a surrogate in UTF-8")
@example(data=b"\xf0\x9f cut")
def test_any_bytes_give_tokens_or_a_clear_error(load_vocab, name, data):
    vocab = load_vocab(name)
    try:
        ids = vocab.tokenize(data)
    except TokenizeError:
        with pytest.raises(UnicodeDecodeError):
            data.decode()
        return
    vocab.check(ids)
    assert isinstance(vocab.detokenize(ids), str)
    assert isinstance(vocab.detokenize_bytes(ids), bytes)


def test_text_and_its_bytes_are_the_same(load_vocab):
    vocab, text = load_vocab("llama-bpe"), "Ein Lama 🦙, zwei\0 Lamas"
    assert vocab.tokenize(text) == vocab.tokenize(text.encode())


@pytest.mark.parametrize(("text", "index"), [("\ud800", 0), ("ok\udfff", 2), ("a\ud83e\udd99", 1)])
def test_a_lone_surrogate_is_refused(load_vocab, text, index):
    with pytest.raises(TokenizeError, match=f"surrogate at index {index}"):
        load_vocab("llama-bpe").tokenize(text)


@pytest.mark.parametrize("text", [5, None, ["a"]])
def test_what_is_no_text_is_refused(load_vocab, text):
    with pytest.raises(TypeError):
        load_vocab("llama-bpe").tokenize(text)


def test_special_tokens_on_and_off(load_vocab):
    vocab = load_vocab("llama-bpe")
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


def test_empty_text(load_vocab):
    for name in ("llama-bpe", "llama-spm", "bert-bge"):
        vocab = load_vocab(name)
        assert vocab.tokenize("", add_special=False) == vocab.tokenize(b"", add_special=False) == []
        assert vocab.detokenize([]) == ""
    assert load_vocab("llama-bpe").tokenize("") == [load_vocab("llama-bpe").bos]


OUT_OF_RANGE = {
    "piece": lambda vocab, token: vocab.piece(token),
    "text": lambda vocab, token: vocab.text(token),
    "score": lambda vocab, token: vocab.score(token),
    "attr": lambda vocab, token: vocab.attr(token),
    "is_eog": lambda vocab, token: vocab.is_eog(token),
    "is_control": lambda vocab, token: vocab.is_control(token),
    "detokenize": lambda vocab, token: vocab.detokenize([1, token]),
    "detokenize_bytes": lambda vocab, token: vocab.detokenize_bytes((token, 1)),
}


@pytest.mark.parametrize("call", OUT_OF_RANGE.values(), ids=OUT_OF_RANGE.keys())
def test_a_token_out_of_range(model, call):
    vocab = model.vocab
    for token in (-1, len(vocab), 2**31 - 1, 2**31, 2**70, -(2**40)):
        with pytest.raises(
            ArgumentError, match=f"token {token} is not in the vocabulary: 0 to 513"
        ):
            call(vocab, token)
    for token in (1.5, "1", None):
        with pytest.raises(TypeError):
            call(vocab, token)
    call(vocab, 0)
    call(vocab, len(vocab) - 1)


def test_what_is_known_of_tokens(model):
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


def test_threads_tokenize_at_once(load_vocab):
    vocab = load_vocab("llama-bpe")
    texts = [f"The {i}th llama 🦙 says {'na ' * (i % 50)}\n" * 20 for i in range(64)]
    serial = [vocab.tokenize(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(vocab.tokenize, texts)) == serial
        assert list(pool.map(vocab.detokenize, serial)) == texts


def test_a_megabyte_of_text(load_vocab):
    text = "The quick brown llama jumps over 12345 lazy dogs.\n" * 20_000
    assert len(text) == 10**6
    for name in ("llama-bpe", "llama-spm"):
        vocab = load_vocab(name)
        ids = vocab.tokenize(text, add_special=False)
        assert vocab.detokenize(ids) == text


def test_a_vocabulary_keeps_its_model_and_closes_with_it(demo_path):
    vocab = Model(demo_path, vocab_only=True).vocab
    assert vocab.tokenize(" llama")
    vocab.model.close()
    for call in (
        lambda: vocab.ptr,
        lambda: vocab.tokenize("a"),
        lambda: vocab.detokenize([1]),
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
