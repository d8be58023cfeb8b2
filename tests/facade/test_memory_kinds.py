"""What memory does is right for the model, whatever its kind: compared with a fresh computation."""

from __future__ import annotations

import numpy as np
import pytest

from llamacffi import AbortedError, Batch, UnsupportedError, lib

TOKENS = [5, 17, 40, 3, 88, 21, 9, 60]
EXACT = {"type_k": "f32", "type_v": "f32", "flash_attn_type": "disabled", "n_threads": 1}


def feed(context, tokens, pos=0, seq_id=0):
    """Decode tokens and return the scores after the last."""
    context.decode(Batch.from_tokens(tokens, pos, (seq_id,)))
    return context.logits()


def same(one, other):
    """Whether scores are the same, but for the order of additions."""
    return np.abs(one - other).max() < 1e-4 < np.abs(other).max()


@pytest.fixture
def make(random_context):
    return lambda kind, **params: random_context(kind, **{**EXACT, **params})


@pytest.fixture
def fresh(make):
    """Return the scores after tokens, computed in a context of its own."""
    return lambda kind, tokens, **params: feed(make(kind, **params), tokens)


def test_shifted_keys_are_those_of_their_new_positions(make, fresh):
    context = make("llama")
    feed(context, TOKENS)
    context.memory.shift(0, 30)
    assert same(feed(context, [7], 38), fresh("llama", [*TOKENS, 7]))
    context.memory.shift(0, -25, 30)
    context.memory.shift(0, -5)
    assert same(feed(context, [11], 9), fresh("llama", [*TOKENS, 7, 11]))


def test_a_cut_text_is_the_text_without_that_part(make, fresh):
    """With one layer a key depends on its token and position alone."""
    context = make("llama+shallow")
    feed(context, TOKENS)
    context.memory.cut(0, 2, 5)
    assert context.memory.next_pos() == 5
    assert same(feed(context, [7], 5), fresh("llama+shallow", [*TOKENS[:2], *TOKENS[5:], 7]))


def test_divided_positions(make):
    """As of tokens that were decoded at them; C's own function turns the keys the wrong way."""
    context, expected = make("llama+shallow"), make("llama+shallow")
    feed(context, TOKENS)
    context.memory.divide(0, 3, 1, 7)
    context.memory.shift(0, -4, 7)
    assert context.memory.pos_max() == 3
    expected.decode(Batch.from_tokens(TOKENS, [0, 0, 0, 1, 1, 1, 2, 3], logits="none"))
    assert same(feed(context, [7], 4), feed(expected, [7], 4))


@pytest.mark.parametrize("kind", ["llama", "mamba", "lfm2", "mimo2"])
@pytest.mark.parametrize("kv_unified", [True, False])
def test_a_fork_goes_its_own_way(make, fresh, kind, kv_unified):
    context = make(kind, n_seq_max=3, n_ctx=768, kv_unified=kv_unified)
    feed(context, [1, 2, 3], seq_id=2)
    feed(context, TOKENS)
    context.memory.fork(0, 2)
    context.memory.fork(2, 1)
    assert [context.memory.pos_max(seq_id) for seq_id in range(3)] == [7, 7, 7]
    for seq_id, token in ((1, 7), (0, 11), (2, 13)):
        assert same(feed(context, [token], 8, seq_id), fresh(kind, [*TOKENS, token]))
    for seq_id, token in ((0, 11), (1, 7)):
        assert same(feed(context, [50], 9, seq_id), fresh(kind, [*TOKENS, token, 50]))


@pytest.mark.parametrize("kind", ["mamba", "lfm2"])
def test_a_state_has_no_parts(make, kind):
    context = make(kind, n_seq_max=2, kv_unified=True)
    feed(context, TOKENS)
    memory = context.memory
    for part in ((0, None, 3), (0, 2, 5), (0, 7, None), (0, 3), (-1, 3), (-1, None, 2), (0, 7, 99)):
        assert memory.remove(*part) is False  # llama.cpp says True of some, and does nothing
        assert memory.pos_max() == 7
    for nothing in ((0, 8), (0, 5, 5), (0, 6, 2), (1,), (1, 2, 3), (-1, 8)):
        assert memory.remove(*nothing) is True
    with pytest.raises(UnsupportedError, match="as a whole"):
        memory.copy(0, 1, 0, 4)
    with pytest.raises(UnsupportedError, match="cannot remove a part"):
        memory.cut(0, 1, 4)
    memory.copy(0, 1, 0, 8)
    assert memory.pos_max(1) == 7
    assert memory.remove(0, 0, 8) is True
    assert memory.remove() is True  # which llama.cpp refuses
    assert memory.pos_max(0) is memory.pos_max(1) is None


@pytest.mark.parametrize("kind", ["mamba", "lfm2"])
def test_after_all_was_removed_it_begins_anew(make, fresh, kind):
    context = make(kind, n_seq_max=2, kv_unified=True)
    feed(context, TOKENS[::-1])
    feed(context, TOKENS[2:], seq_id=1)
    assert context.memory.remove()
    assert same(feed(context, TOKENS), fresh(kind, TOKENS))


def test_the_positions_of_a_state_only_count(make, fresh):
    context = make("mamba")
    feed(context, TOKENS)
    context.memory.shift(0, 100)
    assert context.memory.pos_max() == 107
    context.memory.divide(0, 10)
    assert context.memory.pos_max() == 10
    assert same(feed(context, [7], 11), fresh("mamba", [*TOKENS, 7]))


def test_a_state_goes_back_within_its_last_batch(make, fresh):
    """As far as llama.cpp has kept it; further back it would take an older one."""
    context = make("lfm2", n_rs_seq=3, n_seq_max=2, kv_unified=True)
    memory = context.memory
    feed(context, TOKENS)
    assert memory.remove(0, 4) is False
    assert memory.remove(0, 6) is True
    assert memory.pos_max() == 5
    assert memory.remove(0, 5) is False  # once only
    for use in (memory.copy, memory.fork):
        with pytest.raises(UnsupportedError, match="decode a token before"):
            use(0, 1)
    assert same(feed(context, [7], 6), fresh("lfm2", [*TOKENS[:6], 7]))
    feed(context, [11, 12], 7)
    assert memory.remove(0, 7) is False  # the batch had two tokens: it goes back by one
    assert memory.remove(0, 8) is True
    assert same(feed(context, [13], 8), fresh("lfm2", [*TOKENS[:6], 7, 11, 13]))
    feed(context, [14, 15], 9)
    memory.fork(0, 1)
    assert memory.remove(0, 10) is False  # it is also the state of the other
    assert memory.remove(1)
    assert memory.remove(0, 10) is True


WINDOW = list(np.random.default_rng(3).integers(0, 96, 420))


@pytest.fixture
def windowed(make):
    """A sequence longer than what the sliding windows hold."""
    context = make("mimo2", n_ctx=768, n_batch=64, n_ubatch=64, swa_full=False, n_seq_max=2)
    assert lib.llama_model_n_swa(context.model.ptr) == 16
    for i in range(0, len(WINDOW), 60):
        feed(context, WINDOW[i : i + 60], i)
    assert 0 < context.memory.pos_min() < 400
    return context


def test_a_window_is_not_rolled_back_into_what_it_has_lost(windowed):
    memory = windowed.memory
    first, last = memory.pos_min(), memory.pos_max()
    for start in (1, 100, first, first + 14):
        assert memory.remove(0, start) is False
        assert (memory.pos_min(), memory.pos_max()) == (first, last)
    assert memory.remove(-1, 100) is False
    assert memory.remove(0, first + 15) is True
    assert memory.pos_max() == first + 14


def test_a_window_is_rolled_back_where_it_is_whole(windowed, fresh):
    assert windowed.memory.remove(0, 405)
    expected = fresh("mimo2", [*WINDOW[:405], 7], n_ctx=512, n_batch=512)
    assert same(feed(windowed, [7], 405), expected)


def test_what_a_window_has_lost_can_be_removed_in_the_middle(windowed):
    assert windowed.memory.remove(0, 20, 60) is True
    assert windowed.memory.pos_max() == len(WINDOW) - 1


def test_a_stored_window_is_neither_moved_nor_copied_in_part(make):
    context = make("mimo2", n_ctx=768, swa_full=False, n_seq_max=2, kv_unified=True, n_ubatch=64)
    for i in range(0, len(WINDOW), 60):
        feed(context, WINDOW[i : i + 60], i)
    memory = context.memory
    assert not memory.can_shift
    for use in (
        lambda: memory.shift(0, 5),
        lambda: memory.divide(0, 2),
        lambda: memory.cut(0, 5, 9),
    ):
        with pytest.raises(UnsupportedError, match="swa_full=True"):
            use()
    with pytest.raises(UnsupportedError, match="have dropped the tokens before position 100"):
        memory.copy(0, 1, 0, 100)
    memory.copy(0, 1, 0, 410)
    assert memory.pos_max(1) == 409


def test_positions_of_several_sections_do_not_move(make):
    context = make("qwen2vl")
    feed(context, TOKENS)
    assert not context.memory.can_shift
    for use in (
        lambda: context.memory.shift(0, 5),
        lambda: context.memory.divide(0, 2),
        lambda: context.memory.cut(0, 2, 3),
    ):
        with pytest.raises(UnsupportedError, match="M-RoPE"):
            use()
    assert context.memory.remove(0, 6)
    assert context.memory.next_pos() == 6


def test_an_encoder_remembers_nothing(make):
    memory = make("bert").memory
    for use in (
        memory.clear,
        memory.remove,
        memory.pos_max,
        memory.next_pos,
        lambda: memory.can_shift,
        lambda: memory.keep(0),
        lambda: memory.fork(0, 0),
        lambda: memory.shift(0, 1),
        lambda: memory.ptr,
    ):
        with pytest.raises(UnsupportedError, match="no memory"):
            use()


def test_keys_that_were_half_turned_are_forgotten(make):
    """They are turned at the beginning of the next batch, and that can be stopped."""
    stop = []
    context = make(
        "llama", n_seq_max=2, kv_unified=True, cb_eval=lambda _node, asked: asked or not stop
    )
    feed(context, TOKENS)
    feed(context, TOKENS, seq_id=1)
    context.memory.shift(0, 5)
    stop.append(True)
    with pytest.raises(AbortedError):
        feed(context, [7], 13)
    assert (context.memory.pos_max(0), context.memory.pos_max(1)) == (None, 7)
    stop.clear()
    feed(context, TOKENS)
    stop.append(True)
    with pytest.raises(AbortedError):
        feed(context, [7], 8)
    assert context.memory.pos_max(0) == 7
