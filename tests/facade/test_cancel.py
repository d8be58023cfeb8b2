"""After a computation that was stopped, the memory has what it says, and one can go on."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest

from llamacffi import (
    AbortedError,
    Batch,
    BusyError,
    ContextFullError,
    DecodeError,
    InvalidBatchError,
    NativeError,
)
from llamacffi.batch.arrays import BatchArrays
from llamacffi.batch.batch import arrays_of
from tests.facade.helpers import raised_in_thread
from tests.facade.random_models import N_VOCAB
from tests.facade.test_context import batch_of

LONG = np.random.default_rng(3).integers(0, N_VOCAB, 60).tolist()


class StopAfter:
    """Stops in the middle of the graph of the n-th micro-batch."""

    def __init__(self, n):
        self.left = n

    def __call__(self, tensor, ask):
        if tensor.name == "attn_norm-1" and not ask:
            self.left -= 1
            return self.left != 0
        return tensor.name == "attn_norm-1"


def rows(*texts, n_seq_max=1):
    batch = Batch(sum(map(len, texts)), n_seq_max=n_seq_max)
    for seq_id, text in enumerate(texts):
        batch.add(text, seq_ids=(seq_id,), logits="all")
    return batch


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mimo2", "mamba"])
@pytest.mark.parametrize("n", [1, 3, 5])
def test_going_on_where_it_stopped(random_context, kind, n):
    """Gives the logits of a run that was not interrupted."""
    context = random_context(kind, n_ubatch=12, cb_eval=StopAfter(n))
    with pytest.raises(AbortedError) as caught:
        context.decode(batch_of(LONG))
    assert caught.value.code == 2
    pos_max = caught.value.pos_max[0]
    assert pos_max == context.memory.pos_max()
    # A recurrent state cannot go back to the last micro-batch that was finished.
    done = 0 if kind == "mamba" else 12 * (n - 1)
    assert pos_max == (done - 1 if done else None)
    context.decode(batch_of(LONG[done:], pos=done))
    whole = random_context(kind, n_ubatch=12)
    whole.decode(batch_of(LONG))
    np.testing.assert_allclose(context.logits_all(), whole.logits_all()[done:], atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_what_was_there_before(random_context, kind):
    """Other sequences stay; of a recurrent model, if only one was being computed."""
    context = random_context(kind, n_seq_max=3, n_ubatch=8, cb_eval=(stop := StopAfter(-1)))
    for seq_id in range(2):
        context.decode(batch_of(LONG[:20], seq_ids=(seq_id,)))
    stop.left = 2
    with pytest.raises(AbortedError) as caught:
        context.decode(batch_of(LONG[20:50], pos=20, seq_ids=(1,)))
    assert caught.value.pos_max == {1: 27 if kind == "llama" else None}
    assert context.memory.pos_max(0) == 19
    context.decode(batch_of(LONG[20:], pos=20))
    whole = random_context(kind)
    whole.decode(batch_of(LONG))
    np.testing.assert_allclose(context.logits_all(), whole.logits_all()[20:], atol=1e-4)


def test_states_that_were_moved(random_context):
    """Several at once are moved side by side: llama.cpp loses them, and says nothing."""
    context = random_context("mamba", n_seq_max=4, n_ubatch=8, cb_eval=(stop := StopAfter(-1)))
    context.decode(rows(*[LONG[:10]] * 4))
    stop.left = 1
    batch = Batch(8)
    for seq_id in (0, 3):
        batch.add(LONG[10:14], pos=10, seq_ids=(seq_id,))
    with pytest.raises(AbortedError) as caught:
        context.decode(batch)
    assert caught.value.pos_max == {0: None, 3: None}
    assert [context.memory.pos_max(seq_id) for seq_id in range(4)] == [None] * 4
    context.decode(rows(*[LONG[:10]] * 4))
    whole = random_context("mamba")
    whole.decode(batch_of(LONG[:10]))
    for seq_id in range(4):
        got = context.logits_all()[seq_id * 10 : seq_id * 10 + 10]
        np.testing.assert_allclose(got, whole.logits_all(), atol=1e-4)


def test_tokens_of_several_sequences(random_context):
    """llama.cpp takes them back from one of them alone."""
    context = random_context(
        "llama", n_seq_max=3, kv_unified=True, n_ubatch=8, cb_eval=StopAfter(3)
    )
    batch = Batch(40, n_seq_max=3)
    batch.add(LONG[:20], seq_ids=(0, 1, 2), logits="all")
    batch.add(LONG[20:40], pos=20, seq_ids=(2,), logits="all")
    with pytest.raises(AbortedError) as caught:
        context.decode(batch)
    assert caught.value.pos_max == {0: 15, 1: 15, 2: 15}
    assert [context.memory.pos_max(seq_id) for seq_id in range(3)] == [15] * 3
    # No cell is left that belongs to the tokens that were taken back.
    batch.clear()
    batch.add(LONG[16:20], pos=16, seq_ids=(0, 1, 2), logits="all")
    batch.add(LONG[20:40], pos=20, seq_ids=(2,), logits="all")
    context.decode(batch)
    whole = random_context("llama")
    whole.decode(batch_of(LONG[:40]))
    np.testing.assert_allclose(context.logits_all(), whole.logits_all()[16:], atol=1e-4)


def test_each_code_tells_where_the_sequences_end(random_context):
    context = random_context("llama", n_seq_max=2, kv_unified=True)
    context.decode(batch_of(LONG[:10]))
    with pytest.raises(InvalidBatchError) as caught:
        context.decode(batch_of([1], pos=5))
    assert caught.value.pos_max == {0: 9}
    with pytest.raises(ContextFullError) as caught:
        context.decode(batch_of([1] * 250, seq_ids=(1,), logits="last"))
    assert caught.value.pos_max == {1: None}
    context.cancel()
    with pytest.raises(AbortedError) as caught:
        context.decode(batch_of([1], pos=10))
    assert caught.value.pos_max == {0: 9}
    context.decode(batch_of(LONG[10:20], pos=10))
    assert context.memory.pos_max() == 19
    # Memory without sequences, and an encoder's.
    bert = random_context("bert", embeddings=True, cb_eval=lambda tensor, ask: ask)
    with pytest.raises(AbortedError, match="llama_encode returned 2") as caught:
        bert.encode(batch_of(LONG))
    assert caught.value.pos_max == {}


@pytest.mark.parametrize("kind", ["llama", "mamba", "t5"])
def test_an_exception_in_llama_cpp(random_context, kind):
    """Whatever it has left, the batch is taken back."""
    context = random_context(kind)
    if kind == "t5":
        context.encode(batch_of(LONG[:9]))
    context.decode(batch_of(LONG[:10]))
    batch = batch_of(LONG[10:20], pos=10)

    class Failing(BatchArrays):
        """A batch whose computation is followed by an exception of the guard."""

        __slots__ = ()

        def submit(self, *args):
            assert super().submit(*args) == 0
            raise NativeError("llama_decode: as if", "llama_decode")

    arrays_of(batch).__class__ = Failing
    with pytest.raises(NativeError):
        context.decode(batch)
    arrays_of(batch).__class__ = BatchArrays
    end = None if kind == "mamba" else 9
    assert context.memory.pos_max() == end
    start = 0 if end is None else 10
    context.decode(batch_of(LONG[start:20], pos=start))
    assert context.memory.pos_max() == 19


def test_the_error_can_be_sent(random_context):
    error = AbortedError("cancelled", 2, {0: 3, 1: None})
    again = pickle.loads(pickle.dumps(error))
    assert (again.code, again.pos_max, str(again)) == (2, {0: 3, 1: None}, "cancelled")
    assert DecodeError("x", -3).pos_max == {}


def test_cancel_from_a_thread_in_the_middle_of_a_prompt(new_context):
    """With the built-in model, and no callback on the graph."""
    context = new_context(n_ctx=2048, n_batch=2048, n_ubatch=16)
    tokens = (LONG * 40)[:2048]
    began = threading.Event()

    def cancel():
        began.wait()
        context.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        began.set()
        context.decode(batch_of(tokens, logits="last"))
        stopped = False
    except AbortedError as error:
        stopped = True
        end = error.pos_max[0]
        assert end is None or (end + 1) % 16 == 0
        assert context.memory.pos_max() == end
        start = 0 if end is None else end + 1
        context.decode(batch_of(tokens[start:], pos=start, logits="last"))
    thread.join()
    whole = new_context(n_ctx=2048, n_batch=2048, n_ubatch=16)
    whole.decode(batch_of(tokens, logits="last"))
    np.testing.assert_allclose(context.logits(), whole.logits(), atol=1e-4)
    if not stopped:  # it came after the end: it is for the next
        with pytest.raises(AbortedError):
            context.decode(batch_of([1], pos=2048))


def test_every_method_is_for_one_thread(random_context):
    context = random_context("llama", embeddings=True, no_perf=False, n_seq_max=2)
    context.decode(batch_of(LONG))
    pooled = random_context("bert", embeddings=True)
    pooled.encode(batch_of(LONG))
    calls = [
        lambda: context.decode(batch_of([1], pos=len(LONG))),
        lambda: pooled.encode(batch_of(LONG)),
        lambda: pooled.decode(batch_of(LONG)),
        context.logits,
        context.logits_view,
        context.logits_all,
        context.embeddings,
        context.embeddings_view,
        context.embeddings_all,
        pooled.embeddings_seq,
        context.synchronize,
        context.perf,
        context.reset_perf,
        context.warmup,
        lambda: context.set_embeddings(False),
        lambda: context.set_causal_attn(False),
    ]
    with context.exclusive, pooled.exclusive:
        errors = [raised_in_thread(call) for call in calls]
    assert all(isinstance(error, BusyError) for error in errors), errors
    assert context.causal_attn
    assert context.embeddings_enabled
