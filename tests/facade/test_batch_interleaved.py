"""Sequences that share batches do not see each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamacffi import Batch
from tests.facade.random_models import N_VOCAB

N_SEQ, CAPACITY = 3, 8
TEXTS = np.random.default_rng(5).integers(0, N_VOCAB, (N_SEQ, 12)).tolist()

# Which sequence comes next, how many of its tokens, and whether a new batch begins before.
steps = st.lists(
    st.tuples(st.integers(0, N_SEQ - 1), st.integers(1, 4), st.booleans()), min_size=1, max_size=12
)


@pytest.fixture(params=["llama", "lfm2", "mamba", "mimo2"])
def kind(request):
    return request.param


@pytest.fixture
def make(random_context, kind):
    return lambda **params: random_context(
        kind, type_k="f32", type_v="f32", flash_attn_type="disabled", n_batch=16, **params
    )


@pytest.fixture
def alone(make):
    """Return the scores after each token of each text, computed alone."""
    context, found = make(), []
    for text in TEXTS:
        context.memory.clear()
        context.decode(Batch.from_tokens(text, logits="all"))
        found.append([context.logits(i) for i in range(len(text))])
    return np.array(found)


@pytest.mark.parametrize("kv_unified", [True, False])
def test_any_interleaving_gives_what_each_gives_alone(make, alone, kv_unified):
    context = make(n_ctx=768, n_seq_max=N_SEQ, kv_unified=kv_unified)
    batch = Batch(CAPACITY)

    def decode(where):
        if len(batch):
            context.decode(batch)
        for i, (seq_id, pos) in enumerate(where):
            np.testing.assert_allclose(context.logits(i), alone[seq_id, pos], atol=2e-4)
        batch.clear()
        where.clear()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(steps)
    def check(steps):
        context.memory.clear(data=False)
        batch.clear()
        done, where = [0] * N_SEQ, []
        for seq_id, n, begins in steps:
            text = TEXTS[seq_id][done[seq_id] : done[seq_id] + n]
            if begins or len(text) > batch.n_left:
                decode(where)
            batch.add(text, pos=done[seq_id], seq_ids=(seq_id,), logits="all")
            where += [(seq_id, done[seq_id] + i) for i in range(len(text))]
            done[seq_id] += len(text)
        decode(where)
        for seq_id in range(N_SEQ):
            assert context.memory.next_pos(seq_id) == done[seq_id]

    check()
