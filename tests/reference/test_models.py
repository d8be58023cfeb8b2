"""Models of other kinds than the built-in one."""

from __future__ import annotations

import numpy as np
import pytest

from llamacffi import Batch, Context, Model, NativeError, UnsupportedError, ffi, lib


@pytest.fixture
def recurrent(random_model):
    with Model(random_model("mamba", "llama-spm")) as model:
        yield model


def test_a_recurrent_model_in_one_batch_and_token_by_token(recurrent):
    tokens = recurrent.vocab.tokenize("a recurrent state")
    batch = Batch(64)
    with Context(recurrent, n_ctx=128, n_threads=1) as context:
        batch.add(tokens)
        context.decode(batch)
        at_once = context.logits()
        context.memory.clear()
        for pos, token in enumerate(tokens):
            batch.set_one(token, pos)
            context.decode(batch)
        assert np.allclose(context.logits(), at_once, atol=1e-4)
        assert at_once.std() > 0.01


def test_a_recurrent_state_is_not_copied_in_part(recurrent):
    with Context(recurrent, n_ctx=128, n_seq_max=2, kv_unified=True) as context:
        batch = Batch(4)
        batch.add([5, 6, 7, 8])
        context.decode(batch)
        with pytest.raises(UnsupportedError, match="as a whole"):
            context.memory.copy(0, 1, 0, 2)
        context.memory.copy(0, 1)
        assert context.memory.pos_max(1) == 3
        assert context.memory.remove(0, 2) is False
        assert context.memory.pos_max(0) == 3


def test_a_failed_check_in_the_middle_of_decode_leaves_nothing_in_memory(demo_path):
    """A norm of a type that ggml's CPU code cannot multiply with, since the context was made."""
    with Model(demo_path) as model, Context(model, n_ctx=64, n_threads=1) as context:
        n = lib.llamacffi_model_n_tensors(model.ptr)
        tensors = [lib.llamacffi_model_tensor(model.ptr, i) for i in range(n)]
        norm = next(one for one in tensors if ffi.string(one.name) == b"blk.0.attn_norm.weight")
        norm.type = lib.GGML_TYPE_BF16
        batch = Batch(4)
        batch.add([5, 6])
        for _ in range(2):
            with pytest.raises(NativeError, match="unsupported types"):
                context.decode(batch)
            assert context.memory.pos_max() is None
