"""The parts of a context, each alone: what they know does not need a model."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from llamacffi import ArgumentError, Batch, BusyError, ContextError, UnsupportedError, ffi
from llamacffi._core.locks import CallLock
from llamacffi.batch.batch import arrays_of
from llamacffi.context.adapters import ActiveAdapters
from llamacffi.context.batch_checks import check_encode, check_size
from llamacffi.context.bookkeeping import END, Bookkeeping
from llamacffi.context.handle import traits_of
from llamacffi.context.last_batch import LastBatch
from llamacffi.context.outputs import Outputs
from llamacffi.context.pools import Computing, Pools


def decoded(bookkeeping, tokens, pos=0, seq_ids=(0,)):
    bookkeeping.decoded(arrays_of(Batch.from_tokens(tokens, pos, seq_ids)))


def test_bookkeeping_of_shared_tokens():
    book = Bookkeeping(3, recurrent=False, rolls_back=False)
    decoded(book, [5, 6, 7], seq_ids=(0, 1))
    assert [book.shared_until(i) for i in range(3)] == [3, 3, 0]
    assert book.tokens.before(1, END) == [5, 6, 7]
    before = list(book.versions)
    book.removed(0, 2)
    assert (book.shared_until(0), book.tokens.before(0, END)) == (2, [5, 6])
    book.removed(1, 0)
    assert book.shared_until(0) == 0, "nothing is left to share with"
    assert [a - b for a, b in zip(book.versions, before, strict=True)] == [1, 1, 0]


def test_bookkeeping_of_states_that_roll_back():
    book = Bookkeeping(2, recurrent=True, rolls_back=True)
    decoded(book, [1, 2, 3])
    assert book.can_undo(0, 2)
    assert not book.can_undo(0, 3)
    book.removed(0, 2)
    assert book.is_rolled_back(0)
    decoded(book, [4], 2)
    assert not book.is_rolled_back(0)
    book.moved(0)
    assert book.interrupted(arrays_of(Batch.from_tokens([5], 3))) == {0}
    assert not book.can_undo(0, 1)
    book.loaded()
    assert book.shared_until(1) == END


def outputs(**traits):
    facts = {"model": "the model", "vocab": None, "has_logits": True, "n_vocab": 4, **traits}
    last = LastBatch()
    graph = SimpleNamespace(chains={})
    return last, Outputs(SimpleNamespace(**facts), CallLock("Context"), last, graph)


def test_outputs_know_which_tokens_have_one():
    last, found = outputs()
    with pytest.raises(IndexError, match="decode a batch first"):
        found.check_scores(-1)
    last.set(b"\1\0\1", logits=True, embeddings=False)
    assert found.n_outputs == 2
    for i in (0, 2, -1, -2):
        found.check_scores(i)
    for i in (1, 3, -3):
        with pytest.raises(IndexError, match=f"token {i} has no output: .* 3 tokens"):
            found.check_scores(i)
    last.logits = False
    with pytest.raises(ContextError, match="the encoder computes no logits"):
        found.check_scores(0)
    last, found = outputs(has_logits=False)
    last.set(b"\1", logits=False, embeddings=True)
    with pytest.raises(UnsupportedError, match="the model' computes embeddings instead of logits"):
        found.check_scores(0)


def test_the_traits_of_a_context_do_not_change(context):
    traits = traits_of(context)
    assert (traits.n_ctx, traits.n_batch, traits.n_vocab) == (
        *(context.n_ctx, context.n_batch),
        len(context.model.vocab),
    )
    assert (traits.recurrent, traits.memoryless, traits.has_logits) == (False, False, True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        traits.n_ctx = 1


def test_checks_of_batches_need_no_context(context):
    with pytest.raises(ArgumentError, match="the batch has 9 tokens, but n_batch is 8: split"):
        check_size(9, 8)
    traits = dataclasses.replace(traits_of(context), n_ubatch=2)
    with pytest.raises(ArgumentError, match="the batch has 3 tokens, but n_ubatch is 2"):
        check_encode(traits, arrays_of(Batch.from_tokens([1, 2, 3])))


def test_computing_is_for_one_thread_at_a_time():
    lock = CallLock("Context")
    computing = Computing(Pools(lock, ffi.NULL))

    def hold():
        import sys

        pools = computing.enter(sys._getframe(), 1)
        with pytest.raises(BusyError, match="this thread is using this Context"):
            lock.enter(sys._getframe(1))
        computing.leave(sys._getframe(), pools)

    hold()
    hold()  # it is free again


def test_adapters_let_go_of_what_c_keeps():
    active = ActiveAdapters()
    kept = active.pointers
    kept.append("an adapter in C")
    active.close()
    assert (active.pointers, kept) == ([], ["an adapter in C"])
