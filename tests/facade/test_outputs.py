"""Logits and embeddings: copies, views, and never those of another batch."""

from __future__ import annotations

import numpy as np
import pytest

from llamacffi import (
    ArgumentError,
    Batch,
    ContextError,
    InvalidBatchError,
    UnsupportedError,
    ffi,
    lib,
)
from tests.facade.oracle import START, close_to, logits_after, token
from tests.facade.random_models import N_EMBD, N_VOCAB
from tests.facade.test_context import batch_of

PROMPT = [START, *map(token, [" llama", " walks", " over"])]
TEXT = [5, 17, 40, 3, 88, 21, 9]


def sequences(*rows):
    batch = Batch(sum(map(len, rows)), n_seq_max=1)
    for seq_id, row in enumerate(rows):
        batch.add(row, seq_ids=(seq_id,), logits="all")
    return batch


def test_all_logits(context):
    batch = batch_of(PROMPT, logits=[True, False, True, True])
    context.decode(batch)
    expected = logits_after(PROMPT)[[0, 2, 3]]
    assert context.n_outputs == 3
    assert context.logits_all() == close_to(expected)
    out = np.zeros((3, 514), np.float32)
    assert context.logits_all(out=out) is out
    assert out == close_to(expected)
    for bad in (np.zeros((2, 514), np.float32), np.zeros((3, 514)), out[:, ::-1]):
        with pytest.raises(ArgumentError, match=r"float32 array of shape \(3, 514\)"):
            context.logits_all(out=bad)


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_all_logits_are_in_the_order_of_the_batch(random_context, kind):
    """Also where llama.cpp computes the sequences of a batch in another order."""
    context = random_context(kind, n_seq_max=2)
    batch = Batch(6)
    for pos in range(3):  # interleaved
        for seq_id in range(2):
            batch.add([TEXT[pos + seq_id]], pos=pos, seq_ids=(seq_id,), logits="all")
    context.decode(batch)
    rows = np.stack([context.logits(i) for i in range(6)])
    np.testing.assert_array_equal(context.logits_all(), rows)
    alone = random_context(kind)
    for seq_id in range(2):
        alone.memory.clear()
        alone.decode(batch_of(TEXT[seq_id : seq_id + 3]))
        np.testing.assert_allclose(rows[seq_id::2], alone.logits_all(), atol=1e-4)


def test_integers_of_numpy_and_no_bools(random_context):
    context = random_context("llama", embeddings=True)
    context.decode(batch_of(TEXT))
    getters = [context.logits, context.logits_view, context.embeddings, context.embeddings_view]
    for get in getters:
        np.testing.assert_array_equal(get(np.int64(2)), get(2))
        np.testing.assert_array_equal(get(np.int8(-1)), get(len(TEXT) - 1))
        for bad in (True, False, 1.0, "1", None):
            with pytest.raises(TypeError):
                get(bad)
        for bad in (7, -8, 2**40, -(2**40)):
            with pytest.raises(IndexError):
                get(bad)


def test_out_of_other_types(context):
    context.decode(batch_of(PROMPT))
    with pytest.raises(TypeError, match="out must be an array"):
        context.logits(out=[0.0] * 514)
    readonly = np.zeros(514, np.float32)
    readonly.flags.writeable = False
    for bad in (readonly, np.zeros(513, np.float32), np.zeros(1028, np.float32)[::2]):
        with pytest.raises(ArgumentError):
            context.logits(out=bad)


def test_embeddings_of_tokens(random_context):
    context = random_context("llama", embeddings=True)
    assert context.embeddings_enabled
    context.decode(batch_of(TEXT, logits="last"))
    assert context.n_outputs == len(TEXT)  # with embeddings each token has an output
    rows = context.embeddings_all()
    assert rows.shape == (len(TEXT), N_EMBD)
    pointer = lib.llama_get_embeddings(context.ptr)
    assert rows.ravel().tolist() == ffi.unpack(pointer, rows.size)
    for i in (0, 3, -1):
        np.testing.assert_array_equal(context.embeddings(i), rows[i])
        np.testing.assert_array_equal(context.embeddings_view(i), rows[i])
    out = np.empty(N_EMBD, np.float32)
    assert context.embeddings(2, out=out) is out
    np.testing.assert_array_equal(out, rows[2])
    # The logits are what the output matrix makes of them.
    assert np.isfinite(context.logits_all()).all()


def test_embeddings_are_the_hidden_state_behind_the_logits(random_context, random_path):
    from gguf import GGUFReader

    context = random_context("llama", embeddings=True)
    context.decode(batch_of(TEXT))
    tensors = {one.name: one.data for one in GGUFReader(random_path("llama")).tensors}
    expected = context.embeddings_all() @ tensors["output.weight"].T
    np.testing.assert_allclose(context.logits_all(), expected, atol=1e-4)


def test_embeddings_on_and_off(random_context):
    context = random_context("llama")
    context.decode(batch_of(TEXT))
    with pytest.raises(ContextError, match=r"set_embeddings\(True\)"):
        context.embeddings()
    context.set_embeddings(np.True_)
    with pytest.raises(ContextError, match="without embeddings"):  # still those of that batch
        context.embeddings()
    assert context.logits().shape == (N_VOCAB,)
    context.decode(batch_of(TEXT, pos=len(TEXT)))
    row = context.embeddings()
    context.set_embeddings(False)
    np.testing.assert_array_equal(context.embeddings(), row)
    context.decode(batch_of(TEXT, pos=2 * len(TEXT), logits="last"))
    assert context.n_outputs == 1
    with pytest.raises(ContextError, match="without embeddings"):
        context.embeddings()
    with pytest.raises(TypeError):
        context.set_embeddings("yes")


def test_pooled_or_not(random_context):
    pooled = random_context("llama", embeddings=True, pooling_type="last")
    pooled.decode(batch_of(TEXT))
    for get in (pooled.embeddings, pooled.embeddings_view, pooled.embeddings_all):
        with pytest.raises(ContextError, match=r"use embeddings_seq\(\)"):
            get()
    single = random_context("llama", embeddings=True)
    with pytest.raises(IndexError, match="decode a batch first"):
        single.embeddings_seq(0)
    single.decode(batch_of(TEXT))
    with pytest.raises(ContextError, match=r"use embeddings\(\)"):
        single.embeddings_seq(0)
    np.testing.assert_allclose(pooled.embeddings_seq(0), single.embeddings(), atol=1e-5)


@pytest.mark.parametrize("kv_unified", [False, True])
@pytest.mark.parametrize(
    ("pooling", "pool"),
    [("mean", lambda rows: rows.mean(0)), ("cls", lambda rows: rows[0]), ("last", lambda r: r[-1])],
)
def test_pooling_of_a_decoder(random_context, pooling, pool, kv_unified):
    """llama.cpp pools each micro-batch alone: what it would cut must be refused."""
    sizes = {"n_ctx": 512, "n_seq_max": 2, "n_ubatch": 16, "kv_unified": kv_unified}
    context = random_context("llama", embeddings=True, pooling_type=pooling, **sizes)
    tokens = random_context("llama", embeddings=True, n_ctx=512)
    rows = []
    for text in (TEXT, TEXT[:3]):
        tokens.memory.clear()
        tokens.decode(batch_of(text))
        rows.append(tokens.embeddings_all())
    batch = sequences(TEXT, TEXT[:3])
    if pooling != "last" and not kv_unified:
        with pytest.raises(ArgumentError, match="kv_unified=True, or decode the"):
            context.decode(batch)
        context.decode(batch_of(TEXT))
        np.testing.assert_allclose(context.embeddings_seq(0), pool(rows[0]), atol=1e-4)
        return
    context.decode(batch)
    for seq_id, row in enumerate(rows):
        np.testing.assert_allclose(context.embeddings_seq(seq_id), pool(row), atol=1e-4)
    context.memory.clear()
    long = batch_of(TEXT * 3)
    if pooling == "last":
        context.decode(long)
        tokens.memory.clear()
        tokens.decode(long)
        np.testing.assert_allclose(context.embeddings_seq(0), tokens.embeddings(), atol=1e-4)
    else:
        with pytest.raises(ArgumentError, match="the batch has 21 tokens, but n_ubatch is 16, and"):
            context.decode(long)
        assert context.memory.pos_max() is None


def test_sequences_of_the_last_batch_alone(random_context):
    context = random_context("llama", embeddings=True, pooling_type="last", n_seq_max=3)
    context.decode(sequences(TEXT, TEXT[:3]))
    context.embeddings_seq(np.int64(1))
    with pytest.raises(IndexError, match="sequence 2 was not in the last batch"):
        context.embeddings_seq(2)
    for bad in (3, -1, 2**40):
        with pytest.raises(ArgumentError, match="must be between 0 and 2"):
            context.embeddings_seq(bad)
    with pytest.raises(TypeError):
        context.embeddings_seq(True)
    context.decode(batch_of(TEXT, pos=len(TEXT)))
    with pytest.raises(IndexError, match="sequence 1 was not in the last batch"):
        context.embeddings_seq(1)


def test_a_decoder_without_logits(random_context):
    """The getter of llama.cpp returns a pointer to whatever was there."""
    context = random_context("llama-embed", embeddings=True)
    context.decode(batch_of(TEXT))
    with pytest.raises(UnsupportedError, match="computes embeddings instead of logits"):
        context.logits()
    assert context.embeddings_all().std() > 0.1


@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
def test_a_failed_batch_leaves_no_outputs(random_context, kind):
    context = random_context(kind, embeddings=True, pooling_type="none")
    run = context.decode if kind == "llama" else context.encode
    run(batch_of(TEXT))
    context.embeddings()
    with pytest.raises(InvalidBatchError):
        run(batch_of([1, 2], pos=np.array([1, 7])))
    assert context.n_outputs == 0
    for get in (context.logits, context.logits_all, context.embeddings, context.embeddings_all):
        with pytest.raises(IndexError, match="decode a batch first"):
            get()


def test_a_batch_without_outputs(context):
    context.decode(batch_of(PROMPT, logits="none"))
    assert context.n_outputs == 0
    for get in (context.logits, context.logits_view, context.logits_all):
        with pytest.raises(IndexError, match="token -1 has no output"):
            get()


@pytest.mark.parametrize("view", ["logits_view", "embeddings_view"])
def test_views_hold_the_memory(random_context, view):
    context = random_context("llama", embeddings=True)
    context.decode(batch_of(TEXT))
    array = getattr(context, view)(2)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    part = array[3:5]
    before = part.copy()
    del array
    with pytest.raises(BufferError, match=r"1 zero-copy view\(s\)"):
        context.decode(batch_of(TEXT, pos=len(TEXT)))
    assert context.memory.pos_max() == len(TEXT) - 1
    context.close()
    np.testing.assert_array_equal(part, before)
    del part


def test_too_many_outputs(random_context):
    context = random_context("llama", n_outputs_max=3)
    assert context.n_outputs_max == 3
    with pytest.raises(ArgumentError, match="the batch has 7 outputs, but n_outputs_max is 3"):
        context.decode(batch_of(TEXT))
    context.decode(batch_of(TEXT, logits="last"))
    context.set_embeddings(True)
    with pytest.raises(ArgumentError, match="with embeddings each token has one"):
        context.decode(batch_of(TEXT, pos=len(TEXT), logits="last"))
    assert random_context("llama", n_batch=77).n_outputs_max == 77
