"""Samplers know the whole text of a sequence, not only the last turn."""

from __future__ import annotations

import pytest

from llamacffi import (
    DRY,
    AbortedError,
    Batch,
    ContextShift,
    CustomSampler,
    Dist,
    Greedy,
    Penalties,
    generate,
)

FIRST, SECOND = "The llama", " The river and the hill"
SAMPLERS = {
    "penalties": (Penalties(last_n=256, repeat=1.5), Greedy()),
    "presence": (Penalties(last_n=256, present=0.5, freq=0.5), Dist(seed=4)),
    "dry": (DRY(multiplier=2.0, allowed_length=1, last_n=256), Greedy()),
}


class Heard:
    """A sampler that notes what it is told."""

    def __init__(self):
        self.tokens = []

    def sampler(self):
        return CustomSampler(lambda _all: None, self.tokens.append, self.tokens.clear)


def of_text(context, text):
    return context.model.vocab.tokenize(text, add_special=False)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_turns_are_sampled_as_one_text(new_context, chain, kind):
    context, fresh = new_context(), new_context()
    sampler = chain(*SAMPLERS[kind], vocab=context.model.vocab)
    text = context.model.vocab.tokenize(FIRST)
    turns = [text, of_text(context, SECOND), of_text(context, SECOND)]
    last, whole = [], []
    for turn in turns:
        prompt = [*last[-1:], *turn]
        whole += turn
        generation = generate(context, prompt, sampler=sampler, max_tokens=15)
        generation.text()
        last = generation.tokens
        fresh.memory.clear()
        again = generate(fresh, whole, sampler=sampler, max_tokens=15)
        again.text()
        assert last == again.tokens
        whole += last


@pytest.mark.parametrize("long_way", [False, True])
def test_what_samplers_are_told_follows_the_memory(new_context, chain, long_way):
    context = new_context(n_seq_max=3, kv_unified=True)
    if long_way:  # a step with a callback
        context = new_context(n_seq_max=3, kv_unified=True, cb_eval=lambda _node, _ask: False)
    heard = Heard()
    sampler, memory = chain(heard.sampler(), Greedy()), context.memory

    def told(prompt, seq_id=0, max_tokens=4):
        before = len(
            list(generate(context, prompt, sampler=sampler, max_tokens=max_tokens, seq_id=seq_id))
        )
        return heard.tokens[:-before]

    assert told([5, 6, 7]) == [5, 6, 7]
    answer = heard.tokens[3:]
    assert told([answer[-1], 9]) == [5, 6, 7, *answer, 9]
    whole = heard.tokens[:-1]  # the last is not in memory
    memory.remove(0, 4)
    assert told([11], max_tokens=1) == [*whole[:4], 11]
    memory.fork(0, 1)
    assert told([12], seq_id=1, max_tokens=1) == [*whole[:4], 11, 12]
    assert told([13], seq_id=2, max_tokens=1) == [13]
    memory.remove(1)
    memory.cut(0, 1, 3)
    assert told([14], max_tokens=1) == [whole[0], whole[3], 11, 14]
    context.decode(Batch.from_tokens([15, 16], pos=4))
    assert told([17], max_tokens=1) == [whole[0], whole[3], 11, 14, 15, 16, 17]
    memory.clear()
    assert told([18], max_tokens=1) == [18]


def test_a_prompt_that_fails_was_not_told(context, chain):
    heard = Heard()
    sampler = chain(heard.sampler(), Greedy())
    list(generate(context, [5, 6], sampler=sampler, max_tokens=1))
    context.cancel()
    with pytest.raises(AbortedError):
        list(generate(context, [7, 8], sampler=sampler, max_tokens=1))
    list(generate(context, [9], sampler=sampler, max_tokens=1))
    assert heard.tokens[:-1] == [5, 6, 9]


def test_what_was_shifted_out_is_forgotten(context, chain):
    heard = Heard()
    sampler = chain(heard.sampler(), Greedy())
    prompt = list(range(3, 203))
    shift = ContextShift(n_keep=2, n_discard=50)
    generation = generate(context, prompt, sampler=sampler, max_tokens=80, overflow=shift)
    tokens = [one.id for one in generation]
    assert len(tokens) == 80
    assert heard.tokens == prompt + tokens
    list(generate(context, [9], sampler=sampler, max_tokens=1, overflow=shift))
    assert heard.tokens[:-1] == [*prompt[:2], *prompt[52:], *tokens[:-1], 9]


def test_a_snapshot_remembers_the_tokens(new_context, chain):
    context, heard = new_context(n_seq_max=2), Heard()
    sampler = chain(heard.sampler(), Greedy())
    list(generate(context, [5, 6, 7], sampler=sampler, max_tokens=1))
    kept = context.snapshot()
    list(generate(context, [8, 9], sampler=sampler, max_tokens=3))
    context.restore(kept)
    list(generate(context, [10], sampler=sampler, max_tokens=1))
    assert heard.tokens[:-1] == [5, 6, 7, 10]
    context.restore(kept, seq_id=1)
    list(generate(context, [11], sampler=sampler, max_tokens=1, seq_id=1))
    assert heard.tokens[:-1] == [5, 6, 7, 11]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("seq_id", [None, 0])
def test_the_tokens_of_a_state_are_known_if_they_were_saved(
    new_context, chain, tmp_path, plain, seq_id
):
    context, other, heard = new_context(), new_context(), Heard()
    sampler, path = chain(heard.sampler(), Greedy()), tmp_path / "state"
    generation = generate(context, [5, 6, 7], sampler=sampler, max_tokens=4)
    generation.text()
    whole = [5, 6, 7, *generation.tokens]
    for saved, known in ((whole, whole[:-1]), (whole[:3], []), ([], []), ([10**6] * 9, [])):
        context.save_file(path, saved, seq_id=seq_id, plain=plain)
        other.load_file(path, seq_id=seq_id)
        list(generate(other, [9], sampler=sampler, max_tokens=1))
        assert heard.tokens[:-1] == [*known, 9]
