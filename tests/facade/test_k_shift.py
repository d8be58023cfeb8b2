"""Keys are turned to other positions, or it is refused: for each type that a cache can have."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llamacffi import Batch, Context, ContextShift, Gguf, Model, UnsupportedError, generate

TOKENS = [5, 9, 2, 7, 11, 3, 8, 6]

# Prints for each type whether its keys can be moved, and how far what comes then is from the truth.
EACH_TYPE = """
import json, sys
import numpy as np
from llamacffi import *
from llamacffi import enums

TOKENS = [5, 9, 2, 7, 11, 3, 8, 6]
model = Model(sys.argv[1], n_gpu_layers=0)
n_threads = int(sys.argv[2])

def new(type_k):
    threads = {"n_threads": n_threads, "n_threads_batch": n_threads}
    return Context(model, n_ctx=64, type_k=type_k, flash_attn_type="disabled", **threads)

def feed(context, tokens, pos):
    context.decode(Batch.from_tokens(tokens, pos=pos))
    return context.logits()

found = {}
for type_k in enums.GgmlType:
    if n_threads > 1 and type_k.name not in ("BF16", "F16", "Q8_0", "IQ4_NL"):
        continue  # the others are of no other kind
    try:
        context, other = new(type_k), new(type_k)
    except LlamaError:
        continue
    feed(context, TOKENS, 0)
    feed(other, TOKENS, 9)
    expected = feed(other, [4], 17)
    uses = [
        lambda: context.memory.shift(0, 9),
        lambda: context.memory.cut(0, 0, 1),
        lambda: context.memory.divide(0, 2),
        lambda: list(generate(context, [4] * 60, max_tokens=9, overflow=ContextShift())),
    ]
    if context.memory.can_shift:
        uses[0]()
        got = feed(context, [4], 17)
        error = float(((got - expected) ** 2).sum() / (expected**2).sum())
        for use in uses[1:3]:
            use()
            feed(context, [4], context.memory.next_pos())
    else:
        error = None
        for use in uses:
            try:
                use()
            except UnsupportedError as reason:
                assert type_k.name.lower() in str(reason).lower(), reason
            else:
                raise SystemExit(f"{type_k!r} is moved")
        assert context.memory.pos_max() == 7
        feed(context, [4], 8)
    found[type_k.name] = error
print(json.dumps(found))
"""


@pytest.mark.parametrize("n_threads", [1, 2])
def test_each_type_is_rotated_correctly_or_refused(random_path, run_python, n_threads):
    done = run_python(EACH_TYPE, random_path("llama"), n_threads)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"F16", "BF16", "Q8_0"} <= found.keys()
    assert found["BF16"] is None  # the processor has no code for it
    errors = {name: error for name, error in found.items() if error is not None}
    # The heads of this model are too narrow for quantized keys, which are turned while mixed.
    limits = {"F32": 1e-9, "F16": 1e-5} if n_threads == 1 else {"F16": 1e-5}
    assert errors.keys() == limits.keys()
    assert {name for name, error in errors.items() if not error < limits[name]} == set()


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_scaling_type": "yarn", "rope_freq_scale": 0.25},
        {"rope_scaling_type": "yarn", "yarn_ext_factor": 0.0, "yarn_attn_factor": 1.2},
    ],
)
def test_keys_are_not_scaled_by_being_turned(random_context, scaling):
    """With YaRN, llama.cpp makes keys larger each time that it turns them."""
    context = random_context("llama", **scaling)
    context.decode(Batch.from_tokens(TOKENS))
    assert not context.memory.can_shift
    with pytest.raises(UnsupportedError, match="YaRN"):
        context.memory.shift(0, 3)
    with pytest.raises(UnsupportedError, match=r"YaRN.*raise n_ctx"):
        list(generate(context, [4], overflow=ContextShift()))
    context.decode(Batch.from_tokens([4], pos=8))


def logits_at_13(context, shift):
    """Return the logits of tokens up to there, of which all but the last may have been moved."""
    context.decode(Batch.from_tokens(TOKENS, pos=5 - shift))
    if shift:
        context.memory.shift(0, shift)
    context.decode(Batch.from_tokens([4], pos=13))
    return context.logits()


@pytest.mark.parametrize("kind", ["llama", "lfm2"])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_what_was_moved_is_as_if_it_had_been_there(random_context, kind, scale):
    """With linear scaling too; and the state of a hybrid says nothing of the other layers."""
    exact = {"type_k": "f32", "flash_attn_type": "disabled"}
    contexts = [random_context(kind, rope_freq_scale=scale, **exact) for _ in range(2)]
    moved, there = (logits_at_13(*one) for one in zip(contexts, (5, 0), strict=True))
    assert np.allclose(moved, there, atol=1e-5)
    other = logits_at_13(random_context(kind, rope_freq_scale=scale / 2, **exact), 0)
    assert np.abs(other - there).max() > 1e-2  # the positions matter


def test_learned_positions_stay(random_context):
    """The keys of such models depend on where they were computed, and cannot be turned."""
    context = random_context("gpt2", n_ctx=64)
    context.decode(Batch.from_tokens(TOKENS))
    assert not context.memory.can_shift
    overflow = ContextShift()
    for move in (
        lambda: context.memory.shift(0, 9),
        lambda: context.memory.cut(0, 0, 1),
        lambda: context.memory.divide(0, 2),
        lambda: list(generate(context, [4] * 60, max_tokens=9, overflow=overflow)),
    ):
        with pytest.raises(UnsupportedError, match="the model has learned positions"):
            move()
    assert context.memory.pos_max() == 7


def test_a_cache_without_keys_to_turn_is_no_end_of_the_context(random_path):
    """Where all layers have a sliding window, the cache of the others is there, and empty."""
    with Gguf.open(random_path("mimo2")) as gguf:
        gguf.set("mimo2.attention.sliding_window_pattern", [True, True, True], type="bool")
        with Model.from_gguf(gguf, n_gpu_layers=0) as model, Context(model, n_ctx=64) as context:
            context.decode(Batch.from_tokens(TOKENS))
            assert not context.memory.can_shift
            with pytest.raises(UnsupportedError, match="sliding window"):
                context.memory.cut(0, 1, 3)
            context.decode(Batch.from_tokens([4], pos=8))
