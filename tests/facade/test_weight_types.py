"""Types of weights that no CPU kernel reads are refused when a model is loaded."""

from __future__ import annotations

import io

import numpy as np
import pytest

from llamacffi import Batch, Context, Gguf, LoadError, Model, demo

from . import random_models

TYPES = ("f64", "f16", "bf16", "i8", "i16", "i32", "i64", "q8_0")
INTEGERS = {"i8": "i1", "i16": "i2", "i32": "i4", "i64": "i8"}


def changed(path, name, type_):
    """Return the bytes of a model with a tensor of another type."""
    with Gguf.open(path) as gguf:
        numbers = gguf.tensors[name].dequantize()
        gguf.replace_tensor(name, numbers.astype(INTEGERS.get(type_, "f4")), type=type_)
        return gguf.to_bytes()


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize(
    "name", ["blk.0.attn_norm.weight", "blk.1.attn_q.weight", "token_embd.weight", "output.weight"]
)
def test_each_type_is_refused_or_computes(tmp_path, name, type_):
    path = random_models.write(tmp_path / "llama.gguf", "llama")
    data = changed(path, name, type_)
    matrix = "norm" not in name and type_ in ("f16", "bf16", "q8_0")
    if matrix:
        with (
            Model.from_file(data, n_gpu_layers=0, use_extra_bufts=False) as model,
            Context(model, n_ctx=64, n_threads=2) as context,
        ):
            context.decode(Batch.from_tokens([1, 2, 3]))
            assert np.isfinite(context.logits()).all()
    else:
        with pytest.raises(LoadError, match=f"'{name}' is {type_.upper()}.*F32"):
            Model.from_file(data, n_gpu_layers=0)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("gpt2", "blk.0.attn_qkv.bias"),
        ("mamba", "blk.0.ssm_conv1d.weight"),
        ("mamba", "blk.1.ssm_a"),
        ("bert", "token_embd_norm.bias"),
        ("lfm2", "blk.0.shortconv.conv.weight"),
        ("t5", "dec.blk.0.cross_attn_norm.weight"),
    ],
)
def test_tensors_that_must_be_f32_are_refused_as_f16(tmp_path, kind, name):
    path = random_models.write(tmp_path / "model.gguf", kind)
    with pytest.raises(LoadError, match=f"'{name}' is F16"):
        Model.from_file(changed(path, name, "f16"), n_gpu_layers=0)


def test_each_way_to_load(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(changed(demo.path(), "output_norm.weight", "f16"))
    message = "'output_norm.weight' is F16"
    with Gguf.open(path) as gguf:
        for load in (
            lambda: Model(path),
            lambda: Model(path, no_alloc=True),
            lambda: Model.from_splits([path]),
            lambda: Model.from_file(io.BytesIO(path.read_bytes())),
            lambda: Model.from_gguf(gguf),
            lambda: Model.from_gguf(gguf, lambda _name, _array: None),
        ):
            with pytest.raises(LoadError, match=message):
                load()
    with Model(path, vocab_only=True) as model:  # computes nothing
        assert len(model.vocab)


@pytest.mark.parametrize("type_", ["f16", "q8_0", "i32", "f64"])
def test_rope_factors_are_named(type_):
    with Gguf.open(demo.path()) as gguf:
        gguf.add_tensor("rope_freqs.weight", np.ones(32, INTEGERS.get(type_, "f4")), type=type_)
        for load in (
            lambda: Model.from_gguf(gguf),
            lambda: Model.from_gguf(gguf, lambda _name, _array: None),
        ):
            with pytest.raises(LoadError, match=f"'rope_freqs.weight' is {type_.upper()}.*F32"):
                load()


def test_float64_warns_unless_it_is_asked_for(tmp_path):
    numbers = np.ones((2, 4))
    with Gguf.new() as gguf:
        with pytest.warns(RuntimeWarning, match="float64 .* type='f32'") as warned:
            gguf.add_tensor("t", numbers)
        assert warned[0].filename == __file__
        with pytest.warns(RuntimeWarning, match="float64"):
            gguf.replace_tensor("t", numbers)
        gguf.add_tensor("f32", numbers, type="f32")
        gguf.add_tensor("f64", numbers, type="f64")
        gguf.replace_tensor("t", gguf.tensors["f64"])
        assert [tensor.type.name for tensor in gguf.tensors.values()] == ["F64", "F32", "F64"]


@pytest.mark.parametrize(("kind", "part"), [("t5", "enc"), ("t5", "dec"), ("t5encoder", "enc")])
def test_a_missing_tensor_that_llama_cpp_loads_as_optional_but_uses(tmp_path, kind, part):
    name = f"{part}.blk.0.attn_rel_b.weight"
    with Gguf.open(random_models.write(tmp_path / "whole.gguf", kind)) as gguf:
        gguf.remove_tensor(name)
        gguf.write(tmp_path / "part.gguf")
    with pytest.raises(LoadError, match=f"has no tensor '{name}'"):
        Model(tmp_path / "part.gguf")
