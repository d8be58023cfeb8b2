"""Each sampler follows its formula on hand-made candidates, and rejects invalid arguments."""

from __future__ import annotations

import math
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from llamacffi import (
    DRY,
    XTC,
    AdaptiveP,
    ArgumentError,
    Candidates,
    Dist,
    Grammar,
    Greedy,
    Infill,
    LogitBias,
    MinP,
    MinTokens,
    Mirostat,
    MirostatV2,
    Model,
    Penalties,
    SamplerChain,
    Temp,
    TempExt,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    UnsupportedError,
)
from llamacffi.sampling.base import needs_vocab
from tests.facade.oracle import END, token
from tests.facade.sampler_reference import Reference, UnclearError, softmax

LOGITS = [1.0, 3.0, 2.5, -4.0, 0.2, 2.0, -1.0, 1.5, 0.7, -2.2]
ACCEPTED = [1, 5, 2, 1, 5, 2, 1]

CASES = [
    TopK(3),
    TopK(0),
    TopK(99),
    TopP(0.8),
    TopP(0.1),
    TopP(0.1, min_keep=4),
    TopP(0.0),
    TopP(1.0),
    MinP(0.3),
    MinP(0.3, min_keep=6),
    MinP(0.0),
    MinP(1.0),
    Typical(0.6),
    Typical(0.2, min_keep=3),
    Typical(1.0),
    TopNSigma(1.0),
    TopNSigma(0.0),
    XTC(1.0, 0.1),
    XTC(1.0, 0.1, min_keep=9),
    XTC(1.0, 0.51),
    XTC(0.0, 0.1),
    Temp(0.5),
    Temp(3.0),
    Temp(1.0),
    Temp(0),
    TempExt(1.0, 0.5),
    TempExt(0.8, 0.8, 2.0),
    TempExt(0.6),
    TempExt(1.0, 0.4, 0.0),
    LogitBias({1: -100.0, 4: 2.5}),
    LogitBias({1: -math.inf, 7: 0.0}),
    LogitBias({}),
    Penalties(repeat=1.5),
    Penalties(last_n=2, repeat=0.5),
    Penalties(freq=0.3, present=0.1),
    Penalties(freq=-0.3),
    Penalties(last_n=0, freq=9.0),
    DRY(0.8, seq_breakers=()),
    DRY(2.0, 3.0, 1, seq_breakers=()),
    DRY(0.8, last_n=3, seq_breakers=()),
    DRY(0.0, seq_breakers=()),
    MinTokens(8),
    MinTokens(3),
]


def apply(model, samplers, logits=LOGITS, accepted=()):
    with SamplerChain(*samplers, vocab=model.vocab) as chain:
        for one in accepted:
            chain.accept(one)
        candidates = Candidates(logits)
        chain.apply(candidates)
        return candidates


def scores(candidates):
    pairs = zip(candidates.id.tolist(), candidates.logit.tolist(), strict=True)
    return {one: logit for one, logit in pairs if logit > -math.inf}


def test_formulas(model):
    for sampler in CASES:
        expected = Reference(LOGITS, ACCEPTED).run(sampler)
        found = apply(model, [sampler], accepted=ACCEPTED)
        assert (sampler, scores(found)) == (sampler, pytest.approx(expected.scores(), rel=1e-4))
        assert (sampler, found.size) == (sampler, expected.ids.size)


def test_formulas_on_many_candidates(model):
    """llama.cpp switches its sorting algorithm above 128 and above 1024 candidates."""
    shuffled = np.random.default_rng(1).permutation(np.linspace(-9.0, 5.0, 5000)) * 1.01
    unclear = 0
    for sampler in CASES:
        logits = shuffled[: len(model.vocab)] if needs_vocab(sampler) else shuffled
        found = apply(model, [sampler], logits, ACCEPTED)
        try:
            expected = Reference(logits, ACCEPTED).run(sampler).scores()
        except UnclearError:
            unclear += 1
            continue
        assert (sampler, scores(found)) == (sampler, pytest.approx(expected, rel=1e-3, abs=1e-4))
    assert unclear < 4


def test_top_k_in_order(model):
    logits = np.random.default_rng(2).normal(size=2000).astype(np.float32)
    for k in (1, 127, 128, 129, 700, 2000, 2001):
        found = apply(model, [TopK(k)], logits)
        assert found.sorted
        assert found.logit.tolist() == np.sort(logits)[::-1][:k].tolist()


def test_choosing(model):
    best = int(np.argmax(LOGITS))
    assert apply(model, [Greedy()]).token == best
    assert apply(model, [Temp(0), Dist()]).token == best
    assert apply(model, [TopK(1), MirostatV2(seed=1)]).token == best
    found = apply(model, [Dist(seed=4)])
    assert found.p == pytest.approx(softmax(np.array(LOGITS)), rel=1e-5)
    assert found.token == found.selected == found.id[found.selected]


def test_greedy_takes_the_first_of_several(model):
    assert apply(model, [Greedy()], [1.0, 2.0, 2.0]).token == 1


def test_xtc_applies_with_its_probability(chain):
    for probability in (0.0, 0.3, 1.0):
        one, n = chain(XTC(probability, 0.1, seed=3)), 0
        for _ in range(400):
            candidates = Candidates(LOGITS)
            one.apply(candidates)
            n += candidates.size < len(LOGITS)
        deviation = math.sqrt(400 * probability * (1 - probability))
        assert abs(n - 400 * probability) <= 4 * deviation


def test_mirostat_v2(model, chain):
    """It keeps candidates whose surprise is below mu, and adjusts mu after each choice."""
    tau, eta, mu = 1.0, 0.5, 2.0
    one = chain(MirostatV2(tau, eta, seed=1))
    for _ in range(20):
        candidates = Candidates(LOGITS)
        one.apply(candidates)
        p = np.sort(softmax(np.array(LOGITS)))[::-1]
        kept = max(1, int((-np.log2(p) <= mu).sum()))
        assert candidates.size == kept
        chosen = softmax(candidates.logit.astype(np.float64))[candidates.selected]
        mu -= eta * (-math.log2(chosen) - tau)


def test_mirostat(model, chain):
    """It estimates how fast probabilities fall, and from that how many candidates to keep."""
    logits = -1.2 * np.log(np.arange(1, 501))
    p = softmax(logits)
    tau, eta, mu, m = 3.0, 0.2, 6.0, 50
    one = chain(Mirostat(tau, eta, m, seed=1), vocab=model.vocab)
    t = np.log(np.arange(2, m + 1) / np.arange(1, m))
    b = np.log(p[: m - 1] / p[1:m])
    s = (t * b).sum() / (t * t).sum()
    assert s == pytest.approx(1.2)
    for _ in range(20):
        candidates = Candidates(logits)
        one.apply(candidates)
        n = len(model.vocab)
        k = ((s - 1) * 2**mu / (1 - n ** -(s - 1))) ** (1 / s)
        assert abs(candidates.size - min(500, max(1, int(k)))) <= 1
        chosen = softmax(candidates.logit.astype(np.float64))[candidates.selected]
        mu -= eta * (-math.log2(chosen) - tau)


def test_adaptive_p(chain):
    """Logits fall with the distance from a target, which adapts to the accepted tokens."""
    target, decay = 0.3, 0.8
    one = chain(AdaptiveP(target, decay, seed=2))
    p = softmax(np.array(LOGITS))
    total, weight = target / (1 - decay), 1 / (1 - decay)
    for _ in range(10):
        adapted = np.clip(2 * target - total / weight, 0, 1)
        distance = np.abs(p - adapted) / 0.3
        candidates = Candidates(LOGITS)
        one.apply(candidates)
        assert candidates.logit == pytest.approx(5 - 10 * distance**2 / (1 + distance), rel=1e-4)
        one.accept(candidates.token)
        total, weight = p[candidates.token] + decay * total, 1 + decay * weight


def test_adaptive_p_switched_off_chooses_by_probability(chain):
    one = chain(AdaptiveP(-1.0, seed=2))
    counts = np.zeros(len(LOGITS))
    for _ in range(1000):
        candidates = Candidates(LOGITS)
        one.apply(candidates)
        counts[candidates.token] += 1
    p = softmax(np.array(LOGITS))
    assert (np.abs(counts - 1000 * p) <= 5 * np.sqrt(1000 * p) + 1).all()


def by_text(probabilities):
    return Candidates(
        np.log(list(probabilities.values())), ids=[token(text) for text in probabilities]
    )


def infill(model, probabilities):
    candidates = by_text(probabilities)
    with SamplerChain(TopK(100), Infill(), vocab=model.vocab) as chain:
        chain.apply(candidates)
    return candidates


def test_infill_merges_prefixes(model):
    """The example in llama.h, with words of the built-in model."""
    found = infill(model, {" s": 0.5, " sl": 0.2, " sle": 0.1, " tree": 0.1})
    assert found.id.tolist() == [token(" s")]
    assert infill(model, {" s": 0.4, " sl": 0.15, " tree": 0.45}).size == 2


def test_infill_ends_early(model):
    assert infill(model, {" llama": 0.8, "</s>": 0.2}).id.tolist() == [END]
    assert infill(model, {" llama": 0.95, "</s>": 0.05}).id.tolist() != [END]
    words = (" llama", " tree", " river", " hill", " sun", " moon")
    found = infill(model, dict.fromkeys(words, 1 / 6))
    assert found.id.tolist() == [END]  # nothing is likely enough


def test_dry_stops_at_a_breaker(model):
    dot, llama, old = token("."), token(" llama"), token(" old")
    accepted = [llama, old, llama, old, llama]
    logits = np.zeros(len(model.vocab))
    for breakers, lost in (((), 1.0), (("old",), 0.0)):
        sampler = DRY(1.0, 2.0, 2, seq_breakers=breakers)
        found = apply(model, [sampler], logits, accepted)
        # "llama old llama" occurred before: "old" would continue the repetition.
        assert (-found.logit[found.id == old][0] > 0) == bool(lost)
    found = apply(model, [DRY(1.0, 2.0, 1)], logits, [dot, dot, dot])
    assert (found.logit == 0).sum() >= len(model.vocab) - 1


def test_end_tokens(model):
    logits = np.zeros(len(model.vocab))
    assert LogitBias.eog(model.vocab) == LogitBias({END: -math.inf})
    assert LogitBias.suppress(model.vocab).bias == {}
    found = apply(model, [LogitBias.eog(model.vocab)], logits)
    assert found.logit[END] == -math.inf
    assert np.isfinite(found.logit).sum() == len(logits) - 1
    with SamplerChain(MinTokens(2), Greedy(), vocab=model.vocab) as chain:
        logits[END] = 9.0
        for expected in (0, 0, END, END):
            candidates = Candidates(logits)
            chain.apply(candidates)
            assert candidates.token == expected
            chain.accept(1)
        chain.reset()
        with chain.clone() as other:
            for one in (chain, other):
                candidates = Candidates(logits)
                one.apply(candidates)
                assert candidates.token == 0


def test_logits_that_change_after_sorting(model):
    """llama.cpp would treat the candidates as still sorted."""
    for changing in (LogitBias({0: 5.0}), LogitBias({1: -math.inf})):
        for last in (TopK(2), TopP(0.5), MinP(0.4), XTC(1.0, 0.1), Temp(0)):
            samplers = [TopK(9), changing, last]
            expected = Reference(LOGITS).run(*samplers)
            found = apply(model, samplers)
            assert scores(found) == pytest.approx(expected.scores(), rel=1e-4), samplers


def test_typical_after_tokens_are_ruled_out(model):
    """llama.cpp would keep arbitrary candidates, because the entropy would be NaN."""
    samplers = [LogitBias({1: -math.inf, 3: -math.inf}), Typical(0.6)]
    expected = Reference(LOGITS).run(*samplers)
    found = apply(model, samplers)
    assert scores(found) == pytest.approx(expected.scores(), rel=1e-4)
    assert found.size == expected.ids.size


PROBABILITIES = st.floats(0, 1, allow_subnormal=False)
TOKENS = st.integers(0, 29)
ANY = st.one_of(
    st.builds(TopK, st.integers(0, 40)),
    st.builds(TopP, PROBABILITIES, st.integers(0, 5)),
    st.builds(MinP, PROBABILITIES.filter(lambda p: not 0 < p < 1e-9), st.integers(0, 5)),
    st.builds(Typical, PROBABILITIES, st.integers(0, 5)),
    st.builds(TopNSigma, st.floats(0, 3)),
    st.builds(XTC, st.sampled_from([0.0, 1.0]), PROBABILITIES, st.integers(0, 5)),
    st.builds(Temp, st.one_of(st.just(0.0), st.floats(0.1, 5))),
    st.builds(
        TempExt, st.floats(0.5, 3), st.sampled_from([0.0, 0.4]), st.sampled_from([0, 0.5, 2])
    ),
    st.builds(LogitBias, st.dictionaries(TOKENS, st.floats(-9, 9), max_size=3)),
    st.builds(Penalties, st.integers(0, 9), st.floats(0.5, 3), st.floats(-1, 1), st.floats(-1, 1)),
    st.builds(
        lambda *values: DRY(*values, seq_breakers=()),
        *(st.floats(0, 2), st.floats(1, 3), st.integers(0, 4), st.integers(0, 12)),
    ),
    st.builds(MinTokens, st.integers(0, 6)),
)


@given(
    samplers=st.lists(ANY, min_size=1, max_size=5),
    logits=st.permutations(list(range(30))),
    spread=st.floats(0.05, 1),
    accepted=st.lists(st.integers(0, 5), max_size=12),
)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_chain(model, samplers, logits, spread, accepted):
    scaled = np.array(logits) * spread - 5
    try:
        expected = Reference(scaled, accepted).run(*samplers).scores()
    except UnclearError:
        reject()
    found = scores(apply(model, samplers, scaled, accepted))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)


INVALID = {
    "k": [lambda: TopK(-1), lambda: TopK(2**31)],
    "p": [lambda: TopP(-0.1), lambda: MinP(2), lambda: Typical(math.nan), lambda: TopP(math.inf)],
    "min_keep": [lambda: TopP(0.5, -1), lambda: MinP(0.5, 2**31), lambda: XTC(1.0, min_keep=-1)],
    "n": [lambda: TopNSigma(-1.0), lambda: TopNSigma(math.nan), lambda: MinTokens(-1)],
    "probability": [lambda: XTC(-0.1), lambda: XTC(1.1)],
    "threshold": [lambda: XTC(1.0, -0.1), lambda: XTC(1.0, 1.1), lambda: XTC(1.0, math.nan)],
    "t": [lambda: Temp(-1), lambda: Temp(math.inf), lambda: Temp(1e-9), lambda: TempExt(-0.1)],
    "delta": [lambda: TempExt(1.0, -0.1), lambda: TempExt(1.0, 1e39)],
    "exponent": [lambda: TempExt(1.0, 0.1, -1.0), lambda: TempExt(1.0, 0.1, math.inf)],
    "tau": [lambda: Mirostat(-1.0), lambda: MirostatV2(101.0), lambda: Mirostat(math.nan)],
    "eta": [lambda: Mirostat(1.0, -0.1), lambda: MirostatV2(1.0, 1.1)],
    "m": [lambda: Mirostat(m=1), lambda: Mirostat(m=2**31)],
    "target": [lambda: AdaptiveP(1.1), lambda: AdaptiveP(-2.0), lambda: AdaptiveP(math.nan)],
    "decay": [lambda: AdaptiveP(0.5, 1.0), lambda: AdaptiveP(0.5, -0.1)],
    "seed": [lambda: Dist(-1), lambda: XTC(1.0, seed=2**32 - 1), lambda: AdaptiveP(0.5, seed=-1)],
    "last_n": [lambda: Penalties(-1), lambda: Penalties(2**25), lambda: DRY(1.0, last_n=2**31)],
    "repeat": [lambda: Penalties(repeat=0), lambda: Penalties(repeat=math.nan)],
    "freq": [lambda: Penalties(freq=math.nan), lambda: Penalties(freq=math.inf)],
    "present": [lambda: Penalties(present=-math.inf), lambda: Penalties(present=1e39)],
    "multiplier": [lambda: DRY(-1.0), lambda: DRY(math.inf)],
    "base": [lambda: DRY(1.0, 0.5), lambda: DRY(1.0, math.nan)],
    "allowed_length": [lambda: DRY(1.0, allowed_length=-1)],
    "token": [lambda: LogitBias({-1: 0.0}), lambda: LogitBias({2**31: 0.0})],
    "bias": [lambda: LogitBias({1: math.inf}), lambda: LogitBias({1: math.nan})],
}


def test_values_out_of_range():
    for name, makers in INVALID.items():
        for make in makers:
            with pytest.raises(ArgumentError, match=rf"\b{name}(\[1\])? must be "):
                make()
    for breaker, message in (("", "but '' has 0"), ("é" * 21, "has 42"), ("\0", "a NUL char")):
        with pytest.raises(ArgumentError, match=message):
            DRY(1.0, seq_breakers=[breaker])


def test_values_of_another_type():
    for make in (
        lambda: TopK(1.5),
        lambda: TopK("40"),
        lambda: TopK(True),
        lambda: TopP("0.5"),
        lambda: TopP(True),
        lambda: TopP(0.5, 1.0),
        lambda: Temp(None),
        lambda: Temp(1j),
        lambda: Dist(1.0),
        lambda: Dist("1"),
        lambda: Penalties(64.0),
        lambda: LogitBias([(1, 2.0)]),
        lambda: LogitBias({"a": 1.0}),
        lambda: LogitBias({1: "1"}),
        lambda: DRY(1.0, seq_breakers="ab"),
        lambda: DRY(1.0, seq_breakers=[1]),
        lambda: MinTokens(1.0),
        lambda: Infill(1),
    ):
        with pytest.raises(TypeError):
            make()


def test_descriptions_are_values():
    for sampler in (*CASES, Greedy(), Dist(3), Infill(), Grammar('root ::= "a"')):
        copy = pickle.loads(pickle.dumps(sampler))
        assert copy == sampler
        assert hash(copy) == hash(sampler)
        assert eval(repr(copy), {**globals(), "inf": math.inf}) == sampler
        with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
            sampler.k = 1


def test_the_bias_of_tokens_is_read_only():
    given_bias = {np.int64(3): np.float32(0.5)}
    sampler = LogitBias(given_bias)
    given_bias[4] = 1.0
    assert sampler.bias == {3: 0.5}
    with pytest.raises(TypeError):
        sampler.bias[3] = 1.0


def test_tokens_of_another_vocabulary(model, chain):
    one = chain(LogitBias({len(model.vocab): 1.0}), vocab=model.vocab)
    with pytest.raises(ArgumentError, match="not in the vocabulary"):
        _ = one.ptr


def test_infill_needs_an_end_token(llama_cpp, chain):
    with Model(llama_cpp / "models/ggml-vocab-bert-bge.gguf", vocab_only=True) as bert:
        one = chain(TopK(4), Infill(), vocab=bert.vocab)
        with pytest.raises(UnsupportedError, match="needs an EOT or EOS token"):
            _ = one.ptr
