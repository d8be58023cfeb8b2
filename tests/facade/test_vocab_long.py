"""Long texts are tokenized in pieces: the same tokens, in linear time, and Ctrl-C works."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable

import pytest

from llamacffi import Vocab
from tests.facade.test_vocab_injection import raw, special_texts
from tests.facade.test_vocab_text import ALL
from tests.timing import limited

WORDS = ("the", "llama", "ab", "x1", "12", "don't", "привет", "中文", "é", "über", "नमस्ते", "🦙")
BETWEEN = (" ", " ", " ", "  ", "\n", ".\n", "\n\n", "\t", ", ", "", "!/", " \n ", "\r\n", "   ")


def long_text(rng: random.Random, special: list[str], size: int) -> str:
    """Return a text with everything that a piece can begin or end with."""
    parts: list[str] = []
    while len(parts) < size:
        kind = rng.randrange(8)
        if kind < 5:
            parts += [rng.choice(WORDS), rng.choice(BETWEEN)]
        elif kind == 5:
            parts.append(rng.choice(special) * rng.choice([1, 1, 2, 9]))
        elif kind == 6:
            parts.append(rng.choice([" ", "\n", "a", "🦙", "中", "z"]) * rng.randrange(1, 70))
        else:
            parts.append("".join(chr(rng.randrange(32, 0x500)) for _ in range(rng.randrange(30))))
    return "".join(parts)


@pytest.mark.parametrize("name", ALL)
def test_a_long_text_gives_the_same_tokens_as_c(vocabularies, name):
    vocab, rng = vocabularies[name], random.Random(name)
    plain = [text for text in special_texts(vocab) if "<" not in text] or ["<>"]
    for parse_special, size in ((True, 2500), (False, 2500), (False, 6000)):
        special = special_texts(vocab)[:30] + plain[:30] if parse_special else plain[:30]
        text = long_text(rng, special, size)
        assert len(text.encode()) > 9000
        expected = raw(vocab, text, True, parse_special)
        ids = vocab.tokenize(text, parse_special=parse_special)
        assert ids == expected
        assert vocab.tokenize_batch([text, "a"], parse_special=parse_special)[0] == ids


@pytest.mark.parametrize("parse_special", [True, False])
def test_runs_of_user_defined_tokens_give_the_same_as_c(vocabularies, parse_special):
    """They overlap, and the longest take precedence."""
    for name in ("mpt", "gpt-neox", "gemma-4", "deepseek-llm"):
        vocab = vocabularies[name]
        for unit in (" ", "\n", "  x", "\n   ", "   \n  y", " \t"):
            text = unit * (10_000 // len(unit))
            expected = raw(vocab, text, False, parse_special)
            ids = vocab.tokenize(text, add_special=False, parse_special=parse_special)
            assert ids == expected, (name, unit)


@pytest.mark.parametrize("name", ["phi-3", "nomic-bert-moe"])
def test_special_tokens_that_absorb_spaces(vocabularies, name):
    """Phi-3 has tokens that absorb following spaces; the other has one for preceding spaces."""
    vocab, rng = vocabularies[name], random.Random(5)
    units = [*special_texts(vocab)[:30], " ", "  ", "\n", " \n ", "a", "b c"]
    for _ in range(12):
        text = "".join(rng.choice(units) for _ in range(6000))
        assert vocab.tokenize(text, parse_special=True) == raw(vocab, text, True, True)


@pytest.mark.parametrize(
    ("name", "text", "parse_special"),
    [
        ("llama-spm", "<s>" * 80_000, True),
        ("llama-bpe", "<|begin_of_text|>" * 15_000, True),
        ("bert-bge", "[SEP]" * 50_000, True),
        ("phi-3", "</s>" * 60_000, False),
        ("llama-spm", "\U00013000\U0001f999" * 50_000, False),  # not in the vocabulary
        ("gpt-2", "<|endoftext|> " * 20_000, True),
        ("mpt", " " * 300_000, False),
        ("nomic-bert-moe", "<s> a\n" * 50_000, True),
        ("phi-3", "<|end|> \n" * 30_000, True),
    ],
)
def test_no_text_takes_quadratic_time(vocabularies, name, text, parse_special):
    """llama.cpp alone takes half a minute for some of these."""
    with limited(3):
        assert len(vocabularies[name].tokenize(text, parse_special=parse_special)) > 10_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_regular_expressions_need_little_memory(run_python, llama_cpp):
    result = run_python(
        """
        import re, sys
        from pathlib import Path
        from llamacffi import Model
        vocab = Model(sys.argv[1], vocab_only=True).vocab
        text = "The quick brown llama jumps over 12345 lazy dogs.\\n" * 40_000
        print(len(vocab.tokenize(text)) > 400_000)
        status = Path("/proc/self/status").read_text()
        print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) < 250 * 1024)
        """,
        llama_cpp / "models" / "ggml-vocab-deepseek-llm.gguf",
    )
    assert (result.returncode, result.stdout) == (0, "True\nTrue\n"), result.stderr


class Stop(BaseException):
    """Raised by a signal handler, like KeyboardInterrupt by Ctrl-C."""


@pytest.mark.parametrize("name", ["llama-spm", "llama-bpe", "deepseek-llm", "bert-bge"])
def test_a_signal_interrupts_it(vocabularies, name):
    vocab: Vocab = vocabularies[name]
    text = "The quick brown llama jumps over 12345 lazy dogs.\n" * 200_000
    calls: list[Callable[[], object]] = [
        lambda: vocab.tokenize(text),
        lambda: vocab.tokenize_batch([text[:10_000]] * 1000, n_threads=1),
    ]

    def stop(_number: int, _frame: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        for call in calls:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.05)
            with limited(3), pytest.raises(Stop):
                call()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    assert vocab.tokenize("The llama")
