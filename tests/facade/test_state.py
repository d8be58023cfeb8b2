"""Saving and loading the memory of a context: it continues as if nothing had happened."""

from __future__ import annotations

import numpy as np
import pytest

from llamacffi import (
    AbortedError,
    ArgumentError,
    Batch,
    BusyError,
    ClosedError,
    Context,
    Model,
    Snapshot,
    StateError,
    UnsupportedError,
    ffi,
    lib,
    state_info,
)
from tests.facade.helpers import raised_in_thread
from tests.facade.oracle import close_to, logits_after, token

TOKENS = [(7 * i) % 90 + 3 for i in range(40)]
AFTER = [9, 17, 33]
# Attention, a recurrent state, both, a sliding window, positions in sections.
KINDS = ["llama", "mamba", "lfm2", "mimo2", "qwen2vl"]
# Sums in single precision, so that their order does not matter.
EXACT = {"type_k": "f32", "type_v": "f32", "flash_attn_type": "disabled", "n_seq_max": 2}


def decode(context, tokens, pos=0, seq_id=0):
    batch = Batch(64)
    batch.add(tokens, pos=pos, seq_ids=(seq_id,))
    context.decode(batch)
    return context.logits()


def fill(context, seq_id=0):
    """Compute the tokens, a few at a time."""
    for start in range(0, len(TOKENS), 8):
        decode(context, TOKENS[start : start + 8], start, seq_id)


def go_on(context, seq_id=0):
    return [decode(context, [t], len(TOKENS) + i, seq_id) for i, t in enumerate(AFTER)]


def same(found, expected):
    return np.allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_state_continues_like_the_original(random_context, kind):
    first = random_context(kind, **EXACT)
    fill(first)
    whole, one = first.save_state(), first.save_state(seq_id=0)
    expected = go_on(first)
    assert np.std(expected) > 0.1
    assert not same(expected[0], expected[1])
    for params in ({}, {"n_ctx": 512, "n_batch": 64, "n_threads": 2}):
        with Context(first.model, **{"n_ctx": 256, "n_threads": 1, **EXACT, **params}) as other:
            other.load_state(whole)
            assert same(go_on(other), expected)
            other.load_state(one, seq_id=1)
            assert same(go_on(other, 1), expected)
            assert other.memory.pos_max(0) == other.memory.pos_max(1) == len(TOKENS) + 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_partial_state_rolls_back_later_tokens(random_context, kind):
    context = random_context(kind, **EXACT)
    fill(context)
    partial, all_of_it = context.save_state(seq_id=0, partial=True), context.save_state(seq_id=0)
    expected = go_on(context)
    context.load_state(partial, seq_id=0)
    assert context.memory.pos_max(0) == len(TOKENS) - 1
    assert same(go_on(context), expected)
    has_rest = kind in ("lfm2", "mimo2")
    assert (len(partial) < len(all_of_it)) == has_rest
    assert state_info(partial).partial == has_rest
    with Context(context.model, n_ctx=256, n_threads=1, **EXACT) as other:
        if has_rest:
            with pytest.raises(
                StateError, match=r"continues the tokens up to position 39, .* empty"
            ):
                other.load_state(partial, seq_id=0)
            assert other.memory.pos_max(0) is None
        else:
            other.load_state(partial, seq_id=0)
            assert same(go_on(other), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_rolls_back_too(random_context, kind):
    context = random_context(kind, **EXACT)
    fill(context)
    snapshot = context.snapshot(0)
    assert snapshot.end == len(TOKENS) - 1
    expected = go_on(context)
    context.restore(snapshot)
    assert same(go_on(context), expected)
    context.restore(snapshot, seq_id=1)
    assert same(go_on(context, 1), expected)
    context.restore(snapshot)
    partial = context.snapshot(0, partial=True)
    for _ in range(2):
        assert same(go_on(context), expected)
        context.restore(partial)
    assert context.memory.pos_max(0) == len(TOKENS) - 1


def test_the_demo_model_continues_in_another_sequence(new_context):
    words = [token(" the"), token(" llama"), token(" walks")]
    context = new_context(n_seq_max=6, kv_unified=True)
    decode(context, words)
    context.load_state(context.save_state(seq_id=0), seq_id=5)
    assert context.memory.pos_max(5) == context.memory.pos_max(0) == 2
    assert decode(context, [token(" over")], 3, 5) == close_to(logits_after([token(" over")])[0])
    assert context.memory.pos_max(0) == 2


def test_a_copied_sequence_equals_a_saved_one(random_context):
    """Copies between buffers and shifts are deferred to the next decode; saving applies them."""
    context = random_context("llama", **EXACT)
    fill(context)
    context.memory.copy(0, 1)
    copied = context.save_state(seq_id=1)
    context.load_state(copied, seq_id=0)
    assert same(go_on(context, 0), go_on(context, 1))

    context.memory.clear()
    fill(context)
    context.memory.remove(0, 0, 10)
    context.memory.shift(0, -10)
    shifted = context.save_state(seq_id=0)
    expected = decode(context, [9], len(TOKENS) - 10)
    with Context(context.model, n_ctx=256, n_threads=1, **EXACT) as other:
        other.load_state(shifted, seq_id=0)
        assert same(decode(other, [9], len(TOKENS) - 10), expected)


def test_a_deferred_copy_does_not_overwrite_a_loaded_state(random_context):
    context = random_context("llama", **EXACT)
    fill(context, 1)
    saved = context.save_state(seq_id=1)
    expected = go_on(context, 1)
    decode(context, [50, 51, 52], seq_id=0)
    context.memory.copy(0, 1)
    context.load_state(saved, seq_id=1)
    assert same(go_on(context, 1), expected)


def test_all_sequences_are_saved_at_once(random_context):
    context = random_context("llama", **{**EXACT, "n_seq_max": 3})
    fill(context, 0)
    decode(context, [5, 6], seq_id=2)
    saved = context.save_state()
    info = state_info(saved)
    assert info.ends == {0: 39, 2: 1}
    assert not info.of_one_sequence
    expected = go_on(context, 0), decode(context, [7], 2, 2)
    decode(context, [1, 2, 3], seq_id=1)
    context.load_state(saved)
    assert [context.memory.pos_max(i) for i in range(3)] == [39, None, 1]
    assert same(go_on(context, 0), expected[0])
    assert same(decode(context, [7], 2, 2), expected[1])


def test_an_empty_sequence_empties_another(random_context):
    for kind in ("llama", "mamba", "lfm2"):
        context = random_context(kind, **EXACT)
        empty, snapshot = context.save_state(seq_id=0), context.snapshot(0)
        nothing = context.save_state()
        for load in (
            lambda c=context, s=empty: c.load_state(s, seq_id=1),
            lambda c=context, s=snapshot: c.restore(s, seq_id=1),
            lambda c=context, s=nothing: c.load_state(s),
        ):
            fill(context, 1)
            load()
            assert context.memory.pos_max(1) is None


def test_the_size_depends_on_the_tokens(random_context):
    sizes = []
    for n_ctx in (256, 4096):
        context = random_context("llama", **{**EXACT, "n_ctx": n_ctx})
        before = len(context.save_state())
        fill(context)
        sizes.append(len(context.save_state()) - before)
    # Keys and values of two layers, and a few bytes for each token.
    expected = len(TOKENS) * 2 * 2 * 64 * 4
    assert sizes[0] == sizes[1]
    assert expected < sizes[0] < 1.1 * expected


def test_there_are_no_outputs_after_loading(context):
    decode(context, [5, 6])
    saved, snapshot = context.save_state(), context.snapshot(0)
    assert context.logits() == close_to(logits_after([6])[0])  # saving keeps them
    for load in (
        lambda: context.load_state(saved),
        lambda: context.load_state(context.save_state(seq_id=0), seq_id=0),
        lambda: context.restore(snapshot),
    ):
        decode(context, [7], context.memory.next_pos())
        load()
        with pytest.raises(IndexError, match="no outputs"):
            context.logits()


def test_any_buffer_is_accepted(context):
    decode(context, [5, 6])
    saved = context.save_state()
    for data in (bytearray(saved), memoryview(saved), np.frombuffer(saved, np.uint8)):
        context.load_state(data)
        assert context.memory.pos_max(0) == 1
    with pytest.raises(TypeError, match="data must be the bytes of a state"):
        context.load_state("state")
    with pytest.raises(TypeError, match="contiguous"):
        context.load_state(memoryview(saved)[::2])


@pytest.mark.parametrize("seq_id", [-1, 1, 10**9])
def test_sequences_that_do_not_exist(context, tmp_path, seq_id):
    saved = context.save_state(seq_id=0)
    for use in (
        lambda: context.save_state(seq_id=seq_id),
        lambda: context.load_state(saved, seq_id=seq_id),
        lambda: context.save_file(tmp_path / "x", seq_id=seq_id),
        lambda: context.snapshot(seq_id),
        lambda: context.restore(context.snapshot(0), seq_id=seq_id),
    ):
        with pytest.raises(ArgumentError, match=f"seq_id must be 0, not {seq_id}: create"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_sequences_and_flags_of_a_wrong_type(context, tmp_path):
    for bad in ("0", 0.0, True, [0], np.zeros(2)):
        for use in (
            lambda bad=bad: context.save_state(seq_id=bad),
            lambda bad=bad: context.load_state(context.save_state(), seq_id=bad),
            lambda bad=bad: context.save_file(tmp_path / "x", seq_id=bad),
            lambda bad=bad: context.load_file(tmp_path / "x", seq_id=bad),
            lambda bad=bad: context.snapshot(bad),
            lambda bad=bad: context.restore(context.snapshot(), seq_id=bad),
        ):
            with pytest.raises(TypeError, match="seq_id must be an integer"):
                use()
    with pytest.raises(TypeError, match="holds one sequence"):
        context.snapshot(None)
    for bad in ("yes", 2, None, np.zeros(2)):
        for use in (
            lambda bad=bad: context.save_state(partial=bad),
            lambda bad=bad: context.load_state(context.save_state(), any_adapters=bad),
            lambda bad=bad: context.save_file(tmp_path / "x", plain=bad),
            lambda bad=bad: context.snapshot(partial=bad),
        ):
            with pytest.raises(TypeError, match="must be True or False"):
                use()
    assert list(tmp_path.iterdir()) == []
    context.load_state(context.save_state(seq_id=np.int64(0)), seq_id=np.uint8(0))


def test_states_of_one_and_of_all_sequences_differ(context):
    one, whole = context.save_state(seq_id=0), context.save_state()
    with pytest.raises(ArgumentError, match="holds one sequence: give seq_id"):
        context.load_state(one)
    with pytest.raises(ArgumentError, match="holds all sequences"):
        context.load_state(whole, seq_id=0)


def test_a_model_without_memory_has_no_state(random_context, tmp_path):
    context = random_context("bert", embeddings=True)
    for use in (
        context.save_state,
        context.snapshot,
        lambda: context.save_file(tmp_path / "x"),
    ):
        with pytest.raises(UnsupportedError, match="no memory"):
            use()


def test_only_the_last_snapshot_of_a_sequence_is_valid(new_context):
    context, other = new_context(n_seq_max=2), new_context(n_seq_max=2)
    decode(context, [5, 6])
    decode(context, [5], seq_id=1)
    first, of_another = context.snapshot(0), context.snapshot(1)
    second = context.snapshot(0)
    with pytest.raises(StateError, match="a later snapshot has replaced it"):
        context.restore(first)
    with pytest.raises(StateError, match="belongs to another context"):
        other.restore(second)
    context.restore(second)
    context.restore(of_another)
    assert repr(second) == "<Snapshot of sequence 0, up to position 1>"
    with pytest.raises(TypeError, match="not b'x'"):
        context.restore(b"x")
    with pytest.raises(StateError, match="is invalid"):
        other.restore(Snapshot(0, False, 1, None))


@pytest.mark.parametrize("types", [{"type_k": "q8_0"}, {"type_k": "q8_0", "type_v": "q4_0"}])
def test_quantized_caches_are_saved_but_not_kept_on_the_device(random_context, types):
    context = random_context("llama", n_seq_max=2, flash_attn_type="enabled", **types)
    fill(context)
    with pytest.raises(UnsupportedError, match="type_k is quantized: use save_state"):
        context.snapshot(0)
    saved = context.save_state(seq_id=0)
    expected = go_on(context)
    context.load_state(saved, seq_id=1)
    assert np.array_equal(go_on(context, 1), expected)


def test_use_from_two_threads_is_refused(context, tmp_path):
    saved, snapshot = context.save_state(), context.snapshot(0)
    context.save_file(tmp_path / "x")
    uses = (
        context.save_state,
        context.snapshot,
        lambda: context.load_state(saved),
        lambda: context.restore(snapshot),
        lambda: context.save_file(tmp_path / "x"),
        lambda: context.load_file(tmp_path / "x"),
    )
    with context.exclusive:
        errors = [raised_in_thread(use) for use in uses]
    assert all(isinstance(error, BusyError) for error in errors), errors


def test_a_closed_context(context, tmp_path):
    saved = context.save_state()
    snapshot = context.snapshot(0)
    context.close()
    for use in (
        context.save_state,
        context.snapshot,
        lambda: context.load_state(saved),
        lambda: context.restore(snapshot),
        lambda: context.save_file(tmp_path / "x"),
        lambda: context.load_file(tmp_path / "x"),
    ):
        with pytest.raises((ClosedError, FileNotFoundError)):
            use()


def test_a_cancelled_context_can_be_saved(random_context):
    """Deferred operations are applied even though the next computation will be cancelled."""
    context = random_context("llama", **EXACT)
    fill(context)
    context.memory.remove(0, 0, 10)
    context.memory.shift(0, -10)
    context.cancel()
    saved = context.save_state(seq_id=0)
    with Context(context.model, n_ctx=256, n_threads=1, **EXACT) as other:
        other.load_state(saved, seq_id=0)
        found = decode(other, [9], len(TOKENS) - 10)
    with pytest.raises(AbortedError, match="cancelled"):
        decode(context, [9], len(TOKENS) - 10)
    assert same(decode(context, [9], len(TOKENS) - 10), found)


@pytest.mark.no_asan
def test_memory_is_flat(random_context, run_python):
    context = random_context("llama", **{**EXACT, "n_ctx": 2048})
    path = context.model.path
    done = run_python(
        """
        import os, sys
        from llamacffi import Batch, Context, Model
        def rss():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        with Model(sys.argv[1]) as model, Context(model, n_ctx=2048, n_threads=1) as context:
            batch = Batch(512)
            batch.add([5] * 512)
            context.decode(batch)
            for i in range(60):
                saved = context.save_state()
                context.load_state(saved)
                context.save_file("x", seq_id=0)
                context.load_file("x", seq_id=0)
                context.restore(context.snapshot(0))
                if i == 20:
                    before = rss()
            print(rss() - before, len(saved))
        """,
        path,
    )
    assert done.stderr == ""
    grown, size = map(int, done.stdout.split())
    assert size > 250_000
    assert grown < 10 * size


def test_the_raw_functions_accept_the_bytes_of_c(context):
    """They allow loading a state without our header."""
    decode(context, [5, 6])
    size = lib.llama_state_get_size(context.ptr)
    raw = ffi.new("uint8_t[]", size)
    assert lib.llama_state_get_data(context.ptr, raw, size) == size
    assert context.save_state().endswith(bytes(ffi.buffer(raw)))
    with pytest.raises(
        StateError, match=r"was not saved by llamacffi or llama.cpp: it begins with"
    ):
        context.load_state(bytes(ffi.buffer(raw)))


def test_equal_memory_gives_equal_states(demo_path):
    """Nothing in them depends on the process or the time."""
    saved = []
    for _ in range(2):
        with Model(demo_path) as model, Context(model, n_ctx=256, n_threads=1) as context:
            decode(context, [5, 6])
            saved.append(context.save_state())
    assert saved[0] == saved[1]
