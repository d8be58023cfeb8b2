"""A context computes the logits of the model, however the tokens are split into batches."""

from __future__ import annotations

import threading

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
    ContextFullError,
    InvalidBatchError,
    NativeError,
    enums,
)
from tests.facade.helpers import raised_in_thread
from tests.facade.oracle import START, close_to, logits_after, token

PROMPT = [START, *map(token, [" llama", " walks", " over", " the", " hill", " and", " looks"])]


def batch_of(tokens, pos=0, logits="all", **options):
    batch = Batch(max(1, len(tokens)))
    batch.add(tokens, pos=pos, logits=logits, **options)
    return batch


def test_logits_are_the_closed_form(context):
    context.decode(batch_of(PROMPT))
    expected = logits_after(PROMPT)
    for i in range(len(PROMPT)):
        assert context.logits(i) == close_to(expected[i])
        assert context.logits(i - len(PROMPT)) == close_to(expected[i])


@settings(max_examples=25)
@given(tokens=st.lists(st.integers(0, 513), min_size=1, max_size=24), data=st.data())
def test_any_split_into_batches_gives_the_same(model, tokens, data):
    expected = logits_after(tokens)
    n_ubatch = data.draw(st.sampled_from([1, 3, 64]))
    with Context(model, n_ctx=64, n_threads=1, n_ubatch=n_ubatch) as context:
        pos = 0
        while pos < len(tokens):
            stop = data.draw(st.integers(pos + 1, len(tokens)))
            context.decode(batch_of(tokens[pos:stop], pos=pos))
            for i in range(pos, stop):
                assert context.logits(i - pos) == close_to(expected[i])
            pos = stop
        assert context.memory.pos_max() == len(tokens) - 1


def test_logits_are_a_copy(context):
    context.decode(batch_of(PROMPT))
    first = context.logits(0)
    before = first.copy()
    context.decode(batch_of(PROMPT, pos=len(PROMPT)))
    context.logits(3)[:] = 0
    assert np.array_equal(first, before)
    assert context.logits(3) == close_to(logits_after(PROMPT)[3])


def test_logits_into_an_array(context):
    context.decode(batch_of(PROMPT))
    out = np.full(514, np.nan, np.float32)
    assert context.logits(2, out=out) is out
    assert out == close_to(logits_after(PROMPT)[2])


READ_ONLY = np.zeros(514, np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    "out",
    [
        np.zeros(513, np.float32),
        np.zeros((1, 514), np.float32),
        np.zeros(514, np.float64),
        np.zeros(514, ">f4"),
        np.zeros(1028, np.float32)[::2],
        READ_ONLY,
    ],
    ids=["too short", "2-d", "float64", "big-endian", "strided", "read-only"],
)
def test_an_array_that_does_not_fit_is_unchanged(context, out):
    context.decode(batch_of(PROMPT))
    with pytest.raises(ArgumentError, match="out must be"):
        context.logits(out=out)
    assert not out.any()


def test_a_view_is_read_only_and_blocks_decode(context):
    context.decode(batch_of(PROMPT))
    view = context.logits_view()
    assert view == close_to(logits_after(PROMPT)[-1])
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    part = view[10:20]
    del view
    with pytest.raises(BufferError, match="1 zero-copy view"):
        context.decode(batch_of([1], pos=len(PROMPT)))
    assert context.memory.pos_max() == len(PROMPT) - 1
    context.logits()  # copying is still allowed
    del part
    context.decode(batch_of([1], pos=len(PROMPT)))


@pytest.mark.parametrize("i", [1, 3, 4, 100, -3, -100, 2**31, -(2**40)])
def test_a_token_without_output(context, i):
    batch = Batch(4)
    batch.add([1, 2])  # an output at 1
    batch.add([3, 4], pos=2, logits="none")
    batch.add([], pos=2)
    context.decode(batch)
    if i == 1:
        assert context.logits(1) == close_to(logits_after([2])[0])
        assert context.logits(-1) == close_to(logits_after([2])[0])
        return
    with pytest.raises(IndexError, match=r"has no output: .* 4 tokens, and outputs at \[1\]"):
        context.logits(i)
    with pytest.raises(IndexError):
        context.logits_view(i)


def test_no_outputs_before_the_first_batch_or_after_a_failed_one(context):
    with pytest.raises(IndexError, match="decode a batch first"):
        context.logits()
    context.decode(batch_of(PROMPT))
    with pytest.raises(InvalidBatchError):
        context.decode(batch_of([1], pos=99))
    with pytest.raises(IndexError, match="decode a batch first"):
        context.logits()


PARAMETERS = {
    "n_batch": (0, -1, 2**31),
    "n_ubatch": (0, -1, 2**31),
    "n_ctx": (-1, 2**31),
    "n_seq_max": (0, -1, 257),
    "n_threads": (0, -1, 513, 2**40),
    "n_threads_batch": (0, -1, 513),
    "type_k": (*map(enums.GgmlType, (9, 26)), "q8_k", "i8", "f64", "count"),
    "type_v": (*map(enums.GgmlType, (9, 26)), "q8_k", "i8", "f64", "count"),
    "rope_freq_base": (float("nan"), float("inf")),
    "pooling_type": ("median", 99),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in PARAMETERS.items() for value in values]
)
def test_parameters_out_of_range(model, name, value):
    with pytest.raises(ArgumentError, match=name):
        Context(model, **{name: value})


def test_parameters_of_another_type(model):
    for name in ("n_threads", "n_ctx"):
        with pytest.raises(TypeError, match=f"{name} must be an integer"):
            Context(model, **{name: "4"})
    with pytest.raises(TypeError, match="unknown parameter 'n_thread'; did you mean 'n_threads'"):
        Context(model, n_thread=4)
    with pytest.raises(TypeError, match=r"use Context\.cancel"):
        Context(model, abort_callback=None)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0", "q5_1", "iq4_nl"])
def test_types_of_the_cache(new_context, kind):
    context = new_context(type_k=kind, type_v=kind)
    context.decode(batch_of(PROMPT))
    assert context.logits() == close_to(logits_after(PROMPT)[-1])


def test_sizes(new_context):
    context = new_context(n_ctx=512, n_batch=64, n_ubatch=16, n_seq_max=2, kv_unified=False)
    assert (context.n_ctx, context.n_ctx_seq, context.n_seq_max) == (512, 256, 2)
    assert (context.n_batch, context.n_ubatch) == (64, 16)
    assert new_context(n_ctx=0).n_ctx == 2048  # the training context size of the model
    assert "n_ctx=512" in repr(context)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Batch(1), "the batch is empty: add at least one token"),
        (
            batch_of(range(9)),
            "the batch has 9 tokens, but n_batch is 8: split the batch",
        ),
        (batch_of([5, 514]), "the token at index 1 must be between 0 and 513, not 514"),
        (batch_of([-1]), "the token at index 0 must be between 0 and 513, not -1"),
        (batch_of([5], seq_ids=(1,)), "seq_id must be between 0 and 0, not 1"),
    ],
    ids=["empty", "more than n_batch", "token too high", "token below 0", "seq_id too high"],
)
def test_a_batch_that_does_not_fit(new_context, batch, message):
    context = new_context(n_batch=8)
    with pytest.raises(ArgumentError, match=message):
        context.decode(batch)
    assert context.memory.pos_max() is None


@pytest.mark.parametrize("pos", [3, 5, 0], ids=["repeats", "leaves a gap", "begins anew"])
def test_positions_must_follow_those_in_memory(context, pos):
    context.decode(batch_of(PROMPT[:4]))
    with pytest.raises(InvalidBatchError) as caught:
        context.decode(batch_of([5, 6], pos=pos))
    assert caught.value.code == -1
    message = str(caught.value)
    assert (
        f"ends at position 3 in memory, but its first token in the batch has position {pos}: "
        in (message)
    )
    assert "give pos=context.memory.next_pos(0), which is 4" in message
    assert ("call context.memory.remove(0, " in message) == (pos < 4)
    assert any("inconsistent sequence positions" in note for note in notes(caught.value))
    assert (context.memory.pos_min(), context.memory.pos_max()) == (0, 3)
    context.decode(batch_of(PROMPT[4:6], pos=4))
    assert context.logits() == close_to(logits_after(PROMPT)[5])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([([1, 2, 3], [0, 1, 5], [0])], "position 5 of sequence 0 comes after 1: .* consecutive"),
        (
            [([1, 2], [1, 0], [1])],
            "the positions of sequence 1 decrease in the batch: sort the",
        ),
        ([([1], 2, [3, 0])], "sequences 0 and 3 share tokens .* context.memory.fork"),
    ],
)
def test_why_a_batch_was_rejected(new_context, entries, message):
    context = new_context(n_seq_max=4, kv_unified=True)
    batch = Batch(8, n_seq_max=4)
    if message and "fork" in message:
        context.decode(batch_of(PROMPT[:2], seq_ids=(3,)))
    for tokens, pos, seq_ids in entries:
        batch.add(tokens, pos, seq_ids)
    with pytest.raises(InvalidBatchError, match=rf"\(llama_decode returned -1\): .*{message}"):
        context.decode(batch)
    assert context.memory.pos_max(0) is None


def test_positions_of_a_model_with_sections(random_context):
    """They may leave a gap, but not start before the end of the sequence."""
    context = random_context("qwen2vl")
    context.decode(Batch.from_tokens([1, 2, 3]))
    context.decode(Batch.from_tokens([4], 7))
    with pytest.raises(InvalidBatchError, match=r"ends at position 7 .* has position 5: give pos="):
        context.decode(Batch.from_tokens([4], 5))


def notes(error):
    return [str(error), *getattr(error, "__notes__", [])]


def test_a_full_context(new_context):
    context = new_context(n_batch=256)
    context.decode(batch_of([7] * 250, logits="last"))
    with pytest.raises(ContextFullError) as caught:
        context.decode(batch_of([7] * 7, pos=250))
    assert caught.value.code == 1
    assert context.memory.pos_max() == 249
    context.decode(batch_of(PROMPT[:6], pos=250))
    assert context.memory.pos_max() == 255
    assert context.logits() == close_to(logits_after(PROMPT)[5])
    context.memory.remove(0, 200)
    context.decode(batch_of(PROMPT, pos=200))
    assert context.logits() == close_to(logits_after(PROMPT)[-1])


@pytest.mark.parametrize("kv_unified", [True, False])
def test_many_sequences_in_a_batch(new_context, kv_unified):
    context = new_context(n_ctx=1024, n_seq_max=4, kv_unified=kv_unified)
    rows = [PROMPT[i : i + 3] for i in range(4)]
    batch = Batch(16, n_seq_max=4)
    for seq_id, row in enumerate(rows):
        batch.add(row, seq_ids=(seq_id,), logits="all")
    context.decode(batch)
    expected = logits_after(np.concatenate(rows))
    for i in range(12):
        assert context.logits(i) == close_to(expected[i])
    assert [context.memory.pos_max(seq_id) for seq_id in range(4)] == [2] * 4


def test_one_token_in_several_sequences(new_context):
    context = new_context(n_seq_max=3, kv_unified=True)
    batch = Batch(8, n_seq_max=3)
    batch.add(PROMPT[:4], seq_ids=(0, 2))
    context.decode(batch)
    assert [context.memory.pos_max(seq_id) for seq_id in range(3)] == [3, None, 3]
    assert context.logits() == close_to(logits_after(PROMPT)[3])


def test_too_many_outputs_raise_and_change_nothing(new_context):
    context = new_context(n_outputs_max=2)
    with pytest.raises((ArgumentError, NativeError), match="n_outputs_max"):
        context.decode(batch_of(PROMPT[:3]))
    assert context.memory.pos_max() is None
    context.decode(batch_of(PROMPT[:2]))
    assert context.logits() == close_to(logits_after(PROMPT)[1])


def test_cancel_in_advance_stops_one_decode(context):
    context.cancel()
    context.cancel()
    with pytest.raises(AbortedError) as caught:
        context.decode(batch_of(PROMPT))
    assert caught.value.code == 2
    assert context.memory.pos_max() is None
    context.decode(batch_of(PROMPT))
    assert context.logits() == close_to(logits_after(PROMPT)[-1])


def test_cancel_from_another_thread(new_context):
    """Finished micro-batches stay in memory; the others leave no trace."""
    context = new_context(n_ctx=2048, n_batch=2048, n_ubatch=1)
    long, over = batch_of([7] * 2048, logits="last"), threading.Event()

    def cancel() -> None:
        while not over.is_set():
            if context.exclusive.holders:  # the computation runs
                context.cancel()
                return

    def decode_forever() -> None:
        """Decode until the other thread has cancelled in the middle of a batch."""
        while True:
            context.memory.clear()
            context.decode(long)

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        with pytest.raises(AbortedError) as caught:
            decode_forever()
    finally:
        over.set()
        thread.join()
    assert caught.value.code == 2
    done = context.memory.pos_max()
    done = -1 if done is None else done
    assert done < 2047
    with pytest.raises(IndexError):
        context.logits()
    context.decode(batch_of(PROMPT, pos=done + 1))
    assert context.logits() == close_to(logits_after(PROMPT)[-1])
    assert context.memory.pos_max() == done + len(PROMPT)


def test_a_second_thread_gets_busy_error(context):
    context.decode(batch_of(PROMPT))
    calls = [
        lambda: context.decode(batch_of([1], pos=len(PROMPT))),
        context.logits,
        context.logits_view,
        context.memory.clear,
        context.memory.remove,
        context.memory.pos_max,
        context.memory.pos_min,
        lambda: context.memory.copy(0, 0),
    ]
    with context.exclusive:
        errors = [raised_in_thread(call) for call in calls]
    assert all(isinstance(error, BusyError) for error in errors), errors
    assert context.memory.pos_max() == len(PROMPT) - 1


def test_threads_with_a_context_each(model, request):
    if request.config.getoption("--device") == "RPC":
        pytest.skip("the connection to a server is for one thread at a time")
    results: dict[int, bool] = {}

    def work(n: int) -> None:
        with Context(model, n_ctx=256, n_threads=1) as context:
            for i in range(20):
                context.decode(batch_of(PROMPT, pos=i * len(PROMPT)))
            results[n] = context.logits() == close_to(logits_after(PROMPT)[-1])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(4), True)


def test_closing(new_context):
    context = new_context()
    context.decode(batch_of(PROMPT))
    memory = context.memory
    with context:
        pass
    assert context.closed
    context.close()
    context.cancel()  # no error, since it may come late from another thread
    for use in (
        lambda: context.ptr,
        lambda: context.n_ctx,
        lambda: context.n_ctx_seq,
        lambda: context.n_batch,
        lambda: context.n_ubatch,
        lambda: context.n_seq_max,
        lambda: context.decode(batch_of([1])),
        lambda: context.logits(),
        lambda: context.logits_view(),
        lambda: memory.ptr,
        lambda: memory.clear(),
        lambda: memory.remove(),
        lambda: memory.copy(0, 0),
        lambda: memory.pos_min(),
        lambda: memory.pos_max(),
        lambda: context.__enter__(),
    ):
        with pytest.raises(ClosedError, match="Context is closed"):
            use()
    assert "closed" in repr(context)
