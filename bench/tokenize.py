"""Tokenizing a megabyte, and many small texts, against raw calls of llama_tokenize.

Question: how fast is it, relative to C, if the result is a list or an array, and how much do
several threads in one call gain?  The C side has its buffer ready and creates no Python objects.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import llamacffi
from llamacffi import Model, Vocab, ffi, lib

from .measure import alternately, ratio, row

MEGABYTE = 10**6
PAIRS = 5
KINDS = {"llama-spm": "SPM", "llama-bpe": "BPE", "deepseek-llm": "BPE by std::regex"}


def run() -> dict[str, float]:
    """Print and return the speed of each way relative to C, by kind of vocabulary."""
    from ffigen.vendor import ensure_tree

    tree = ensure_tree(Path(__file__).parent.parent).path
    data, ratios = corpus(tree), {}
    for name, kind in KINDS.items():
        file = tree / "models" / f"ggml-vocab-{name}.gguf"
        with Model(file, vocab_only=True) as model:
            ratios.update({f"{kind}, {way}": one for way, one in measure(model.vocab, kind, data)})
    return ratios


def corpus(tree: Path) -> bytes:
    """Return a megabyte of code and comments, mixed with text in many languages."""
    files = [*sorted((tree / "src").glob("*.cpp")), *sorted((tree / "models").glob("*.inp"))]
    data = b"".join(file.read_bytes() for file in files[::-1])
    assert len(data) > MEGABYTE
    return data[:MEGABYTE].decode(errors="ignore").encode()


def measure(vocab: Vocab, kind: str, data: bytes) -> list[tuple[str, float]]:
    """Compare the ways to tokenize the same text with one kind of vocabulary."""
    text = data.decode()
    lines = text.splitlines(keepends=True)
    raw = raw_call(vocab, [data])
    raw_lines = raw_call(vocab, [line.encode() for line in lines])
    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "tokenize(), 1 MB": (raw, lambda: vocab.tokenize(text)),
        "tokenize_array(), 1 MB": (raw, lambda: vocab.tokenize_array(text)),
        "n_tokens(), 1 MB": (raw, lambda: vocab.n_tokens(text)),
        "tokenize() of each line": (raw_lines, lambda: [vocab.tokenize(one) for one in lines]),
        "tokenize_batch() of the lines": (raw_lines, lambda: vocab.tokenize_batch(lines)),
    }
    ratios = []
    for way, (c, ours) in ways.items():
        first, second = alternately(lambda c=c: seconds(c), lambda o=ours: seconds(o), PAIRS)  # type: ignore[misc]
        ratios.append((way, ratio(f"{kind}: {way}", first, second)))
    row(f"{kind}: C, 1 MB", [seconds(raw) * 1e3 for _ in range(3)], "ms")
    return ratios


def raw_call(vocab: Vocab, texts: list[bytes]) -> Callable[[], object]:
    """Return a function that tokenizes with the C function alone, into an existing buffer."""
    ptr = vocab.ptr
    size = max(map(len, texts)) + 8
    buffer = ffi.new("llama_token[]", size)

    def call() -> None:
        for text in texts:
            lib.llama_tokenize(ptr, text, len(text), buffer, size, True, False)

    return call


def seconds(function: Callable[[], object]) -> float:
    """Time one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


if __name__ == "__main__":
    print(f"llamacffi {llamacffi.__version__}")
    run()
