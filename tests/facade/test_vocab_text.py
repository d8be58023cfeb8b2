"""Text to tokens and back, with every vocabulary that comes with llama.cpp.

What comes back is the text itself, but for what llama.cpp's tokenizers lose by design:

* `BLANK_SIGN`: they write a blank as U+2581, so that one in the text comes back as a blank.
* `MISSING_BYTES`: they have no tokens for some bytes; text with those loses them silently.
* `NORMALIZING`: WPM (bert-bge) drops blanks, control characters and, here, case and accents, and
  makes a word that it does not know ``[UNK]``; UGM (nomic-bert-moe) normalizes by a table, merges
  blanks, and makes ``<unk>`` of what it does not know.
* Special tokens of phi-3 swallow the blanks after them; so do its user-defined ones in any text.
* Bytes that are not UTF-8 are refused: BPE would read them as U+FFFD, and others as they like.
"""

from __future__ import annotations

import functools
from itertools import chain

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from llamacffi import TokenizeError, Vocab, enums, ffi, lib
from llamacffi._core.text import encode

EXACT = [
    *("aquila", "command-r", "deepseek-coder", "deepseek-llm", "gpt-2", "gpt-neox"),
    *("llama-bpe", "mpt", "qwen2", "qwen35"),
]
BLANK_SIGN = ["baichuan", "gemma-4", "llama-spm", "phi-3"]
MISSING_BYTES = ["falcon", "refact", "starcoder"]
NORMALIZING = ["bert-bge", "nomic-bert-moe"]
ALL = [*EXACT, *BLANK_SIGN, *MISSING_BYTES, *NORMALIZING]

SIGN = "\N{LOWER ONE EIGHTH BLOCK}"
SNIPPETS = (
    *("The llama", " llama", " ", "  ", "\n", "\t", "\r\n", " .", " ,", " ?", " '", "'s", "n't"),
    *(
        "é",
        "e\u0301",
        "中文",
        "🦙",
        "👩‍👩‍👧",
        SIGN,
        "\0",
        "\ufffd",
        "\U0010ffff",
        "\ud7ff",
        "1234",
        "½",
    ),
    *("<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_end|>", "[SEP]", "<0x41>", "<mask>", "a<"),
)
TEXTS = st.lists(
    st.sampled_from(SNIPPETS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    max_size=6,
).map("".join)
FLAGS = st.fixed_dictionaries({"add_special": st.booleans(), "parse_special": st.booleans()})
SETTINGS = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def back(vocab: Vocab, text: str, **flags: bool) -> str:
    """Tokenize and detokenize."""
    ids = vocab.tokenize(text, **flags)
    return vocab.detokenize(ids, remove_special=flags["add_special"], unparse_special=True)


def gpt2_alphabet() -> dict[str, int]:
    """Return the characters that GPT-2 uses for bytes."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): one for i, one in enumerate(rest)}


@functools.cache
def missing_bytes(vocab: Vocab) -> set[int]:
    """Return the bytes that a vocabulary like GPT-2's lacks tokens for."""
    entries = {vocab.text(token) for token in range(len(vocab))}
    return {byte for character, byte in gpt2_alphabet().items() if character not in entries}


def test_every_vocabulary_is_tested(vocabularies):
    assert vocabularies.keys() == set(ALL)
    assert len(ALL) == len(set(ALL)) == 19


@pytest.mark.parametrize("name", EXACT)
@SETTINGS
@given(text=TEXTS, flags=FLAGS)
@example(text="a\0b . c ,d", flags={"add_special": True, "parse_special": False})
@example(text="  two  blanks \n\n\t\r\n", flags={"add_special": True, "parse_special": True})
@example(text="<|endoftext|> is text", flags={"add_special": False, "parse_special": False})
def test_round_trip(vocabularies, name, text, flags):
    assert back(vocabularies[name], text, **flags) == text


@pytest.mark.parametrize("name", BLANK_SIGN)
@SETTINGS
@given(text=TEXTS, flags=FLAGS)
@example(text=" leading", flags={"add_special": True, "parse_special": False})
@example(text="trailing ", flags={"add_special": True, "parse_special": False})
@example(text="", flags={"add_special": True, "parse_special": False})
@example(text="</s> a", flags={"add_special": True, "parse_special": True})
def test_round_trip_except_for_the_space_symbol(vocabularies, name, text, flags):
    if name == "phi-3":  # spaces after special tokens are lost
        assume(not (flags["parse_special"] and ("<" in text)))
        assume("</s>" not in text)  # read as a token in any text
    assert back(vocabularies[name], text, **flags) == text.replace(SIGN, " ")


def test_phi_3_absorbs_spaces(vocabularies):
    vocab = vocabularies["phi-3"]
    assert back(vocab, "</s>  a", add_special=False, parse_special=True) == "</s>a"


@pytest.mark.parametrize("name", MISSING_BYTES)
@SETTINGS
@given(text=TEXTS, flags=FLAGS)
@example(text="a . b\n c\t<|endoftext|>", flags={"add_special": True, "parse_special": False})
def test_only_bytes_without_tokens_are_lost(vocabularies, name, text, flags):
    vocab = vocabularies[name]
    missing = missing_bytes(vocab)
    assert missing
    if missing.isdisjoint(text.encode()):
        assert back(vocab, text, **flags) == text
    alone = bytes([min(missing)]) if min(missing) < 0x80 else b""
    assert vocab.tokenize(alone, add_special=False) == []


@pytest.mark.parametrize("name", NORMALIZING)
def test_normalized_text_round_trips(vocabularies, name):
    vocab = vocabularies[name]
    for text in ("hello world", "the llama is on the hill", ""):
        for add_special in (True, False):
            assert back(vocab, text, add_special=add_special, parse_special=False) == text
    lost = "Hello" if name == "bert-bge" else "a  b"
    assert back(vocab, lost, add_special=True, parse_special=False) == lost.lower().replace(
        "  ", " "
    )


@pytest.mark.parametrize("name", ALL)
@SETTINGS
@given(text=TEXTS, flags=FLAGS)
def test_every_method_gives_the_tokens_of_c(vocabularies, name, text, flags):
    vocab, data = vocabularies[name], text.encode()
    buffer = ffi.new("llama_token[]", 3 * len(data) + 8)
    c_flags = flags["add_special"], flags["parse_special"]
    n = lib.llama_tokenize(vocab.ptr, data, len(data), buffer, len(buffer), *c_flags)
    expected = ffi.unpack(buffer, n)
    assert vocab.tokenize(text, **flags) == vocab.tokenize(data, **flags) == expected
    assert vocab.tokenize(bytearray(data), **flags) == expected
    assert vocab.tokenize(memoryview(data), **flags) == expected
    array = vocab.tokenize_array(text, **flags)
    assert (array.dtype, array.tolist()) == (np.int32, expected)
    assert vocab.n_tokens(text, **flags) == n
    assert vocab.tokenize_batch([text, data], **flags) == [expected, expected]
    assert [one.tolist() for one in vocab.tokenize_batch_array([text], **flags)] == [expected]


def tokens_of(vocab: Vocab) -> st.SearchStrategy[list[int]]:
    """Return a strategy for any tokens, with more special ones than usual."""
    rare = [vocab.bos, vocab.eos, vocab.nl, vocab.sep, *vocab.eog_tokens]
    known = st.sampled_from([0, len(vocab) - 1, *(one for one in rare if one is not None)])
    return st.lists(st.integers(0, len(vocab) - 1) | known, max_size=12)


@pytest.mark.parametrize("name", ALL)
@SETTINGS
@given(data=st.data(), remove_special=st.booleans())
def test_text_is_the_joined_pieces(vocabularies, name, data, remove_special):
    """Unchanged, except for a space at the start and after each special token."""
    vocab = vocabularies[name]
    tokens = data.draw(tokens_of(vocab))
    adds_blank = vocab.type in (enums.VocabType.SPM, enums.VocabType.UGM, enums.VocabType.WPM)
    special = enums.TokenAttr.CONTROL | enums.TokenAttr.USER_DEFINED
    if vocab.type is enums.VocabType.SPM:
        special |= enums.TokenAttr.UNKNOWN
    kept = tokens
    if remove_special:
        bert = vocab.type is enums.VocabType.WPM
        if kept and kept[0] == vocab.bos and (vocab.add_bos or bert):
            kept = kept[1:]
        if kept and kept[-1] == (vocab.sep if bert else vocab.eos) and (vocab.add_eos or bert):
            kept = kept[:-1]
    for unparse in (True, False):
        begins, pieces = adds_blank, []
        for token in kept:
            is_special = bool(vocab.attr(token) & special)
            lstrip = 1 if begins and not is_special else 0
            pieces.append(vocab.piece(token, lstrip=lstrip, special=unparse))
            begins = adds_blank and is_special
        made = vocab.detokenize_bytes(
            tokens, remove_special=remove_special, unparse_special=unparse
        )
        assert made == b"".join(pieces)


@pytest.mark.parametrize("name", ALL)
@SETTINGS
@given(data=st.data(), remove_special=st.booleans(), unparse_special=st.booleans())
def test_inexact_text_is_the_text_of_c(vocabularies, name, data, remove_special, unparse_special):
    vocab = vocabularies[name]
    tokens = data.draw(tokens_of(vocab))
    flags = {"remove_special": remove_special, "unparse_special": unparse_special, "exact": False}
    buffer = ffi.new("char[]", 4096)
    n = lib.llama_detokenize(
        vocab.ptr, tokens, len(tokens), buffer, 4096, remove_special, unparse_special
    )
    assert n >= 0
    expected = ffi.unpack(buffer, n)
    assert vocab.detokenize_bytes(tokens, **flags) == expected
    assert vocab.detokenize(tokens, **flags) == expected.decode(errors="replace")
    assert vocab.detokenize_batch([tokens], **flags) == [expected.decode(errors="replace")]


def test_exact_false_gives_the_spaces_of_c(vocabularies):
    vocab = vocabularies["llama-bpe"]
    ids = vocab.tokenize("well , it is .")
    assert vocab.detokenize(ids) == "well , it is ."
    assert vocab.detokenize(ids, exact=False) == "well, it is."
    vocab = vocabularies["llama-spm"]
    assert vocab.detokenize(vocab.tokenize("llama"), exact=False) == " llama"


def position_of_error(data: bytes) -> int | None:
    """Return the index of the first byte that is not valid UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return None


@pytest.mark.parametrize("name", ALL)
@SETTINGS
@given(data=st.binary(max_size=24), flags=FLAGS)
@example(data=b"\xff\xfe\0\xc3", flags={"add_special": True, "parse_special": True})
@example(data=b"\xed\xa0\x80", flags={"add_special": True, "parse_special": False})
@example(data=b"\xf0\x9f cut", flags={"add_special": False, "parse_special": False})
@example(data=b"\xf4\x90\x80\x80", flags={"add_special": False, "parse_special": False})
def test_bytes_that_are_not_utf_8_are_refused(vocabularies, name, data, flags):
    vocab, at = vocabularies[name], position_of_error(data)
    if at is None:
        ids = vocab.tokenize(data, **flags)
        assert vocab.n_tokens(data, **flags) == len(ids)
        assert vocab.tokenize_batch([data, b""], **flags)[0] == ids
        return
    message = f"not UTF-8: byte {at} is {data[at]:#04x}"
    for given_as in (bytes, bytearray, memoryview):
        for call in (vocab.tokenize, vocab.tokenize_array, vocab.n_tokens):
            with pytest.raises(TokenizeError, match=message):
                call(given_as(data), **flags)
    for call in (vocab.tokenize_batch, vocab.tokenize_batch_array):
        with pytest.raises(TokenizeError, match=f"text 1: .*{message}") as caught:
            call(["a", data], **flags)
        assert caught.value.index == 1


@pytest.mark.parametrize("at", [2**20 - 2, 2**20 - 1, 2**20, 2**20 + 1, 2**21 + 5])
@pytest.mark.parametrize("wrong", [b"\xff", b"\xe2\x82", b"\xe2\x82a", b"\xf0\x9f\x92"])
def test_the_byte_that_is_not_utf_8_in_a_long_text(model, at, wrong):
    whole = "é" + "a" * (at - 2)
    for rest in (b"", b"b" * 100):
        with pytest.raises(TokenizeError, match=f"byte {at} is {wrong[0]:#04x}"):
            model.vocab.n_tokens(whole.encode() + wrong + rest)
    assert encode("é€🦙".encode() * 200_000) == "é€🦙".encode() * 200_000


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "bert-bge"])
def test_every_token_has_text(vocabularies, name):
    vocab = vocabularies[name]
    text = vocab.detokenize_bytes(range(len(vocab)), unparse_special=True)
    pieces = b"".join(map(vocab.piece, range(len(vocab))))
    assert len(pieces) - len(text) < 20  # spaces at the start and after special tokens
    singles = vocab.detokenize_batch([[token] for token in range(len(vocab))])
    some = chain(range(200), range(len(vocab) - 200, len(vocab)))
    assert all(singles[token] == vocab.detokenize([token]) for token in some)
