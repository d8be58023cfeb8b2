"""LoRA adapters merged into the weights, compared with llama.cpp applying them."""

from __future__ import annotations

import numpy as np
import pytest

from llamacffi import (
    Adapter,
    AdapterError,
    ArgumentError,
    Batch,
    Context,
    Gguf,
    GgufError,
    Model,
    ModelNotFoundError,
    merge_lora,
    shards,
)
from llamacffi._generated.enums import GgmlType
from tests.facade.gguf_models import N_VOCAB, write_llama

N_EMBD = 64
WEIGHTS = ("blk.0.attn_q.weight", "blk.0.ffn_down.weight", "blk.1.attn_v.weight", "output.weight")


def write_adapter(path, model, weights=WEIGHTS, *, rank=4, alpha=8.0, seed=1, dtype="f32", **keys):
    """Write an adapter that changes ``weights`` of a model strongly."""
    random = np.random.default_rng(seed)
    with Gguf.open(model) as base, Gguf.new() as gguf:
        gguf["general.type"] = "adapter"
        gguf["adapter.type"] = "lora"
        gguf["general.architecture"] = base["general.architecture"]
        if alpha is not None:
            gguf["adapter.lora.alpha"] = alpha
        gguf.update(keys)
        for name in weights:
            *stack, n_out, n_in = base.tensors[name].shape
            shapes = {"a": (*stack, rank, n_in), "b": (*stack, n_out, rank)}
            if name == "token_embd.weight":
                shapes = {"a": (n_out, rank), "b": (n_in, rank)}
            for part, shape in shapes.items():
                matrix = random.standard_normal(shape) * 0.15
                gguf.add_tensor(f"{name}.lora_{part}", matrix, type=dtype)
        gguf.write(path)
    return path


def logits(path, adapters=None):
    """The logits after each of a few tokens."""
    with Model(path) as model, Context(model, n_ctx=64, n_threads=1) as context:
        loaded = {Adapter(model, file): scale for file, scale in (adapters or {}).items()}
        context.adapters = loaded
        batch = Batch(8)
        batch.add([1, 5, 9, 60], logits="all")
        context.decode(batch)
        return np.stack([context.logits(i) for i in range(4)])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("lora") / "dense.gguf", n_embd=N_EMBD)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.gguf"


@pytest.mark.parametrize("options", [{}, {"rank": 1}, {"alpha": None}, {"dtype": "f16"}])
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_as_at_run_time(path, tmp_path, out, options, scale):
    adapter = write_adapter(tmp_path / "a.gguf", path, **options)
    merge_lora(path, {adapter: scale}, out)
    expected, before = logits(path, {adapter: scale}), logits(path)
    assert np.abs(expected - before).max() > 0.1
    assert np.abs(logits(out) - expected).max() < 0.01 * np.abs(expected).max()
    with Gguf.open(path) as one, Gguf.open(out) as other:
        assert list(one.tensors) == list(other.tensors)
        assert dict(one) == dict(other)
        for name in one.tensors:
            assert (one.tensors[name].hash() == other.tensors[name].hash()) == (name not in WEIGHTS)


def test_embeddings(path, tmp_path, out):
    adapter = write_adapter(tmp_path / "a.gguf", path, ["token_embd.weight"])
    merge_lora(path, {adapter: 1}, out)
    assert np.allclose(logits(out), logits(path, {adapter: 1}), atol=0.02)
    assert not np.allclose(logits(out), logits(path), atol=0.1)


def test_experts(tmp_path, out):
    path = write_llama(tmp_path / "moe.gguf", n_embd=N_EMBD, n_expert=4)
    adapter = write_adapter(tmp_path / "a.gguf", path, ["blk.0.ffn_up_exps.weight"])
    merge_lora(path, {adapter: 1}, out)
    expected = logits(path, {adapter: 1})
    assert np.abs(expected - logits(path)).max() > 0.05
    assert np.allclose(logits(out), expected, atol=0.02)


def test_two_adapters_for_different_weights(path, tmp_path, out):
    first = write_adapter(tmp_path / "a.gguf", path)
    second = write_adapter(tmp_path / "b.gguf", path, ["blk.0.attn_q.weight"], rank=2, seed=2)
    scales = {first: 0.7, second: 1.5}
    merge_lora(path, scales, out)
    assert np.allclose(logits(out), logits(path, scales), atol=0.02)
    assert not np.allclose(logits(out), logits(path, {first: 0.7}), atol=0.05)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
def test_the_type_is_kept_or_chosen(tmp_path, out, dtype):
    path = write_llama(tmp_path / "base.gguf", n_embd=N_EMBD, dtype=dtype)
    adapter = write_adapter(tmp_path / "a.gguf", path)
    merge_lora(path, {adapter: 1}, out)
    with Gguf.open(out) as gguf:
        assert gguf.tensors["output.weight"].type == GgmlType[dtype.upper()]
    expected = logits(path, {adapter: 1})
    assert np.corrcoef(logits(out).ravel(), expected.ravel())[0, 1] > 0.999
    merge_lora(path, {adapter: 1}, out, type="f32")
    with Gguf.open(out) as gguf:
        assert gguf.tensors["output.weight"].type == GgmlType.F32
        assert gguf.tensors["blk.0.attn_k.weight"].type == GgmlType[dtype.upper()]


def test_a_model_of_several_files(path, tmp_path, out):
    adapter = write_adapter(tmp_path / "a.gguf", path)
    first = shards.split(path, tmp_path / "model", max_tensors=7)[0]
    merge_lora(first, {adapter: 1}, out)
    merge_lora(path, {adapter: 1}, tmp_path / "whole.gguf")
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_nothing_to_merge(path, out):
    merge_lora(path, {}, out)
    assert out.read_bytes() == path.read_bytes()


HUGE = "output.weight.lora_a"


def test_what_does_not_fit(path, tmp_path, out):
    adapter = write_adapter(tmp_path / "a.gguf", path)
    wide = write_llama(tmp_path / "wide.gguf", n_embd=N_EMBD * 2)
    activated = write_adapter(
        tmp_path / "alora.gguf", path, **{"adapter.alora.invocation_tokens": np.array([1], "u4")}
    )
    other = write_adapter(tmp_path / "other.gguf", path, **{"general.architecture": "gemma"})
    for base, source, message in (
        (wide, adapter, r"is 128 x 128, but lora_a is 64 x 4"),
        (path, activated, "only after certain tokens"),
        (path, other, "general.architecture is 'gemma'"),
        (path, path, "it is a model: load it with"),
    ):
        with pytest.raises(AdapterError, match=message):
            merge_lora(base, {source: 1}, out)
    with Gguf.open(adapter) as gguf:
        for change, message in (
            (lambda one: one.remove_tensor("output.weight.lora_a"), "has no lora_a"),
            (lambda one: one.rename_tensor("output.weight.lora_a", "x.lora_a"), "no lora_b|lora_a"),
            (lambda one: one.add_tensor("x", np.ones(1, np.float32)), "tensor 'x'"),
            (
                lambda one: one.set("adapter.lora.alpha", "x", type="str"),
                "must be a finite float32",
            ),
            (lambda one: one.set("adapter.type", np.ones(2), type="f32"), "adapter.type"),
            (lambda one: one.replace_tensor(HUGE, one.tensors[HUGE].data * 0 + 3e38), "NaN or inf"),
            (lambda one: [one.remove_tensor(name) for name in list(one.tensors)], "nothing"),
        ):
            with gguf.copy() as damaged:
                change(damaged)
                damaged.write(tmp_path / "damaged.gguf")
            with pytest.raises(AdapterError, match=message):
                merge_lora(path, {tmp_path / "damaged.gguf": 1}, out)
    assert not out.exists()


def test_bad_arguments(path, tmp_path, out):
    adapter = write_adapter(tmp_path / "a.gguf", path)
    with pytest.raises(ModelNotFoundError):
        merge_lora(tmp_path / "none.gguf", {}, out)
    with pytest.raises(ModelNotFoundError):
        merge_lora(path, {tmp_path / "none.gguf": 1}, out)
    for target in (path, adapter):
        with pytest.raises(ArgumentError, match="both input and output"):
            merge_lora(path, {adapter: 1}, target)
    with pytest.raises(ArgumentError, match=r"scale must be .* not nan"):
        merge_lora(path, {adapter: float("nan")}, out)
    with pytest.raises(TypeError, match="scale"):
        merge_lora(path, {adapter: "1"}, out)
    for type_, error in (("i32", ArgumentError), ("iq1_s", ArgumentError), ("q4_k", GgufError)):
        with pytest.raises(error):
            merge_lora(path, {adapter: 1}, out, type=type_)
    assert not out.exists()
    assert N_VOCAB > 60  # among the tokens decoded here


def test_changed_weights_are_not_kept_in_memory(run_python, path, tmp_path):
    """All of them together would exceed the limit."""
    code = """
        import sys
        import tracemalloc
        import numpy as np
        from llamacffi import merge_lora
        tracemalloc.start()
        merge_lora(sys.argv[1], {sys.argv[2]: 1}, "out.gguf")
        print(tracemalloc.get_traced_memory()[1])
    """
    big = write_llama(tmp_path / "big.gguf", n_embd=512)
    names = [f"blk.{i}.{one}.weight" for i in (0, 1) for one in ("attn_q", "ffn_up", "ffn_down")]
    adapter = write_adapter(tmp_path / "a.gguf", big, names)
    result = run_python(code, big, adapter)
    assert int(result.stdout) < 5 * 512 * 512 * 4, result.stderr
