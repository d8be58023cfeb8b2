"""States that somebody has changed, with a right checksum: refused, or taken, and no more."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from llamacffi import ArgumentError, Batch, Context, Gguf, Model, StateError, quantize
from llamacffi.context import state_format as form

NUMBERS = (0, 1, 2, 3, 4, 5, -1, -2, 127, 128, 255, 256, 65535, 2**31 - 1, -(2**31), 2**24)
VALUES = (
    *(None, 1, -1, 1.5, True, "x", [], {}, [1], [[1, 2]], [["ab", "x"]], [["ab", 1.0]], [[]]),
    *({"0": 3}, {"0": 3.5}, {"-1": 2}, {"a": 1}, {"0": 2**40}, {"5": 1}, {"0": 1, "1": 1}),
    *(float("nan"), {"x": {}}, {"layout": 1, "samples": "%"}),
)


def split(state: bytes) -> tuple[bytearray, bytearray, bytearray]:
    """Return the identity of a state, its tokens and what is llama.cpp's."""
    _magic, _version, _checksum, n_identity, n_tokens, _n = form.HEADER.unpack_from(state)
    start = form.HEADER.size + n_identity
    rest = start + 4 * n_tokens
    return (
        bytearray(state[form.HEADER.size : start]),
        bytearray(state[start:rest]),
        bytearray(state[rest:]),
    )


def joined(identity: bytes, tokens: bytes, data: bytes) -> bytes:
    """Return a state of these parts, with the sizes and the checksum that they have."""
    sizes = len(identity), len(tokens) // 4, len(data)
    state = bytearray(form.HEADER.pack(form.MAGIC, form.VERSION, 0, *sizes))
    state += identity + tokens + data
    checksum = form.zlib.crc32(state[form.CHECKED_FROM :])
    form.HEADER.pack_into(state, 0, form.MAGIC, form.VERSION, checksum, *sizes)
    return bytes(state)


def damage(data: bytearray, chance: random.Random) -> bytearray:
    """Change a few numbers or bits of llama.cpp's data, or its length; most near the beginning."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        end = min(len(data), 200) if chance.random() < 0.7 else len(data)
        at = chance.randrange(max(end - 4, 1))
        kind = chance.random()
        if kind < 0.6:
            struct.pack_into("<i", data, at // 4 * 4, chance.choice(NUMBERS))
        elif kind < 0.8:
            data[at] ^= 1 << chance.randrange(8)
        else:
            size = max(8, len(data) + chance.choice((-1, -4, -chance.randrange(len(data)), 4, 99)))
            data = data[:size] + bytes(max(0, size - len(data)))
    return data


def mutated(state: bytes, chance: random.Random) -> bytes:
    """Return a state that is not what was saved, with a right checksum."""
    identity, tokens, data = split(state)
    if chance.random() < 0.15:
        said = json.loads(identity)
        said[chance.choice(list(said))] = chance.choice(VALUES)
        return joined(json.dumps(said).encode(), tokens, data)
    return joined(identity, tokens, damage(data, chance))


def feed(context: Context, tokens: list[int], seq_id: int) -> None:
    batch = Batch(len(tokens))
    batch.add(tokens, pos=context.memory.next_pos(seq_id), seq_ids=(seq_id,))
    context.decode(batch)


def fill(context: Context) -> bytes:
    """Make a memory that has something to lose; return its state."""
    context.memory.clear()
    feed(context, [9, 9, 8], 0)
    feed(context, [2, 2, 1, 4, 5], 2)
    return context.save_state()


KINDS = {
    "llama": {"kv_unified": True},
    "llama+shallow": {},
    "mimo2": {"kv_unified": True, "swa_full": False},
    "lfm2": {"kv_unified": True},
    "mamba": {},
}


@pytest.fixture(params=KINDS)
def two(random_context, request) -> Iterator[tuple[Context, Context]]:
    """Two contexts of a kind of memory; the first has something in it."""
    options = {"n_ctx": 64, "n_seq_max": 3, **KINDS[request.param]}
    contexts = random_context(request.param, **options), random_context(request.param, **options)
    feed(contexts[0], [3, 4, 5, 6], 0)
    feed(contexts[0], [7, 8], 1)
    return contexts


class Trials:
    """Loads one thing after another into a context."""

    def __init__(self, context: Context) -> None:
        self._context, self._before = context, fill(context)
        self.n_refused = self.n_taken = 0

    def load(self, load: Callable[[], object]) -> None:
        """Load something, which changes nothing if it is refused, and else can be used."""
        context = self._context
        try:
            load()
        except (StateError, ArgumentError):
            assert context.save_state() == self._before
            self.n_refused += 1
            return
        self.n_taken += 1
        for seq_id in range(3):
            if context.memory.pos_max(seq_id) is not None:
                feed(context, [5], seq_id)
        context.memory.remove(1)
        context.save_state()
        self._before = fill(context)


def test_a_state_with_a_right_checksum_changes_nothing_if_it_is_refused(two, tmp_path):
    chance, (saved, context) = random.Random(7), two
    states = {seq_id: saved.save_state(seq_id=seq_id) for seq_id in (None, 0, 1)}
    part = saved.save_state(seq_id=0, partial=True)
    trials, path = Trials(context), tmp_path / "state"
    for i in range(250):
        seq_id = chance.choice((None, 0, 1))
        state = mutated(part if seq_id == 0 and i % 2 else states[seq_id], chance)
        target = None if seq_id is None else chance.randrange(3)
        if i % 4:
            trials.load(partial(context.load_state, state, seq_id=target))
        else:
            path.write_bytes(state)
            trials.load(partial(context.load_file, path, seq_id=target))
    assert min(trials.n_refused, trials.n_taken) >= 50


def test_a_plain_file_changes_nothing_if_it_is_refused(two, tmp_path):
    chance, (saved, context) = random.Random(8), two
    path, trials = tmp_path / "plain", Trials(context)
    files = {}
    for seq_id in (None, 0):
        saved.save_file(path, [3, 4, 5, 6], seq_id=seq_id, plain=True)
        files[seq_id] = path.read_bytes()
    for _ in range(100):
        seq_id = chance.choice((None, 0))
        path.write_bytes(damage(bytearray(files[seq_id]), chance))
        target = None if seq_id is None else chance.randrange(3)
        trials.load(partial(context.load_file, path, seq_id=target))
    assert min(trials.n_refused, trials.n_taken) >= 20


def test_an_identity_nested_without_end_is_a_state_error(two):
    _identity, tokens, data = split(two[0].save_state())
    with pytest.raises(StateError, match="its description is not valid"):
        two[1].load_state(joined(b"[" * 200_000, tokens, data))


def test_shared_tokens_are_there_again_where_there_is_no_room_for_two(random_context):
    """Two sequences fill the memory together; it could not hold both apart."""
    options = {"n_ctx": 256, "n_batch": 256, "n_seq_max": 2, "kv_unified": True}
    context = random_context("llama", **options)
    feed(context, [3] * 250, 0)
    context.memory.fork(0, 1)
    identity, tokens, data = split(context.save_state(seq_id=0))
    data[4:8] = struct.pack("<i", 300)
    with pytest.raises(StateError) as refused:
        context.load_state(joined(identity, tokens, data), seq_id=1)
    assert "lost" not in str(refused.value)
    assert (context.memory.pos_max(0), context.memory.pos_max(1)) == (249, 249)


@pytest.mark.parametrize("ftype", ["Q4_0", "Q8_0", "Q4_K_M"])
def test_a_state_does_not_depend_on_where_the_weights_are(random_path, tmp_path, ftype):
    """Repacked weights are in other buffers, in another order, and cannot be read."""
    path = tmp_path / "quantized.gguf"
    quantize(random_path("llama"), path, ftype)
    states = []
    for repacked in (True, False, True):
        with (
            Model(path, n_gpu_layers=0, use_extra_bufts=repacked) as model,
            Context(model, n_ctx=64) as context,
        ):
            for state in states:
                context.load_state(state)
            context.memory.clear()
            context.decode(Batch.from_tokens([1, 5, 9]))
            states.append(context.save_state())


def test_other_weights_of_the_same_shapes_are_told_apart(random_path, tmp_path):
    path = tmp_path / "other.gguf"
    with Gguf.open(random_path("llama")) as gguf:
        arrays = {name: tensor.data.copy() for name, tensor in gguf.tensors.items()}
        arrays["blk.1.ffn_up.weight"][...] *= 1.5
        metadata = dict(gguf)
    with Gguf.new() as made:
        made.update(metadata)
        for name, array in arrays.items():
            made.add_tensor(name, array)
        made.write(path)
    with (
        Model(random_path("llama")) as one,
        Model(path) as two,
        Context(one, n_ctx=64) as saved,
        Context(two, n_ctx=64) as context,
    ):
        saved.decode(Batch.from_tokens([1, 5, 9]))
        with pytest.raises(StateError, match="another model"):
            context.load_state(saved.save_state())


def test_contexts_of_other_buffers_are_named_in_words(random_context):
    saved = random_context("llama", n_seq_max=4, kv_unified=True)
    feed(saved, [3, 4], 0)
    apart = random_context("llama", n_seq_max=4)
    with pytest.raises(StateError, match=r"one buffer for all sequences.*each of 4 seq"):
        apart.load_state(saved.save_state(seq_id=0), seq_id=0)
