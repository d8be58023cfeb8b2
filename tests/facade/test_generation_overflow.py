"""A full sequence: generation ends, or continues by a policy; nothing is truncated silently."""

from __future__ import annotations

import numpy as np
import pytest

from llamacffi import (
    ArgumentError,
    Batch,
    ContextFullError,
    ContextShift,
    Greedy,
    UnsupportedError,
    generate,
)
from tests.facade.oracle import greedy, token

LAST = token(" llama")
EXACT = {"type_k": "f32", "type_v": "f32", "flash_attn_type": "disabled"}


@pytest.mark.parametrize(
    "policy",
    [ContextShift(), ContextShift(0), ContextShift(3, 1), ContextShift(64, 100), ContextShift(250)],
    ids=repr,
)
def test_three_times_the_context(context, chain, policy):
    generation = generate(
        context, "The llama", sampler=chain(Greedy()), max_tokens=3 * 256, overflow=policy
    )
    assert [one.id for one in generation] == greedy(LAST, 3 * 256)
    assert generation.finish_reason == "length"
    assert context.memory.pos_min() == 0
    assert context.memory.pos_max() < 256


@pytest.mark.parametrize("policy", [ContextShift(3, 10), ContextShift(0), ContextShift(100)])
def test_the_logits_are_those_of_the_remaining_tokens(random_context, chain, policy):
    """With one layer, the KV cache depends only on the tokens and their positions."""
    context = random_context("llama+shallow", **EXACT)
    fresh = random_context("llama+shallow", **EXACT)
    left = [5, 17, 40] * 80
    for one in generate(
        context, left, sampler=chain(Greedy()), max_tokens=40, overflow=policy, logprobs=True
    ):
        fresh.memory.clear()
        fresh.decode(Batch.from_tokens(left))
        logits = fresh.logits().astype(float)
        assert one.id == logits.argmax()
        expected = logits[one.id] - np.log(np.exp(logits).sum())
        assert one.logprob == pytest.approx(expected, abs=1e-4)
        if len(left) == 256:
            n = policy.n_discard or (256 - policy.n_keep) // 2
            left = left[: policy.n_keep] + left[policy.n_keep + n :]
        left.append(one.id)


def test_without_a_policy_it_ends(context, chain):
    generation = generate(context, "The llama", sampler=chain(Greedy()))
    assert [one.id for one in generation] == greedy(LAST, 254)
    assert generation.finish_reason == "context"


def test_a_prompt_makes_room_too(context, chain):
    """Only as much of the old text is kept as the policy says."""
    options = {"sampler": chain(Greedy()), "max_tokens": 5, "overflow": ContextShift(4, 16)}
    list(generate(context, [7] * 250, **options))
    generation = generate(context, [5] * 99 + [LAST], **options)
    assert [one.id for one in generation] == greedy(LAST, 5)
    # 98 were discarded for the prompt, as many as needed, and 16 for the second token after it.
    assert context.memory.next_pos() == 254 - 98 + 100 - 16 + 4
    with pytest.raises(ArgumentError, match="prompt of 253 tokens does not fit: 4 of n_ctx=256"):
        generate(context, [5] * 253, **options)
    generation = generate(context, [5] * 251 + [LAST], **options)
    assert [one.id for one in generation] == greedy(LAST, 5)


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("mamba", {}, "cannot discard part of a sequence"),
        ("lfm2", {}, "cannot discard part of a sequence"),
        ("qwen2vl", {}, "cannot be moved"),
        ("mimo2", {"swa_full": False, "n_ctx": 1024}, "cannot be moved"),
    ],
)
def test_models_that_cannot(random_context, chain, kind, params, message):
    context = random_context(kind, **params)
    with pytest.raises(UnsupportedError, match=message):
        generate(context, [1, 2], sampler=chain(Greedy()), overflow=ContextShift())
    assert context.memory.pos_max() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1,), "n_keep must be at least 0, not -1"),
        ((0, 0), "n_discard must be at least 1, not 0"),
        ((0, -5), "n_discard must be at least 1, not -5"),
    ],
)
def test_invalid_policies(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        ContextShift(*arguments)


@pytest.mark.parametrize("policy", [ContextShift(256), ContextShift(255), ContextShift(100, 156)])
def test_policies_that_would_make_no_room(context, chain, policy):
    with pytest.raises(ArgumentError, match="needs n_ctx above "):
        generate(context, [1, 2], sampler=chain(Greedy()), overflow=policy)


def fill(context, seq_id, n):
    context.decode(Batch.from_tokens([5] * n, seq_ids=(seq_id,)))


def test_a_prompt_without_room_leaves_nothing_behind(new_context, chain):
    """Other sequences fill the KV cache; the first tokens still fit, in ever smaller batches."""
    context = new_context(n_seq_max=2, kv_unified=True)
    fill(context, 0, 10)
    fill(context, 1, 200)
    generation = generate(context, [7] * 60, sampler=chain(Greedy()))
    with pytest.raises(ContextFullError):
        next(generation)
    assert (context.memory.pos_max(0), context.memory.pos_max(1)) == (9, 199)
    assert next(generate(context, [LAST] * 46, sampler=chain(Greedy()))).id == greedy(LAST, 1)[0]


def test_when_other_sequences_fill_the_rest(new_context, chain):
    context = new_context(n_seq_max=2, kv_unified=True)
    fill(context, 1, 200)
    generation = generate(context, [LAST], sampler=chain(Greedy()))
    with pytest.raises(ContextFullError):
        generation.text()
    assert generation.tokens == tuple(greedy(LAST, 56))
    assert generation.finish_reason is None
    assert (context.memory.pos_max(0), context.memory.pos_max(1)) == (55, 199)


def test_the_policy_helps_when_other_sequences_fill_the_rest(new_context, chain):
    context = new_context(n_seq_max=2, kv_unified=True)
    fill(context, 1, 200)
    policy = ContextShift(1, 20)
    generation = generate(context, [LAST], sampler=chain(Greedy()), max_tokens=300, overflow=policy)
    assert [one.id for one in generation] == greedy(LAST, 300)
    assert context.memory.pos_max(1) == 199
    assert context.memory.pos_max(0) < 56


def test_a_shared_prefix_that_is_kept(new_context, chain):
    """The tokens after it belong to one sequence, and may be moved."""
    context = new_context(n_seq_max=2, kv_unified=True)
    fill(context, 0, 20)
    context.memory.fork(0, 1)
    options = {"sampler": chain(Greedy()), "max_tokens": 400}
    generation = generate(context, [LAST], seq_id=1, overflow=ContextShift(20), **options)
    assert [one.id for one in generation] == greedy(LAST, 400)
    assert (context.memory.pos_min(0), context.memory.pos_max(0)) == (0, 19)
    assert context.memory.remove(1)
    context.memory.fork(0, 1)
    generation = generate(context, [LAST], seq_id=1, overflow=ContextShift(5, 8), **options)
    with pytest.raises(UnsupportedError, match="may share tokens at positions 13 to 19"):
        generation.text()
    assert (context.memory.pos_max(0), context.memory.pos_max(1)) == (
        19,
        255,
    )  # 20 of them are shared
