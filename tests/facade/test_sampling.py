"""Samplers do what their formulas say, on the known distribution of the built-in model."""

from __future__ import annotations

import math
import threading
from collections import Counter

import numpy as np
import pytest

from llamacffi import (
    ArgumentError,
    Batch,
    BusyError,
    ClosedError,
    Dist,
    Greedy,
    MinP,
    Model,
    Penalties,
    SamplerChain,
    Temp,
    TopK,
    TopP,
)
from llamacffi.sampling.base import needs_vocab
from llamacffi.sampling.chain import native
from tests.facade.helpers import decoded
from tests.facade.oracle import logits_after, token

THE = token(" the")  # many words follow it
N = 3000


def softmax(logits):
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def keep(p, kept):
    """Return the probabilities of only the kept tokens."""
    p = np.where(kept, p, 0)
    return p / p.sum()


def top_k(logits, k):
    return softmax(np.where(logits >= np.sort(logits)[-k], logits, -np.inf))


def top_p(logits, p):
    probabilities = softmax(logits)
    order = np.argsort(-probabilities, kind="stable")
    n = int(np.searchsorted(np.cumsum(probabilities[order]), p)) + 1
    return keep(probabilities, np.isin(np.arange(len(logits)), order[:n]))


def min_p(logits, p):
    probabilities = softmax(logits)
    return keep(probabilities, probabilities >= p * probabilities.max())


LOGITS = logits_after([THE])[0].astype(np.float64)
# Many words are equally likely: cut where no two are tied.
BEST = int((LOGITS.max() - 0.01 < LOGITS).sum())
P_BEST = float(np.sort(softmax(LOGITS))[-BEST:].sum())
REFERENCE = {
    "dist": ((), softmax(LOGITS)),
    "temp": ((Temp(2.5),), softmax(LOGITS / 2.5)),
    "cold": ((Temp(0.5),), softmax(LOGITS / 0.5)),
    "top_k": ((TopK(BEST),), top_k(LOGITS, BEST)),
    "top_k off": ((TopK(0),), softmax(LOGITS)),
    "top_p": ((TopP(P_BEST - 0.01),), top_p(LOGITS, P_BEST - 0.01)),
    "top_p off": ((TopP(1.0),), softmax(LOGITS)),
    "min_p": ((MinP(0.4),), min_p(LOGITS, 0.4)),
    "min_p off": ((MinP(0.0),), softmax(LOGITS)),
    "min_p, then hot": (
        (MinP(0.2), Temp(3.0)),
        softmax(np.where(min_p(LOGITS, 0.2) > 0, LOGITS, -np.inf) / 3.0),
    ),
}


@pytest.mark.parametrize(("samplers", "expected"), REFERENCE.values(), ids=REFERENCE.keys())
def test_frequencies(context, chain, samplers, expected):
    one, counts = chain(*samplers, Dist(seed=7)), Counter()
    decoded(context, THE)
    for _ in range(N):
        counts[one.sample(context)] += 1
    assert {t for t, p in enumerate(expected) if p > 0.01} <= counts.keys()
    for t, n in counts.items():
        deviation = math.sqrt(N * expected[t] * (1 - expected[t]))
        assert abs(n - N * expected[t]) <= 5 * deviation + 3 * (deviation > 0), (t, n)


def test_greedy_is_the_best(context, chain):
    for word in (" llama", " the", " river", "."):
        decoded(context, token(word))
        assert chain(Greedy()).sample(context) == logits_after([token(word)])[0].argmax()
        assert chain(Temp(0), Dist(1)).sample(context) == logits_after([token(word)])[0].argmax()


def test_sampling_of_any_output(context, chain):
    tokens = [token(" llama"), token(" old"), token(" one")]
    batch = Batch(3)
    batch.add(tokens, logits="all")
    context.decode(batch)
    one = chain(Greedy())
    expected = logits_after(tokens).argmax(axis=1).tolist()
    assert [one.sample(context, i) for i in range(3)] == expected
    assert one.sample(context) == expected[-1]
    for i in (3, -4, 100):
        with pytest.raises(IndexError):
            one.sample(context, i)


@pytest.mark.parametrize(
    ("penalties", "change"),
    [
        (Penalties(repeat=2.0), lambda logit, n: logit * 2.0 if logit <= 0 else logit / 2.0),
        (Penalties(present=1.5), lambda logit, n: logit - 1.5),
        (Penalties(freq=0.5), lambda logit, n: logit - 0.5 * n),
        (Penalties(last_n=2, freq=5.0), lambda logit, n: logit - 5.0 * min(n, 2)),
        (Penalties(last_n=0, freq=5.0), lambda logit, n: logit),
    ],
)
def test_penalties(context, chain, penalties, change):
    """The best token, accepted three times, compared with the formula."""
    logits = LOGITS.copy()
    best = int(logits.argmax())
    logits[best] = change(logits[best], 3)
    expected = softmax(logits)
    hits = 0
    one = chain(penalties, Dist(seed=3), vocab=context.model.vocab)
    decoded(context, THE)
    for seed in range(300):
        one = chain(penalties, Dist(seed), vocab=context.model.vocab)
        for _ in range(3):
            one.accept(best)
        hits += one.sample(context) == best
        one.close()
    deviation = math.sqrt(300 * expected[best] * (1 - expected[best]))
    assert abs(hits - 300 * expected[best]) <= 5 * deviation + 1e-3


def draw(context, one, n=30):
    return [one.sample(context) for _ in range(n)]


def test_the_same_seed_gives_the_same_tokens(context, chain):
    decoded(context, THE)
    first = draw(context, chain(Dist(seed=5)))
    assert draw(context, chain(Dist(seed=5))) == first
    assert draw(context, chain(Dist(seed=6))) != first
    assert draw(context, chain(Dist())) != draw(context, chain(Dist()))


def test_reset_starts_over(context, chain):
    decoded(context, THE)
    one = chain(TopK(40), Dist(seed=5))
    one.reset()  # before the first use: nothing to do
    first = draw(context, one)
    assert draw(context, one) != first
    one.reset()
    assert draw(context, one) == first


@pytest.mark.parametrize("seed", [5, None])
@pytest.mark.parametrize("used", [0, 10])
def test_a_clone_continues_the_same_way(context, chain, seed, used):
    decoded(context, THE)
    one = chain(TopK(40), Temp(1.5), Dist(seed))
    draw(context, one, used)
    with one.clone() as other:
        assert draw(context, other) == draw(context, one)
        assert list(other) == list(one)


def test_seed(chain):
    assert chain(Dist(seed=5)).seed == 5
    assert chain(Greedy()).seed is None
    random = chain(Dist())
    assert random.seed is not None
    assert random.seed == random.seed


def test_a_chain_must_choose(context, chain):
    decoded(context, THE)
    for one in (chain(), chain(TopK(3), Temp(1.0))):
        with pytest.raises(ArgumentError, match="never chooses a token"):
            one.sample(context)


def test_a_chain_that_needs_the_vocabulary(context, chain, demo_path):
    one = chain(Penalties(repeat=1.1), Greedy())
    with pytest.raises(ArgumentError, match="needs the vocabulary"):
        _ = one.ptr
    decoded(context, THE)
    one.sample(context)  # takes it from the context
    assert one.ptr
    with pytest.raises(ArgumentError, match="not in the vocabulary"):
        one.accept(514)
    with Model(demo_path) as other:
        with pytest.raises(ArgumentError, match="another model"):
            chain(Penalties(), Greedy(), vocab=other.vocab).sample(context)
        assert chain(Greedy(), vocab=other.vocab).sample(context)  # it ignores the vocabulary


INVALID = {
    "k": [lambda: TopK(-1), lambda: TopK(2**31)],
    "p": [
        lambda: TopP(-0.1),
        lambda: TopP(1.1),
        lambda: TopP(math.nan),
        lambda: MinP(2),
        lambda: MinP(math.nan),
    ],
    "min_keep": [lambda: TopP(0.5, -1), lambda: MinP(0.5, 2**31)],
    "t": [lambda: Temp(-1), lambda: Temp(math.inf), lambda: Temp(math.nan)],
    "seed": [lambda: Dist(-1), lambda: Dist(2**32 - 1), lambda: Dist(2**40)],
    "last_n": [lambda: Penalties(-1), lambda: Penalties(2**31)],
    "repeat": [
        lambda: Penalties(repeat=0),
        lambda: Penalties(repeat=math.nan),
        lambda: Penalties(repeat=math.inf),
    ],
    "freq": [lambda: Penalties(freq=math.nan), lambda: Penalties(freq=math.inf)],
    "present": [lambda: Penalties(present=-math.inf)],
}


@pytest.mark.parametrize(("name", "makers"), INVALID.items())
def test_values_out_of_range(name, makers):
    for make in makers:
        with pytest.raises(ArgumentError, match=rf"\b{name} must be "):
            make()


def test_values_of_another_type():
    for make in (
        lambda: TopK(1.5),
        lambda: TopK("40"),
        lambda: TopP("0.5"),
        lambda: TopP(0.5, 1.0),
        lambda: Temp(None),
        lambda: Dist(1.0),
        lambda: Penalties(64.0),
        lambda: SamplerChain("greedy"),
        lambda: SamplerChain(Greedy),
    ):
        with pytest.raises(TypeError):
            make()


def test_a_chain_is_a_sequence_of_frozen_descriptions():
    chain = SamplerChain(TopK(3), Temp(0.5), Greedy())
    assert (len(chain), chain[0], chain[-1], chain[1:]) == (
        3,
        TopK(3),
        Greedy(),
        (Temp(0.5), Greedy()),
    )
    assert repr(chain) == "SamplerChain(TopK(k=3), Temp(t=0.5), Greedy())"
    with pytest.raises(AttributeError):
        chain[0].k = 5
    assert list(SamplerChain.default(temp=0)) == [Greedy()]
    assert chain.closed is False


def test_a_chain_is_for_one_thread(context, chain):
    decoded(context, THE)
    one, errors = chain(Greedy()), []

    def use():
        for call in (lambda: one.sample(context), lambda: one.accept(1), one.reset, one.clone):
            try:
                call()
            except BusyError as error:
                errors.append(str(error))

    with native(one).lock:
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert len(errors) == 4
    errors.clear()
    with context.exclusive:
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert ["Context" in error for error in errors] == [True]


def test_closing(context):
    decoded(context, THE)
    one = SamplerChain(Greedy())
    one.sample(context)
    with one:
        pass
    one.close()
    for use in (
        lambda: one.ptr,
        lambda: one.sample(context),
        lambda: one.accept(1),
        one.reset,
        one.clone,
        lambda: one.seed,
        one.__enter__,
    ):
        with pytest.raises(ClosedError, match="SamplerChain is closed"):
            use()
    with SamplerChain(Greedy()) as other:
        context.close()
        with pytest.raises(ClosedError, match="Context is closed"):
            other.sample(context)


def test_a_chain_does_not_keep_a_closed_model_in_memory(demo_path):
    from llamacffi import Context
    from llamacffi._core.ownership import live_objects

    for samplers in ((Greedy(),), (Penalties(), Greedy())):
        before = live_objects()
        model = Model(demo_path)
        with Context(model, n_ctx=256) as context:
            chain = SamplerChain(*samplers)
            decoded(context, THE)
            chain.sample(context)
        model.close()
        needy = any(map(needs_vocab, samplers))
        assert chain.closed is needy
        assert live_objects() - before == (0 if needy else 1)
        chain.close()
