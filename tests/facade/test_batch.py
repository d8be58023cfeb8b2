"""A batch holds what was added, as C sees it, and nothing of what was refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamacffi import ArgumentError, Batch, Context

runs = st.tuples(
    st.lists(st.integers(0, 4), max_size=6),  # tokens
    st.integers(0, 100),  # pos
    st.sets(st.integers(-1, 3), max_size=4),  # seq_ids, some of them invalid
    st.sampled_from(["last", "all", "none"]),  # logits
)
INT_TYPES = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">i8"]


def as_c_sees(batch):
    """Read the struct, not the arrays, so that the pointers are tested too."""
    struct = batch.ptr[0]
    return [
        (
            struct.token[i],
            struct.pos[i],
            [struct.seq_id[i][j] for j in range(struct.n_seq_id[i])],
            bool(struct.logits[i]),
        )
        for i in range(struct.n_tokens)
    ]


@given(st.integers(1, 12), st.integers(1, 3), st.lists(runs, max_size=6))
def test_batch_holds_what_was_added(capacity, n_seq_max, added):
    """C sees exactly the accepted runs; a rejected one leaves no trace."""
    batch = Batch(capacity, n_seq_max)
    expected = []
    for tokens, pos, seq_ids, logits in added:
        fits = len(expected) + len(tokens) <= capacity
        if fits and 1 <= len(seq_ids) <= n_seq_max and min(seq_ids) >= 0:
            start = len(expected)
            indices = batch.add(tokens, pos=pos, seq_ids=seq_ids, logits=logits)
            assert indices == range(start, start + len(tokens))
            for i, token in enumerate(tokens):
                output = logits == "all" or (logits == "last" and i == len(tokens) - 1)
                expected.append((token, pos + i, sorted(seq_ids), output))
        else:
            with pytest.raises(ArgumentError):
                batch.add(tokens, pos=pos, seq_ids=seq_ids, logits=logits)
        assert as_c_sees(batch) == expected
        assert len(batch) == len(expected)
        assert list(batch.outputs()) == [output for *_, output in expected]


@pytest.mark.parametrize("dtype", INT_TYPES)
def test_every_integer_type(dtype):
    batch = Batch(4)
    batch.add(np.array([1, 2, 100], dtype))
    assert [token for token, *_ in as_c_sees(batch)] == [1, 2, 100]


@pytest.mark.parametrize(
    "tokens",
    [
        np.arange(20)[::5],
        np.arange(20)[15::-5][::-1],
        np.arange(20, dtype=np.int32).reshape(4, 5)[:, 0],
        range(0, 20, 5),
        (0, 5, 10, 15),
        [np.int64(0), 5, 10, 15],
    ],
    ids=["strided", "negative stride", "column", "range", "tuple", "numpy numbers"],
)
def test_every_kind_of_sequence(tokens):
    batch = Batch(4)
    batch.add(tokens)
    assert [token for token, *_ in as_c_sees(batch)] == [0, 5, 10, 15]


REFUSED = {
    "int64 beyond int32": (ArgumentError, {"tokens": np.array([1, 2**31])}),
    "a list beyond int32": (ArgumentError, {"tokens": [1, 2**32 + 1]}),
    "uint64 beyond int32": (ArgumentError, {"tokens": np.array([2**63], np.uint64)}),
    "below int32": (ArgumentError, {"tokens": [-(2**31) - 1]}),
    "floats": (TypeError, {"tokens": [1.0, 2.0]}),
    "a float array": (TypeError, {"tokens": np.array([1.5])}),
    "bools": (TypeError, {"tokens": [True, False]}),
    "text": (TypeError, {"tokens": "ab"}),
    "two dimensions": (TypeError, {"tokens": [[1, 2]]}),
    "a number": (TypeError, {"tokens": 5}),
    "None": (TypeError, {"tokens": None}),
    "pos below 0": (ArgumentError, {"tokens": [1], "pos": -1}),
    "pos beyond int32": (ArgumentError, {"tokens": [1, 2], "pos": 2**31 - 2}),
    "pos a float": (TypeError, {"tokens": [1], "pos": 1.5}),
    "no seq_id": (ArgumentError, {"tokens": [1], "seq_ids": ()}),
    "seq_id below 0": (ArgumentError, {"tokens": [1], "seq_ids": (-1,)}),
    "seq_id beyond int32": (ArgumentError, {"tokens": [1], "seq_ids": (2**31,)}),
    "seq_id a float": (TypeError, {"tokens": [1], "seq_ids": (0.5,)}),
    "too many seq_ids": (ArgumentError, {"tokens": [1], "seq_ids": (0, 1, 2)}),
    "too many tokens": (ArgumentError, {"tokens": range(9)}),
    "logits misspelt": (ArgumentError, {"tokens": [1], "logits": "first"}),
    "logits a bool": (ArgumentError, {"tokens": [1], "logits": True}),
}


@pytest.mark.parametrize(("error", "arguments"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_without_a_trace(error, arguments):
    batch = Batch(8, n_seq_max=2)
    batch.add([3, 4], pos=7, seq_ids=(0, 1))
    before = as_c_sees(batch)
    with pytest.raises(error):
        batch.add(**arguments)
    assert as_c_sees(batch) == before


@pytest.mark.parametrize(("capacity", "n_seq_max"), [(0, 1), (-1, 1), (1, 0), (1, -3)])
def test_sizes_are_at_least_one(capacity, n_seq_max):
    with pytest.raises(ArgumentError, match="at least 1"):
        Batch(capacity, n_seq_max)


def test_set_one_is_clear_and_add():
    one, two = Batch(4, n_seq_max=2), Batch(4, n_seq_max=2)
    for batch in (one, two):
        batch.add([1, 2, 3], pos=5, seq_ids=(0, 1), logits="none")
    one.set_one(9, 8, 1)
    two.clear()
    two.add([9], pos=8, seq_ids=(1,))
    assert as_c_sees(one) == as_c_sees(two) == [(9, 8, [1], True)]


def test_clear_leaves_the_capacity():
    batch = Batch(3)
    batch.add(range(3))
    batch.clear()
    assert len(batch) == 0
    batch.add(range(3))
    assert (len(batch), batch.capacity, repr(batch)) == (3, 3, "<Batch of 3 of 3 tokens>")


def test_check_names_the_first_wrong_token():
    batch = Batch(4, n_seq_max=2)
    batch.add([1, 5, 7], seq_ids=(0, 3))
    batch.check(n_vocab=8, n_seq_max=4)
    with pytest.raises(ArgumentError, match="token 5 at index 1 is not in 0 to 4"):
        batch.check(n_vocab=5, n_seq_max=4)
    with pytest.raises(ArgumentError, match="seq_id 3 is not in 0 to 2"):
        batch.check(n_vocab=8, n_seq_max=3)


def test_a_struct_outlives_the_views_on_it():
    """The struct points into arrays that only the batch keeps."""
    import gc

    batch = Batch(1000)
    batch.add(range(1000))
    gc.collect()
    np.zeros(10**6)
    assert [token for token, *_ in as_c_sees(batch)] == list(range(1000))


def test_a_token_of_several_sequences_needs_a_unified_memory(model):
    batch = Batch(4, n_seq_max=2)
    batch.add([300, 301], seq_ids=[0, 1])
    with (
        Context(model, n_ctx=256, n_seq_max=2) as context,
        pytest.raises(ArgumentError, match="kv_unified=True"),
    ):
        context.decode(batch)
    with Context(model, n_ctx=256, n_seq_max=2, kv_unified=True) as context:
        context.decode(batch)
        assert context.memory.pos_max(1) == 1
