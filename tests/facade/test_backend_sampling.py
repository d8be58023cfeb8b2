"""Sampling in the graph: the same as on the processor, and nothing that llama.cpp gets wrong."""

from __future__ import annotations

import math
import threading
import weakref

import numpy as np
import pytest

from llamacffi import (
    XTC,
    ArgumentError,
    Batch,
    BusyError,
    Candidates,
    Context,
    ContextError,
    CustomSampler,
    Dist,
    Gguf,
    Grammar,
    Greedy,
    InvalidBatchError,
    LogitBias,
    MinP,
    Model,
    Penalties,
    SamplerChain,
    Temp,
    TempExt,
    TopK,
    TopP,
    Typical,
    UnsupportedError,
    lib,
)
from llamacffi.sampling.chain import native
from tests.facade.sampler_reference import softmax


@pytest.fixture
def make(random_path):
    """Make contexts of a model with random weights, where no two tokens are equally likely."""
    with Model(random_path("llama")) as model:
        yield lambda **params: Context(model, **{"n_ctx": 64, "n_threads": 1, **params})


def run(context, chain, n=12, seq_id=0, start=7):
    """Sample some tokens one after the other."""
    batch, tokens = Batch(1), [start]
    for pos in range(n):
        batch.clear()
        batch.add(tokens[-1:], pos=pos, seq_ids=(seq_id,))
        context.decode(batch)
        tokens.append(chain.sample(context))
    return tokens[1:]


SAME = [
    (Greedy(),),
    (Dist(seed=5),),
    (Temp(3.0), Dist(seed=5)),
    (Temp(0), Dist(seed=5)),
    (Temp(0), Greedy()),
    (MinP(0.3), Dist(seed=5)),
    (TopP(0.7), Dist(seed=5)),
    (TopK(1), Dist(seed=5)),
    (TopK(8), Greedy()),
    (TopK(8), TopK(20), Greedy()),
    (LogitBias({3: 9.0, 4: -math.inf}), Dist(seed=5)),
    (TopK(8), LogitBias({3: 9.0}), Greedy()),
    (TopP(0.9), LogitBias({3: 9.0}), Greedy()),
    (Penalties(repeat=1.8, freq=0.5, present=0.1), Temp(2.0), Dist(seed=5)),
    (TempExt(1.5), Dist(seed=5)),
    (Temp(2.0), XTC(0.5, 0.001, seed=3), Dist(seed=5)),
    (Temp(2.0), MinP(0.9, min_keep=9), Dist(seed=5)),
    (Temp(2.0), TopP(0.01, min_keep=5), Dist(seed=5)),
    (Typical(0.5), Greedy()),
    (Temp(2.0), CustomSampler(lambda candidates: candidates.keep([0, 1, 2])), Greedy()),
    (TempExt(2.0, 0.5), Greedy()),
    (TopK(1), TempExt(2.0, 0.5), Dist(seed=5)),
    (TopK(0), Penalties(), Greedy()),
]


def test_the_same_tokens_as_on_the_processor(make):
    plain, sampled = make(), make()
    for samplers in SAME:
        plain.memory.clear()
        sampled.memory.clear()
        with SamplerChain(*samplers) as one, SamplerChain(*samplers) as other:
            sampled.set_sampler(0, other)
            expected = run(plain, one)
            assert (samplers, run(sampled, other)) == (samplers, expected)
            assert other.names[0][0] in "+?"
            sampled.set_sampler(0, None)
            sampled.memory.clear()
            other.reset()
            assert (samplers, run(sampled, other)) == (samplers, expected)
            assert not any(name.startswith("+") for name in other.names)


def test_as_a_parameter(make, chain):
    expected = run(make(), chain(Temp(2.0), Dist(seed=1)))
    one, two = chain(Temp(2.0), Dist(seed=1)), chain(TopK(4), Greedy())
    context = make(samplers={0: one, 1: two}, n_seq_max=2)
    assert dict(context.samplers) == {0: one, 1: two}
    assert run(context, one) == expected
    batch = Batch(2)
    batch.add([7], pos=len(expected), seq_ids=(0,))
    batch.add([7], pos=0, seq_ids=(1,))
    context.decode(batch)
    assert context.sampled_token(0) == one.sample(context, 0)
    assert context.sampled_token(1) is None
    assert two.sample(context, 1) in context.sampled_candidates(1)
    with pytest.raises(ArgumentError, match="does not sample in the graph"):
        one.sample(make_decoded(make))


def make_decoded(make):
    context = make()
    batch = Batch(1)
    batch.set_one(7, 0)
    context.decode(batch)
    return context


def test_what_was_sampled(make, chain):
    raw = make_decoded(make).logits()
    order = np.argsort(-raw)
    context = make()
    batch = Batch(1)

    def sampled(*samplers):
        context.set_sampler(0, chain(*samplers))
        context.memory.clear()
        batch.clear()
        batch.set_one(7, 0)
        context.decode(batch)
        return (
            context.sampled_token(),
            context.sampled_logits(),
            context.sampled_probs(),
            context.sampled_candidates(),
        )

    chosen, logits, probs, candidates = sampled(Greedy())
    assert chosen == order[0]
    assert logits == pytest.approx(raw)
    assert probs is None
    assert candidates.tolist() == list(range(len(raw)))
    chosen, logits, probs, candidates = sampled(TopK(5))
    assert chosen is None
    assert sorted(candidates.tolist()) == sorted(order[:5].tolist())
    assert logits == pytest.approx(raw[candidates])
    assert probs is None
    chosen, logits, probs, candidates = sampled(TopK(5), Temp(2.0), Dist(seed=1))
    assert chosen in candidates
    assert logits == pytest.approx(raw[candidates] / 2)
    assert probs == pytest.approx(softmax(raw[candidates].astype(float) / 2), rel=1e-4)
    assert (logits.dtype, probs.dtype, candidates.dtype) == (np.float32, np.float32, np.int32)
    kept = logits.copy()
    sampled(TopP(0.5))
    assert logits.tolist() == kept.tolist()  # the caller's own
    found = Candidates.from_context(context)
    assert found.id.tolist() == context.sampled_candidates().tolist()
    assert np.isfinite(found.logit).sum() < len(raw)
    for read in (context.logits, context.logits_view):
        with pytest.raises(ContextError, match="sampled in the graph"):
            read()
    for read in (context.sampled_token, context.sampled_logits):
        with pytest.raises(IndexError):
            read(1)
    context.set_sampler(0, None)
    with pytest.raises(IndexError, match="no outputs"):
        context.sampled_token()


def test_a_context_without_samplers(make):
    context = make_decoded(make)
    assert dict(context.samplers) == {}
    assert context.sampled_token() is None
    assert context.sampled_logits() is None
    assert context.sampled_probs() is None
    assert context.sampled_candidates() is None


def test_sequences_with_and_without(make, chain):
    """As upstream's test of mixed batches; rows are put in order that the batch had them in."""
    context = make(n_seq_max=3, n_ctx=192, n_batch=64)
    one = chain(Dist(seed=2))
    plain, expected = chain(Greedy()), make_decoded(make).logits()
    context.set_sampler(1, one)
    batch = Batch(3)
    for seq_id in (2, 1, 0):
        batch.add([7], pos=0, seq_ids=(seq_id,))
    context.decode(batch)
    assert context.sampled_token(0) is None
    assert context.sampled_token(1) is not None
    for i in (0, 2):
        assert context.logits(i) == pytest.approx(expected, abs=1e-5)
        assert plain.sample(context, i) == expected.argmax()
    with pytest.raises(ArgumentError, match=r"Context\.samplers"):
        plain.sample(context, 1)
    with pytest.raises(ArgumentError, match="does not sample in the graph"):
        one.sample(context, 0)
    assert one.sample(context, 1) == context.sampled_token(1)
    with pytest.raises(ContextError):
        context.logits(1)


def test_many_outputs_of_a_sequence(make, chain):
    batch = Batch(3)
    batch.add([7, 8, 9], logits="all")
    context = make(samplers={0: chain(Greedy())})
    with pytest.raises(InvalidBatchError) as failure:
        context.decode(batch)
    assert any("at most 1 outputs per sequence" in note for note in failure.value.__notes__)
    expected = [make_decoded_with(make, batch).logits(i).argmax() for i in range(3)]
    several = make(n_outputs_max_per_seq=3)
    one = chain(Greedy())
    several.set_sampler(0, one)
    several.decode(batch)
    assert [one.sample(several, i) for i in range(3)] == expected
    penalties = chain(Penalties(freq=1.0), Greedy())
    with pytest.raises(UnsupportedError, match="cannot run 'penalties'"):
        several.set_sampler(0, penalties)
    assert dict(several.samplers) == {}
    assert penalties.sample(make_decoded(make)) == expected[0]


def make_decoded_with(make, batch):
    context = make()
    context.decode(batch)
    return context


def test_penalties_count_what_is_accepted(make, chain):
    context = make(samplers={0: chain(Penalties(freq=100.0), Greedy())})
    tokens = run(context, context.samplers[0], n=20)
    assert len(set(tokens)) == 20
    context.samplers[0].accept_prompt([1, 2])
    with pytest.raises(ArgumentError):
        context.samplers[0].accept(10**6)


def test_a_grammar_cannot_run_in_a_graph(new_context, chain):
    grammar = chain(Grammar('root ::= "a"'), Greedy())
    with pytest.raises(UnsupportedError, match=r"cannot run .* in the graph"):
        new_context().set_sampler(0, grammar)


def test_what_cannot_run_in_a_graph(make, chain):
    context = make()
    for samplers in (
        (XTC(1.0, seed=1), Greedy()),
        (TopK(10**6), Greedy()),
        (MinP(0.5, min_keep=2), Greedy()),
        (CustomSampler(print), Greedy()),
        (),
    ):
        one = chain(*samplers)
        with pytest.raises(UnsupportedError, match=r"cannot run .* in the graph"):
            context.set_sampler(0, one)
        with pytest.raises(UnsupportedError):
            make(samplers={0: one})
    assert dict(context.samplers) == {}
    make_decoded(make)


def test_a_chain_is_for_one_sequence(make, chain):
    one, two = chain(Greedy()), chain(Dist(seed=1))
    context = make(samplers={0: one}, n_seq_max=2)
    context.set_sampler(0, one)  # as it is
    for use in (
        lambda: context.set_sampler(1, one),
        lambda: make().set_sampler(0, one),
        lambda: make(samplers={0: one}),
        lambda: make(samplers={0: two, 1: two}, n_seq_max=2),
        lambda: make(samplers={2: two}, n_seq_max=2),
        lambda: make(samplers={-1: two}),
        lambda: context.set_sampler(2, two),
        lambda: context.set_sampler(-1, None),
    ):
        with pytest.raises(ArgumentError):
            use()
    for wrong in (5, [one], {0: Greedy()}, {"0": two}, {True: two}):
        with pytest.raises(TypeError):
            make(samplers=wrong)
    with pytest.raises(TypeError):
        context.set_sampler(0, Greedy())
    assert run(context, one)
    context.set_sampler(0, two)
    context.memory.clear()
    assert run(context, two, n=3)
    with pytest.raises(ArgumentError):
        one.sample(context)
    context.set_sampler(1, one)


def test_of_another_model(make, chain, random_path):
    with Model(random_path("llama")) as other:
        one = chain(Penalties(), Greedy(), vocab=other.vocab)
        with pytest.raises(ArgumentError, match="another model"):
            make(samplers={0: one})
        with pytest.raises(ArgumentError, match="another model"):
            make().set_sampler(0, one)


def test_clones_and_copies(make, chain):
    one = chain(Temp(2.0), Dist(seed=1))
    context = make(samplers={0: one})
    run(context, one, n=3)
    with one.clone() as other, SamplerChain(*one) as third:
        third.copy_from(one)
        context.memory.clear()
        expected = run(context, one, n=5)
        plain = make()
        assert run(plain, other, n=5) == expected
        plain.memory.clear()
        assert run(plain, third, n=5) == expected
    stopped = chain(TopK(8), Greedy())
    context.set_sampler(0, stopped)
    with stopped.clone() as other:
        assert other.names == ["top-k", "greedy"]
        with pytest.raises(ArgumentError, match="in the graph"):
            other.copy_from(stopped)


def test_perf_goes_on(make, chain):
    one = chain(Temp(2.0), Dist(seed=1), no_perf=False)
    context = make(samplers={0: one})
    run(context, one, n=3)
    context.set_sampler(0, None)
    one.accept(3)
    assert one.perf().n_sample == 4
    one.reset_perf()
    assert (one.perf().n_sample, one.perf().t_sample_ms) == (0, 0)


@pytest.mark.parametrize("first", ["chain", "context", "dropped", "model"])
def test_closing_in_every_order(random_path, first):
    model = Model(random_path("llama"))
    one = SamplerChain(Penalties(freq=0.1), Temp(2.0), Dist(seed=1))
    context = Context(model, n_ctx=64, n_threads=1, samplers={0: one})
    expected = run(context, one, n=3)
    if first == "chain":
        one.close()
        assert dict(context.samplers) == {}
        context.memory.clear()
        with SamplerChain(Greedy()) as other:
            assert run(context, other, n=2)
    elif first == "model":
        model.close()
        assert one.closed
    else:
        gone = weakref.ref(context)
        if first == "context":
            context.close()
        del context
        assert gone() is None
        one.reset()
        with Context(model, n_ctx=64, n_threads=1) as again:
            assert run(again, one, n=3) == expected
        one.reset()
        with Context(model, n_ctx=64, n_threads=1, samplers={0: one}) as again:
            assert run(again, one, n=3) == expected
        one.close()
    model.close()


def test_two_threads(make, chain):
    one = chain(Greedy())
    context = make(samplers={0: one})
    errors = []

    def use(*calls):
        for call in calls:
            try:
                call()
            except BusyError as error:
                errors.append(error)

    batch = Batch(1)
    batch.set_one(7, 0)
    for lock, calls in (
        (context.exclusive, (lambda: context.set_sampler(0, None), context.sampled_token)),
        (native(one).lock, (lambda: context.decode(batch), lambda: one.accept(1), one.reset)),
    ):
        errors.clear()
        with lock:
            thread = threading.Thread(target=use, args=calls)
            thread.start()
            thread.join()
        assert len(errors) == len(calls)


def test_exit_with_everything_alive(run_python, random_path):
    done = run_python(
        """
        import sys
        from llamacffi import Batch, Context, Dist, Model, SamplerChain, Temp, TopK
        model = Model(sys.argv[1])
        chain = SamplerChain(TopK(4), Temp(2.0), Dist(seed=1))
        context = Context(model, n_ctx=64, n_threads=1, samplers={0: chain})
        other = Context(model, n_ctx=64, n_threads=1)
        late = SamplerChain(Dist(seed=1))
        other.set_sampler(0, late)
        for one, sampler in ((context, chain), (other, late)):
            batch = Batch(1)
            batch.set_one(7, 0)
            one.decode(batch)
            sampler.sample(one)
        print("ok")
        """,
        random_path("llama"),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_llama_cpp_still_gets_these_wrong(model):
    """If it no longer does, `first_wrong` can be shorter."""
    with Context(model, n_ctx=64, n_threads=1) as context:
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(8))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
        assert lib.llama_set_sampler(context.ptr, 0, chain)
        batch = Batch(1)
        batch.set_one(300, 0)
        context.decode(batch)
        assert lib.llama_get_sampled_token_ith(context.ptr, 0) < 8  # a place, not a token
    lib.llama_sampler_free(chain)


@pytest.mark.parametrize("kind", ["bert", "llada"])
def test_a_model_without_memory_does_not_sample_in_its_graph(
    kind, random_path, demo_path, tmp_path, chain
):
    """llama.cpp would pass over the samplers there, or end on an assertion."""
    path = random_path(kind) if kind == "bert" else as_diffusion(demo_path, tmp_path)
    one = chain(Greedy())
    with Model(path) as model:
        with pytest.raises(UnsupportedError, match=r"has no memory.*SamplerChain.sample\(\)"):
            Context(model, n_ctx=64, samplers={0: one})
        context = Context(model, n_ctx=64)
        with pytest.raises(UnsupportedError, match=r"has no memory.*SamplerChain.sample\(\)"):
            context.set_sampler(0, one)
        context.set_sampler(0, None)
        if kind == "llada":
            context.decode(Batch.from_tokens([5, 6, 7]))
            assert one.sample(context) == context.logits().argmax()


def as_diffusion(source, directory):
    """Write the built-in model as one whose tokens see all others: it remembers nothing."""
    path = directory / "llada.gguf"
    with Gguf.open(source) as gguf:
        for key in [key for key in gguf if key.startswith("llama.")]:
            gguf[key.replace("llama.", "llada.")] = gguf.pop(key)
        gguf["general.architecture"] = "llada"
        gguf.write(path)
    return path
