"""Sequence memory behaves like a dict of sets of positions."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llamacffi import ArgumentError, Batch, Context, UnsupportedError
from tests.facade.oracle import close_to, logits_after

N_SEQ, N_CTX = 4, 256
seq_ids = st.integers(0, N_SEQ - 1)
ends = st.one_of(st.none(), st.integers(0, 12))


def within(p0, p1):
    """Return the test for a range with open ends."""
    return lambda pos: (p0 is None or p0 <= pos) and (p1 is None or pos < p1)


class MemoryMachine(RuleBasedStateMachine):
    """Does the same to a context and to a dict, and compares."""

    model = None

    def __init__(self):
        super().__init__()
        self.context = Context(
            self.model, n_ctx=N_CTX, n_threads=1, n_seq_max=N_SEQ, kv_unified=True
        )
        self.expected = {seq_id: set() for seq_id in range(N_SEQ)}
        self.added = 0

    @precondition(lambda self: self.added < N_CTX - 4)
    @rule(seq_id=seq_ids, tokens=st.lists(st.integers(0, 513), min_size=1, max_size=4))
    def decode(self, seq_id, tokens):
        start = max(self.expected[seq_id], default=-1) + 1
        batch = Batch(4)
        batch.add(tokens, pos=start, seq_ids=(seq_id,))
        self.context.decode(batch)
        self.expected[seq_id] |= set(range(start, start + len(tokens)))
        self.added += len(tokens)
        assert self.context.logits() == close_to(logits_after(tokens)[-1])

    @rule(seq_id=seq_ids, p0=ends, p1=ends)
    def remove(self, seq_id, p0, p1):
        assert self.context.memory.remove(seq_id, p0, p1) is True
        gone = set(filter(within(p0, p1), self.expected[seq_id]))
        self.expected[seq_id] -= gone

    @rule(p0=ends, p1=ends)
    def remove_everywhere(self, p0, p1):
        assert self.context.memory.remove(p0=p0, p1=p1) is True
        for positions in self.expected.values():
            positions -= set(filter(within(p0, p1), positions))

    @rule(source=seq_ids, to=seq_ids, p0=ends, p1=ends)
    def copy(self, source, to, p0, p1):
        self.context.memory.copy(source, to, p0, p1)
        self.expected[to] |= set(filter(within(p0, p1), self.expected[source]))

    @rule(data=st.booleans())
    def clear(self, data):
        self.context.memory.clear(data=data)
        self.expected = {seq_id: set() for seq_id in range(N_SEQ)}
        self.added = 0

    @invariant()
    def ends_agree(self):
        for seq_id, positions in self.expected.items():
            assert self.context.memory.pos_min(seq_id) == min(positions, default=None)
            assert self.context.memory.pos_max(seq_id) == max(positions, default=None)

    def teardown(self):
        self.context.close()


def test_memory_is_a_dict_of_sets(model):
    machine = type("Machine", (MemoryMachine,), {"model": model})
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        machine, settings=settings(max_examples=25, stateful_step_count=25, deadline=None)
    )


def test_a_part_is_not_copied_between_buffers(new_context):
    context = new_context(n_ctx=1024, n_seq_max=2, kv_unified=False)
    batch = Batch(4)
    batch.add([1, 2, 3, 4])
    context.decode(batch)
    for part in ((1, None), (None, 3), (0, 2), (2, 3)):
        with pytest.raises(UnsupportedError, match="kv_unified=True"):
            context.memory.copy(0, 1, *part)
    assert context.memory.pos_max(1) is None
    context.memory.copy(0, 1)
    assert context.memory.pos_max(1) == 3
    context.memory.copy(1, 1, 1, 2)


@pytest.mark.parametrize("seq_id", [-2, 1, 4, 999, 2**31, 2**70])
def test_sequences_out_of_range(context, seq_id):
    memory = context.memory
    for use in (
        lambda: memory.remove(seq_id),
        lambda: memory.copy(seq_id, 0),
        lambda: memory.copy(0, seq_id),
        lambda: memory.pos_min(seq_id),
        lambda: memory.pos_max(seq_id),
    ):
        with pytest.raises(ArgumentError, match=f"seq_id {seq_id} is not in 0 to 0"):
            use()


@pytest.mark.parametrize("p", [-1, -5, 2**31])
def test_positions_out_of_range(context, p):
    for use in (
        lambda: context.memory.remove(0, p),
        lambda: context.memory.remove(0, None, p),
        lambda: context.memory.copy(0, 0, p, 1),
    ):
        with pytest.raises(ArgumentError, match=f"p.={p} is not a position"):
            use()
