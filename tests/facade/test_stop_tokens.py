"""A generation also stops at tokens: those that stop strings contain, and those given by id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from llamacffi import ArgumentError, Context, CustomSampler, Generation, Gguf, Model, generate
from tests.facade.oracle import END, START, token

Write = Callable[..., Generation]
A, LLAMA = token(" a"), token(" llama")
BYTE = {byte: 3 + byte for byte in range(256)}
NAMED = {400: "<|im_end|>", 401: "<|im_start|>", 402: "<|im_end|>\n", 403: "<|mid|>"}


def script(chain: Callable[..., object], tokens: Sequence[int]) -> object:
    """Return a chain that chooses these tokens, one after the other."""
    left = iter(tokens)

    def choose(candidates):
        candidates.selected = int(np.flatnonzero(candidates.id == next(left))[0])

    return chain(CustomSampler(choose, selects=True))


@pytest.fixture
def write(context, chain) -> Write:
    """Generate tokens that the test chooses, then spaces."""

    def run(tokens: Sequence[int], **options: object) -> Generation:
        context.memory.clear(data=False)
        options.setdefault("max_tokens", len(tokens))
        return generate(context, "The", sampler=script(chain, tokens), **options)

    return run


@pytest.mark.parametrize("stop", ["<s>", ["<s>"], ["never", "<s>"], ("<s>", "</s>")])
def test_the_text_of_a_control_token_stops_at_the_token(write, stop):
    generation = write([A, START, LLAMA], stop=stop)
    assert generation.text() == " a"
    assert (generation.finish_reason, generation.stop_match) == ("stop", "<s>")
    assert generation.tokens == (A, START)


def test_the_same_text_in_ordinary_tokens_stops_too(write):
    ids = [A, *(BYTE[byte] for byte in b"x<s>y")]
    generation = write(ids, stop="<s>")
    assert generation.text() == " ax"
    assert (generation.finish_reason, generation.stop_match) == ("stop", "<s>")


def test_an_end_of_generation_token_given_as_stop_is_a_stop(write):
    generation = write([A, END], stop="</s>")
    assert (generation.text(), generation.finish_reason) == (" a", "stop")
    assert generation.stop_match == "</s>"
    generation = write([A, END], stop="<s>")
    assert (generation.text(), generation.finish_reason) == (" a", "eog")
    assert generation.stop_match is None


def test_special_tokens_amid_text(write):
    """They match at their position, and never appear in the text."""
    before = [BYTE[ord("u")], START]
    for stop in ("u<s> llama", "<s> llama", "<s><s>", "<s> "):
        tail = [START] if stop == "<s><s>" else [LLAMA]
        generation = write([A, *before, *tail, A, A], stop=[stop])
        assert generation.text() == (" a" if stop[0] == "u" else " au")
        assert (generation.finish_reason, generation.stop_match) == ("stop", stop)
    generation = write([A, *before, A, A, END], stop="<s> llama")
    assert generation.text() == " au a a"
    assert generation.finish_reason == "eog"
    generation = write([A, START], stop="<s> llama")  # held back until the end
    assert (generation.text(), generation.finish_reason) == (" a", "length")


def test_a_stop_token_after_an_incomplete_character(write):
    generation = write([BYTE[0xE2], BYTE[0x82], START, A], stop="<s>")
    assert generation.text() == "\ufffd"
    assert generation.finish_reason == "stop"
    generation = write([BYTE[0xE2], BYTE[0x82], START, A], stop="<s>b")
    assert generation.text() == "\ufffd a"


@pytest.mark.parametrize("given_as", [list, tuple, set, np.array, iter])
def test_stop_tokens(write, given_as):
    generation = write([A, LLAMA, A], stop_tokens=given_as([LLAMA, START]))
    assert generation.text() == " a"
    assert (generation.finish_reason, generation.stop_match) == ("stop", " llama")
    assert generation.tokens == (A, LLAMA)
    generation = write([A, START, A], stop_tokens=[LLAMA, START], stop="never")
    assert (generation.text(), generation.stop_match) == (" a", "<s>")


def test_stop_tokens_and_strings_together(write):
    options = {"stop": ["a llama", "<s>x"], "stop_tokens": [START]}
    assert write([A, LLAMA, START], **options).text() == " "
    generation = write([A, START, BYTE[ord("x")]], **options)
    assert (generation.text(), generation.stop_match) == (" a", "<s>")
    assert write([A, A], **options).text() == " a a"
    assert write([A, A], stop_tokens=[]).finish_reason is None


def test_each_token_has_its_own_text_without_marks(write):
    generation = write([A, START, LLAMA, START, A, END], stop=["<s>q", "never"])
    assert [one.text for one in generation] == [" a", "", " llama", "", " a", ""]


def test_invalid_stop_tokens(write):
    for wrong, error, message in (
        ([514], ArgumentError, "stop_tokens: token 514 is not in the vocabulary, .* ids 0 to 513"),
        ([-1], ArgumentError, "stop_tokens: token -1 is not in the vocabulary"),
        (["<s>"], TypeError, "stop_tokens: token must be an integer, not '<s>'; stop= takes"),
        ("<s>", TypeError, "stop_tokens must be a sequence of tokens, not '<s>'; stop= takes str"),
        (5, TypeError, "stop_tokens must be a sequence of tokens, not 5"),
        ([[5]], TypeError, r"stop_tokens: token must be an integer, not \[5\]"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            write([A], stop_tokens=wrong)


def test_no_stop_tokens(write):
    assert write([A, A], stop_tokens=None).text() == " a a"


@pytest.fixture(scope="module")
def chat_model(demo_path, tmp_path_factory):
    """The built-in model, with some words turned into control tokens of a chat."""
    gguf = Gguf.open(demo_path)
    texts, types = list(gguf["tokenizer.ggml.tokens"]), list(gguf["tokenizer.ggml.token_type"])
    for i, text in NAMED.items():
        texts[i], types[i] = text, 3
    gguf["tokenizer.ggml.tokens"], gguf["tokenizer.ggml.token_type"] = texts, types
    path: Path = tmp_path_factory.mktemp("chat") / "chat.gguf"
    gguf.write(path)
    with Model(path) as model:
        yield model


@pytest.mark.parametrize(
    ("stop", "tokens", "text"),
    [
        (["<|im_end|>"], [A, 400, A], " a"),
        (["<|im_end|>"], [A, 402, 400, A], " a"),  # a different token with the same prefix
        (["<|im_end|>\n"], [A, 402, A], " a"),  # the longer text is that token
        (["<|im_start|>user", "<|mid|>"], [A, 401, *(BYTE[one] for one in b"user")], " a"),
        (["<|im_start|>user", "<|mid|>"], [A, 401, A, 403], " a a"),
        ("\n<|im_start|>", [A, BYTE[10], 401, A], " a"),
    ],
)
def test_chat_markers(chat_model, chain, stop, tokens, text):
    with Context(chat_model, n_ctx=64) as context:
        generation = generate(
            context, [START], sampler=script(chain, tokens), stop=stop, max_tokens=len(tokens)
        )
        assert (generation.text(), generation.finish_reason) == (text, "stop")
        assert generation.stop_match in ([stop] if isinstance(stop, str) else stop)
