"""Control vectors: the same as a bias of the layers, and the base model comes back unchanged."""

from __future__ import annotations

import numpy as np
import pytest

from llamacffi import (
    AdapterError,
    ArgumentError,
    Batch,
    ClosedError,
    Context,
    ControlVector,
    Gguf,
    LoadError,
    Model,
    ModelNotFoundError,
    demo,
)
from tests.facade import loras, oracle
from tests.facade.random_models import N_EMBD

N_LAYER = 4
TOKENS = [(7 * i) % 90 + 3 for i in range(12)]
# Sums in single precision, so that their order does not matter.
EXACT = {"n_ctx": 64, "n_threads": 1, "type_k": "f32", "type_v": "f32", "flash_attn_type": 0}


def anew(context, tokens=TOKENS):
    context.memory.clear()
    batch = Batch(64)
    batch.add(tokens)
    context.decode(batch)
    return context.logits()


@pytest.fixture(scope="module")
def deep_path(random_path, tmp_path_factory):
    """A llama of four layers."""
    path = tmp_path_factory.mktemp("deep") / "deep.gguf"
    with Gguf.open(random_path("llama")) as model:
        for name, tensor in list(model.tensors.items()):
            if name.startswith("blk."):
                again = name.replace("blk.0", "blk.2").replace("blk.1", "blk.3")
                model.add_tensor(again, tensor.dequantize()[::-1] * 0.9)
        model["llama.block_count"] = N_LAYER
        model.write(path)
    return path


@pytest.fixture
def context(deep_path):
    with Model(deep_path) as model, Context(model, **EXACT) as context:
        yield context


def rows(n, seed=0, scale=2.0):
    random = np.random.default_rng(seed)
    return (scale * random.standard_normal((n, N_EMBD))).astype(np.float32)


def biased(path, target, directions):
    """Write a model whose layers have a bias."""
    with Gguf.open(path) as model:
        for layer, direction in directions.items():
            model.add_tensor(f"blk.{layer}.ffn_down.bias", direction)
        model.write(target)
    return target


@pytest.mark.parametrize(
    ("first", "n", "layers"),
    [(1, 3, [1, 2, 3]), (1, 1, [1]), (2, 2, [2, 3]), (3, 1, [3]), (2, 1, [2])],
)
def test_the_same_as_a_bias_of_the_layers(context, deep_path, tmp_path, first, n, layers):
    base = anew(context)
    array = rows(n)
    context.control_vector = ControlVector.from_array(array, first_layer=first)
    found = anew(context)
    path = biased(deep_path, tmp_path / "biased.gguf", dict(zip(layers, array, strict=True)))
    with Model(path) as other, Context(other, **EXACT) as expected:
        assert np.allclose(found, anew(expected), atol=1e-3)
    assert np.abs(found - base).max() > 0.1


def test_the_oracle_with_a_second_layer(demo_path, tmp_path):
    """The residual stream is known, and so are the logits: the output of its normalised sum."""
    with Gguf.open(demo_path) as model:
        for name, tensor in list(model.tensors.items()):
            if name.startswith("blk.0."):
                model.add_tensor(name.replace("blk.0.", "blk.1."), tensor.dequantize())
        model["llama.block_count"] = 2
        embedding = model.tensors["token_embd.weight"].dequantize()
        norm = model.tensors["output_norm.weight"].dequantize()
        output = model.tensors["output.weight"].dequantize()
        model.write(tmp_path / "two.gguf")
    token = oracle.token(" llama")
    with Model(tmp_path / "two.gguf") as model, Context(model, n_ctx=64, n_threads=1) as context:
        assert anew(context, [token]) == oracle.close_to(oracle.logits_after([token])[0])
        direction = np.random.default_rng(1).standard_normal((1, model.n_embd))
        context.control_vector = ControlVector.from_array(direction)
        stream = embedding[token] + direction[0]
        normal = stream / np.sqrt((stream**2).mean() + demo.EPSILON) * norm
        assert anew(context, [token]) == oracle.close_to(output @ normal)


def test_the_base_comes_back_exactly(context):
    base = anew(context)
    vector = ControlVector.from_array(rows(3))
    context.control_vector = vector
    assert context.control_vector is vector
    steered = anew(context)
    context.control_vector = None
    assert context.control_vector is None
    assert np.array_equal(anew(context), base)
    context.control_vector = vector * 0
    assert np.allclose(anew(context), base, atol=1e-5)
    context.control_vector = vector
    assert np.array_equal(anew(context), steered)


def test_assigning_another_vector_replaces_all_layers(context):
    """llama.cpp itself keeps rows that are not passed to it."""
    context.control_vector = ControlVector.from_array(rows(1), first_layer=2)
    expected = anew(context)
    context.control_vector = ControlVector.from_array(rows(3, 5))
    anew(context)
    context.control_vector = ControlVector.from_array(rows(1), first_layer=2)
    assert np.array_equal(anew(context), expected)


def test_arithmetic():
    one, two = rows(3, 1), rows(2, 2)
    a, b = ControlVector.from_array(one), ControlVector.from_array(two, first_layer=3)
    total = a + b
    assert total.layers == range(1, 5)
    expected = np.zeros((4, N_EMBD), np.float32)
    expected[:3] = one
    expected[2:] += two
    assert np.array_equal(total.array, expected)
    assert np.array_equal((a - a).array, np.zeros_like(one))
    assert np.array_equal((2 * a).array, 2 * one)
    assert np.array_equal((a * np.float32(0.5)).array, 0.5 * one)
    assert np.array_equal((np.float64(0.5) * a).array, 0.5 * one)
    assert np.array_equal((-a / 4).array, one / -4)
    assert np.allclose((0.8 * a - 0.2 * b).array[2], 0.8 * one[2] - 0.2 * two[0])
    assert np.array_equal(a.array, one)  # unchanged
    assert a.n_embd == N_EMBD
    assert repr(a) == f"<ControlVector for layers 1 to 3, n_embd={N_EMBD}>"


def test_some_layers_only():
    a = ControlVector.from_array(rows(3), first_layer=2)
    assert a.layers == range(2, 5)
    part = a.within(range(3, 9))
    assert part.layers == range(3, 5)
    assert np.array_equal(part.array, rows(3)[1:])
    assert a.within(range(100)).layers == a.layers
    for bad in (range(5, 9), range(2), range(3, 3)):
        with pytest.raises(ArgumentError, match="has no direction for"):
            a.within(bad)
    for bad in (3, [1, 2], None):
        with pytest.raises(TypeError, match="layers must be a range"):
            a.within(bad)
    with pytest.raises(ArgumentError, match="must be consecutive"):
        a.within(range(2, 5, 2))


def test_it_is_immutable():
    array = rows(2)
    vector = ControlVector.from_array(array)
    array[:] = 0
    assert np.array_equal(vector.array, rows(2))
    with pytest.raises(ValueError, match="read-only"):
        vector.array[0, 0] = 1
    with pytest.raises(AttributeError):
        vector.layers = range(3)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros(4), r"one row for each layer, not \(4,\)"),
        (np.zeros((2, 0)), r"one row for each layer, not \(2, 0\)"),
        (np.zeros((0, 4)), r"one row for each layer, not \(0, 4\)"),
        (np.zeros((1, 2, 3)), r"one row for each layer, not \(1, 2, 3\)"),
        ([[float("nan")]], "not a finite 32-bit number"),
        ([[float("inf")]], "not a finite 32-bit number"),
        ([[1e39]], "not a finite 32-bit number"),
    ],
)
def test_invalid_arrays(array, match):
    with pytest.raises(ArgumentError, match=match):
        ControlVector.from_array(array)


def test_other_bad_values():
    vector = ControlVector.from_array(rows(1))
    for array in ([["a"]], [[1j]], None, object()):
        with pytest.raises(TypeError, match="array must hold numbers"):
            ControlVector.from_array(array)
    for first in (0, -1, 2**31 - 1, 2**100):
        with pytest.raises(ArgumentError, match=f"first_layer must be .*, not {first}$"):
            ControlVector.from_array(rows(1), first_layer=first)
    for first in (1.0, "1", None, True):
        with pytest.raises(TypeError):
            ControlVector.from_array(rows(1), first_layer=first)
    with pytest.raises(ArgumentError, match="cannot be multiplied by nan"):
        vector * float("nan")
    with pytest.raises(ArgumentError, match="not a finite 32-bit number"):
        vector * 1e60
    with pytest.raises(ArgumentError, match="cannot be divided by 0"):
        vector / 0
    with pytest.raises(ArgumentError, match="n_embd=64 and 3"):
        vector + ControlVector.from_array([[1, 2, 3]])
    for use in (
        lambda: vector + 1,
        lambda: 1 + vector,
        lambda: vector * vector,
        lambda: vector * "2",
        lambda: vector * np.ones(3),
        lambda: np.ones(3) * vector,
        lambda: vector / None,
    ):
        with pytest.raises(TypeError):
            use()


def test_a_vector_that_does_not_fit_changes_nothing(context):
    right = ControlVector.from_array(rows(1))
    context.control_vector = right
    expected = anew(context)
    for bad in (
        ControlVector.from_array(np.ones((1, N_EMBD - 1))),
        ControlVector.from_array(np.ones((1, N_EMBD)), first_layer=N_LAYER),
        ControlVector.from_array(np.ones((N_LAYER, N_EMBD))),
        ControlVector.from_array(np.ones((1, N_EMBD)), first_layer=10**6),
    ):
        with pytest.raises(
            AdapterError, match="has n_embd=64 and takes directions for layers 1 to 3"
        ):
            context.control_vector = bad
    for bad in (rows(1), [1.0], "x", 0):
        with pytest.raises(TypeError, match="must be a ControlVector or None"):
            context.control_vector = bad
    assert context.control_vector is right
    assert np.array_equal(anew(context), expected)


def test_a_model_with_one_layer(random_context):
    with pytest.raises(AdapterError, match="does not fit"):
        random_context("llama+shallow").control_vector = ControlVector.from_array(rows(1))


def test_files(context, tmp_path):
    one, two = rows(2, 1)
    path = loras.write_control_vector(tmp_path / "cv.gguf", {1: one, 3: two})
    content = path.read_bytes()
    (tmp_path / "embedded").write_bytes(b"x" * 77 + content)
    context.control_vector = ControlVector.from_array([one, 0 * one, two])
    expected = anew(context)
    with open(tmp_path / "embedded", "rb") as embedded, open(path, "rb") as file:
        embedded.seek(77)
        for source in (path, str(path), content, embedded, file.fileno(), file):
            vector = ControlVector.from_file(source)
            assert vector.layers == range(1, 4)
            assert np.array_equal(vector.array, [one, 0 * one, two])
            context.control_vector = vector
            assert np.array_equal(anew(context), expected)
        assert (embedded.tell(), file.tell()) == (77, 0)
    half = loras.write_control_vector(tmp_path / "half.gguf", {2: one.astype(np.float16)})
    assert np.array_equal(ControlVector.from_file(half).array[0], one.astype(np.float16))


@pytest.mark.parametrize(
    ("directions", "match"),
    [
        ({}, "it has no directions"),
        ({0: [1.0]}, "a tensor 'direction.0'"),
        ({"x": [1.0]}, "a tensor 'direction.x'"),
        ({1: [[1.0, 2.0], [1.0, 2.0]]}, r"'direction.1' is F32 of shape \(2, 2\)"),
        ({1: np.array([1, 2], np.int32)}, "'direction.1' is I32"),
        ({1: [1.0], 2: [1.0, 2.0]}, r"directions of \[1, 2\] numbers"),
        ({1: [float("nan")]}, "not a finite"),
    ],
)
def test_invalid_files(tmp_path, directions, match):
    arrays = {
        layer: one if isinstance(one, np.ndarray) else np.array(one, np.float32)
        for layer, one in directions.items()
    }
    path = loras.write_control_vector(tmp_path / "cv.gguf", arrays)
    with pytest.raises(AdapterError, match=match):
        ControlVector.from_file(path)


def test_files_that_cannot_be_read(tmp_path, random_path):
    with pytest.raises(ModelNotFoundError):
        ControlVector.from_file(tmp_path / "none")
    with pytest.raises(LoadError):
        ControlVector.from_file(tmp_path)
    with pytest.raises(AdapterError, match=r"is not a control vector: it is a model: load it"):
        ControlVector.from_file(random_path("llama"))
    for content in (b"", b"GGUF", b"nothing of the kind"):
        with pytest.raises(AdapterError, match="is not a control vector"):
            ControlVector.from_file(content)
    path = loras.write_control_vector(tmp_path / "cv.gguf", {1: rows(1)[0]})
    with pytest.raises(AdapterError, match="is truncated"):
        ControlVector.from_file(path.read_bytes()[:-40])


def test_a_closed_context(context):
    context.close()
    for use in (
        lambda: context.control_vector,
        lambda: setattr(context, "control_vector", None),
        lambda: setattr(context, "adapters", None),
    ):
        with pytest.raises(ClosedError):
            use()
