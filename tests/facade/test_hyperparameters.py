"""Numbers in the metadata that llama.cpp cannot compute with are refused before it does."""

from __future__ import annotations

import math

import pytest

from llamacffi import Context, ContextError, Gguf, LoadError, Model, demo

from . import random_models

EPSILON = "attention.layer_norm_rms_epsilon"


def with_number(path, key, value, type_):
    """Return the bytes of a model with another number, or array, of the architecture."""
    with Gguf.open(path) as gguf:
        gguf.set(f"{gguf['general.architecture']}.{key}", value, type=type_)
        return gguf.to_bytes()


@pytest.mark.parametrize("key", [EPSILON, "rope.freq_base", "rope.scaling.attn_factor"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite(key, value):
    data = with_number(demo.path(), key, value, "f32")
    with pytest.raises(LoadError, match=rf"{key} is {value} in the file, .* a finite number"):
        Model.from_file(data)


@pytest.mark.parametrize(
    ("key", "value", "type_", "message"),
    [
        (EPSILON, -1e-5, "f32", "0 to 1"),
        (EPSILON, 2.0, "f32", "0 to 1"),
        ("rope.freq_base", 0.0, "f32", "1e-09 to 1e"),
        ("rope.scaling.attn_factor", 1e9, "f32", "0 to 1000"),
        ("rope.scaling.attn_factor", -1.0, "f32", "0 to 1000"),
        ("rope.scaling.factor", 1e30, "f32", "0 to 1"),
        ("block_count", 0, "u32", "1 to"),
        ("attention.head_count", 2**31 - 1, "u32", "0 to 1"),
        ("attention.head_count", -1, "i32", "0 to 1"),
        ("attention.head_count_kv", 2**32 - 1, "u32", "0 to 1"),
        ("feed_forward_length", [160, 2**30], "u32", "0 to 1"),
        ("feed_forward_length", [2**40] * 3, "u64", "0 to 1"),
        ("full_attention_interval", 0, "u32", "1 to"),
    ],
)
def test_a_number_out_of_range_in_the_file(key, value, type_, message):
    data = with_number(demo.path(), key, value, type_)
    with pytest.raises(LoadError, match=rf"{key} is .* in the file, but must be {message}"):
        Model.from_file(data)


def test_more_deepstack_layers_than_layers(tmp_path):
    """llama.cpp would fail in decode, where the last layer keeps the outputs alone."""
    with Gguf.open(random_models.write(tmp_path / "model.gguf", "qwen2vl")) as gguf:
        for key in ("embedding_length", "block_count", "attention.head_count"):
            gguf[f"qwen3vl.{key}"] = gguf[f"qwen2vl.{key}"]
        gguf["general.architecture"] = "qwen3vl"
        gguf.set("qwen3vl.n_deepstack_layers", gguf["qwen2vl.block_count"], type="u32")
        with pytest.raises(LoadError, match=r"n_deepstack_layers is 2, .* below .* 2$"):
            Model.from_gguf(gguf)


def test_an_error_says_why_no_context_could_be_created():
    """llama.cpp writes the reason only to its log."""
    with Gguf.open(demo.path()) as gguf:
        n_head = gguf["llama.attention.head_count"]
        gguf.set("llama.attention.head_count_kv", n_head + 1, type="u32")
        with (
            Model.from_gguf(gguf, lambda _name, array: array.fill(0), n_gpu_layers=0) as model,
            pytest.raises(ContextError, match=r"cannot create a context: .* do not fit together"),
        ):
            Context(model, n_ctx=64)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (EPSILON, -1),
        (EPSILON, -1e-30),
        ("rope.freq_base", 0.0),
        ("attention.head_count", -(2**31)),
        ("embedding_length", 0),
        ("full_attention_interval", 0),  # not in the file
    ],
)
def test_a_number_out_of_range_in_the_overrides(key, value):
    with pytest.raises(LoadError, match=rf"{key} is {value}.* in kv_overrides"):
        Model(demo.path(), kv_overrides={f"llama.{key}": value})


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("mamba", "ssm.state_size", 0),
        ("mamba", "ssm.conv_kernel", 0),
        ("mamba", "ssm.inner_size", 2**31),
        ("t5", "attention.relative_buckets_count", 0),
    ],
)
def test_a_zero_where_the_architecture_needs_a_count(tmp_path, kind, key, value):
    path = random_models.write(tmp_path / "model.gguf", kind)
    with pytest.raises(LoadError, match=rf"{kind}.{key} is {value}"):
        Model.from_file(with_number(path, key, value, "u32"))


@pytest.mark.parametrize("kind", ["mamba2", "nemotron_h", "falcon-h1", "granitehybrid"])
def test_a_model_made_in_memory(kind):
    with Gguf.open(demo.path(), metadata_only=True) as gguf:
        gguf["general.architecture"] = kind
        gguf[f"{kind}.ssm.group_count"] = 0
        with pytest.raises(LoadError, match=rf"{kind}.ssm.group_count is 0"):
            Model.from_gguf(gguf, lambda _name, _array: None)


def test_hyperparameters_are_not_checked_with_vocab_only():
    data = with_number(demo.path(), EPSILON, -1.0, "f32")
    with Model.from_file(data, vocab_only=True) as model:
        assert len(model.vocab)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attention.head_count", [0, 0], r"is \[0, 0\], .* one layer must have attention"),
        ("attention.head_count_kv", 0, "is 0, .* key/value heads"),
        ("attention.key_length_mla", 32, "is 32, .* either both are 0 or neither"),
    ],
)
def test_numbers_that_do_not_fit_together(tmp_path, key, value, message):
    path = random_models.write(tmp_path / "model.gguf", "llama")
    with pytest.raises(LoadError, match=f"llama.{key} {message}"):
        Model.from_file(with_number(path, key, value, "u32"))


@pytest.mark.parametrize("n_rot", [0, 3, 64, 2**24])
def test_dimensions_that_rope_cannot_rotate(tmp_path, n_rot):
    """Only the compute graph shows what llama.cpp derives from the numbers."""
    path = random_models.write(tmp_path / "model.gguf", "mimo2")
    overrides = {"mimo2.rope.dimension_count": n_rot}
    with (
        Model(path, kv_overrides=overrides) as model,
        pytest.raises(ContextError, match=f"rotates {n_rot} of 32 dimensions"),
    ):
        Context(model, n_ctx=64)
