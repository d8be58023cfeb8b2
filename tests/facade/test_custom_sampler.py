"""Samplers in Python: what they see, what they may do, and how their errors are handled."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

from llamacffi import (
    ArgumentError,
    BusyError,
    Candidates,
    ClosedError,
    ContextError,
    CustomSampler,
    Dist,
    Grammar,
    Greedy,
    LogitBias,
    LogitsProcessor,
    Penalties,
    SamplerChain,
    Temp,
    TopK,
    UnsupportedError,
    ffi,
    lib,
)
from tests.facade.helpers import decoded
from tests.facade.oracle import logits_after, token

THE = token(" the")


def take_best(candidates):
    candidates.selected = int(candidates.logit.argmax())


def test_greedy_in_python(context, chain):
    own = chain(CustomSampler(take_best, selects=True))
    for word in (" llama", " the", " river", "."):
        decoded(context, token(word))
        assert own.sample(context) == chain(Greedy()).sample(context)


def test_it_sees_what_samplers_before_it_left(context, chain):
    seen = []

    def note(candidates):
        seen.append((candidates.id.tolist(), candidates.logit.tolist(), candidates.sorted))
        candidates.logit[0] = -np.inf

    decoded(context, THE)
    chosen = chain(TopK(5), Temp(0.5), CustomSampler(note), Greedy()).sample(context)
    ids, logits, in_order = seen[0]
    best = np.sort(logits_after([THE])[0])[::-1][:5]
    assert logits == pytest.approx((best / 0.5).tolist(), abs=1e-2)
    assert in_order
    assert chosen == ids[1]


def test_later_samplers_see_what_it_removed(context, chain):
    def odd(candidates):
        candidates.keep(candidates.id % 2 == 1)

    def check(candidates):
        assert (candidates.id % 2 == 1).all()

    decoded(context, THE)
    one = chain(CustomSampler(odd), TopK(40), CustomSampler(check), Dist(seed=1))
    assert all(one.sample(context) % 2 == 1 for _ in range(20))


def test_candidates_become_unsorted_unless_declared(chain):
    told = []

    def turn(candidates):
        candidates.data[:] = candidates.data[::-1].copy()

    def sort(candidates):
        candidates.keep(np.argsort(-candidates.logit))
        candidates.sorted = True

    def see(candidates):
        told.append(candidates.sorted)

    one = chain(TopK(3), CustomSampler(turn), CustomSampler(see), CustomSampler(sort))
    last = chain(CustomSampler(sort), CustomSampler(see))
    one.apply(Candidates([1.0, 2.0, 3.0, 4.0]))
    candidates = Candidates([1.0, 3.0, 2.0])
    last.apply(candidates)
    assert told == [False, True]
    assert candidates.logit.tolist() == [3.0, 2.0, 1.0]


class Counting:
    """A sampler with state: it chooses the last accepted token."""

    def __init__(self, tokens=()):
        self.tokens = list(tokens)

    def sampler(self):
        return CustomSampler(
            self.apply, self.accept, self.reset, self.clone, name="counting", selects=True
        )

    def apply(self, candidates):
        wanted = self.tokens[-1] if self.tokens else 0
        candidates.selected = int(np.flatnonzero(candidates.id == wanted)[0])

    def accept(self, token):
        self.tokens.append(token)

    def reset(self):
        self.tokens.clear()

    def clone(self):
        return Counting(self.tokens).sampler()


def test_state(context, chain):
    state = Counting()
    one = chain(Temp(0.5), state.sampler())
    assert one.names == ["temp", "counting"]
    decoded(context, THE)
    one.accept(7)
    assert one.sample(context) == 7
    assert state.tokens == [7, 7]
    one.accept_prompt([1, 2])
    assert state.tokens == [7, 7, 1, 2]
    one.reset()
    assert state.tokens == []
    assert one.sample(context) == 0


def test_clones_have_their_own_state(context, chain):
    decoded(context, THE)
    state = Counting()
    one = chain(state.sampler())
    one.accept(7)
    with one.clone() as other, other.clone() as third:
        other.accept(8)
        assert one.sample(context) == 7
        assert [other.sample(context), third.sample(context)] == [8, 7]
        assert state.tokens == [7, 7]
        assert other[0] != one[0]
        other.reset()
        assert third.sample(context) == 7
    one.accept(9)
    with chain(state.sampler()).clone() as other:
        other.reset()
        assert state.tokens[-1] == 9


def test_copying_the_state(context, chain):
    decoded(context, THE)
    one, other = chain(Dist(seed=3)), chain(Dist(seed=3))
    one.sample(context)
    other.copy_from(one)
    assert [one.sample(context) for _ in range(9)] == [other.sample(context) for _ in range(9)]
    counting = Counting([5])
    sampler = counting.sampler()
    first, second = chain(sampler), chain(sampler)
    second.copy_from(first)
    counting.tokens.append(6)
    assert (first.sample(context), second.sample(context)) == (6, 5)
    with pytest.raises(ArgumentError, match="differ from those of"):
        second.copy_from(first)  # by now it has its own state


def test_what_cannot_be_cloned(chain, context):
    stateless = CustomSampler(take_best, selects=True)
    decoded(context, THE)
    with chain(stateless).clone() as other:
        assert other.sample(context) == chain(Greedy()).sample(context)
        assert list(other) == [stateless]
    for options in ({"accept": print}, {"reset": lambda: None}):
        one = chain(CustomSampler(take_best, **options, selects=True))
        assert one.ptr
        with pytest.raises(UnsupportedError, match="give CustomSampler a clone function"):
            one.clone()
        assert one.reset() is None
    wrong = chain(CustomSampler(take_best, clone=lambda: Greedy(), selects=True))
    assert wrong.ptr
    with pytest.raises(TypeError, match="clone returns must be a CustomSampler"):
        wrong.clone()


class OwnError(Exception):
    pass


def failing(*_args):
    raise OwnError("on purpose")


def test_exceptions_reach_the_caller(context, chain):
    decoded(context, THE)
    one = chain(
        Penalties(freq=1.0),
        CustomSampler(failing),
        LogitBias({3: 1.0}),
        TopK(3),
        Temp(0.5),
        Dist(seed=1),
    )
    for _ in range(3):
        with pytest.raises(OwnError, match="on purpose"):
            one.sample(context)
    with pytest.raises(OwnError):
        one.apply(Candidates([1.0, 2.0]))
    one.accept(1)
    one.reset()
    assert one.perf().n_sample == 1  # the failed token was not accepted
    for call, options in (
        (lambda chain: chain.accept(1), {"accept": failing}),
        (lambda chain: chain.accept_prompt([1, 2]), {"accept": failing}),
        (lambda chain: chain.sample(context), {"accept": failing}),
        (lambda chain: chain.reset(), {"reset": failing}),
        (lambda chain: chain.clone(), {"clone": failing}),
    ):
        one = chain(CustomSampler(take_best, **options, selects=True))
        assert one.ptr
        for _ in range(2):
            with pytest.raises(OwnError):
                call(one)
    decoded(context, token(" llama"))
    calls = []

    def sometimes(candidates):
        calls.append(1)
        if len(calls) % 2:
            failing()
        take_best(candidates)

    one = chain(CustomSampler(sometimes, selects=True))
    with pytest.raises(OwnError):
        one.sample(context)
    assert one.sample(context) == logits_after([token(" llama")])[0].argmax()


def test_an_interrupt_reaches_the_caller(context, chain):
    def interrupt(_candidates):
        raise KeyboardInterrupt

    decoded(context, THE)
    with pytest.raises(KeyboardInterrupt):
        chain(CustomSampler(interrupt), Greedy()).sample(context)


def test_invalid_changes_are_rejected(context, chain):
    decoded(context, THE)

    def spoil(field, value):
        def apply(candidates):
            candidates.data[field][1] = value
            candidates.selected = 1

        return apply

    for field, value, error in (
        ("logit", np.nan, ContextError),
        ("logit", np.inf, ContextError),
        ("id", -1, ArgumentError),
    ):
        for rest in ([TopK(300), Dist(seed=1)], [Penalties(repeat=2.0), Greedy()]):
            with pytest.raises(error):
                chain(CustomSampler(spoil(field, value)), *rest).sample(context)
    chosen = chain(CustomSampler(spoil("id", 600), selects=True))
    with pytest.raises(ArgumentError, match="outside the vocabulary"):
        chosen.sample(context)
    undecided = chain(CustomSampler(lambda candidates: None, selects=True))
    with pytest.raises(ArgumentError, match="did not choose a token"):
        undecided.sample(context)

    def ruled_out(candidates):
        candidates.logit[5] = -np.inf
        candidates.selected = 5

    with pytest.raises(ArgumentError, match="has ruled out"):
        chain(CustomSampler(ruled_out, selects=True)).sample(context)


def test_candidates_that_are_kept(context, chain):
    kept = []

    def keep(candidates):
        kept.append((candidates, candidates.data, candidates.logit))
        take_best(candidates)

    decoded(context, THE)
    one = chain(CustomSampler(keep, selects=True))
    one.sample(context)
    for use in (len, repr, lambda c: c.data, lambda c: c.logit, lambda c: c.keep([0])):
        if use is repr:
            assert use(kept[0][0]) == "<Candidates (no longer valid)>"
            continue
        with pytest.raises(ClosedError, match="until apply"):
            use(kept[0][0])
    one.close()
    gc.collect()
    assert kept[0][1].size == kept[0][2].size == len(context.model.vocab)
    assert np.isfinite(kept[0][2]).all()


def test_arrays_over_memory_of_c(run_python):
    """Called through the raw layer, it works on a copy, which it may keep."""
    done = run_python(
        """
        import gc
        import numpy as np
        from llamacffi import (
            Batch, Candidates, Context, CustomSampler, Greedy, Model, SamplerChain, TopK, demo, lib
        )
        kept = []

        def work(candidates):
            kept.append(candidates.data)
            candidates.keep(np.argsort(-candidates.logit)[1:3])

        model = Model(demo.path())
        context = Context(model, n_ctx=64, n_threads=1)
        batch = Batch(1)
        batch.set_one(300, 0)
        context.decode(batch)
        second = int(np.argsort(-context.logits(), kind="stable")[1])
        chain = SamplerChain(TopK(200), CustomSampler(work), Greedy())
        token = lib.llama_sampler_sample(chain.ptr, context.ptr, -1)
        assert context.logits()[token] == context.logits()[second], token
        clone = lib.llama_sampler_clone(chain.ptr)
        assert context.logits()[lib.llama_sampler_sample(clone, context.ptr, -1)] < 0
        lib.llama_sampler_free(clone)
        chain.close()
        context.close()
        gc.collect()
        for data in kept:
            data["logit"] += 1
        print(sum(data.size for data in kept))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "400\n", "")


def test_exit_with_everything_alive(run_python):
    done = run_python(
        """
        from llamacffi import Batch, Context, CustomSampler, Model, SamplerChain, demo
        model = Model(demo.path())
        context = Context(model, n_ctx=64, n_threads=1)
        batch = Batch(1)
        batch.set_one(300, 0)
        context.decode(batch)

        class State:
            def apply(self, candidates):
                self.kept = candidates.data
                self.chain = chain
                candidates.selected = 0

        state = State()
        chain = SamplerChain(CustomSampler(state.apply, clone=None, selects=True))
        other = chain.clone()
        chain.sample(context), other.sample(context)
        print("ok")
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_nothing_outlives_the_chain(context):
    class State:
        def apply(self, candidates):
            take_best(candidates)

    state = State()
    alive = weakref.ref(state)
    one = SamplerChain(CustomSampler(state.apply, selects=True))
    decoded(context, THE)
    one.sample(context)
    del state
    one.close()
    del one
    assert alive() is None  # immediately: there are no reference cycles


def test_a_chain_used_within_itself(context, chain):
    def again(_candidates):
        one.accept(1)

    one = chain(CustomSampler(again), Greedy())
    decoded(context, THE)
    with pytest.raises(BusyError):
        one.sample(context)


def test_many_threads(new_context):
    """Each has its own chain; all share one description."""
    results = []
    sampler = CustomSampler(take_best, selects=True)

    def work(context):
        with SamplerChain(sampler) as one:
            results.append({one.sample(decoded(context, THE)) for _ in range(50)})

    threads = [threading.Thread(target=work, args=(new_context(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [{int(logits_after([THE])[0].argmax())}] * 3


def test_descriptions():
    for make in (
        lambda: CustomSampler(None),
        lambda: CustomSampler(take_best, accept=1),
        lambda: CustomSampler(take_best, name=b"x"),
        lambda: LogitsProcessor("f"),
    ):
        with pytest.raises(TypeError):
            make()
    for name in ("", "a\0b"):
        with pytest.raises(ArgumentError, match="name"):
            CustomSampler(take_best, name=name)
    with pytest.raises(ArgumentError, match="must come last"):
        SamplerChain(CustomSampler(take_best, selects=True), Greedy())


def test_logits_processor(context, chain):
    seen = []

    def process(tokens, scores):
        seen.append((tokens.copy(), scores.copy()))
        assert not tokens.flags.writeable
        scores[tokens] = -np.inf  # never again
        return scores

    decoded(context, THE)
    one = chain(LogitsProcessor(process), Greedy(), vocab=context.model.vocab)
    one.accept_prompt([3, 4])
    chosen = [one.sample(context) for _ in range(70)]
    assert len(set(chosen)) == 70
    assert [tokens.tolist() for tokens, _ in seen] == [[3, 4, *chosen[:n]] for n in range(70)]
    assert seen[0][1].tolist() == context.logits().tolist()
    assert one.names[0] == "logits-processor"
    with one.clone() as other:
        assert other.sample(context) == one.sample(context)
    one.reset()
    assert one.sample(context) == chosen[0]


def test_a_logits_processor_cannot_restore_removed_tokens(context, chain):
    allowed = token(" tree")

    def everything(_tokens, scores):
        return np.zeros_like(scores)

    decoded(context, THE)
    grammar = Grammar('root ::= " tree"')
    one = chain(grammar, LogitsProcessor(everything), Greedy())
    assert set(b" tree").issuperset(context.model.vocab.piece(one.sample(context)))
    few = chain(TopK(3), LogitsProcessor(everything), Dist(seed=1))
    best = np.argsort(-context.logits(), kind="stable")
    limit = context.logits()[best[2]]
    assert all(context.logits()[few.sample(context)] >= limit for _ in range(50))
    assert allowed < len(context.model.vocab)


def test_what_a_logits_processor_returns(context, chain):
    decoded(context, THE)
    for result, error in (
        (None, TypeError),
        (np.zeros(3), TypeError),
        (np.zeros((1, 514)), TypeError),
        (["a"] * 514, TypeError),
        (np.full(514, np.nan), ContextError),
        (np.full(514, -np.inf), ArgumentError),
    ):
        one = chain(LogitsProcessor(lambda _tokens, _scores, result=result: result), Greedy())
        with pytest.raises(error):
            one.sample(context)
    whole = chain(LogitsProcessor(lambda _tokens, _scores: np.arange(514)), Greedy())
    assert whole.sample(context) == 513


def test_c_has_the_interface(chain):
    one = chain(CustomSampler(take_best, name="früh", selects=True))
    sampler = lib.llama_sampler_chain_get(one.ptr, 0)
    assert one.names == ["früh"]
    assert ffi.string(lib.llama_sampler_name(sampler)).decode() == "früh"
    assert sampler.iface.free == ffi.NULL
