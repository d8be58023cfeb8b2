"""What is to be an object of this package and is another raises a `TypeError` that says so."""

from __future__ import annotations

import pytest

from llamacffi import (
    Adapter,
    ArgumentError,
    Batch,
    Candidates,
    Context,
    Dist,
    Gguf,
    Grammar,
    Greedy,
    Imatrix,
    ImatrixCollector,
    LogitBias,
    Model,
    SamplerChain,
    Threadpool,
    UnsupportedError,
    compute_imatrix,
    generate,
    merge_lora,
)

OBJECTS = [None, 3, "text", [1, 2, 3], object(), Dist]


@pytest.mark.parametrize("wrong", OBJECTS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Context, "model must be a Model, not "),
        (lambda one: Adapter(one, "x.gguf"), "model must be a Model, not "),
        (SamplerChain.from_model, "model must be a Model, not "),
        (lambda one: compute_imatrix(one, "text"), "model must be a Model, not "),
        (Candidates.from_context, "context must be a Context, not "),
        (lambda one: generate(one, "text"), "context must be a Context, not "),
        (LogitBias.eog, "vocab must be a Vocab, not "),
        (LogitBias.suppress, "vocab must be a Vocab, not "),
        (Imatrix({}).merge, "other must be an Imatrix, not "),
        (Gguf.from_file, "file must be an open binary file, not "),
        (lambda one: merge_lora("a", one, "b"), "adapters must be a mapping of files to scales"),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_objects_of_another_kind(make, message, wrong):
    with pytest.raises(TypeError) as caught:
        make(wrong)
    assert message in str(caught.value)
    assert repr(wrong) in str(caught.value)


def test_objects_of_a_context(context, model):
    with pytest.raises(TypeError, match=r"batch must be a Batch, not \[1, 2, 3\]"):
        context.decode([1, 2, 3])
    with pytest.raises(TypeError, match=r"use Gguf\.open, from_file or from_bytes to read 'x'"):
        Gguf("x")
    with pytest.raises(TypeError, match="not 3"):
        context.attach_threadpool(3)
    with pytest.raises(TypeError, match="name must be a text, not 3"):
        model.chat_template(3)
    with pytest.raises(TypeError, match="data must be True or False, not 2"):
        context.memory.clear(data=2)
    assert model.chat_template("\ud800") is None


@pytest.mark.parametrize(("chunk_size", "error"), [(0, ArgumentError), (2.5, TypeError)])
def test_numbers_of_an_imatrix(model, chunk_size, error):
    for make in (
        lambda: ImatrixCollector().imatrix(chunk_size=chunk_size),
        lambda: compute_imatrix(model, [1] * 9, chunk_size=chunk_size),
    ):
        with pytest.raises(error, match="chunk_size"):
            make()
    with pytest.raises(TypeError, match="dataset"):
        ImatrixCollector().imatrix(dataset=b"x")


def test_more_layers_than_there_can_be(demo_path):
    """They would be a list of as many patterns."""
    with pytest.raises(
        ArgumentError, match=r"n_cpu_moe must be .*, not 4294967296; .* cpu_moe=True"
    ):
        Model(demo_path, n_cpu_moe=2**32)


def test_a_grammar_needs_texts(random_context, chain):
    context = random_context("llama")
    with pytest.raises(UnsupportedError, match="no vocabulary"):
        chain(Grammar('root ::= "a"'), Dist(1), vocab=context.model.vocab).accept(1)


def test_pools_of_another_kind(context):
    with Threadpool(1) as pool, pytest.raises(TypeError, match="not 3"):
        context.attach_threadpool(pool, 3)


def test_a_class_is_not_one_of_its_objects(context, model):
    """Its attributes have the same names: they are descriptors there."""
    chain = SamplerChain(Greedy())
    for use, kind in (
        (context.decode, Batch),
        (context.encode, Batch),
        (chain.sample, Context),
        (chain.copy_from, SamplerChain),
        (chain.apply, Candidates),
        (Candidates.from_context, Context),
        (SamplerChain.from_model, Model),
        (lambda one: generate(one, "text"), Context),
        (lambda one: generate(context, "text", sampler=one), SamplerChain),
        (lambda one: context.set_sampler(0, one), SamplerChain),
        (lambda one: Context(model, ctx_other=one), Context),
        (context.attach_threadpool, Threadpool),
        (Adapter, Model),
    ):
        with pytest.raises(TypeError, match=kind.__name__):
            use(kind, "x.gguf") if use is Adapter else use(kind)
