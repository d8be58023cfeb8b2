"""Generated text follows the bigrams, and ends where it should."""

from __future__ import annotations

import numpy as np
import pytest

from llamacffi import AbortedError, ArgumentError, Dist, Greedy, Penalties, generate
from tests.facade.oracle import END, START, greedy, logits_after, token

PROMPT = "The llama"
LAST = token(" llama")
PATH = greedy(LAST, 60)


def pieces(model, tokens):
    return b"".join(model.vocab.piece(one, special=False) for one in tokens).decode()


def run(context, chain, prompt=PROMPT, **options):
    return generate(context, prompt, sampler=chain(Greedy()), **options)


def test_greedy_text_is_the_path_of_best_bigrams(context, chain):
    generation = run(context, chain, max_tokens=20)
    tokens = list(generation)
    assert [one.id for one in tokens] == PATH[:20]
    assert "".join(one.text for one in tokens) == pieces(context.model, PATH[:20])
    assert generation.finish_reason == "length"
    assert generation.stop_match is None
    assert (generation.n_prompt, generation.n_generated) == (3, 20)
    assert generation.seconds > 0
    assert generation.prompt_seconds > 0
    assert all(one.logprob is None for one in tokens)
    # Memory has the prompt and all tokens but the last.
    assert context.memory.pos_max() == 3 + 20 - 2


def test_text_of_a_stream_is_that_of_its_tokens(context, chain):
    sampler = chain(Dist(seed=11))
    tokens = list(generate(context, PROMPT, sampler=sampler, max_tokens=100))
    ids = [one.id for one in tokens]
    assert "".join(one.text for one in tokens) == pieces(context.model, ids)
    vocab = context.model.vocab
    whole = vocab.detokenize(vocab.tokenize(PROMPT) + ids)
    assert whole.endswith(pieces(context.model, ids))


@pytest.mark.parametrize("width", [1, 2, 3, 5, 9])
def test_stop_strings_at_every_place(context, chain, width):
    """Every substring as a stop string: within a token, across tokens, at their boundaries."""
    text = pieces(context.model, PATH[:16])
    for start in range(0, len(text) - width, 3):
        stop = text[start : start + width]
        context.memory.clear(data=False)
        generation = run(context, chain, stop=[stop, "never there"], max_tokens=16)
        assert generation.text() == text[: text.index(stop)]
        assert (generation.finish_reason, generation.stop_match) == ("stop", stop)


def test_of_several_stop_strings_the_first_complete_and_then_the_longest(context, chain):
    text = pieces(context.model, PATH[:16])
    stops = [text[8:12], text[6:10], text[4:10], text[20:22]]
    generation = run(context, chain, stop=stops, max_tokens=16)
    expected = min(stops, key=lambda stop: (text.index(stop) + len(stop), -len(stop)))
    assert generation.text() == text[: text.index(expected)]
    assert generation.stop_match == expected


def test_the_beginning_of_a_stop_string_is_not_lost_at_the_end(context, chain):
    text = pieces(context.model, PATH[:5])
    generation = run(context, chain, stop=[text[-3:] + "never there"], max_tokens=5)
    assert generation.text() == text
    assert generation.finish_reason == "length"


def test_one_stop_string_may_be_given_plainly(context, chain):
    text = pieces(context.model, PATH[:10])
    assert run(context, chain, stop=text[9:12]).text() == text[: text.index(text[9:12])]


def to_the_end(context, chain, **options):
    """Generate at random until the model ends; greedy paths of this model run in circles."""
    for seed in range(50):
        context.memory.clear(data=False)
        generation = generate(context, PROMPT, sampler=chain(Dist(seed)), max_tokens=200, **options)
        tokens = list(generation)
        if generation.finish_reason == "eog":
            return generation, tokens
    raise AssertionError("no end in 50 runs")


def test_the_models_own_end(context, chain):
    generation, tokens = to_the_end(context, chain)
    assert tokens[-1].id == END
    assert tokens[-1].text == ""
    assert all(one.id != END for one in tokens[:-1])
    assert generation.n_generated == len(tokens)


def test_what_was_held_back_comes_with_the_models_own_end(context, chain):
    _, tokens = to_the_end(context, chain)
    text = "".join(one.text for one in tokens)
    _, again = to_the_end(context, chain, stop=[text[-1] + "never there"])
    assert "".join(one.text for one in again) == text
    assert again[-1].text == text[-1]


def test_a_full_context(context, chain):
    tokens = list(generation := run(context, chain))
    assert generation.finish_reason == "context"
    # Memory is full, and one more token could be chosen.
    assert len(tokens) == 256 - 3 + 1
    assert context.memory.pos_max() == 255
    assert [one.id for one in tokens[:60]] == PATH


def test_logprobs_are_the_closed_form(context, chain):
    tokens = list(generate(context, PROMPT, sampler=chain(Dist(4)), max_tokens=40, logprobs=True))
    before = [LAST, *(one.id for one in tokens)][:-1]
    for one, logits in zip(tokens, logits_after(before), strict=True):
        expected = logits[one.id] - np.log(np.exp(logits.astype(np.float64)).sum())
        assert one.logprob == pytest.approx(expected, abs=2e-3)


def test_leaving_early_and_going_on(context, chain):
    for one in run(context, chain):
        if one.id == PATH[6]:
            break
    rest = run(context, chain, prompt=[one.id], max_tokens=10)
    assert [two.id for two in rest] == greedy(one.id, 10)


def test_a_generation_left_early_frees_its_context(model):
    from llamacffi import Context, SamplerChain
    from llamacffi._handle import live_objects

    before = live_objects()
    context = Context(model, n_ctx=256, n_threads=1)
    for _ in generate(context, PROMPT, sampler=SamplerChain(Greedy())):
        break
    del context, _
    assert live_objects() == before  # at once: no cycle waits for the garbage collector


def test_closing_a_generation(context, chain):
    generation = run(context, chain)
    next(generation)
    generation.close()
    with pytest.raises(StopIteration):
        next(generation)


def test_prompts_as_text_bytes_and_tokens(context, chain):
    ids = context.model.vocab.tokenize(PROMPT)
    assert ids[0] == START
    for prompt in (PROMPT, PROMPT.encode(), ids, tuple(ids), np.array(ids)):
        context.memory.clear(data=False)
        generation = run(context, chain, prompt=prompt, max_tokens=5)
        assert [one.id for one in generation] == PATH[:5]
        assert generation.n_prompt == 3


def test_special_tokens_only_at_the_start_of_a_sequence(context, chain):
    first = run(context, chain, max_tokens=1)
    list(first)
    again = run(context, chain, max_tokens=1)
    list(again)
    assert (first.n_prompt, again.n_prompt) == (3, 2)  # <s> once
    assert context.memory.pos_max() == 5 - 1


def test_a_prompt_longer_than_a_batch(new_context, chain):
    context = new_context(n_batch=7)
    generation = run(context, chain, prompt=[5] * 40 + [LAST], max_tokens=10)
    assert [one.id for one in generation] == PATH[:10]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "no tokens"),
        ([5] * 257, {}, "prompt of 257 tokens does not fit: 0 of n_ctx=256"),
        ([5, 514], {}, "token 514 is not in the vocabulary"),
        (PROMPT, {"max_tokens": 0}, "max_tokens=0"),
        (PROMPT, {"stop": [""]}, "stop string is empty"),
        (PROMPT, {"seq_id": 1}, "seq_id 1 is not in 0 to 0"),
    ],
)
def test_what_cannot_be_generated(context, chain, prompt, options, message):
    with pytest.raises(ArgumentError, match=message):
        run(context, chain, prompt=prompt, **options)
    assert context.memory.pos_max() is None


def test_an_empty_text_after_a_text(context, chain):
    list(run(context, chain, max_tokens=2))
    with pytest.raises(ArgumentError, match="no tokens"):
        run(context, chain, prompt="")


def test_a_chain_that_chooses_nothing_is_not_replaced(context, chain):
    with pytest.raises(ArgumentError, match="chooses no token"):
        next(generate(context, PROMPT, sampler=chain()))


def test_cancel_midway(context, chain):
    generation = run(context, chain)
    got = [next(generation).id for _ in range(5)]
    context.cancel()
    with pytest.raises(AbortedError):
        next(generation)
    assert generation.finish_reason is None
    assert got == PATH[:5]
    last = context.memory.pos_max()
    assert last == 3 + 4 - 1
    assert [one.id for one in run(context, chain, prompt=[got[-1]], max_tokens=5)] == PATH[5:10]


def test_the_sampler_begins_anew_each_time(context, chain):
    one = chain(Penalties(last_n=64, present=3.0), Dist(seed=2))
    runs = []
    for _ in range(2):
        context.memory.clear(data=False)
        runs.append([t.id for t in generate(context, PROMPT, sampler=one, max_tokens=20)])
    assert runs[0] == runs[1]


def test_a_character_of_several_tokens_comes_whole(tmp_path, run_python):
    """A model whose words are bytes: after "x" comes a llama, in four tokens."""
    code = """
        import sys
        from pathlib import Path
        import llamacffi
        from llamacffi import demo

        llama = "\\N{LLAMA}".encode()
        demo.TEXT = "x y"
        entries = list(demo.vocabulary())
        ids = {entry.text: i for i, entry in enumerate(entries)}
        # A state for each byte, and a table in which each is followed by the next.
        first = max(entry.state for entry in entries) + 1
        x = ids["\\N{LOWER ONE EIGHTH BLOCK}x"]
        steps = [x, *(ids[f"<0x{byte:02X}>"] for byte in llama), 2]
        for n, step in enumerate(steps[1:-1]):
            entry = entries[step]
            entries[step] = demo.Entry(entry.text, entry.score, entry.type, first + n)
        import numpy as np
        table = np.full((first + 4, len(entries)), -20, np.float32)
        for one, after in zip(steps, steps[1:]):
            table[entries[one].state, after] = 0
        demo.vocabulary, demo.log_probabilities = lambda: tuple(entries), lambda: table
        demo.write(Path("bytes.gguf"))
        with llamacffi.Model("bytes.gguf") as model:
            for n in (5, 4, 2):
                with llamacffi.Context(model, n_ctx=64, n_threads=1) as context:
                    chain = llamacffi.SamplerChain(llamacffi.Greedy())
                    out = llamacffi.generate(context, "x", sampler=chain, max_tokens=n)
                    print(ascii([token.text for token in out]), out.finish_reason)
    """
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        r"['', '', '', '\U0001f999', ''] eog",
        r"['', '', '', '\U0001f999'] length",
        r"['', '\ufffd'] length",
    ]
