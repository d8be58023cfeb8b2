"""Counters, and a warm-up that leaves no trace."""

from __future__ import annotations

import dataclasses
import time

import pytest

from llamacffi import Batch, ContextError, ContextPerf, UnsupportedError, ffi
from tests.facade.oracle import close_to, logits_after
from tests.facade.test_context import PROMPT, batch_of


def test_the_fields_are_those_of_c():
    names = [field.name for field in dataclasses.fields(ContextPerf)]
    assert names == [name for name, _ in ffi.typeof("struct llama_perf_context_data").fields]


def test_nothing_is_told_without_measuring(context):
    context.decode(batch_of(PROMPT))
    with pytest.raises(ContextError, match="no_perf=False"):
        context.perf()


def decode_some(context, n):
    """Decode a prompt and ``n`` single tokens."""
    context.decode(batch_of(PROMPT))
    context.logits()
    batch = Batch(1)
    for i in range(n):
        batch.set_one(PROMPT[1], len(PROMPT) + i)
        context.decode(batch)
        context.logits()


def test_counters(new_context):
    context = new_context(no_perf=False)
    empty = context.perf()
    assert (empty.n_p_eval, empty.n_eval, empty.n_reused) == (0, 0, 0)  # C says 1, 1, 0
    assert empty.prompt_tokens_per_second is empty.tokens_per_second is None
    began = time.perf_counter()
    decode_some(context, 5)
    seconds = time.perf_counter() - began
    perf = context.perf()
    assert (perf.n_p_eval, perf.n_eval) == (len(PROMPT), 5)
    assert perf.n_reused >= 3  # the graph of a single token
    assert 0 < perf.t_p_eval_ms + perf.t_eval_ms < seconds * 1e3
    assert perf.t_load_ms > 0
    assert perf.tokens_per_second == pytest.approx(5 / perf.t_eval_ms * 1e3)
    assert perf.prompt_tokens_per_second == pytest.approx(len(PROMPT) / perf.t_p_eval_ms * 1e3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        perf.n_eval = 1
    context.reset_perf()
    again = context.perf()
    assert (again.n_p_eval, again.n_eval, again.n_reused) == (0, 0, 0)
    assert again.t_start_ms > perf.t_start_ms


def test_what_runs_before_a_reset_does_not_count(new_context):
    context = new_context(no_perf=False)
    context.decode(batch_of(PROMPT))  # not read: C has not counted it yet
    context.reset_perf()
    assert context.perf().n_p_eval == 0


@pytest.mark.parametrize("used", [False, True])
def test_a_warm_up_leaves_no_trace(new_context, used):
    context = new_context(no_perf=False)
    if used:
        decode_some(context, 3)
        context.memory.clear()
    before = context.perf()
    context.warmup()
    context.warmup()
    after = context.perf()
    for name in ("t_p_eval_ms", "t_eval_ms"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), abs=1e-9)
    for name in ("t_start_ms", "n_p_eval", "n_eval", "n_reused"):
        assert getattr(after, name) == getattr(before, name)
    assert context.memory.pos_max() is None
    with pytest.raises(IndexError):
        context.logits()
    decode_some(context, 4)
    assert context.perf().n_eval == before.n_eval + 4
    assert context.perf().n_p_eval == before.n_p_eval + len(PROMPT)
    assert context.logits() == close_to(logits_after(PROMPT[1:2])[0])


def test_a_warm_up_computes_something(new_context):
    calls = []
    context = new_context(cb_eval=lambda tensor, ask: calls.append(tensor.name))
    context.warmup()
    assert calls.count("result_output") >= 2  # several tokens, and one


@pytest.mark.parametrize("kind", ["llama", "mamba", "bert", "t5", "t5encoder", "gpt2"])
def test_a_warm_up_of_each_kind(random_context, kind):
    warm, cold = random_context(kind, no_perf=False), random_context(kind)
    warm.warmup()
    assert warm.perf().n_p_eval == 0
    encodes = kind in ("bert", "t5", "t5encoder")
    for context in (warm, cold):
        context.set_embeddings(True)
        (context.encode if encodes else context.decode)(batch_of([7, 8, 9]))
    if kind == "bert":
        assert warm.embeddings_seq(0).tolist() == cold.embeddings_seq(0).tolist()
    else:
        assert warm.embeddings_all().tolist() == cold.embeddings_all().tolist()


def test_a_warm_up_loses_nothing(new_context, random_context):
    context = new_context()
    context.decode(batch_of(PROMPT))
    with pytest.raises(ContextError, match="memory is not empty"):
        context.warmup()
    assert context.logits() == close_to(logits_after(PROMPT)[-1])
    t5 = random_context("t5")
    t5.encode(batch_of([5, 6]))
    with pytest.raises(ContextError, match="memory is not empty"):
        t5.warmup()
    draft = random_context("mimo2", ctx_type="mtp")
    with pytest.raises(UnsupportedError, match="without its target"):
        draft.warmup()


def test_a_warm_up_can_be_cancelled(new_context):
    context = new_context(no_perf=False)
    context.cancel()
    with pytest.raises(RuntimeError, match="cancelled"):
        context.warmup()
    assert context.memory.pos_max() is None
    context.warmup()
