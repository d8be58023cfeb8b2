"""A batch holds what was added, as C sees it, and nothing of what was refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llamacffi import ArgumentError, Batch, Context

positions = st.one_of(st.integers(-1, 100), st.lists(st.integers(-1, 100), max_size=6))
logits = st.one_of(
    st.sampled_from(["last", "all", "none"]),
    st.lists(st.booleans(), min_size=1, max_size=6),
    st.lists(st.integers(-7, 6), max_size=3),
)
runs = st.tuples(
    st.lists(st.integers(0, 4), max_size=6),  # tokens
    positions,
    st.sets(st.integers(-1, 3), max_size=4),  # seq_ids, some of them invalid
    logits,
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


def as_numbers(pos, n):
    """Return the positions that are meant; None if they are not valid."""
    found = [*range(pos, pos + n)] if isinstance(pos, int) else pos
    valid = len(found) == n and -1 not in (pos, *found)
    return found if valid else None


def as_flags(logits, n):
    """Return the outputs that are meant; None if they are not valid."""
    if isinstance(logits, str):
        return [logits == "all" or (logits == "last" and i == n - 1) for i in range(n)]
    if logits and isinstance(logits[0], bool):
        return logits if len(logits) == n else None
    if any(not -n <= i < n for i in logits):
        return None
    if len(set(logits)) < len(logits) or (n == 2 and logits == [1, 0]):
        return None  # flags of 0 and 1, it seems: an index is given once
    return [i in {one % n for one in logits} for i in range(n)]


@given(st.integers(1, 12), st.integers(1, 3), st.lists(runs, max_size=6))
@example(4, 1, [([1, 2], -1, {0}, "last")])
@example(4, 1, [([1], 0, {0}, [0, 0]), ([1, 2], 1, {0}, [1, 0]), ([1, 2], 1, {0}, [0, 1])])
def test_batch_holds_what_was_added(capacity, n_seq_max, added):
    """C sees exactly the accepted runs; a rejected one leaves no trace."""
    batch = Batch(capacity, n_seq_max)
    expected = []
    for tokens, pos, seq_ids, logits in added:
        numbers, flags = as_numbers(pos, len(tokens)), as_flags(logits, len(tokens))
        fits = len(expected) + len(tokens) <= capacity and None not in (numbers, flags)
        if fits and 1 <= len(seq_ids) <= n_seq_max and min(seq_ids) >= 0:
            start = len(expected)
            indices = batch.add(tokens, pos=pos, seq_ids=seq_ids, logits=logits)
            assert indices == range(start, start + len(tokens))
            for token, position, output in zip(tokens, numbers, flags, strict=True):
                expected.append((token, position, sorted(seq_ids), output))
        else:
            with pytest.raises(ArgumentError):
                batch.add(tokens, pos=pos, seq_ids=seq_ids, logits=logits)
        assert_is(batch, expected)


def assert_is(batch, expected):
    """Check that a batch has these entries, for C and for Python."""
    assert as_c_sees(batch) == expected
    assert len(batch) == len(expected)
    assert batch.n_left == batch.capacity - len(expected)
    assert batch.tokens.tolist() == [token for token, *_ in expected]
    assert batch.positions.tolist() == [pos for _, pos, *_ in expected]
    assert batch.seq_ids == [seq_ids for _, _, seq_ids, _ in expected]
    assert list(batch.outputs()) == [output for *_, output in expected]
    assert batch.is_coupled == any(len(seq_ids) > 1 for _, _, seq_ids, _ in expected)
    starts = {}
    for _, pos, seq_ids, _ in expected:
        for seq_id in seq_ids:
            starts[seq_id] = min(pos, starts.get(seq_id, pos))
    assert batch.starts() == starts


@given(st.integers(0, 6), st.data())
def test_truncate_keeps_the_first(n, data):
    """What is cut off does not count any more, not even for the checks."""
    batch = Batch(8, n_seq_max=3)
    for i in range(6):
        seq_ids = data.draw(st.sets(st.integers(0, 5), min_size=1, max_size=3))
        batch.add([data.draw(st.integers(0, 9))], pos=i, seq_ids=seq_ids)
    entries = as_c_sees(batch)
    batch.truncate(n)
    assert_is(batch, entries[:n])
    most = max((token for token, *_ in entries[:n]), default=0)
    n_seq = max((max(ids) for _, _, ids, _ in entries[:n]), default=0) + 1
    batch.check(n_vocab=most + 1, n_seq_max=n_seq)
    if n:
        with pytest.raises(ArgumentError, match=f"the token at index .*, not {most}"):
            batch.check(n_vocab=most, n_seq_max=n_seq)
        with pytest.raises(ArgumentError, match="seq_id"):
            batch.check(n_vocab=most + 1, n_seq_max=n_seq - 1)


@pytest.mark.parametrize("n", [-1, 4, 2**70])
def test_truncate_to_what_is_not_there(n):
    batch = Batch.from_tokens([1, 2, 3])
    with pytest.raises(ArgumentError, match="must be between 0 and 3"):
        batch.truncate(n)
    assert len(batch) == 3


def test_a_batch_of_exactly_these_tokens():
    batch = Batch.from_tokens([5, 6], pos=[7, 9], seq_ids=(2, 1), logits=[0])
    assert as_c_sees(batch) == [(5, 7, [1, 2], True), (6, 9, [1, 2], False)]
    assert (batch.capacity, batch.n_seq_max, batch.n_left) == (2, 2, 0)
    assert len(Batch.from_tokens([])) == 0
    with pytest.raises(ArgumentError, match="seq_ids"):
        Batch.from_tokens([1], seq_ids=())


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, list])
@pytest.mark.parametrize("flags", [(0, 0, 1), (1, 1, 1), (0, 0, 0), (1, 0), (0, 1, 0, 0, 1, 1)])
def test_flags_of_0_and_1_are_not_read_as_indices(flags, dtype):
    """They would be outputs of other tokens, without a word."""
    tokens = range(len(flags))
    logits = list(flags) if dtype is list else np.array(flags, dtype)
    batch, rows = Batch(8), np.zeros((len(flags), 4), np.float32)
    with pytest.raises(ArgumentError, match=r"flags of 0 and 1.*mask of .* booleans"):
        batch.add(tokens, logits=logits)
    with pytest.raises(ArgumentError, match="flags of 0 and 1"):
        Batch(8, n_embd=4).add_embeddings(rows, logits=logits)
    with pytest.raises(ArgumentError, match="flags of 0 and 1"):
        Batch.from_tokens(tokens, logits=logits)
    assert len(batch) == 0
    batch.add(tokens, logits=np.asarray(logits, bool))
    assert list(batch.outputs()) == list(flags)
    batch.clear()
    batch.add(tokens, logits=[flag == 1 for flag in flags])
    assert list(batch.outputs()) == list(flags)
    batch.clear()
    batch.add(tokens, logits=np.flatnonzero(logits))
    assert list(batch.outputs()) == list(flags)


@pytest.mark.parametrize(
    ("logits", "outputs"),
    [
        ([0, 1], [1, 1]),
        (np.int8([1]), [0, 1]),
        (range(1), [1, 0]),
        ([-1, 0], [1, 1]),
        ([-1], [0, 1]),
        ([], [0, 0]),
    ],
)
def test_indices_of_outputs(logits, outputs):
    assert list(Batch.from_tokens([5, 6], logits=logits).outputs()) == outputs


def test_flags_among_other_arguments():
    for logits in ([True, 2], [True, 1, 0], np.int8([0])):
        with pytest.raises(ArgumentError, match="flags of 0 and 1"):
            Batch.from_tokens([1, 2, 3][: 1 if len(logits) == 1 else 3], logits=logits)
    batch = Batch(8, n_seq_max=4)
    for seq_ids in ([1, 0, 1, 0], np.int8([0, 0, 1]), (2, 2)):
        with pytest.raises(ArgumentError, match=r"seq_ids has . twice.*not a mask"):
            batch.add([1], seq_ids=seq_ids)
    for seq_ids in ([True, False], np.array([True, False]), (0, True), "01", 0):
        with pytest.raises(TypeError, match="seq_ids must be"):
            batch.add([1], seq_ids=seq_ids)
    for pos in (True, np.True_, [True, False]):
        with pytest.raises(TypeError, match="pos must be"):
            batch.add([1, 2], pos=pos)
    assert len(batch) == 0


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
    "a pos below 0": (ArgumentError, {"tokens": [1, 2], "pos": [3, -1]}),
    "a pos beyond int32": (ArgumentError, {"tokens": [1], "pos": [2**31 - 1]}),
    "pos of floats": (TypeError, {"tokens": [1], "pos": [1.0]}),
    "pos a text": (TypeError, {"tokens": [1], "pos": "1"}),
    "pos None": (TypeError, {"tokens": [1], "pos": None}),
    "too few positions": (ArgumentError, {"tokens": [1, 2], "pos": [1]}),
    "sections of a token": (ArgumentError, {"tokens": [1], "pos": np.zeros((4, 1), int)}),
    "too long a mask": (ArgumentError, {"tokens": [1], "logits": [True, False]}),
    "an index of no token": (ArgumentError, {"tokens": [1, 2], "logits": [2]}),
    "logits of floats": (ArgumentError, {"tokens": [1], "logits": [0.0]}),
    "logits None": (ArgumentError, {"tokens": [1], "logits": None}),
    "embeddings without n_embd": (
        ArgumentError,
        {"tokens": [1], "embeddings": np.zeros((1, 4), np.float32)},
    ),
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
    with pytest.raises(ArgumentError, match="must be between 1 and"):
        Batch(capacity, n_seq_max)


@given(
    st.integers(-(2**31) - 1, 2**31) | st.sampled_from([0, 7, True, 2.0]),
    st.integers(-1, 2**31) | st.just(True),
    st.sampled_from([(0,), [1], (3,), (-1,), (0, 1), (), (True,), range(1, 2), np.array([1])]),
    logits,
)
@example(7, 0, (0,), "last")
@example(7, 2**31 - 1, (0,), "last")
@example(7, 2**31 - 2, [1], "last")
def test_one_token_of_a_list_is_as_one_of_an_array(token, pos, seq_ids, flags):
    """The first is what users write in loops, and has a shorter way."""
    results = []
    for first in (None, token):  # with a token before it, the arrays are used
        batch = Batch(3, 2)
        if first is not None:
            batch.add([1])
        try:
            added = batch.add([token], pos, seq_ids, flags)
        except (ArgumentError, TypeError) as error:
            results.append((type(error), str(error)))
            assert len(batch) == (first is not None)
        else:
            results.append((len(added), as_c_sees(batch)[-1], batch.outputs()[-1:]))
    assert results[0] == results[1]


def test_set_one_is_clear_and_add():
    one, two = Batch(4, n_seq_max=2), Batch(4, n_seq_max=2)
    for batch in (one, two):
        batch.add([1, 2, 3], pos=5, seq_ids=(0, 1), logits="none")
    one.set_one(9, 8, 1)
    two.clear()
    two.add([9], pos=8, seq_ids=(1,))
    assert as_c_sees(one) == as_c_sees(two) == [(9, 8, [1], True)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((1, -1), ArgumentError),
        ((1, 0, -1), ArgumentError),
        ((2**31, 0), ArgumentError),
        ((1, 2**31), ArgumentError),
        ((1, 0, 2**31), ArgumentError),
        ((1.5, 0), TypeError),
        ((1, None), TypeError),
    ],
)
def test_set_one_refuses(context, arguments, error):
    batch = Batch.from_tokens([7, 8])
    with pytest.raises(error):
        batch.set_one(*arguments)
    batch.clear()
    batch.set_one(7, 0)
    context.decode(batch)
    assert context.memory.pos_max() == 0


@pytest.mark.parametrize("token", [-1, 514, 2**31 - 1])
def test_set_one_is_checked_as_others(context, token):
    batch = Batch(1)
    for wrong in (token, 7, token):
        batch.set_one(wrong, context.memory.next_pos())
        if wrong == 7:
            context.decode(batch)
        else:
            with pytest.raises(
                ArgumentError, match=f"the token at index 0 must be between 0 and 513, not {token}"
            ):
                context.decode(batch)
    batch.set_one(7, 1, seq_id=1)
    with pytest.raises(ArgumentError, match="seq_id must be between 0 and 0, not 1"):
        context.decode(batch)


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
    with pytest.raises(ArgumentError, match="the token at index 1 must be between 0 and 4, not 5"):
        batch.check(n_vocab=5, n_seq_max=4)
    with pytest.raises(ArgumentError, match="seq_id must be between 0 and 2, not 3"):
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
