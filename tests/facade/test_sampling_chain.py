"""Chains: which are valid, what state they have, and what a model recommends."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from llamacffi import (
    DRY,
    XTC,
    AdaptiveP,
    ArgumentError,
    BusyError,
    Candidates,
    ClosedError,
    Context,
    ContextError,
    CustomSampler,
    Dist,
    Grammar,
    GrammarError,
    Greedy,
    Infill,
    LogitBias,
    LogitsProcessor,
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
    lib,
)
from llamacffi.sampling.chain import native
from tests.facade.gguf_models import write_altered
from tests.facade.helpers import decoded
from tests.facade.oracle import END, logits_after, token

THE = token(" the")


def draw(context, chain, n=20):
    return [chain.sample(context) for _ in range(n)]


def test_which_chains_are_valid():
    chooses = (Greedy(), Dist(), Mirostat(), MirostatV2(), AdaptiveP(0.5))
    for one in chooses:
        assert one.selects
        for other in (TopK(1), one, Penalties()):
            with pytest.raises(ArgumentError, match="must come last"):
                SamplerChain(one, other)
    for before in ((), (TopP(0.9),), (TopK(0),)):
        with pytest.raises(ArgumentError, match="put TopK before it"):
            SamplerChain(*before, Infill(), Greedy())
    for wrong in ("greedy", Greedy, [Greedy()], None, 5):
        with pytest.raises(TypeError, match="takes samplers"):
            SamplerChain(TopK(3), wrong)
    with pytest.raises(TypeError, match="vocab must be"):
        SamplerChain(Greedy(), vocab=514)
    for options in ({"grammar_last": True}, {"temp": 0.5}, {"tfs_z": 1.0}):
        with pytest.raises(TypeError, match="unexpected keyword"):
            SamplerChain(Greedy(), **options)


def test_the_same_sampler_several_times(context, chain):
    twice = chain(Temp(0.5), TopK(9), Temp(0.5), TopK(5), Greedy())
    assert twice.names == ["temp", "top-k", "temp", "top-k", "greedy"]
    candidates = Candidates.from_context(decoded(context, THE))
    twice.apply(candidates)
    best = np.sort(logits_after([THE])[0])[::-1][:5]
    assert candidates.logit == pytest.approx(best / 0.25, abs=1e-1)


def test_the_chain_in_c(model, chain):
    one = chain(TopK(0), TopP(1.0), Temp(1.0), TopK(3), LogitBias({1: 1.0}), Typical(0.5), Dist())
    with pytest.raises(ArgumentError, match="needs the vocabulary"):
        _ = one.names
    known = chain(*one, vocab=model.vocab)
    assert known.names == [
        *("?top-k", "?top-p", "?temp", "top-k"),
        *("logit-bias", "unsorted", "min-p", "typical", "dist"),
    ]
    assert list(known) == list(one)


ALL = [
    Penalties(repeat=1.2),
    DRY(0.5),
    LogitBias({5: 1.0}),
    MinTokens(3),
    TopK(100),
    Typical(0.99),
    TopP(0.99),
    MinP(0.001),
    TopNSigma(3.0),
    XTC(0.5, 0.05, seed=1),
    TempExt(1.2, 0.1),
    Temp(1.1),
]


@pytest.mark.parametrize("last", [Dist(seed=1), Mirostat(seed=1), MirostatV2(seed=1)])
def test_all_in_one(context, chain, last):
    one = chain(*ALL, last, vocab=context.model.vocab)
    decoded(context, THE)
    first = draw(context, one)
    with one.clone() as other:
        assert draw(context, other) == draw(context, one)
    copy = chain(*ALL, last, vocab=context.model.vocab)
    copy.copy_from(one)
    assert draw(context, copy) == draw(context, one)
    one.reset()
    assert draw(context, one) == first
    assert one.perf().n_sample == 80


def test_copies_are_independent(context, chain):
    decoded(context, THE)
    one, other = (chain(Temp(2.0), Dist(seed=3)) for _ in range(2))
    draw(context, one, 5)
    other.copy_from(one)
    other.copy_from(other)
    here = draw(context, one)
    draw(context, other, 1)
    assert draw(context, other, 19) == here[1:]
    for wrong in (chain(Dist(seed=3)), chain(Temp(2.0), Dist(seed=4)), chain()):
        with pytest.raises(ArgumentError, match="differ from those of"):
            other.copy_from(wrong)
    with pytest.raises(TypeError):
        other.copy_from(Dist())
    unused = chain(Temp(2.0), Dist(seed=3))
    unused.copy_from(chain(Temp(2.0), Dist(seed=3)))
    assert draw(context, unused, 3)


def test_an_adaptive_p_that_waits_is_cloned_safely(run_python):
    """llama.cpp copies the pending choice, but not the probability that it looks up for it."""
    done = run_python(
        """
        import numpy as np
        from llamacffi import AdaptiveP, Candidates, SamplerChain
        for _ in range(50):
            chain = SamplerChain(AdaptiveP(0.5, seed=1))
            other = SamplerChain(AdaptiveP(0.5, seed=1))
            candidates = Candidates(np.zeros(200_000))
            chain.apply(candidates)
            clone = chain.clone()
            other.copy_from(chain)
            for one in (clone, other, chain):
                one.accept(candidates.token)
                fresh = Candidates(np.arange(9.0))
                one.apply(fresh)
                assert np.isfinite(fresh.logit).all()
        print("ok")
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_seeds(context, chain):
    decoded(context, THE)
    one = chain(XTC(0.5, 0.01, seed=1), Temp(2.0), Dist())
    seeded = one.with_seed(7)
    assert list(seeded) == [XTC(0.5, 0.01, seed=7), Temp(2.0), Dist(7)]
    assert seeded.seed == 7
    first = draw(context, seeded)
    with one.with_seed(7) as again, one.with_seed(8) as another:
        assert draw(context, again) == first
        assert draw(context, another) != first
    seeded.close()
    random = chain(Temp(2.0), Dist())
    tokens = draw(context, random)
    with random.with_seed(random.seed) as same:
        assert draw(context, same) == tokens
    random.reset()
    assert draw(context, random) != tokens  # a new random seed each time
    assert chain(Mirostat(seed=3), vocab=context.model.vocab).seed == 3
    assert chain(MirostatV2(seed=4)).seed == 4
    assert chain(AdaptiveP(0.5, seed=5)).seed is None


def test_performance(context, chain):
    decoded(context, THE)
    measured, counted = chain(*ALL, Dist(1), no_perf=False), chain(Greedy())
    for one in (measured, counted):
        draw(context, one, 7)
        assert one.perf().n_sample == 7
    assert measured.perf().t_sample_ms > 0
    assert counted.perf().t_sample_ms is None
    measured.reset_perf()
    assert (measured.perf().n_sample, measured.perf().t_sample_ms) == (0, 0)


def test_the_prompt(context, chain):
    """It counts for penalties, but not for grammars or `MinTokens`."""
    vocab = context.model.vocab
    seen = []
    one = chain(
        Penalties(freq=100.0),
        MinTokens(1),
        Grammar('root ::= " a" [^Z]*'),
        LogitsProcessor(lambda tokens, scores: seen.append(tokens.tolist()) or scores),
        Greedy(),
        vocab=vocab,
    )
    prompt = [THE, token(" llama"), 97 + 3]
    one.accept_prompt(np.array(prompt))
    assert one.perf().n_sample == 0
    candidates = Candidates(np.zeros(len(vocab)))
    one.apply(candidates)
    left = candidates.id[candidates.logit > -math.inf]
    assert END not in left
    assert all(b" a".startswith(vocab.piece(k)[:2]) for k in left.tolist())
    assert seen == [prompt]
    one.accept(token(" a"))
    for wrong in ([514], [1, -1], [1.5], "abc"):
        with pytest.raises((ArgumentError, TypeError)):
            one.accept_prompt(wrong)
    free = chain(Penalties(freq=1.0), vocab=vocab)
    free.accept_prompt([])
    free.accept_prompt([3, 3])
    candidates = Candidates(np.zeros(5))
    free.apply(candidates)
    assert candidates.logit.tolist() == [0, 0, 0, -2, 0]


def test_all_tokens_ruled_out(context, chain):
    decoded(context, THE)
    n = len(context.model.vocab)
    nothing = chain(LogitBias(dict.fromkeys(range(n), -math.inf)), Dist(seed=1))
    for _ in range(2):
        with pytest.raises(ArgumentError, match="has ruled out all tokens"):
            nothing.sample(context)
    for last in (Greedy(), MirostatV2(seed=1), AdaptiveP(0.5, seed=1), Dist(seed=1)):
        for between in ((), (TopK(200),), (TopP(0.5),), (MinP(0.1),), (Typical(0.5),)):
            one = chain(nothing[0], *between, last)
            with pytest.raises(ArgumentError, match="has ruled out"):
                one.sample(context)
            assert one.perf().n_sample == 0


@pytest.fixture
def altered(tmp_path):
    """Write the built-in model with changed metadata or weights."""

    def write(**changes):
        return write_altered(tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf", **changes)

    return write


def test_invalid_logits(altered, chain):
    with (
        Model(altered(spoil=math.nan)) as model,
        Context(model, n_ctx=64, n_threads=1) as context,
    ):
        decoded(context, THE)
        assert not np.isfinite(context.logits()).all()
        for samplers in ((Greedy(),), (TopK(200), TopP(0.9), Dist(seed=1))):
            with pytest.raises(ContextError, match="a logit is NaN or inf"):
                chain(*samplers).sample(context)
        with pytest.raises(ContextError):
            Candidates.from_context(context)


def test_what_a_model_recommends(altered, chain):
    path = altered(
        general__sampling__top_k=7,
        general__sampling__top_p=0.5,
        general__sampling__min_p=0.25,
        general__sampling__temp=2.0,
        general__sampling__xtc_probability=0.125,
        general__sampling__xtc_threshold=0.25,
        general__sampling__penalty_last_n=9,
        general__sampling__penalty_repeat=1.5,
    )
    with Model(path) as model, SamplerChain.from_model(model, seed=3) as one:
        assert list(one) == [
            Penalties(9, 1.5),
            TopK(7),
            TopP(0.5),
            MinP(0.25),
            XTC(0.125, 0.25, seed=3),
            Temp(2.0),
            Dist(3),
        ]
        with Context(model, n_ctx=64, n_threads=1) as context:
            assert one.sample(decoded(context, THE)) in range(514)
        with SamplerChain.from_model(model, top_k=-1, top_p=2.0) as other:
            assert other[1:3] == (TopK(0), TopP(1.0))
        with SamplerChain.from_model(model, temp=0) as other:
            assert other[-2:] == (Temp(0.0), Greedy())
            assert not {TopK, TopP, MinP} & set(map(type, other))
        with SamplerChain.from_model(model, sequence="temp;Top-K;nucleus;dry", seed=1) as other:
            assert list(other) == [Temp(2.0), TopK(7), TopP(0.5), Dist(1)]


def test_what_else_a_model_recommends(altered, model):
    path = altered(
        general__sampling__sequence="penalties;top_k;infill",
        general__sampling__mirostat=2,
        general__sampling__mirostat_tau=3.0,
        general__sampling__mirostat_eta=0.25,
        general__sampling__temp=-1.0,
        tokenizer__ggml__suppress_tokens=np.array([5, 9], np.int32),
    )
    with Model(path) as other:
        banned = LogitBias({5: -math.inf, 9: -math.inf})
        with SamplerChain.from_model(other, seed=1) as one:
            assert list(one) == [banned, Temp(0.0), MirostatV2(3.0, 0.25, 1)]
        with SamplerChain.from_model(other, mirostat=1, seed=1) as one:
            assert list(one)[2] == Mirostat(3.0, 0.25, seed=1)
        with SamplerChain.from_model(other, mirostat=0) as one:
            assert list(one) == [banned, Penalties(64, 1.0), TopK(40), Infill(), Greedy()]
            assert one.names[0] == "logit-bias"
    with SamplerChain.from_model(model) as one:
        assert list(one)[1:] == [
            *(TopK(40), TopP(0.95), MinP(0.05), XTC(0.0, 0.1), Temp(0.8), Dist()),
        ]
    for settings, error, message in (
        ({"top_q": 1}, TypeError, "did you mean 'top_p'"),
        ({"tfs_z": 1.0}, TypeError, "unknown parameter"),
        ({"top_k": "many"}, TypeError, "top_k"),
        ({"temp": math.nan}, ArgumentError, "temp"),
        ({"min_p": 1.5}, ArgumentError, "p must be between 0 and 1, not 1.5"),
        ({"mirostat": 3}, ArgumentError, "mirostat"),
        ({"sequence": "top_k;tail_free"}, ArgumentError, "an unknown sampler, 'tailfree'"),
        ({"sequence": 1}, TypeError, "sequence"),
    ):
        with pytest.raises(error, match=message):
            SamplerChain.from_model(model, **settings)


def test_wrong_arguments(context, chain):
    one = chain(Greedy())
    for wrong in (None, 5, context.model, "context"):
        with pytest.raises(TypeError, match="must be a Context"):
            one.sample(wrong)
    decoded(context, THE)
    for wrong in ("0", 1.5, None):
        with pytest.raises(TypeError):
            one.sample(context, wrong)
    for wrong in ("a", 1.5, None, True):
        with pytest.raises(TypeError):
            one.accept(wrong)
    for wrong in (-1, 2**31):
        with pytest.raises(ArgumentError, match="token must be between 0 and 2147483647, not"):
            one.accept(wrong)


def test_a_chain_for_several_models(altered, chain, context):
    """A chain that ignores the vocabulary works with any model."""
    one = chain(TopK(3), Greedy())
    needy = chain(Penalties(), Greedy())
    expected = one.sample(decoded(context, THE))
    needy.sample(context)
    with (
        Model(altered()) as other,
        Context(other, n_ctx=64, n_threads=1) as there,
    ):
        for _ in range(3):
            assert one.sample(decoded(there, THE)) == one.sample(context) == expected
        with pytest.raises(ArgumentError, match="another model"):
            needy.sample(there)
    assert one.sample(context) == expected


def test_a_failed_chain_can_be_tried_again(model, context, chain):
    late = chain(Grammar("root ::= <[9999]>"), Greedy())
    decoded(context, THE)
    for _ in range(2):
        with pytest.raises(GrammarError, match="outside the vocabulary"):
            late.sample(context)
    with pytest.raises(ArgumentError, match="needs the vocabulary"):
        _ = late.ptr  # it has not kept the vocabulary


def test_a_chain_as_a_context_manager():
    with SamplerChain(Penalties(), Greedy()) as one:  # even without a vocabulary yet
        assert not one.closed
    with pytest.raises(ClosedError), one:
        pass


def test_many_threads(new_context):
    """Each with its own chain and context; the descriptions are shared."""
    expected, failures = draw(decoded(new_context(), THE), SamplerChain(*ALL, Dist(1))), []

    def work(context):
        with SamplerChain(*ALL, Dist(1)) as one:
            if draw(decoded(context, THE), one) != expected:
                failures.append(1)

    threads = [threading.Thread(target=work, args=(new_context(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_one_thread_at_a_time(context, chain):
    one, other, errors = chain(Greedy()), chain(Greedy()), []
    decoded(context, THE)
    one.sample(context)
    calls = (
        lambda: one.sample(context),
        lambda: one.apply(Candidates([1.0])),
        lambda: one.accept(1),
        lambda: one.accept_prompt([1]),
        lambda: one.names,
        lambda: one.seed,
        lambda: one.copy_from(other),
        lambda: other.copy_from(one),
        one.clone,
        one.perf,
        one.reset,
        one.reset_perf,
    )

    def use():
        for call in calls:
            try:
                call()
            except BusyError:
                errors.append(call)

    with native(one).lock:
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert len(errors) == len(calls)


def test_raw_calls_work_on_its_pointer(context, chain):
    one = chain(TopK(3), Greedy())
    decoded(context, THE)
    assert lib.llama_sampler_sample(one.ptr, context.ptr, -1) == one.sample(context)
    assert lib.llama_sampler_chain_n(one.ptr) == 2


def test_a_custom_sampler_without_clone_can_still_be_used(context, chain):
    one = chain(CustomSampler(print, accept=print, clone=None), Greedy())
    assert one.ptr
    with pytest.raises(UnsupportedError):
        one.clone()
    assert one.names == ["custom", "greedy"]
