"""Every architecture that upstream's test-llama-archs writes: equal to upstream, and to itself.

That program saves a small random model of each; llama-results computes the logits of a prompt.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamacffi import ArgumentError, Batch, Context, ContextError, Gguf, Model, UnsupportedError
from tests.timing import HANGS

# Longer than the sliding windows of these models, 32 tokens.
PROMPT = "the quick brown fox jumps over the lazy dog and runs" * 4
N_CTX = 256


@pytest.fixture
def upstream_logits(programs: Path, tmp_path: Path) -> Callable[[Path], tuple[list[int], Any]]:
    """Let upstream tokenize the prompt, and compute its logits."""

    def compute(path: Path) -> tuple[list[int], Any]:
        out = tmp_path / "results.gguf"
        command = [programs / "llama-results", "-m", path, "-p", PROMPT, "-o", out, "-t", "1"]
        subprocess.run(command, check=True, capture_output=True, timeout=HANGS)
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


def next_logits(context: Context, tokens: list[int], pos: int) -> Any:
    """Return the logits after one more token."""
    return one_by_one(context, tokens[:1], pos + len(tokens))


def context_of(model: Model, type_k: str) -> Context:
    """Make a context with keys of a type; its values have the usual one where they may."""
    # Flash attention sums in f16, and in another order when cells are reused.
    types: dict[str, Any] = {"type_k": type_k, "flash_attn_type": "disabled"}
    try:
        return Context(model, n_ctx=N_CTX, n_threads=1, **types)
    except ContextError as refused:  # there the values are a part of the keys
        if "does not support different K" not in "".join(refused.__notes__):
            raise
    types["type_v"] = type_k
    if type_k == "q8_0":
        types["flash_attn_type"] = "enabled"  # which such values need
    return Context(model, n_ctx=N_CTX, n_threads=1, **types)


@pytest.mark.parametrize("type_k", ["f16", "f32", "bf16", "q8_0"])
def test_positions_are_moved_where_memory_says_so(models, type_k):
    """A sequence that was shifted goes on as one that was computed there.

    Upstream says that it can of more models than come out right, and of all types of keys.
    """

    def check(model: Model, _path: Path) -> str | None:
        tokens = model.vocab.tokenize(PROMPT)
        with contextlib.ExitStack() as stack:

            def new() -> Context:
                return stack.enter_context(context_of(model, type_k))

            if model.architecture == "laguna" and type_k == "q8_0":  # its heads are of 80 numbers
                with pytest.raises(ArgumentError, match="stores blocks of 32 numbers"):
                    new()
                return None
            there, moved = new(), new()
            try:
                can_shift = moved.memory.can_shift
            except UnsupportedError:
                return None if model.is_diffusion else "has no memory"
            n_moved.append(can_shift)
            if not can_shift:
                with pytest.raises(UnsupportedError):
                    moved.memory.shift(0, 7)
                return None
            all_logits(there, tokens, 7)
            all_logits(moved, tokens)
            moved.memory.shift(0, 7)
            if moved.memory.pos_max(0) != len(tokens) + 6:
                return f"ends at {moved.memory.pos_max(0)}"
            got, expected = next_logits(moved, tokens, 7), next_logits(there, tokens, 7)
            return expect(got, expected, 1e-10 if type_k == "f32" else 1e-6)

    n_moved: list[bool] = []
    check_each(models, check)
    # The processor turns no bf16, so there it is about models whose keys do not turn.
    assert sum(n_moved) > (5 if type_k == "bf16" else 70)


@pytest.mark.parametrize("architecture", ["gptneox", "phi2", "stablelm"])
def test_a_part_of_each_head_is_turned_where_memory_says_so(models, architecture, run_python):
    """Quantized keys cannot, on a processor: it would end the process on a thread of its own."""
    (path,) = models.glob(f"{architecture}-*.gguf")
    done = run_python(
        """
        import sys
        from llamacffi import Batch, Context, Model, UnsupportedError

        path, name = sys.argv[1:]
        model = Model(path, kv_overrides={f"{name}.rope.dimension_count": 32}, n_gpu_layers=0)
        for type_k, can in {"f16": True, "f32": True, "q8_0": False, "q4_0": False}.items():
            context = Context(model, n_ctx=256, n_threads=2, n_threads_batch=2, type_k=type_k)
            context.decode(Batch.from_tokens([3, 4, 5, 6]))
            assert context.memory.can_shift is can, type_k
            try:
                context.memory.cut(0, 1, 2)
            except UnsupportedError as error:
                assert not can and type_k in str(error)
            context.decode(Batch.from_tokens([3], pos=context.memory.next_pos()))
            assert context.memory.pos_max() == (3 if can else 4)
        """,
        path,
        architecture,
    )
    assert done.returncode == 0, done.stderr
