"""Every architecture that upstream's test-llama-archs writes: equal to upstream, and to itself.

That program saves a small random model of each; llama-results computes the logits of a prompt.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamacffi import Batch, Context, Gguf, Model, UnsupportedError

# Longer than the sliding windows of these models, 32 tokens.
PROMPT = "the quick brown fox jumps over the lazy dog and runs" * 4
N_CTX = 256


@pytest.fixture
def upstream_logits(programs: Path, tmp_path: Path) -> Callable[[Path], tuple[list[int], Any]]:
    """Let upstream tokenize the prompt, and compute its logits."""

    def compute(path: Path) -> tuple[list[int], Any]:
        out = tmp_path / "results.gguf"
        command = [programs / "llama-results", "-m", path, "-p", PROMPT, "-o", out, "-t", "1"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Gguf.open(out) as results:
            tokens = results.tensors["tokens"].data.ravel().tolist()
            logits = np.array(results.tensors["logits"].data).reshape(len(tokens), -1)
        return tokens, logits

    return compute


def all_logits(context: Context, tokens: list[int], pos: int = 0) -> Any:
    """Decode tokens in one batch and return the logits after each, ``[n, n_vocab]``."""
    batch = Batch(len(tokens))
    batch.add(tokens, pos=pos, logits="all")
    context.decode(batch)
    return np.stack([context.logits(i) for i in range(len(tokens))])


def one_by_one(context: Context, tokens: list[int], pos: int = 0, seq_id: int = 0) -> Any:
    """Decode tokens in batches of one and return the logits after each, ``[n, n_vocab]``."""
    batch, rows = Batch(1), []
    for i, token in enumerate(tokens):
        batch.set_one(token, pos + i, seq_id)
        context.decode(batch)
        rows.append(context.logits())
    return np.stack(rows)


def error(got: Any, expected: Any) -> float:
    """Return the mean squared error, relative to the square of what is expected."""
    assert np.isfinite(got).all()
    return float(((got - expected) ** 2).sum() / (expected**2).sum())


def check_each(models: Path, check: Callable[[Model, Path], str | None]) -> None:
    """Check all models; fail with what is wrong with each."""
    paths = sorted(models.iterdir())
    assert len({path.stem.rpartition("-")[0] for path in paths}) > 100
    wrong = {}
    for path in paths:
        with Model(path) as model:
            wrong[path.stem] = check(model, path)
    assert {name: text for name, text in wrong.items() if text} == {}


def expect(got: Any, expected: Any, limit: float) -> str | None:
    """Return what is wrong unless the relative error is below ``limit``."""
    difference = error(got, expected)
    return None if difference < limit else f"relative error {difference:.1e}"


def test_the_logits_are_those_of_upstream(models, upstream_logits):
    def check(model: Model, path: Path) -> str | None:
        tokens, expected = upstream_logits(path)
        assert model.vocab.tokenize(PROMPT, parse_special=True) == tokens
        with Context(model, n_ctx=N_CTX, n_threads=1) as context:
            logits = all_logits(context, tokens)
        return expect(logits, expected, 1e-10) if logits.std() > 1e-3 else "nothing is computed"

    check_each(models, check)


def test_one_batch_is_token_by_token(models):
    def check(model: Model, _path: Path) -> str | None:
        tokens = model.vocab.tokenize(PROMPT)
        with Context(model, n_ctx=N_CTX, n_threads=1) as context:
            at_once = all_logits(context, tokens)
            try:
                context.memory.clear()
            except UnsupportedError:
                # A diffusion model sees the tokens after a token too, so here they must differ.
                alone = error(one_by_one(context, tokens), at_once)
                return None if alone > 1e-6 else "has no memory, but the same logits"
            return expect(one_by_one(context, tokens), at_once, 1e-7)

    check_each(models, check)


def test_a_sequence_goes_on_after_save_and_load(models):
    """Whole states into a fresh context, and one sequence's into another of the same context."""

    def check(model: Model, _path: Path) -> str | None:
        tokens = model.vocab.tokenize(PROMPT)
        half = len(tokens) * 2 // 3
        options: dict[str, Any] = {"n_ctx": N_CTX, "n_threads": 1, "n_seq_max": 2}
        with Context(model, **options) as context, Context(model, **options) as other:
            all_logits(context, tokens[:half])
            try:
                state, sequence = context.save_state(), context.save_state(seq_id=0)
            except UnsupportedError:
                return None if model.is_diffusion else "has no memory"
            expected = one_by_one(context, tokens[half:], half)
            other.load_state(state)
            found = expect(one_by_one(other, tokens[half:], half), expected, 1e-10)
            if found:
                return f"whole: {found}"
            other.load_state(sequence, seq_id=1)
            if other.memory.pos_max(1) != half - 1:
                return f"a sequence: ends at {other.memory.pos_max(1)}"
            got = one_by_one(other, tokens[half:], half, seq_id=1)
            found = expect(got, expected, 1e-10)
            return found and f"a sequence: {found}"

    check_each(models, check)


def test_memory_tells_the_truth_of_each_kind(models):
    """What `remove` says is what later logits show, for every kind of memory."""

    def check(model: Model, _path: Path) -> str | None:
        tokens = model.vocab.tokenize(PROMPT)
        half = len(tokens) // 2
        with Context(model, n_ctx=N_CTX, n_threads=1) as context:
            expected = all_logits(context, tokens)
            try:
                removed = context.memory.remove(0, half)
            except UnsupportedError:
                return None if model.is_diffusion else "has no memory"
            end = context.memory.pos_max(0)
            if removed:
                if end != half - 1:
                    return f"removed, but it ends at {end}"
                return expect(one_by_one(context, tokens[half:], half), expected[half:], 1e-7)
            if end != len(tokens) - 1:
                return f"not removed, but it ends at {end}"
            return None if context.memory.remove(0) else "a whole sequence could not be removed"

    check_each(models, check)


def test_each_is_built_in_memory(models):
    """From metadata and a function that fills the tensors, without a file."""

    def check(model: Model, path: Path) -> str | None:
        tokens = model.vocab.tokenize(PROMPT)
        with Context(model, n_ctx=N_CTX, n_threads=1) as context:
            expected = all_logits(context, tokens)
        with Gguf.open(path) as gguf:
            saved = gguf.tensors

            def fill(name: str, array: Any) -> None:
                # Of some architectures upstream's saver leaves out tensors that change no logits.
                array[...] = saved[name].data.reshape(array.shape) if name in saved else 0

            with (
                Model.from_gguf(gguf, fill) as made,
                Context(made, n_ctx=N_CTX, n_threads=1) as context,
            ):
                return expect(all_logits(context, tokens), expected, 1e-10)

    check_each(models, check)


def test_positions_are_moved_where_memory_says_so(models):
    """A memory that can be shifted can be used afterwards; upstream says so of more than can."""

    def check(model: Model, _path: Path) -> str | None:
        tokens = model.vocab.tokenize(PROMPT)
        with Context(model, n_ctx=N_CTX, n_threads=1) as context:
            all_logits(context, tokens)
            try:
                if not context.memory.can_shift:
                    return None
            except UnsupportedError:
                return None if model.is_diffusion else "has no memory"
            context.memory.shift(0, 5)
            if context.memory.pos_max(0) != len(tokens) + 4:
                return f"ends at {context.memory.pos_max(0)}"
            return (
                "not finite"
                if not np.isfinite(one_by_one(context, tokens, len(tokens) + 5)).all()
                else None
            )

    check_each(models, check)
