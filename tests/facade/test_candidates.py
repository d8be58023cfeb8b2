"""Candidates are numpy views of C's array."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from llamacffi import (
    ArgumentError,
    Batch,
    BusyError,
    Candidates,
    ContextError,
    Greedy,
    Penalties,
    SamplerChain,
    TopK,
    ffi,
    lib,
)
from tests.facade.helpers import raised_in_thread
from tests.facade.oracle import close_to, logits_after, token


def test_the_array_is_the_one_in_c():
    candidates = Candidates([0.5, -1.0, 2.0], ids=[7, 8, 9])
    data = candidates.data
    assert data.dtype.itemsize == ffi.sizeof("llama_token_data")
    assert [tuple(one) for one in data] == [(7, 0.5, 0), (8, -1, 0), (9, 2, 0)]
    data["logit"][1] = 3.5
    candidates.id[2] = 4
    struct = candidates.ptr
    assert (struct.size, struct.selected, struct.sorted) == (3, -1, False)
    assert [(struct.data[k].id, struct.data[k].logit) for k in range(3)] == [
        (7, 0.5),
        (8, 3.5),
        (4, 2.0),
    ]
    struct.data[0].logit = -7.0
    assert candidates.logit.tolist() == [-7.0, 3.5, 2.0]
    assert repr(candidates) == "<3 Candidates, selected=None>"


def test_changes_of_a_chain_are_visible(chain):
    candidates = Candidates([0.5, -1.0, 2.0, 1.0])
    before = candidates.data
    chain(TopK(2), Greedy()).apply(candidates)
    assert (len(candidates), candidates.sorted, candidates.selected) == (2, True, 0)
    assert candidates.id.tolist() == [2, 3]
    assert candidates.token == 2
    assert before["id"][:2].tolist() == [2, 3]  # the same memory
    candidates.logit[1] = 9.0
    chain(Greedy()).apply(candidates)
    assert candidates.token == 3


def test_logits_of_a_context(context):
    words = [token(" llama"), token(" old")]
    batch = Batch(2)
    batch.add(words, logits="all")
    with pytest.raises(IndexError, match="no outputs"):
        Candidates.from_context(context)
    context.decode(batch)
    for i in (0, 1, -1):
        candidates = Candidates.from_context(context, i)
        assert candidates.id.tolist() == list(range(len(context.model.vocab)))
        assert candidates.logit == close_to(logits_after([words[i]])[0])
    with pytest.raises(IndexError):
        Candidates.from_context(context, 2)
    assert candidates.logit.tolist() == context.logits().tolist()
    batch.clear()
    batch.add(words[:1], pos=2)
    context.decode(batch)
    assert candidates.logit == close_to(logits_after(words)[1])  # its own copy


def test_a_busy_context(context):
    batch = Batch(1)
    batch.set_one(token(" llama"), 0)
    context.decode(batch)
    with context.exclusive:
        error = raised_in_thread(lambda: Candidates.from_context(context))
    assert isinstance(error, BusyError)


def test_removing():
    candidates = Candidates(np.arange(10.0))
    candidates.selected = 9
    candidates.size = 9
    assert (candidates.size, candidates.selected) == (9, None)
    candidates.keep(candidates.logit > 3)
    assert candidates.id.tolist() == [4, 5, 6, 7, 8]
    candidates.selected = 2
    candidates.keep([3, 0])
    assert (candidates.id.tolist(), candidates.selected) == ([7, 4], None)
    for which in ([], [False, False], np.array([], int)):
        with pytest.raises(ArgumentError, match="cannot keep"):
            candidates.keep(which)
    for which in (
        [0, 1, 0],
        [1, 1],
        [0, -2],
        np.array([1, 0], np.int8),
        np.array([0, 1], np.uint8),
    ):
        with pytest.raises(ArgumentError, match="indices, each once"):
            candidates.keep(which)
    with pytest.raises(IndexError):
        candidates.keep([2])
    for size in (0, -1, 3):
        with pytest.raises(ArgumentError, match=f"size must be between 1 and 2, not {size}$"):
            candidates.size = size
    for selected in (-1, 2):
        with pytest.raises(ArgumentError, match=f"selected must be .* 0 and 1, not {selected}$"):
            candidates.selected = selected
    assert candidates.id.tolist() == [7, 4]


def test_invalid_logits():
    for logits in ([], [[1.0]], 1.0, [np.nan, 1.0], [np.inf]):
        with pytest.raises(ArgumentError, match="logits"):
            Candidates(logits)
    for ids, error in (
        ([1], ArgumentError),
        ([1, -1], ArgumentError),
        ([1, 2**31], ArgumentError),
        ([1.0, 2.0], TypeError),
        (["a", "b"], TypeError),
    ):
        with pytest.raises(error, match="ids"):
            Candidates([1.0, 2.0], ids=ids)
    with pytest.raises((TypeError, ValueError)):
        Candidates("many")


def test_a_chain_checks_them_first(chain, model):
    candidates = Candidates([1.0, 2.0])
    candidates.logit[1] = np.nan
    with pytest.raises(ContextError, match="a logit is NaN or inf"):
        chain(TopK(1)).apply(candidates)
    beyond = Candidates([1.0], ids=[len(model.vocab)])
    chain(Greedy(), vocab=model.vocab).apply(beyond)  # it ignores the ids
    with pytest.raises(ArgumentError, match="outside the vocabulary"):
        chain(Penalties(repeat=2.0), vocab=model.vocab).apply(beyond)
    with pytest.raises(TypeError, match="must be Candidates"):
        chain(Greedy()).apply([1.0, 2.0])


def test_arrays_outlive_everything():
    def make():
        candidates = Candidates(np.arange(1000.0))
        with SamplerChain(TopK(500)) as chain:
            chain.apply(candidates)
        return candidates.logit

    array = make()
    gc.collect()
    assert array.tolist() == np.arange(999.0, 499.0, -1.0).tolist()


def test_raw_samplers_work_on_them():
    candidates = Candidates([1.0, 4.0, 2.0])
    sampler = lib.llama_sampler_init_top_k(2)
    lib.llama_sampler_apply(sampler, candidates.ptr)
    lib.llama_sampler_free(sampler)
    assert candidates.id.tolist() == [1, 2]
