"""Contexts of draft models: of a layer for multi-token prediction, and over another context."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from llamacffi import (
    ArgumentError,
    Batch,
    BusyError,
    ClosedError,
    Context,
    ContextError,
    Gguf,
    Model,
    UnsupportedError,
)
from tests.facade.helpers import raised_in_thread
from tests.facade.random_models import N_EMBD, N_VOCAB
from tests.facade.test_context import batch_of

TEXT = [5, 17, 40, 3, 88, 21, 9]
HIDDEN = np.random.default_rng(5).standard_normal((len(TEXT), N_EMBD), np.float32)


def both(tokens=TEXT, hidden=HIDDEN, pos=0):
    """Return a batch of tokens with the hidden states of the target."""
    batch = Batch(len(tokens), n_embd=N_EMBD)
    batch.add(tokens, pos=pos, embeddings=hidden, logits="all")
    return batch


def test_multi_token_prediction(random_context):
    context = random_context("mimo2", ctx_type="mtp")
    context.decode(both())
    whole = context.logits_all()
    assert np.isfinite(whole).all()
    assert whole.shape == (len(TEXT), N_VOCAB)
    context.memory.clear()
    for i in range(len(TEXT)):
        context.decode(both(TEXT[i : i + 1], HIDDEN[i : i + 1], pos=i))
        np.testing.assert_allclose(context.logits(), whole[i], atol=1e-3)
    # The hidden states and the tokens both matter.
    context.memory.clear()
    context.decode(both(hidden=HIDDEN[::-1]))
    assert np.abs(context.logits_all() - whole).max() > 0.1
    context.memory.clear()
    context.decode(both(tokens=TEXT[::-1]))
    assert np.abs(context.logits_all() - whole).max() > 0.1


def test_a_draft_model_reads_both(random_context):
    """What is missing would be whatever the memory holds: tokens that do not exist, too."""
    context = random_context("mimo2", ctx_type="mtp")
    embeddings = Batch(len(TEXT), n_embd=N_EMBD)
    embeddings.add_embeddings(HIDDEN)
    for batch in (batch_of(TEXT), embeddings):
        with pytest.raises(ArgumentError, match="give both"):
            context.decode(batch)
    assert context.memory.pos_max() is None
    plain = random_context("mimo2")
    plain.decode(batch_of(TEXT))
    with pytest.raises(ArgumentError):
        plain.decode(both(pos=len(TEXT)))


@pytest.fixture
def target(random_context):
    return random_context("llama")


def test_a_draft_uses_the_weights_of_its_target(random_context, target):
    """Without its own embeddings and output matrix it could not compute."""
    context = random_context("eagle3", ctx_other=target)
    context.decode(both())
    whole = context.logits_all()
    assert np.isfinite(whole).all()
    assert whole.std() > 0.1
    context.memory.clear()
    for i in range(len(TEXT)):
        context.decode(both(TEXT[i : i + 1], HIDDEN[i : i + 1], pos=i))
        np.testing.assert_allclose(context.logits(), whole[i], atol=1e-3)
    target.decode(batch_of(TEXT))  # not disturbed
    assert target.memory.pos_max() == len(TEXT) - 1


def test_the_encoder_of_a_draft(random_context, target):
    context = random_context("eagle3", ctx_other=target)
    features = np.random.default_rng(6).standard_normal((4, 3 * N_EMBD), np.float32)
    batch = Batch(4, n_embd=3 * N_EMBD)
    batch.add_embeddings(features)
    context.encode(batch)
    for get in (context.logits, context.embeddings):
        with pytest.raises(ContextError):
            get()
    with pytest.raises(ArgumentError, match="reads embeddings: leave out the tokens"):
        context.encode(batch_of(TEXT))


def test_the_target_closes_its_drafts(random_path):
    with Model(random_path("llama")) as model, Model(random_path("eagle3")) as draft_model:
        target = Context(model, n_ctx=256, n_threads=1)
        draft = Context(draft_model, n_ctx=256, n_threads=1, ctx_other=target)
        target.close()
        assert draft.closed
        with pytest.raises(ClosedError):
            draft.decode(both())
        with pytest.raises(ClosedError):
            Context(draft_model, n_ctx=256, n_threads=1, ctx_other=target)


def test_the_draft_keeps_its_target(random_path):
    with Model(random_path("llama")) as model, Model(random_path("eagle3")) as draft_model:
        target = Context(model, n_ctx=256, n_threads=1)
        draft = Context(draft_model, n_ctx=256, n_threads=1, ctx_other=target)
        gone = weakref.ref(target)
        del target
        gc.collect()
        assert gone() is None  # but the C object is there
        draft.decode(both())
        assert np.isfinite(draft.logits()).all()
        model.close()  # and so are its weights
        draft.memory.clear()
        draft.decode(both())
        draft.close()


def test_one_of_both_computes(random_context, target):
    draft = random_context("eagle3", ctx_other=target)
    with target.exclusive:
        error = raised_in_thread(lambda: draft.decode(both()))
    assert isinstance(error, BusyError)
    assert draft.memory.pos_max() is None
    draft.decode(both())


@pytest.mark.parametrize("kind", ["llama", "mamba", "bert", "mimo2"])
def test_models_that_share_nothing(random_context, target, kind):
    """llama.cpp would ignore it."""
    with pytest.raises(UnsupportedError, match=f"'{kind}' does not use another"):
        random_context(kind, ctx_other=target)


def test_a_target_that_does_not_fit(random_context, new_context):
    with pytest.raises(ArgumentError, match="514 tokens, but this one has 96"):
        random_context("eagle3", ctx_other=new_context())
    with pytest.raises(ContextError, match="cannot create a context"):
        random_context("eagle3")
    for value in (0, "x", object()):
        with pytest.raises(TypeError, match="ctx_other must be a Context"):
            random_context("eagle3", ctx_other=value)


@pytest.mark.parametrize("gone", ["blk.0.", "blk.", "blk.0.attn_norm", ""])
def test_a_model_that_has_no_other_layers_computes_nothing_else(random_path, tmp_path, gone):
    with Gguf.open(random_path("mimo2")) as gguf:
        for name in [name for name in gguf.tensors if name.startswith(gone)] if gone else []:
            if not name.startswith("blk.2."):
                gguf.remove_tensor(name)
        gguf.write(tmp_path / "part.gguf")
    with Model(tmp_path / "part.gguf", load_mtp=True) as model:
        if gone:
            with pytest.raises(UnsupportedError, match="only layers for multi-token prediction"):
                Context(model, n_ctx=64)
        else:
            Context(model, n_ctx=64).close()
        Context(model, n_ctx=64, ctx_type="mtp").close()


def test_a_model_without_its_layers_for_it_says_how_to_load_them(random_path):
    path = random_path("mimo2")
    with Model(path) as model, pytest.raises(UnsupportedError, match="pass load_mtp=True to Model"):
        Context(model, ctx_type="mtp")
