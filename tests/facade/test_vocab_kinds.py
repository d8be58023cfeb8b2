"""Every kind of tokenizer, and vocabularies that lack tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamacffi import Context, Model, TokenizeError, UnsupportedError, Vocab, enums, generate
from tests.facade import random_models
from tests.facade.vocabularies import BYTES, CONTROL, UNKNOWN, USER_DEFINED, Entry, write_vocab

NewVocab = Callable[..., Vocab]


@pytest.fixture
def new_vocab(tmp_path: Path) -> Iterator[NewVocab]:
    """Write a vocabulary and load it; closed at the end of the test."""
    models: list[Model] = []

    def new(kind: str, entries: list[Entry], **metadata: object) -> Vocab:
        path = write_vocab(tmp_path / f"{len(models)}.gguf", kind, entries, **metadata)
        models.append(Model(path, vocab_only=True))
        return models[-1].vocab

    yield new
    for model in models:
        model.close()


SPECIAL: list[Entry] = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]


def test_spm(new_vocab):
    vocab = new_vocab("llama", [*SPECIAL, *BYTES, "▁", "▁ab", "a", "b", "ab"])
    first = 3 + 256
    assert vocab.type is enums.VocabType.SPM
    assert vocab.tokenize("ab ab") == [1, first + 1, first + 1]
    assert vocab.tokenize("abé", add_special=False) == [first + 1, 3 + 0xC3, 3 + 0xA9]
    assert vocab.detokenize([1, first + 1, first + 1]) == "ab ab"
    assert vocab.detokenize([1, first + 1, first + 1], exact=False) == " ab ab"


def test_spm_that_adds_no_space(new_vocab):
    vocab = new_vocab("llama", [*SPECIAL, *BYTES, "▁", "▁a", "a"], add_space_prefix=False)
    assert vocab.detokenize(vocab.tokenize("a")) == "a"
    assert vocab.detokenize(vocab.tokenize(" a")) == " a"


def test_spaces_after_special_tokens_are_removed(new_vocab):
    """SPM adds one there too; a space of the text itself stays."""
    entries: list[Entry] = [*SPECIAL, *BYTES, "▁", "▁a", "a", ("<mark>", USER_DEFINED)]
    vocab = new_vocab("llama", entries)
    for text in ("<s>a", "<s> a</s>  a", "a<mark>a", "a <mark> a", "<unk>a", "</s></s>"):
        ids = vocab.tokenize(text, parse_special=True)
        assert vocab.detokenize(ids, unparse_special=True, remove_special=True) == text
    ids = vocab.tokenize("<s>a", parse_special=True, add_special=False)
    assert b"".join(map(vocab.piece, ids)) == b"<s> a"
    assert vocab.piece(ids[1], lstrip=1) == b"a"


@pytest.mark.parametrize("lstrip", [-1, 2**31])
def test_lstrip_out_of_range(model, lstrip):
    with pytest.raises(ValueError, match=f"lstrip must be .*, not {lstrip}"):
        model.vocab.piece(5, lstrip=lstrip)


def test_lstrip(model):
    vocab = model.vocab
    token = vocab.tokenize("llama", add_special=False)[0]
    assert vocab.piece(token) == b" llama"
    assert vocab.piece(token, lstrip=1) == vocab.piece(token, lstrip=9) == b"llama"
    with pytest.raises(TypeError):
        vocab.piece(token, lstrip=1.5)


def test_a_vocabulary_without_bytes(new_vocab):
    vocab = new_vocab("llama", [*SPECIAL, "▁", "a"])
    assert vocab.tokenize("a", add_special=False) == [3, 4]
    for call in (vocab.tokenize, vocab.tokenize_array, vocab.n_tokens):
        with pytest.raises(TokenizeError, match="no token for a part of the text"):
            call("z")
    with pytest.raises(TokenizeError, match=r"text 1: .*no token for a part of the text"):
        vocab.tokenize_batch(["a", "z"])


def test_a_model_that_adds_a_token_that_it_lacks(new_vocab):
    vocab = new_vocab("llama", ["▁a"])
    assert (vocab.bos, vocab.eos, vocab.add_bos) == (None, None, True)
    assert vocab.tokenize("a", add_special=False) == [0]
    with pytest.raises(TokenizeError, match=r"token 'bos'.*add_special=False"):
        vocab.tokenize("a")
    with pytest.raises(TokenizeError, match=r"text 0: .*token 'bos'.*add_special=False"):
        vocab.tokenize_batch(["a"])


def test_ugm(new_vocab):
    entries: list[Entry] = [("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN)]
    vocab = new_vocab("t5", [*entries, "▁", "a", "▁a", "b"], add_space_prefix=True)
    assert vocab.type is enums.VocabType.UGM
    assert vocab.tokenize("a b") == [5, 3, 6, vocab.eos]
    assert vocab.detokenize([5, 3, 6, 1]) == "a b"
    assert vocab.tokenize("☃ a", add_special=False) == [3, 2, 5]  # unknown, then a space
    assert vocab.detokenize([3, 2, 5], unparse_special=True) == "<unk> a"


def test_rwkv(new_vocab):
    vocab = new_vocab("rwkv", [("<s>", CONTROL), "\\n", "a", "b", "ab", "\\xff", "xy"])
    assert vocab.type is enums.VocabType.RWKV
    assert vocab.tokenize("abba\n") == [4, 3, 2, 1]
    assert vocab.detokenize_bytes([4, 5, 1]) == b"ab\xff\n"
    with pytest.raises(TokenizeError, match="no token for a part of the text"):
        vocab.tokenize("q")


def test_rwkv_without_the_bytes_that_its_tokens_begin_with(new_vocab):
    """llama.cpp returns to the start of the text forever, until memory is exhausted."""
    vocab = new_vocab("rwkv", [("<s>", CONTROL), "\\n", "a", "xy"])
    assert vocab.tokenize("aa") == [2, 2]
    for call in (vocab.tokenize, vocab.n_tokens, lambda text: vocab.tokenize_batch(["a", text])):
        with pytest.raises(TokenizeError, match="byte 0x78"):
            call("axa")


def test_rwkv_with_tokens_of_multibyte_characters_only(new_vocab):
    """No text of ours is tokenized with them either."""
    vocab = new_vocab("rwkv", [("[X]", CONTROL), "\\n", "▁a", "\N{LLAMA}b", "b"])
    assert vocab.tokenize("b\n") == [4, 1]
    with pytest.raises(TokenizeError, match="byte 0xe2"):
        vocab.tokenize("▁")


def test_plamo2(new_vocab):
    entries: list[Entry] = [*SPECIAL, ("<pad>", CONTROL), *BYTES, "a", "ab", "中"]
    vocab = new_vocab("plamo2", entries)
    assert vocab.type is enums.VocabType.PLAMO2
    ids = vocab.tokenize("aab中")
    assert ids == [260, 261, 262]
    assert vocab.detokenize(ids) == "aab中"


def test_the_tokenizer_for_tests(new_vocab):
    vocab = new_vocab("test", ["a", "b", "c"])
    assert vocab.type is enums.VocabType.TEST
    assert len(vocab.tokenize("hello world")) == 3
    assert vocab.detokenize([1, 2]) == "12"


def test_a_model_without_a_vocabulary(new_vocab):
    vocab = new_vocab("no_vocab", [])
    assert (vocab.type, len(vocab)) == (enums.VocabType.NONE, 0)
    assert (vocab.bos, vocab.eos, vocab.nl, vocab.eog_tokens) == (None, None, vocab.nl, ())
    for call in (vocab.tokenize, vocab.tokenize_array, vocab.n_tokens):
        with pytest.raises(TokenizeError, match="no vocabulary"):
            call("a")
    with pytest.raises(TokenizeError, match="no vocabulary"):
        vocab.tokenize_batch(["a"])
    with pytest.raises(ValueError, match="token 0 is not in the vocabulary, which is empty"):
        vocab.detokenize([0])
    assert vocab.detokenize([]) == ""
    assert vocab.detokenize_batch([[], []]) == ["", ""]


def test_tokens_without_a_vocabulary_have_no_text(tmp_path):
    """Such a model can still generate, from tokens."""
    path = random_models.write(tmp_path / "random.gguf", "llama")
    with Model(path) as model, Context(model, n_ctx=64, n_threads=1) as context:
        vocab = model.vocab
        assert (vocab.type, len(vocab) > 0) == (enums.VocabType.NONE, True)
        assert vocab.piece(1) == b""
        assert vocab.detokenize([1, 2]) == ""
        assert vocab.detokenize_batch([[1, 2]]) == [""]
        assert not vocab.is_eog(1)
        for call in (vocab.text, vocab.score, vocab.attr, vocab.is_control):
            with pytest.raises(UnsupportedError, match="no vocabulary"):
                call(1)
        assert len(list(generate(context, [1, 2], max_tokens=3))) == 3


def test_every_special_token(new_vocab):
    names = ("eot", "sep", "pad", "mask", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep")
    names = (*names, "fim_sep")
    keys = {"pad": "padding_token_id", "sep": "seperator_token_id"}
    first = len(SPECIAL)
    entries = [*SPECIAL, *((f"<{name}>", CONTROL) for name in names), "▁", "a", "\n"]
    metadata = {keys.get(name, f"{name}_token_id"): first + i for i, name in enumerate(names)}
    vocab = new_vocab(
        *("llama", entries),
        **{**metadata, "suppress_tokens": [4, 2], "add_sep_token": True, "add_eos_token": True},
    )
    for i, name in enumerate(names):
        assert getattr(vocab, name) == first + i, name
    assert (vocab.bos, vocab.eos) == (1, 2)
    assert vocab.suppress_tokens == (4, 2)
    assert (vocab.add_bos, vocab.add_eos, vocab.add_sep) == (True, True, True)
    ends = {vocab.eos, vocab.eot, vocab.fim_pad, vocab.fim_rep, vocab.fim_sep}
    assert vocab.eog_tokens == tuple(sorted(ends))
    assert all(vocab.is_eog(token) == (token in ends) for token in range(len(vocab)))


def test_missing_special_tokens(model):
    vocab = model.vocab
    names = ("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep", "eot", "mask")
    assert [getattr(vocab, name) for name in names] == [None] * len(names)
    assert vocab.suppress_tokens == ()
    assert vocab.eog_tokens == (vocab.eos,)
    assert vocab.add_sep is False
