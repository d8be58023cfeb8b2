"""Memory that changes between generate() and the first token, or between two tokens."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from llamacffi import (
    AbortedError,
    Batch,
    BusyError,
    Context,
    ContextError,
    ContextShift,
    Greedy,
    generate,
)
from tests.facade.oracle import greedy, token

LAST = token(" llama")
PROMPT = "The llama"
PATH = greedy(LAST, 40)


def ids(generation):
    return [one.id for one in generation]


@pytest.mark.parametrize(
    "before", [None, "Something else.", "Something else, which is somewhat longer than that."]
)
@pytest.mark.parametrize(
    "after", [None, "Something else.", "Something else, which is somewhat longer than that."]
)
def test_a_generation_starts_where_the_sequence_ends_by_then(random_context, chain, before, after):
    """The prompt is appended to what is in memory now, not to what was there at the call."""
    context = random_context("llama", n_seq_max=2)

    def remember(tokens):
        context.memory.clear()
        if tokens:
            context.decode(Batch.from_tokens([one % 60 for one in tokens.encode()]))

    prompt = [5, 17, 40]
    remember(after)
    wanted = ids(generate(context, prompt, sampler=chain(Greedy()), max_tokens=8))
    end = context.memory.pos_max()
    remember(before)
    late = generate(context, prompt, sampler=chain(Greedy()), max_tokens=8)
    remember(after)
    assert ids(late) == wanted
    assert (context.memory.pos_min(), context.memory.pos_max()) == (0, end)


def test_the_text_is_tokenized_for_the_position_by_then(context, chain):
    first, second = (
        generate(context, PROMPT, sampler=chain(Greedy()), max_tokens=3) for _ in range(2)
    )
    assert (first.n_prompt, second.n_prompt) == (3, 3)
    assert ids(first) == PATH[:3]
    assert ids(second) == PATH[:3]
    assert second.n_prompt == 2  # <s> once
    assert context.memory.pos_max() == 3 + 3 - 1 + 2 + 3 - 2


def test_a_prompt_that_no_longer_fits(context, chain):
    late = generate(context, [5] * 200, sampler=chain(Greedy()))
    context.decode(Batch.from_tokens([5] * 100))
    with pytest.raises(ValueError, match="does not fit: 100 of n_ctx=256"):
        next(late)
    assert context.memory.pos_max() == 99


@pytest.mark.parametrize(
    "change",
    [
        lambda memory, decode: memory.clear(),
        lambda memory, decode: memory.clear(data=False),
        lambda memory, decode: memory.remove(0),
        lambda memory, decode: memory.remove(0, 4),
        lambda memory, decode: (memory.remove(0, 4), decode(2)),  # as many as before
        lambda memory, decode: (memory.clear(), decode(6)),
        lambda memory, decode: memory.shift(0, 3),
        lambda memory, decode: memory.cut(0, 0, 3),
        lambda memory, decode: memory.divide(0, 2),
        lambda memory, decode: memory.keep(1),
        lambda memory, decode: memory.fork(1, 0),
        lambda memory, decode: memory.copy(1, 0),
        lambda memory, decode: decode(1),
        lambda memory, decode: decode(9),
    ],
)
@pytest.mark.parametrize("overflow", [None, ContextShift()])
def test_memory_that_changes_between_two_tokens(new_context, chain, change, overflow):
    context = new_context(n_seq_max=2, kv_unified=True)
    context.decode(Batch.from_tokens([7] * 6, seq_ids=(1,)))
    generation = generate(context, PROMPT, sampler=chain(Greedy()), overflow=overflow)
    assert [next(generation).id for _ in range(4)] == PATH[:4]
    assert context.memory.next_pos() == 6

    def decode(n):
        context.decode(Batch.from_tokens([9] * n, context.memory.next_pos()))

    change(context.memory, decode)
    end = context.memory.pos_max(), context.memory.pos_max(1)
    with pytest.raises(ContextError, match="memory of sequence 0 has changed since"):
        next(generation)
    assert (context.memory.pos_max(), context.memory.pos_max(1)) == end
    with pytest.raises(StopIteration):
        next(generation)
    context.memory.clear()
    assert ids(generate(context, PROMPT, sampler=chain(Greedy()), max_tokens=5)) == PATH[:5]


@pytest.mark.parametrize("form", ["all", "sequence", "snapshot"])
def test_memory_that_is_loaded_between_two_tokens(new_context, chain, form):
    context = new_context(n_seq_max=2, kv_unified=True)
    generation = generate(context, PROMPT, sampler=chain(Greedy()))
    next(generation)
    seq_id = None if form == "all" else 0
    saved = context.snapshot() if form == "snapshot" else context.save_state(seq_id=seq_id)
    next(generation)
    if form == "snapshot":
        context.restore(saved)
    else:
        context.load_state(saved, seq_id=seq_id)
    with pytest.raises(ContextError, match="has changed since"):
        next(generation)


def test_two_generations_of_one_sequence(context, chain):
    """The second continues the first; the first can then no longer continue, and raises."""
    first = generate(context, PROMPT, sampler=chain(Greedy()))
    second = generate(context, PROMPT, sampler=chain(Greedy()), max_tokens=6)
    assert next(first).id == PATH[0]
    assert ids(second) == PATH[:6]
    with pytest.raises(ContextError, match="give each generation a sequence of its own"):
        next(first)


def test_generations_that_take_turns(new_context, chain):
    context = new_context(n_seq_max=3, kv_unified=True)
    three = [
        generate(context, PROMPT, sampler=chain(Greedy()), seq_id=k, max_tokens=30)
        for k in range(3)
    ]
    found = list(zip(*three, strict=True))
    assert [tuple(one.id for one in row) for row in found] == [(one,) * 3 for one in PATH[:30]]


def test_changes_to_other_sequences_do_not_matter(new_context, chain):
    context = new_context(n_seq_max=3, kv_unified=True)
    generation = generate(context, PROMPT, sampler=chain(Greedy()), max_tokens=8)
    found = [next(generation).id]
    context.memory.copy(0, 1)
    found.append(next(generation).id)
    context.memory.remove(1)
    found.append(next(generation).id)
    context.decode(Batch.from_tokens([3, 4], seq_ids=(2,)))
    context.memory.shift(2, 5)
    found += ids(generation)
    assert found == PATH[:8]


def test_a_prompt_that_is_stopped_after_a_shift(random_context, chain):
    """Discarded tokens stay discarded; nothing of the prompt remains."""
    stop, n_nodes = [], 0
    context = random_context("llama", n_batch=32, n_ubatch=32, cb_eval=lambda node, ask: see(node))

    def see(_node):
        nonlocal n_nodes
        n_nodes += 1
        if stop and n_nodes > stop[0]:
            raise KeyboardInterrupt
        return False

    context.decode(Batch.from_tokens(np.arange(32)))
    n_batch = n_nodes
    for start in range(32, 224, 32):
        context.decode(Batch.from_tokens(np.arange(32), start))
    policy = ContextShift(4, 100)
    late = generate(context, [5] * 90, sampler=chain(Greedy()), overflow=policy)
    stop.append(n_nodes + 5 * n_batch // 2)  # in the third batch
    with pytest.raises(KeyboardInterrupt):
        next(late)
    assert context.memory.pos_max() == 224 - 100 - 1
    stop.clear()
    assert len(ids(generate(context, [6], sampler=chain(Greedy()), max_tokens=4))) == 4


def test_closing_from_another_thread(model, chain):
    inside, go_on = threading.Event(), threading.Event()

    def wait(_node, _ask):
        inside.set()
        go_on.wait(60)
        return False

    with Context(model, n_ctx=256, n_threads=1, cb_eval=wait) as context:
        generation = generate(context, PROMPT, sampler=chain(Greedy()), max_tokens=5)
        errors = []

        def work():
            try:
                errors.append(generation.text())
            except AbortedError as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        assert inside.wait(60)
        for use in (generation.close, lambda: next(generation), generation.text):
            with pytest.raises(BusyError, match=r"another thread.*Context\.cancel"):
                use()
        context.cancel()
        go_on.set()
        thread.join()
        assert isinstance(errors[0], AbortedError)
        generation.close()
        assert list(generation) == []


def test_use_from_within_its_callbacks(context, chain):
    generation = generate(
        context, PROMPT, sampler=chain(Greedy()), stop_when=lambda tokens: generation.close()
    )
    with pytest.raises(BusyError, match="this Generation is computing a token: callbacks"):
        next(generation)
