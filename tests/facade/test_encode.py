"""Encoders, alone and with a decoder."""

from __future__ import annotations

import numpy as np
import pytest

from llamacffi import (
    ArgumentError,
    Batch,
    Context,
    ContextError,
    InvalidBatchError,
    UnsupportedError,
    ffi,
    lib,
)
from tests.facade.random_models import N_CTX, N_SCORES, N_VOCAB

TEXT = [5, 17, 40, 3, 88, 21, 9]
START = 3  # of the decoder


def batch_of(*rows, logits="all", pos=0):
    """Put each row of tokens into a sequence of its own."""
    batch = Batch(sum(map(len, rows)))
    for seq_id, row in enumerate(rows):
        batch.add(row, pos=pos, seq_ids=(seq_id,), logits=logits)
    return batch


def raw_batch(tokens):
    array = ffi.new("llama_token[]", tokens)
    return lib.llama_batch_get_one(array, len(tokens)), array


def test_encode_and_decode_are_those_of_c(random_context):
    """As upstream's programs do it: the text by the encoder, then the start token and so on."""
    ours, theirs = random_context("t5"), random_context("t5")
    model = ours.model
    assert lib.llama_model_decoder_start_token(model.ptr) == START
    ours.encode(batch_of(TEXT))
    batch, _keep = raw_batch(TEXT)
    assert lib.llama_encode(theirs.ptr, batch) == 0
    token = START
    for pos in range(6):
        ours.decode(batch_of([token], pos=pos))
        batch, _keep = raw_batch([token])
        assert lib.llama_decode(theirs.ptr, batch) == 0
        expected = ffi.unpack(lib.llama_get_logits_ith(theirs.ptr, -1), N_VOCAB)
        assert ours.logits().tolist() == expected
        token = int(ours.logits().argmax())


def test_the_decoder_sees_the_encoded_text(random_context):
    context = random_context("t5", n_seq_max=2, kv_unified=True)
    alone = []
    for text in (TEXT, TEXT[::-1]):
        context.memory.clear()
        context.encode(batch_of(text))
        context.decode(batch_of([START, 11]))
        alone.append(context.logits_all())
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    # Both at once, in sequences of their own.
    with pytest.raises(InvalidBatchError):  # it begins where the decoder has got to
        context.encode(batch_of(TEXT, TEXT[::-1]))
    context.memory.clear()
    context.encode(batch_of(TEXT, TEXT[::-1]))
    context.decode(batch_of([START, 11], [START, 11]))
    np.testing.assert_allclose(context.logits_all(), np.concatenate(alone), atol=1e-4)


def test_the_decoder_needs_the_encoder(random_context):
    context = random_context("t5", n_seq_max=2, kv_unified=True)
    with pytest.raises(ContextError, match=r"call encode\(\) first"):
        context.decode(batch_of([START]))
    context.encode(batch_of(TEXT))
    with pytest.raises(ContextError, match="sequence 1 was not in the last encode"):
        context.decode(batch_of([START], [START]))
    assert context.memory.pos_max() is None
    context.decode(batch_of([START]))
    assert context.memory.pos_max() == 0


def test_an_encoder_computes_embeddings_and_no_logits(random_context):
    context = random_context("t5")
    context.encode(batch_of(TEXT))
    assert context.n_outputs == len(TEXT)
    with pytest.raises(ContextError, match="encoder computes no logits"):
        context.logits()
    assert np.isfinite(context.embeddings_all()).all()
    context.decode(batch_of([START]))
    assert np.isfinite(context.logits()).all()
    with pytest.raises(ContextError, match="computed without embeddings"):
        context.embeddings()  # the encoder's are still in the buffer


def test_a_text_that_was_encoded_in_vain(random_context):
    """A batch that is refused leaves what the one before has found."""
    context = random_context("t5", n_ubatch=8)
    context.encode(batch_of(TEXT))
    with pytest.raises(ArgumentError, match="the batch has 9 tokens, but n_ubatch is 8"):
        context.encode(batch_of([5] * 9))
    context.decode(batch_of([START]))
    logits = context.logits()
    again = random_context("t5")
    again.encode(batch_of(TEXT))
    again.decode(batch_of([START]))
    np.testing.assert_allclose(logits, again.logits(), atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "t5encoder"])
@pytest.mark.parametrize("method", ["encode", "decode"])
def test_a_pure_encoder(random_context, kind, method):
    context = random_context(kind, embeddings=True, pooling_type="none")
    if kind == "t5encoder" and method == "decode":
        with pytest.raises(UnsupportedError, match=r"has no decoder: use encode\(\)"):
            context.decode(batch_of(TEXT))
        return
    getattr(context, method)(batch_of(TEXT, logits="none"))
    whole = context.embeddings_all()
    assert context.n_outputs == len(TEXT)
    assert np.isfinite(whole).all()
    assert whole.std() > 0.1
    with pytest.raises(UnsupportedError, match="computes embeddings instead of logits"):
        context.logits()
    # Every token sees those behind it, and nothing is remembered.
    getattr(context, method)(batch_of(TEXT[:3]))
    assert np.abs(context.embeddings_all() - whole[:3]).max() > 1e-3
    getattr(context, method)(batch_of(TEXT))
    np.testing.assert_array_equal(context.embeddings_all(), whole)


def test_sequences_do_not_see_each_other(random_context):
    context = random_context("bert", embeddings=True, pooling_type="none", n_seq_max=2)
    alone = []
    for text in (TEXT, TEXT[:4]):
        context.encode(batch_of(text))
        alone.append(context.embeddings_all())
    context.encode(batch_of(TEXT, TEXT[:4]))
    np.testing.assert_allclose(context.embeddings_all(), np.concatenate(alone), atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [("mean", lambda rows: rows.mean(0)), ("cls", lambda rows: rows[0]), ("last", lambda r: r[-1])],
)
def test_pooled_embeddings(random_context, pooling, pool):
    sizes = {"embeddings": True, "n_seq_max": 3, "n_ubatch": 252}
    tokens = random_context("bert", pooling_type="none", **sizes)
    pooled = random_context("bert", pooling_type=pooling, **sizes)
    texts = [TEXT, TEXT[:4], TEXT[2:]]
    tokens.encode(batch_of(*texts))
    pooled.encode(batch_of(*texts))
    rows = np.split(tokens.embeddings_all(), np.cumsum([len(text) for text in texts])[:-1])
    for seq_id, row in enumerate(rows):
        got = pooled.embeddings_seq(seq_id)
        expected = pool(row)
        np.testing.assert_allclose(got, expected, atol=1e-5)
        assert got @ expected / np.linalg.norm(got) / np.linalg.norm(expected) > 0.9999
    assert pooled.pooling_type.name.lower() == pooling


def test_pooling_by_mean_needs_room_for_all(random_context, random_path):
    """llama.cpp plans for a graph of as many tokens as sequences, or a multiple."""
    from llamacffi import Model

    with Model(random_path("bert")) as model:
        with pytest.raises(ContextError, match="a multiple of n_seq_max"):
            Context(model, n_ctx=256, n_threads=1, n_seq_max=3, embeddings=True)
        with Context(model, n_ctx=256, n_threads=1, n_seq_max=3) as context:
            with pytest.raises(ArgumentError, match="n_ubatch=512 must be a multiple of"):
                context.set_embeddings(True)
            assert not context.embeddings_enabled


def test_ranks_are_the_scores_of_the_classifier(random_context, random_path):
    """Their width is not that of embeddings, and may be smaller."""
    from gguf import GGUFReader

    context = random_context("bert+classifier", embeddings=True, pooling_type="rank", n_seq_max=2)
    tokens = random_context("bert+classifier", embeddings=True, pooling_type="none", n_seq_max=2)
    batch = batch_of(TEXT, TEXT[::-1])
    context.encode(batch)
    tokens.encode(batch)
    head = {one.name: one.data for one in GGUFReader(random_path("bert+classifier")).tensors}
    for seq_id in range(2):
        first = tokens.embeddings(seq_id * len(TEXT))
        dense = np.tanh(head["cls.weight"] @ first + head["cls.bias"])
        expected = head["cls.output.weight"] @ dense + head["cls.output.bias"]
        scores = context.embeddings_seq(seq_id)
        assert scores.shape == (N_SCORES,)
        np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_what_an_encoder_refuses(random_context):
    context = random_context("bert", embeddings=True, n_ctx=2048, n_ubatch=600, n_batch=600)
    with pytest.raises(
        ArgumentError,
        match="positions must be between 0 and 511, which",
    ):
        context.encode(batch_of([1] * 513))
    context.encode(batch_of([1] * N_CTX))
    with pytest.raises(ArgumentError, match="the batch is empty"):
        context.encode(Batch(1))
    with pytest.raises(ArgumentError, match="the token at index 0 must be between 0 and 95"):
        context.encode(batch_of([N_VOCAB]))
    with pytest.raises(UnsupportedError, match="no memory"):
        context.memory.clear()
    with pytest.raises(UnsupportedError, match="sees all others"):
        context.set_causal_attn(True)
    context.set_causal_attn(False)
    assert not context.causal_attn


@pytest.mark.parametrize("kind", ["llama", "mamba", "gpt2"])
def test_a_model_without_encoder(random_context, kind):
    """llama.cpp would read a memory that is not there."""
    context = random_context(kind)
    with pytest.raises(UnsupportedError, match=r"has no encoder: use decode\(\)"):
        context.encode(batch_of(TEXT))
    context.decode(batch_of(TEXT))


def test_learned_positions_end(random_context):
    """llama.cpp would end the process, from a thread of its own."""
    context = random_context("gpt2", n_ctx=1024, n_batch=1024)
    context.decode(batch_of([1] * N_CTX, logits="last"))
    with pytest.raises(
        ArgumentError,
        match="positions must be between 0 and 511, which",
    ):
        context.decode(batch_of([1], pos=N_CTX))
    assert context.memory.pos_max() == N_CTX - 1


def test_parameters_that_an_encoder_would_ignore(random_path):
    from llamacffi import Model

    for kind, params, message in (
        ("t5", {"n_outputs_max": 4}, "leave out n_outputs_max"),
        ("t5", {"pooling_type": "mean"}, "leave out pooling_type"),
        ("t5", {"n_seq_max": 2}, "set kv_unified=True"),
        ("bert", {"attention_type": "causal"}, "sees all others"),
        ("bert", {"pooling_type": "rank"}, "no classifier"),
        ("llama", {"pooling_type": "rank"}, "no classifier"),
    ):
        with Model(random_path(kind)) as model, pytest.raises(UnsupportedError, match=message):
            Context(model, n_ctx=256, n_threads=1, **params)
