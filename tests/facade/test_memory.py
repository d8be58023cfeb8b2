"""Sequence memory behaves like a dict of sets of tokens with positions."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from llamacffi import ArgumentError, Batch, Context, UnsupportedError
from llamacffi.context.handle import bookkeeping_of
from tests.facade.oracle import close_to, logits_after

N_SEQ, N_CTX = 4, 256
seq_ids = st.integers(0, N_SEQ - 1)
ends = st.one_of(st.none(), st.integers(0, 12))


def within(p0, p1):
    """Return the test for a range with open ends."""
    return lambda pos: (p0 is None or p0 <= pos) and (p1 is None or pos < p1)


def part(found, inside):
    """Return the tokens whose positions are in a range."""
    return {one for one in found if inside(one[0])}


class MemoryMachine(RuleBasedStateMachine):
    """Applies the same operations to a context and a dict, and compares them."""

    model = None

    def __init__(self):
        super().__init__()
        self.context = Context(
            self.model, n_ctx=N_CTX, n_threads=1, n_seq_max=N_SEQ, kv_unified=True
        )
        self.memory = self.context.memory
        self.expected = {seq_id: set() for seq_id in range(N_SEQ)}
        self.related = set()  # pairs of sequences that share or have shared tokens
        self.added = 0

    @precondition(lambda self: self.added < N_CTX - 8)
    @rule(
        seq_id=seq_ids,
        other=seq_ids,
        tokens=st.lists(st.integers(0, 513), min_size=1, max_size=4),
    )
    def decode(self, seq_id, other, tokens):
        start = max(self.positions(seq_id), default=-1) + 1
        both = {seq_id, other} if self.expected[seq_id] == self.expected[other] else {seq_id}
        batch = Batch(4, n_seq_max=2)
        batch.add(tokens, pos=start, seq_ids=both)
        self.context.decode(batch)
        for one in both:
            self.expected[one] |= set(enumerate(tokens, start))
        self.related |= both if len(both) > 1 else set()
        self.added += len(tokens)
        assert self.context.logits() == close_to(logits_after(tokens)[-1])

    @rule(seq_id=seq_ids, p0=ends, p1=ends)
    def remove(self, seq_id, p0, p1):
        assert self.memory.remove(seq_id, p0, p1) is True
        self.expected[seq_id] -= part(self.expected[seq_id], within(p0, p1))

    @rule(p0=ends, p1=ends)
    def remove_everywhere(self, p0, p1):
        assert self.memory.remove(p0=p0, p1=p1) is True
        for found in self.expected.values():
            found -= part(found, within(p0, p1))

    @rule(source=seq_ids, to=seq_ids, p0=ends, p1=ends)
    def copy(self, source, to, p0, p1):
        self.memory.copy(source, to, p0, p1)
        self.expected[to] |= part(self.expected[source], within(p0, p1))
        self.related |= {source, to}

    @rule(source=seq_ids, to=seq_ids)
    def fork(self, source, to):
        self.memory.fork(source, to)
        self.expected[to] = set(self.expected[source])
        self.related |= {source, to}

    @rule(seq_id=seq_ids)
    def keep(self, seq_id):
        self.memory.keep(seq_id)
        self.expected = {
            one: self.expected[one] if one == seq_id else set() for one in range(N_SEQ)
        }

    def succeeds(self, seq_id, use):
        """Move tokens, unless other sequences may have them too; say which."""
        try:
            use()
        except UnsupportedError as error:
            return "may share tokens" not in str(error) or seq_id not in self.related
        return True

    @rule(seq_id=seq_ids, delta=st.integers(-12, 12), p0=ends, p1=ends)
    def shift(self, seq_id, delta, p0, p1):
        found, inside = self.expected[seq_id], within(p0, p1)
        there = self.positions(seq_id)
        span = range(max(p0 or 0, min(there)), max(there) + 1) if found else ()
        if any(map(inside, span)) and span[0] + delta < 0:
            with pytest.raises((ArgumentError, UnsupportedError)):
                self.memory.shift(seq_id, delta, p0, p1)
        elif self.succeeds(seq_id, lambda: self.memory.shift(seq_id, delta, p0, p1)):
            self.expected[seq_id] = {(pos + delta * inside(pos), token) for pos, token in found}

    @rule(seq_id=seq_ids, d=st.integers(1, 3), p0=ends, p1=ends)
    def divide(self, seq_id, d, p0, p1):
        found, inside = self.expected[seq_id], within(p0, p1)
        if self.succeeds(seq_id, lambda: self.memory.divide(seq_id, d, p0, p1)):
            self.expected[seq_id] = {
                (pos // d if inside(pos) else pos, token) for pos, token in found
            }

    @rule(seq_id=seq_ids, p0=st.integers(0, 8), n=st.integers(0, 6))
    def cut(self, seq_id, p0, n):
        found = self.expected[seq_id]
        if self.succeeds(seq_id, lambda: self.memory.cut(seq_id, p0, p0 + n)):
            after = {(pos - n, token) for pos, token in found if pos >= p0 + n}
            self.expected[seq_id] = part(found, within(None, p0)) | after

    @rule(data=st.booleans())
    def clear(self, data):
        self.memory.clear(data=data)
        self.expected = {seq_id: set() for seq_id in range(N_SEQ)}
        self.related = set()
        self.added = 0

    @invariant()
    def ends_agree(self):
        for seq_id in self.expected:
            positions = self.positions(seq_id)
            assert self.memory.pos_min(seq_id) == min(positions, default=None)
            assert self.memory.pos_max(seq_id) == max(positions, default=None)
            assert self.memory.next_pos(seq_id) == max(positions, default=-1) + 1

    @invariant()
    def tokens_are_known(self):
        for seq_id, found in self.expected.items():
            known = bookkeeping_of(self.context).tokens
            assert known.before(seq_id, N_CTX) == [token for _pos, token in sorted(found)]

    def positions(self, seq_id):
        return {pos for pos, _token in self.expected[seq_id]}

    def teardown(self):
        self.context.close()


def test_memory_is_a_dict_of_sets(model):
    machine = type("Machine", (MemoryMachine,), {"model": model})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=30, stateful_step_count=25, deadline=None)
    )


def decoded(context, tokens=(1, 2, 3, 4), seq_ids=(0,)):
    context.decode(Batch.from_tokens(tokens, seq_ids=seq_ids))
    return context.memory


def test_a_part_is_not_copied_between_buffers(new_context):
    context = new_context(n_ctx=1024, n_seq_max=2, kv_unified=False)
    memory = decoded(context)
    for part in ((1, None), (None, 3), (0, 2), (2, 3)):
        with pytest.raises(UnsupportedError, match="kv_unified=True"):
            memory.copy(0, 1, *part)
    assert memory.pos_max(1) is None
    memory.copy(0, 1, 0, 4)  # that is the whole sequence
    assert memory.pos_max(1) == 3
    memory.copy(1, 1, 1, 2)


@pytest.mark.parametrize("kv_unified", [True, False])
def test_keeping_one_sequence(new_context, kv_unified):
    context = new_context(n_ctx=1024, n_seq_max=3, kv_unified=kv_unified)
    for seq_id in range(3):
        memory = decoded(context, seq_ids=(seq_id,))
    memory.keep(1)
    assert [memory.pos_max(seq_id) for seq_id in range(3)] == [None, 3, None]


@pytest.mark.parametrize("kv_unified", [True, False])
def test_a_fork_replaces_what_was_there(new_context, kv_unified):
    context = new_context(n_ctx=1024, n_seq_max=2, kv_unified=kv_unified)
    decoded(context, [5, 6], (0,))
    memory = decoded(context, range(1, 9), (1,))
    memory.fork(0, 1)
    memory.fork(0, 0)
    assert (memory.pos_max(0), memory.pos_max(1)) == (1, 1)
    context.decode(Batch.from_tokens([7], pos=2, seq_ids=(1,)))
    assert (memory.pos_max(0), memory.pos_max(1)) == (1, 2)
    memory.fork(0, 1)
    assert memory.remove(0)
    memory.fork(0, 1)  # of nothing
    assert (memory.pos_max(0), memory.pos_max(1)) == (None, None)


def test_shared_tokens_are_not_moved(new_context):
    """They have one position for all sequences, so llama.cpp would move them in the others too."""
    context = new_context(n_seq_max=3, kv_unified=True)
    memory = decoded(context)
    memory.fork(0, 1)
    context.decode(Batch.from_tokens([5, 6, 7], pos=4))
    for use in (
        lambda: memory.shift(0, 1),
        lambda: memory.shift(0, 5, 3),
        lambda: memory.divide(0, 2),
        lambda: memory.cut(0, 1, 3),
    ):
        with pytest.raises(UnsupportedError, match="sequence 0 may share tokens at positions"):
            use()
        assert (memory.pos_max(0), memory.pos_max(1)) == (6, 3)
    memory.cut(0, 2, 5)  # only its own tokens come after
    assert (memory.pos_max(0), memory.pos_max(1)) == (3, 3)
    assert memory.remove(1)
    memory.shift(0, 3)
    assert (memory.pos_min(0), memory.pos_max(0)) == (3, 6)


def test_tokens_of_a_batch_that_has_them_in_two_sequences_are_not_moved(new_context):
    context = new_context(n_seq_max=2, kv_unified=True)
    batch = Batch(4, n_seq_max=2)
    batch.add([1, 2, 3], seq_ids=(0, 1))
    context.decode(batch)
    with pytest.raises(UnsupportedError, match="may share"):
        context.memory.shift(1, 2)
    context.memory.keep(1)
    context.memory.shift(1, 2)
    assert context.memory.pos_min(1) == 2


def test_nothing_happens_to_an_empty_sequence(new_context):
    context = new_context(n_seq_max=2, kv_unified=True)
    memory = context.memory
    assert memory.remove()
    assert memory.remove(1, 3, 5)
    memory.copy(0, 1)
    memory.fork(1, 0)
    memory.keep(1)
    memory.shift(0, -5)
    memory.divide(1, 3)
    memory.cut(0, 2, 4)
    memory.clear()
    assert memory.pos_min(0) is memory.pos_max(1) is None
    assert memory.next_pos(1) == 0
    assert memory.can_shift


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda memory: memory.shift(0, -3), "positions 2 to 5 cannot be moved by -3"),
        (lambda memory: memory.shift(0, -6, 5), "positions 5 to 5 cannot be moved by -6"),
        (lambda memory: memory.shift(0, 2**31 - 6), "positions 2 to 5 cannot be moved"),
        (lambda memory: memory.shift(0, 2**70), "cannot be moved"),
        (lambda memory: memory.divide(0, 0), "d must be at least 1, not 0"),
        (lambda memory: memory.divide(0, -2), "d must be at least 1, not -2"),
    ],
)
def test_moves_out_of_range(context, use, message):
    memory = decoded(context)
    memory.shift(0, 2)
    with pytest.raises(ArgumentError, match=message):
        use(memory)
    assert (memory.pos_min(), memory.pos_max()) == (2, 5)


def test_a_range_with_a_hole_larger_than_the_context_is_not_divided(context):
    memory = decoded(context)
    memory.shift(0, 10**9, 2)
    with pytest.raises(ArgumentError, match="more than n_ctx"):
        memory.divide(0, 2)
    memory.divide(0, 10**9, 10**9)
    assert memory.pos_max() == 1


@pytest.mark.parametrize("seq_id", [-2, 1, 4, 999, 2**31, 2**70])
def test_sequences_out_of_range(context, seq_id):
    memory = context.memory
    for use in (
        lambda: memory.remove(seq_id),
        lambda: memory.copy(seq_id, 0),
        lambda: memory.copy(0, seq_id),
        lambda: memory.fork(seq_id, 0),
        lambda: memory.fork(0, seq_id),
        lambda: memory.keep(seq_id),
        lambda: memory.shift(seq_id, 1),
        lambda: memory.divide(seq_id, 2),
        lambda: memory.cut(seq_id, 0, 1),
        lambda: memory.pos_min(seq_id),
        lambda: memory.pos_max(seq_id),
        lambda: memory.next_pos(seq_id),
    ):
        with pytest.raises(ArgumentError, match=f"must be 0, not {seq_id}"):
            use()


@pytest.mark.parametrize("p", [-1, -5, 2**31])
def test_positions_out_of_range(context, p):
    for use in (
        lambda: context.memory.remove(0, p),
        lambda: context.memory.remove(0, None, p),
        lambda: context.memory.copy(0, 0, p, 1),
        lambda: context.memory.shift(0, 1, p),
        lambda: context.memory.cut(0, p, 3),
    ):
        with pytest.raises(ArgumentError, match=f"p. must be between 0 and .*, not {p}, or None"):
            use()


@pytest.mark.parametrize("value", [1.5, "1", None])
def test_values_that_are_not_integers(context, value):
    for use in (context.memory.keep, context.memory.pos_max, lambda d: context.memory.shift(0, d)):
        with pytest.raises(TypeError):
            use(value)
