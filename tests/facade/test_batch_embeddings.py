"""Embeddings in place of tokens, and beside them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from llamacffi import ArgumentError, Batch, BusyError, InvalidBatchError, demo, ffi, lib
from tests.facade.oracle import close_to, logits_after
from tests.facade.random_models import N_EMBD, N_VOCAB

TOKENS = [5, 17, 40, 3, 88, 21, 9, 60]
EXACT = {"type_k": "f32", "type_v": "f32", "flash_attn_type": "disabled"}


@pytest.fixture
def rows(random_path):
    """Return the embeddings that a model has for tokens."""

    def of(kind, tokens=TOKENS):
        reader = gguf.GGUFReader(random_path(kind))
        (table,) = (one.data for one in reader.tensors if one.name == "token_embd.weight")
        return np.array(table)[tokens]

    return of


def scores(context, batch):
    context.decode(batch)
    return np.array([context.logits(i) for i, output in enumerate(batch.outputs()) if output])


def test_the_embeddings_of_tokens_are_those_tokens_to_the_oracle(context):
    table = demo.weights()["token_embd.weight"]
    batch = Batch(4, n_embd=table.shape[1])
    assert batch.add_embeddings(table[[5, 300, 7]], logits="all") == range(3)
    assert scores(context, batch) == close_to(logits_after([5, 300, 7]))
    batch.clear()
    batch.add([9], pos=3)  # and tokens after them
    assert scores(context, batch) == close_to(logits_after([9]))


@pytest.mark.parametrize("kind", ["llama", "mamba", "lfm2", "mimo2", "qwen2vl", "gpt2"])
def test_the_embeddings_of_tokens_are_those_tokens(random_context, rows, kind):
    by_tokens, by_rows = random_context(kind, **EXACT), random_context(kind, **EXACT)
    expected = scores(by_tokens, Batch.from_tokens(TOKENS, logits="all"))
    batch = Batch(8, n_embd=N_EMBD)
    batch.add_embeddings(rows(kind)[:3], logits="all")
    batch.add_embeddings(rows(kind)[3:], pos=3, logits="all")
    np.testing.assert_allclose(scores(by_rows, batch), expected, atol=1e-4)
    assert by_rows.memory.pos_max() == 7


def test_sequences_and_outputs_of_embeddings(random_context, rows):
    context = random_context("llama", n_seq_max=3, kv_unified=True, **EXACT)
    alone = random_context("llama", **EXACT)
    batch = Batch(8, n_seq_max=2, n_embd=N_EMBD)
    batch.add_embeddings(rows("llama")[:2], seq_ids=(0, 2), logits=[1])
    batch.add_embeddings(rows("llama")[2:4], pos=2, seq_ids=(2, 0), logits="none")
    batch.add_embeddings(rows("llama")[5:6], seq_ids=(1,))
    found = scores(context, batch)
    assert [context.memory.pos_max(seq_id) for seq_id in range(3)] == [3, 0, 3]
    expected = scores(alone, Batch.from_tokens(TOKENS[:2]))
    alone.memory.clear()
    expected = np.concatenate([expected, scores(alone, Batch.from_tokens(TOKENS[5:6]))])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def raw_mrope(context, rows, sections):
    """Decode embeddings with C's own batch: all positions of a section, then of the next."""
    n = len(rows)
    batch = lib.llama_batch_init(n, N_EMBD, 1)
    kept = ffi.new("llama_pos[]", sections.reshape(-1).tolist())
    pos, batch.pos, batch.n_tokens = batch.pos, kept, n
    ffi.memmove(batch.embd, np.ascontiguousarray(rows).tobytes(), rows.nbytes)
    for i in range(n):
        batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
    assert lib.llama_decode(context.ptr, batch) == 0
    batch.pos = pos
    lib.llama_batch_free(batch)
    return np.array(
        [ffi.unpack(lib.llama_get_logits_ith(context.ptr, i), N_VOCAB) for i in range(n)]
    )


def test_positions_by_section_are_those_of_c(random_context, rows):
    """As of a picture of 2 by 3 after two tokens."""
    ours, theirs = random_context("qwen2vl", **EXACT), random_context("qwen2vl", **EXACT)
    n = np.arange(6)
    sections = np.array([n * 0 + 2, 2 + n // 3, 2 + n % 3, n * 0])
    for context in (ours, theirs):
        context.decode(Batch.from_tokens(TOKENS[6:]))
    embeddings = rows("qwen2vl")[:6]
    batch = Batch(6, n_embd=N_EMBD)
    batch.add_embeddings(embeddings[:4], pos=sections[:, :4], logits="all")
    batch.add_embeddings(embeddings[4:], pos=sections[:, 4:], logits="all")
    found = scores(ours, batch)
    np.testing.assert_array_equal(found, raw_mrope(theirs, embeddings, sections))
    assert ours.memory.pos_max() == 2
    plain = random_context("qwen2vl", **EXACT)
    plain.decode(Batch.from_tokens(TOKENS[6:]))
    batch.clear()
    batch.add_embeddings(embeddings, pos=2, logits="all")  # the sections do matter
    assert np.abs(scores(plain, batch) - found).max() > 0.01


def test_a_plain_position_before_those_by_section(random_context, rows):
    embeddings, n = rows("qwen2vl"), np.arange(8)
    sections = np.array([n, n, n, n * 0])
    found = []
    for first in (0, sections[:, :3]):
        batch = Batch(8, n_embd=N_EMBD)
        batch.add_embeddings(embeddings[:3], pos=first, logits="all")
        batch.add_embeddings(embeddings[3:], pos=sections[:, 3:], logits="all")
        found.append(scores(random_context("qwen2vl", **EXACT), batch))
    np.testing.assert_array_equal(*found)


def test_tokens_with_the_hidden_state_are_those_of_c(random_context):
    """The prediction of a further token: C's own batch takes both too."""
    contexts = [random_context("mimo2", ctx_type="mtp", **EXACT) for _ in range(2)]
    state = np.random.default_rng(2).standard_normal((4, N_EMBD)).astype(np.float32)
    batch = Batch(4, n_embd=N_EMBD)
    batch.add(TOKENS[:3], logits="all", embeddings=state[:3])
    batch.add(TOKENS[3:4], pos=3, logits="all", embeddings=state[3:])
    found = scores(contexts[0], batch)
    raw = Batch(4, n_embd=N_EMBD)
    raw.add(TOKENS[:4], logits="all", embeddings=state)
    assert lib.llama_decode(contexts[1].ptr, raw.ptr[0]) == 0
    expected = [ffi.unpack(lib.llama_get_logits_ith(contexts[1].ptr, i), N_VOCAB) for i in range(4)]
    np.testing.assert_array_equal(found, np.array(expected))
    contexts[0].memory.clear()
    batch.clear()
    batch.add(TOKENS[:4], logits="all", embeddings=-state)
    assert np.abs(scores(contexts[0], batch) - found).max() > 0.01


def test_embeddings_that_would_be_ignored_are_refused(random_context, rows):
    context = random_context("llama")
    batch = Batch(2, n_embd=N_EMBD)
    batch.add([1, 2], embeddings=rows("llama")[:2])
    with pytest.raises(ArgumentError, match="ignore their embeddings"):
        context.decode(batch)


@pytest.mark.parametrize("width", [1, N_EMBD - 1, 2 * N_EMBD])
def test_embeddings_of_another_width(random_context, width):
    context = random_context("llama")
    context.decode(Batch.from_tokens([1, 2]))
    before = context.logits()
    batch = Batch(2, n_embd=width)
    batch.add_embeddings(np.zeros((1, width), np.float32), pos=2)
    with pytest.raises(ArgumentError, match=f"embedding 0, which has {width} floats"):
        context.decode(batch)
    assert context.memory.pos_max() == 1
    assert (context.logits() == before).all()  # the outputs are still those of the batch before


def test_sections_for_a_model_without(random_context, rows):
    batch = Batch(2, n_embd=N_EMBD)
    batch.add_embeddings(rows("llama")[:2], pos=np.zeros((4, 2), int))
    with pytest.raises(ArgumentError, match="for models with M-RoPE"):
        random_context("llama").decode(batch)


def test_positions_with_a_gap(random_context, rows):
    """The same rules as for tokens: C refuses a batch that does not go on where memory ends."""
    context = random_context("llama")
    batch = Batch(2, n_embd=N_EMBD)
    batch.add_embeddings(rows("llama")[:2], pos=[0, 5])
    with pytest.raises(InvalidBatchError):
        context.decode(batch)
    assert context.memory.pos_max() is None


REFUSED = {
    "integers": (TypeError, {"embeddings": np.zeros((1, 4), int)}),
    "None": (TypeError, {"embeddings": None}),
    "text": (TypeError, {"embeddings": "ab"}),
    "complex": (TypeError, {"embeddings": np.zeros((1, 4), complex)}),
    "one row": (ArgumentError, {"embeddings": np.zeros(4)}),
    "too wide": (ArgumentError, {"embeddings": np.zeros((1, 5))}),
    "too narrow": (ArgumentError, {"embeddings": np.zeros((1, 3))}),
    "too many": (ArgumentError, {"embeddings": np.zeros((4, 4))}),
    "not a number": (ArgumentError, {"embeddings": [[0.0, 1.0, np.nan, 0.0]]}),
    "infinite": (ArgumentError, {"embeddings": [[0.0, 1.0, -np.inf, 0.0]]}),
    "infinite in 32 bits": (ArgumentError, {"embeddings": [[0.0, 1.0, 1e39, 0.0]]}),
    "sections of others": (
        ArgumentError,
        {"embeddings": np.zeros((1, 4)), "pos": np.zeros((4, 2), int)},
    ),
    "three sections": (
        ArgumentError,
        {"embeddings": np.zeros((1, 4)), "pos": np.zeros((3, 1), int)},
    ),
    "a section below 0": (
        ArgumentError,
        {"embeddings": np.zeros((1, 4)), "pos": np.array([[0], [-1], [0], [0]])},
    ),
}


@pytest.mark.parametrize(("error", "arguments"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_without_a_trace(error, arguments):
    batch = Batch(4, n_embd=4)
    batch.add_embeddings(np.ones((1, 4)), pos=3)
    with pytest.raises(error):
        batch.add_embeddings(**arguments)
    assert len(batch) == 1
    assert batch.positions.tolist() == [3]
    assert batch.embeddings.tolist() == [[1] * 4]


@pytest.mark.parametrize(
    "embeddings",
    [
        np.ones((2, 4), np.float16),
        np.ones((2, 4), np.float64),
        np.ones((2, 4), ">f4"),
        np.ones((4, 2), np.float32).T,
        np.ones((4, 8), np.float32)[::2, ::2],
        [[1.0] * 4] * 2,
    ],
    ids=["float16", "float64", "big-endian", "columns", "strided", "lists"],
)
def test_every_kind_of_floats(embeddings):
    batch = Batch(4, n_embd=4)
    batch.add_embeddings(embeddings)
    assert (batch.embeddings == np.ones((2, 4))).all()
    assert len(batch.tokens) == 0


def test_a_batch_has_entries_of_one_kind():
    batch = Batch(4, n_embd=4)
    ones = np.ones((1, 4))
    uses = {
        "tokens": lambda: batch.add([1]),
        "embeddings": lambda: batch.add_embeddings(ones),
        "tokens with embeddings": lambda: batch.add([1], embeddings=ones),
    }
    for first, use in uses.items():
        batch.clear()
        use()
        assert first in repr(batch)
        for second, other in uses.items():
            if second != first:
                with pytest.raises(ArgumentError, match=f"{first}, and cannot also have {second}"):
                    other()
        assert len(batch) == 1
    batch.set_one(5, 0)
    assert batch.tokens.tolist() == [5]
    assert batch.ptr.embd == ffi.NULL


def test_a_batch_is_not_changed_while_c_reads_it(random_context):
    """As another thread would: here the callback of a node, in the midst of decode."""
    batch = Batch.from_tokens([1, 2, 3, 4])
    batch.truncate(3)
    use = [None]
    context = random_context("llama", cb_eval=lambda _node, asked: asked and use[0]())
    for use[0] in (
        lambda: batch.add([4]),
        lambda: batch.clear(),
        lambda: batch.truncate(1),
        lambda: batch.set_one(1, 1),
    ):
        context.memory.clear()
        with pytest.raises(BusyError, match="this thread is using this Batch already"):
            context.decode(batch)
        assert batch.tokens.tolist() == [1, 2, 3]


@pytest.mark.parametrize(("n_embd", "error"), [(-1, ArgumentError), (1.5, TypeError)])
def test_widths_that_are_none(n_embd, error):
    with pytest.raises(error):
        Batch(4, n_embd=n_embd)
