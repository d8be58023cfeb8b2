"""Generated text follows the bigrams, and ends where it should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamacffi import (
    AbortedError,
    ArgumentError,
    Batch,
    BusyError,
    ClosedError,
    Context,
    ContextError,
    Dist,
    Greedy,
    Penalties,
    SamplerChain,
    Temp,
    Threadpool,
    TopK,
    UnsupportedError,
    generate,
)
from llamacffi.context.decoding import Decoder
from llamacffi.context.handle import bookkeeping_of
from tests.facade.oracle import END, START, greedy, logits_after, token
from tests.facade.test_text import stopped

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
    # Memory contains the prompt and all tokens but the last.
    assert context.memory.pos_max() == 3 + 20 - 2


def test_streamed_text_equals_the_text_of_the_tokens(context, chain):
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


def test_the_first_complete_stop_string_wins_then_the_longest(context, chain):
    text = pieces(context.model, PATH[:16])
    stops = [text[8:12], text[6:10], text[4:10], text[20:22]]
    generation = run(context, chain, stop=stops, max_tokens=16)
    expected = min(stops, key=lambda stop: (text.index(stop) + len(stop), -len(stop)))
    assert generation.text() == text[: text.index(expected)]
    assert generation.stop_match == expected


def test_a_partial_stop_string_at_the_end_is_not_lost(context, chain):
    text = pieces(context.model, PATH[:5])
    generation = run(context, chain, stop=[text[-3:] + "never there"], max_tokens=5)
    assert generation.text() == text
    assert generation.finish_reason == "length"


def test_a_single_stop_string_needs_no_list(context, chain):
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


def test_the_model_ends(context, chain):
    generation, tokens = to_the_end(context, chain)
    assert tokens[-1].id == END
    assert tokens[-1].text == ""
    assert all(one.id != END for one in tokens[:-1])
    assert generation.n_generated == len(tokens)


def test_special_tokens_in_a_prompt(context):
    """Their text becomes those tokens, unless parse_special is off."""
    vocab = context.model.vocab
    text = f"The {vocab.text(vocab.eos)}"
    for parse_special in (True, False):
        context.memory.clear()
        tokens = vocab.tokenize(text, parse_special=parse_special)
        generation = generate(context, text, parse_special=parse_special, max_tokens=1)
        generation.text()
        assert generation.n_prompt == len(tokens)
        assert (vocab.eos in tokens) is parse_special


def test_text_held_back_comes_when_the_model_ends(context, chain):
    _, tokens = to_the_end(context, chain)
    text = "".join(one.text for one in tokens)
    _, again = to_the_end(context, chain, stop=[text[-1] + "never there"])
    assert "".join(one.text for one in again) == text
    assert again[-1].text == text[-1]


def test_a_full_context(context, chain):
    tokens = list(generation := run(context, chain))
    assert generation.finish_reason == "context"
    # Memory is full, but one more token can be chosen.
    assert len(tokens) == 256 - 3 + 1
    assert context.memory.pos_max() == 255
    assert [one.id for one in tokens[:60]] == PATH


def test_logprobs_are_the_closed_form(context, chain):
    tokens = list(generate(context, PROMPT, sampler=chain(Dist(4)), max_tokens=40, logprobs=True))
    before = [LAST, *(one.id for one in tokens)][:-1]
    for one, logits in zip(tokens, logits_after(before), strict=True):
        expected = logits[one.id] - np.log(np.exp(logits.astype(np.float64)).sum())
        assert one.logprob == pytest.approx(expected, abs=2e-3)


def test_stopping_early_and_continuing(context, chain):
    for one in run(context, chain):
        if one.id == PATH[6]:
            break
    rest = run(context, chain, prompt=[one.id], max_tokens=10)
    assert [two.id for two in rest] == greedy(one.id, 10)


def test_a_generation_left_early_frees_its_context(model):
    from llamacffi._core.ownership import live_objects

    before = live_objects()
    context = Context(model, n_ctx=256, n_threads=1)
    for _ in generate(context, PROMPT, sampler=SamplerChain(Greedy())):
        break
    del context, _
    assert live_objects() == before  # immediately: no cycle waits for the garbage collector


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
        ([], {}, "prompt is empty"),
        ([5] * 257, {}, "prompt of 257 tokens does not fit: 0 of n_ctx=256"),
        ([5, 514], {}, "token 514 is not in the vocabulary"),
        (PROMPT, {"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        (PROMPT, {"stop": [""]}, r"stop\[0\] is empty, which"),
        (
            PROMPT,
            {"stop": ["a" * 99_999, "bc"]},
            "have 100001 characters together; .* 100000",
        ),
        (PROMPT, {"seq_id": 1}, "seq_id must be 0, not 1"),
        (PROMPT, {"top_logprobs": -1}, "top_logprobs must be between 0 and 514, not -1"),
        (PROMPT, {"top_logprobs": 515}, "top_logprobs must be between 0 and 514, not 515"),
    ],
)
def test_invalid_arguments(context, chain, prompt, options, message):
    with pytest.raises(ArgumentError, match=message):
        run(context, chain, prompt=prompt, **options)
    assert context.memory.pos_max() is None


def test_an_empty_prompt_after_a_text(context, chain):
    list(run(context, chain, max_tokens=2))
    with pytest.raises(ArgumentError, match="prompt is empty"):
        run(context, chain, prompt="")


def test_a_chain_that_chooses_nothing_is_an_error(context, chain):
    with pytest.raises(ArgumentError, match="never chooses a token"):
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


def test_the_sampler_is_reset_each_time(context, chain):
    one = chain(Penalties(last_n=64, present=3.0), Dist(seed=2))
    runs = []
    for _ in range(2):
        context.memory.clear(data=False)
        runs.append([t.id for t in generate(context, PROMPT, sampler=one, max_tokens=20)])
    assert runs[0] == runs[1]


def test_penalties_count_the_prompt(context, chain):
    """As in llama.cpp's own programs."""
    prompt = [PATH[0], *PATH[1:4], LAST]
    sampler = chain(Penalties(last_n=64, present=50.0), Greedy())
    (one,) = generate(context, prompt, sampler=sampler, max_tokens=1)
    scores = logits_after([LAST])[0]
    scores[prompt] -= 50
    assert one.id == scores.argmax() != PATH[0]


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
        # One state for each byte, and a table in which each leads to the next.
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


def test_any_stop_strings(context, chain):
    """The text ends as defined, wherever the token boundaries are."""
    text, greediest = pieces(context.model, PATH[:16]), chain(Greedy())
    part = st.tuples(st.integers(0, len(text) - 1), st.integers(1, 6))
    strings = st.one_of(
        st.text("abcdefghilmnoprstu ", min_size=1, max_size=5),
        part.map(lambda place: text[place[0] : sum(place)]),
    )

    @settings(max_examples=60, deadline=None)
    @given(st.lists(strings, max_size=4))
    def check(stops):
        context.memory.clear(data=False)
        generation = generate(context, PROMPT, sampler=greediest, stop=stops, max_tokens=16)
        assert (generation.text(), generation.stop_match) == stopped(text, stops)
        assert generation.finish_reason == ("length" if generation.stop_match is None else "stop")

    check()


def test_a_condition_stops(context, chain):
    seen = []

    def stop_when(tokens):
        seen.append(list(tokens))
        assert context.logits().argmax() == tokens[-1]
        return len(tokens) == 4

    text = pieces(context.model, PATH[:4])
    generation = run(context, chain, stop_when=stop_when, stop=text[-1] + "never there")
    assert generation.text() == text  # includes what was held back
    assert seen == [PATH[:n] for n in range(1, 5)]
    assert (generation.finish_reason, generation.stop_match) == ("stop", None)
    assert generation.tokens == tuple(PATH[:4])


def test_a_condition_that_fails(context, chain):
    generation = run(context, chain, stop_when=lambda tokens: 0 / (len(tokens) - 2))
    assert next(generation).id == PATH[0]
    with pytest.raises(ZeroDivisionError):
        next(generation)
    assert context.memory.next_pos() == 3 + 1


@pytest.mark.parametrize("n", [1, 7, 514])
def test_the_most_likely_tokens(context, chain, n):
    sampler = chain(Dist(4))
    tokens = list(generate(context, PROMPT, sampler=sampler, max_tokens=10, top_logprobs=n))
    before = [LAST, *(one.id for one in tokens)][:-1]
    for one, logits in zip(tokens, logits_after(before).astype(np.float64), strict=True):
        expected = logits - np.log(np.exp(logits).sum())
        ids, values = zip(*one.top_logprobs, strict=True)
        assert len(set(ids)) == n
        assert list(values) == pytest.approx(expected[list(ids)], abs=2e-3)
        assert list(values) == sorted(values, reverse=True)
        assert min(values) == pytest.approx(np.sort(expected)[-n], abs=2e-3)
        assert one.logprob == pytest.approx(expected[one.id], abs=2e-3)


def test_two_generations_take_turns(new_context, chain):
    """Each chooses from its own logits, although the other has used the context since."""
    context = new_context(n_seq_max=2, kv_unified=True)
    texts = [[5] * 3 + [LAST], [7, token(" the")]]
    options = {"max_tokens": 30, "logprobs": True}
    both = [
        generate(context, text, sampler=chain(Greedy()), seq_id=seq_id, **options)
        for seq_id, text in enumerate(texts)
    ]
    tokens = [[], []]
    for one, two in zip(*both, strict=True):
        tokens[0].append(one)
        tokens[1].append(two)
    for found, text in zip(tokens, texts, strict=True):
        path = greedy(text[-1], 30)
        assert [one.id for one in found] == path
        scores = logits_after([text[-1], *path[:-1]])
        expected = scores.max(axis=1) - np.log(np.exp(scores).sum(axis=1))
        assert [one.logprob for one in found] == pytest.approx(expected, abs=2e-3)


def test_a_cancelled_prompt_restores_the_sequence(model, chain):
    count = []

    def stop(_node, asked):
        count.append(asked)
        return asked or len(count) < 200

    with Context(model, n_ctx=256, n_threads=1, n_batch=8, n_ubatch=4, cb_eval=stop) as context:
        context.decode(Batch.from_tokens([1, 2, 3]))
        assert len(count) < 100
        generation = run(context, chain, prompt=[5] * 60)
        with pytest.raises(AbortedError):
            next(generation)
        assert context.memory.pos_max() == 2
        assert next(generation, None) is None


def test_an_interrupted_prompt_restores_the_sequence(model, chain):
    count = []

    def interrupt(_node, asked):
        count.append(asked)
        if len(count) > 200:
            raise KeyboardInterrupt
        return True

    with Context(model, n_ctx=256, n_threads=1, n_batch=8, cb_eval=interrupt) as context:
        context.decode(Batch.from_tokens([1, 2, 3]))
        with pytest.raises(KeyboardInterrupt):
            next(run(context, chain, prompt=[5] * 60))
        assert context.memory.pos_max() == 2


def test_a_state_that_cannot_be_restored_is_emptied(random_context, chain):
    count = []

    def stop(_node, asked):
        count.append(asked)
        return asked or len(count) < 1000

    context = random_context("mamba", n_batch=8, cb_eval=stop)
    context.decode(Batch.from_tokens([1, 2, 3]))
    with pytest.raises(AbortedError):
        next(run(context, chain, prompt=[5] * 200))
    assert context.memory.pos_max() is None


def test_closing_the_context_between_tokens(new_context, chain):
    context = new_context()
    generation = run(context, chain)
    next(generation)
    context.close()
    with pytest.raises(ClosedError):
        next(generation)


def test_a_live_view_of_the_logits(context, chain):
    generation = run(context, chain)
    next(generation)
    view = context.logits_view()
    with pytest.raises(BufferError, match="zero-copy"):
        next(generation)
    assert view.argmax() == PATH[0]


def test_closing_the_chain_between_tokens(context, chain):
    sampler = chain(Greedy())
    generation = generate(context, PROMPT, sampler=sampler)
    next(generation)
    sampler.close()
    with pytest.raises(ClosedError, match="SamplerChain is closed"):
        next(generation)


def test_using_the_context_between_tokens(context, chain):
    generation = run(context, chain)
    next(generation)
    with (
        context.exclusive,
        pytest.raises(BusyError, match="this thread is using this Context already"),
    ):
        next(generation)


@pytest.mark.parametrize("change", ["pool", "embeddings", "batch", "shift"])
def test_changes_between_two_tokens(new_context, chain, change):
    """The shortcut from token to token is not taken if there is more to do."""
    context = new_context(n_seq_max=2, kv_unified=True)
    generation = run(context, chain, logprobs=True, seq_id=0)
    found = [next(generation).id for _ in range(5)]
    with Threadpool(1) as pool:
        if change == "pool":
            context.attach_threadpool(pool)
        elif change == "embeddings":
            context.set_embeddings(True)
        elif change == "batch":
            context.decode(Batch.from_tokens([5, 6, 7], seq_ids=(1,)))
        else:
            context.memory.shift(1, 3)
        found += [next(generation).id for _ in range(5)]
        if change == "embeddings":
            assert context.embeddings().any()
            context.set_embeddings(False)
        if change == "pool":
            # As if another context were computing with it.
            with pool.exclusive, pytest.raises(BusyError):
                next(generation)
    assert found == PATH[:10]


def test_two_requests_for_a_token_at_once(model, chain):
    """The second request comes from within the computation, as it could from a thread."""
    asked = []

    def again(_node, _asked):
        if asked:
            next(asked[0])
        return False

    with Context(model, n_ctx=256, n_threads=1, cb_eval=again) as context:
        generation = run(context, chain)
        next(generation)
        asked.append(generation)
        with pytest.raises(BusyError, match="this Generation is computing a token"):
            next(generation)


def test_the_seed_is_reported(context, chain):
    for sampler, seed in ((chain(Dist(5)), 5), (chain(Greedy()), None)):
        context.memory.clear(data=False)
        generation = generate(context, PROMPT, sampler=sampler, max_tokens=3)
        generation.text()
        assert generation.seed == seed
    context.memory.clear(data=False)
    one = generate(context, PROMPT, max_tokens=20)
    text = one.text()
    context.memory.clear(data=False)
    again = SamplerChain.default(seed=one.seed)
    assert generate(context, PROMPT, sampler=again, max_tokens=20).text() == text


def test_an_encoder_decoder_model_encodes_the_prompt(random_context, chain):
    context, by_hand = random_context("t5"), random_context("t5")
    prompt, start = [5, 17, 40, 3, 88], 3
    generation = run(context, chain, prompt=prompt, max_tokens=6)
    found = [one.id for one in generation]
    by_hand.encode(Batch.from_tokens(prompt, logits="all"))
    tokens = [start]
    for pos in range(6):
        by_hand.decode(Batch.from_tokens(tokens[-1:], pos))
        tokens.append(int(by_hand.logits().argmax()))
    assert found == tokens[1:]
    assert (generation.n_prompt, context.memory.next_pos()) == (5, 6)
    with pytest.raises(ArgumentError, match="empty sequence, but this one has 6 tokens"):
        run(context, chain, prompt=prompt)


def test_answers_to_two_prompts_do_not_mix(random_context, chain):
    """A context has one encoder output, that of the last prompt."""
    context = random_context("t5", n_seq_max=2, kv_unified=True)
    one = run(context, chain, prompt=[5, 17, 40], max_tokens=6)
    next(one)
    next(run(context, chain, prompt=[6, 18], seq_id=1))
    with pytest.raises(ContextError, match="sequence 0 was not in the last encode"):
        next(one)


@pytest.mark.parametrize("kind", ["bert", "t5encoder"])
def test_models_that_do_not_generate(random_context, chain, kind):
    with pytest.raises(UnsupportedError):
        run(random_context(kind), chain, prompt=[1, 2]).text()


@pytest.mark.parametrize(
    "samplers", [(Greedy(),), (TopK(5), Temp(1.5), Dist(7)), (Penalties(8, 1.5), Greedy())]
)
def test_the_shortcut_equals_decode_and_sample(new_context, chain, monkeypatch, samplers):
    """`Decoder.decode_and_sample` gives the same results and state as the two calls."""

    def run():
        context, found = new_context(n_ctx=128), []
        for one in generate(context, PROMPT, sampler=chain(*samplers), max_tokens=24):
            found.append((one.id, context.logits().tobytes(), context.n_outputs))
        known = bookkeeping_of(context).tokens.before(0, 1000)
        return found, known, context.memory.pos_max(), context.save_state()

    taken, original = [], Decoder.decode_and_sample

    def spy(*args):
        taken.append(original(*args))
        return taken[-1]

    monkeypatch.setattr(Decoder, "decode_and_sample", spy)
    short = run()
    assert len(taken) == len(short[0]) - 1
    assert None not in taken
    monkeypatch.setattr(Decoder, "decode_and_sample", lambda *_: None)
    assert run() == short
