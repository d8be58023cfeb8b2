"""Quantization: every type, every parameter, progress and failures."""

from __future__ import annotations

import os
import struct

import numpy as np
import pytest

import llamacffi
from llamacffi import (
    ArgumentError,
    Batch,
    Context,
    Gguf,
    GgufError,
    Model,
    ModelNotFoundError,
    QuantizeError,
    ftype_name,
    ftype_of,
    ftypes,
    quantize,
    shards,
)
from llamacffi._generated.enums import Ftype, GgmlType
from tests.facade.gguf_models import write_llama


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A llama model in F32 with rows of 256."""
    return write_llama(tmp_path_factory.mktemp("quantize") / "f32.gguf")


@pytest.fixture(scope="module")
def imatrix(path):
    """Each weight has columns of different importance."""
    random = np.random.default_rng(5)
    with Gguf.open(path) as gguf:
        return {
            name: random.random(tensor.shape[-1]).astype(np.float32)
            for name, tensor in gguf.tensors.items()
        }


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.gguf"


def types(path):
    with Gguf.open(path) as gguf:
        return {name: tensor.type for name, tensor in gguf.tensors.items()}


def logits(path):
    """The logits after a few tokens."""
    with Model(path) as model, Context(model, n_ctx=64, n_threads=1) as context:
        batch = Batch(8)
        batch.add([1, 5, 9, 60])
        context.decode(batch)
        return context.logits()


def likeness(one, other):
    return np.corrcoef(one, other)[0, 1]


# File types


@pytest.mark.parametrize("ftype", ftypes(), ids=lambda one: one.name)
def test_every_file_type(path, imatrix, out, ftype):
    """Each is written, planned exactly, and its matrices are close to the source."""
    result = quantize(path, out, ftype, imatrix=imatrix, nthread=1)
    assert result.paths == (out,)
    assert (result.ftype, dict(result.types)) == (ftype, types(out))
    plan = quantize(path, None, ftype, imatrix=imatrix, dry_run=True)
    assert (plan.paths, plan.types, plan.size_after) == ((), result.types, result.size_after)
    with Gguf.open(path) as before, Gguf.open(out) as after:
        assert result.size_before == sum(one.nbytes for one in before.tensors.values())
        assert result.size_after == sum(one.nbytes for one in after.tensors.values())
        assert result.bits_per_weight == pytest.approx(
            8 * result.size_after / (result.size_before / 4)
        )
        assert after["general.file_type"] == ftype
        for name, tensor in after.tensors.items():
            old, new = before.tensors[name].data.ravel(), tensor.dequantize().ravel()
            assert old.std() == 0 or likeness(old, new) > 0.6


@pytest.mark.parametrize(
    ("ftype", "close"), [("F16", 0.99999), ("BF16", 0.9999), ("Q8_0", 0.999), ("Q4_0", 0.9)]
)
def test_the_logits_are_close(path, out, ftype, close):
    quantize(path, out, ftype)
    assert likeness(logits(path), logits(out)) > close
    assert os.path.getsize(out) < 0.6 * os.path.getsize(path)


def test_names_of_file_types():
    for ftype in Ftype:
        name = ftype_name(ftype)
        for other in (ftype, int(ftype), ftype.name, ftype.name.lower()):
            assert ftype_of(other) == ftype
            assert ftype_name(other) == name
    for ftype in ftypes():
        assert ftype_of(ftype.name.partition("_")[2]) == ftype
        assert ftype_of(ftype_name(ftype)) == ftype
    assert {ftype_of(name) for name in ("Q4_K_M", "q4_k_m", "Q4_K - Medium")} == {
        Ftype.MOSTLY_Q4_K_M
    }
    assert Ftype.MOSTLY_MXFP4_MOE in ftypes()
    assert Ftype.MOSTLY_NVFP4 not in ftypes()
    for bad in ("Q99", -1, 999, ""):
        with pytest.raises(ArgumentError, match="Q4_K_M"):
            ftype_of(bad)
    for bad in (None, 1.5, True):
        with pytest.raises(TypeError):
            ftype_of(bad)


def test_the_default_and_the_keyword(path, out):
    assert quantize(path, None, dry_run=True).ftype == Ftype.MOSTLY_Q4_K_M
    assert quantize(path, None, ftype="Q8_0", dry_run=True).ftype == Ftype.MOSTLY_Q8_0
    with pytest.raises(TypeError, match="twice"):
        quantize(path, out, "Q8_0", ftype="Q8_0")
    with pytest.raises(ArgumentError, match="NVFP4"):
        quantize(path, out, "NVFP4")


def test_the_result_is_the_same_with_threads(path, out, tmp_path):
    quantize(path, out, "Q4_K_M", nthread=1)
    quantize(path, tmp_path / "other.gguf", "Q4_K_M", nthread=3)
    assert out.read_bytes() == (tmp_path / "other.gguf").read_bytes()


# Parameters: each changes something; test_every_parameter.py checks that all are covered


def test_types_of_embedding_and_output(path, out):
    quantize(path, out, "Q4_0", output_tensor_type="q5_0", token_embedding_type=GgmlType.F16)
    found = types(out)
    assert found["output.weight"] == GgmlType.Q5_0
    assert found["token_embd.weight"] == GgmlType.F16
    quantize(path, out, "Q4_0", quantize_output_tensor=False)
    assert types(out)["output.weight"] == GgmlType.F32


def test_types_by_pattern(path, out):
    quantize(path, out, "Q4_0", tt_overrides={r"blk\.1\.ffn_.*": "q8_0", "ffn_down": "q5_1"})
    found = types(out)
    assert found["blk.0.ffn_down.weight"] == GgmlType.Q5_1
    assert found["blk.1.ffn_down.weight"] == GgmlType.Q8_0  # the first match wins
    assert found["blk.0.ffn_up.weight"] == GgmlType.Q4_0
    pairs = [("ffn_down", "q5_1"), (r"blk\.1\.ffn_.*", 8)]
    quantize(path, out, "Q4_0", tt_overrides=pairs)
    assert types(out)["blk.1.ffn_down.weight"] == GgmlType.Q5_1
    assert types(out)["blk.1.ffn_up.weight"] == GgmlType.Q8_0


def test_pure(path):
    mixed = quantize(path, None, "Q4_K_M", dry_run=True).types
    pure = quantize(path, None, "Q4_K_M", dry_run=True, pure=True).types
    assert GgmlType.Q6_K in mixed.values()
    assert set(pure.values()) == {GgmlType.Q4_K, GgmlType.F32}


def test_only_copy(path, out):
    result = quantize(path, out, only_copy=True)
    assert (result.ftype, result.size_before) == (None, result.size_after)
    with Gguf.open(path) as before, Gguf.open(out) as after:
        for name, tensor in before.tensors.items():
            assert tensor.hash() == after.tensors[name].hash()


def test_quantized_again(path, out, tmp_path):
    quantize(path, out, "Q8_0")
    with pytest.raises(QuantizeError, match=r"already quantized to Q8_0.*allow_requantize"):
        quantize(out, tmp_path / "again.gguf", "Q4_0")
    assert not (tmp_path / "again.gguf").exists()
    quantize(out, tmp_path / "again.gguf", "Q4_0", allow_requantize=True)
    assert types(tmp_path / "again.gguf")["output.weight"] == GgmlType.Q6_K
    # Unchanged tensors are only copied.
    quantize(out, tmp_path / "same.gguf", "Q8_0")
    assert types(tmp_path / "same.gguf") == types(out)


def test_imatrix(path, out, tmp_path):
    """Errors are smaller in columns that matter."""
    with Gguf.open(path) as gguf:
        weights = {name: np.full(256, 1e-4) for name in gguf.tensors}
    for name in weights:
        weights[name][::4] = 1
    quantize(path, out, "Q4_K_M", imatrix=weights, pure=True)
    quantize(path, tmp_path / "plain.gguf", "Q4_K_M", pure=True)
    with (
        Gguf.open(path) as source,
        Gguf.open(out) as better,
        Gguf.open(tmp_path / "plain.gguf") as plain,
    ):
        name = "blk.0.ffn_up.weight"
        expected = source.tensors[name].data[:, ::4]
        errors = [
            np.abs(one.tensors[name].dequantize()[:, ::4] - expected).mean()
            for one in (better, plain)
        ]
        assert errors[0] < 0.95 * errors[1]
        assert better["quantize.imatrix.entries_count"] == len(weights)


def test_what_an_imatrix_must_be(path, out, imatrix):
    name = "blk.0.ffn_up.weight"
    for bad, message in (
        ({name: np.ones(255)}, r"must have shape \(1, 256\) for this model, not \(255,\)"),
        ({name: np.full(256, np.nan)}, "finite"),
        ({name: np.full(256, -1)}, "only finite numbers"),
        ({"other": np.ones(256)}, "none of its 1 names"),
        ({}, "none of its 0 names"),
    ):
        with pytest.raises(ArgumentError, match=message):
            quantize(path, out, "Q4_0", imatrix=bad)
    with pytest.raises(TypeError, match="imatrix"):
        quantize(path, out, "Q4_0", imatrix=3)
    with pytest.raises(QuantizeError, match="needs its importance matrix"):
        quantize(path, out, "IQ2_XS")
    # A matrix that lacks the tensor that needs it.
    without = {key: value for key, value in imatrix.items() if key != "output.weight"}
    with pytest.raises(QuantizeError, match=r"'output\.weight' to IQ2_XS needs"):
        quantize(path, out, "Q4_0", imatrix=without, output_tensor_type="iq2_xs")
    # Types for which llama.cpp itself requires one.
    with pytest.raises(QuantizeError, match="cannot quantize") as caught:
        quantize(path, out, "IQ3_XXS")
    assert "importance matrix" in str([*getattr(caught.value, "__notes__", []), caught.value])
    assert not out.exists()


def test_an_imatrix_of_zeros_or_far_apart(path, out, imatrix):
    """Both would fail assertions in C, on worker threads."""
    weights = dict(imatrix)
    weights["blk.0.ffn_up.weight"] = np.zeros(256)
    weights["blk.0.ffn_down.weight"] = np.full(256, 1e38)
    weights["blk.0.ffn_gate.weight"] = np.logspace(-38, 38, 256)
    quantize(path, out, "IQ2_S", imatrix=weights, nthread=2)
    with Gguf.open(out) as gguf:
        for name in weights:
            assert np.isfinite(gguf.tensors[name].dequantize()).all()


def test_numbers_that_are_too_large(path, out, tmp_path, imatrix):
    with Gguf.open(path) as gguf:
        big = gguf.tensors["blk.1.ffn_up.weight"].data.copy()
        big[3, 5] = 1e20
        gguf.replace_tensor("blk.1.ffn_up.weight", big)
        gguf.write(tmp_path / "big.gguf")
    with pytest.raises(QuantizeError, match=r"'blk\.1\.ffn_up\.weight' cannot become IQ2_XS"):
        quantize(tmp_path / "big.gguf", out, "IQ2_S", imatrix=imatrix)
    with pytest.raises(QuantizeError):  # llama.cpp finds it in its result
        quantize(tmp_path / "big.gguf", out, "Q4_0")
    assert [one.name for one in tmp_path.iterdir()] == ["big.gguf"]


def test_metadata(path, out):
    overrides = {"general.name": "small", "some.flag": True, "llama.rope.freq_base": 5e5, "n": 7}
    overrides["llama.attention.layer_norm_rms_epsilon"] = 1
    quantize(path, out, "Q8_0", kv_overrides=overrides)
    with Gguf.open(out) as gguf:
        assert {key: gguf[key] for key in overrides} == overrides
        kinds = [gguf.type(key).name for key in overrides]
        assert kinds == ["STRING", "BOOL", "FLOAT32", "UINT32", "FLOAT32"]
    for bad, message in (
        ({"n": -1}, "UINT32"),
        ({"n": 2**32}, "UINT32"),
        ({"general.alignment": 64}, "Gguf"),
        ({"llama.block_count": "x"}, "has the wrong type"),
        ({"general.name": "x" * 128}, "127"),
    ):
        with pytest.raises(ArgumentError, match=message):
            quantize(path, out, "Q8_0", kv_overrides=bad)
    for bad in ({"n": None}, {1: 1}, [1], 3):
        with pytest.raises(TypeError, match="kv_overrides"):
            quantize(path, out, "Q8_0", kv_overrides=bad)


def test_another_alignment(path, out, tmp_path):
    """C copies the key, but uses its own alignment: the file would be broken."""
    with Gguf.open(path) as gguf:
        gguf["general.alignment"] = 4096
        gguf.write(tmp_path / "aligned.gguf")
    quantize(tmp_path / "aligned.gguf", out, "Q4_0")
    with Gguf.open(out) as gguf:
        assert gguf.alignment == 32
    assert likeness(logits(path), logits(out)) > 0.9


def test_pruned_layers(out, tmp_path):
    path = write_llama(tmp_path / "deep.gguf", n_embd=32, n_layer=5)
    result = quantize(path, out, "Q8_0", prune_layers=[3, 1])
    assert set(result.types) == set(types(out))
    with Gguf.open(path) as before, Gguf.open(out) as after:
        assert after["llama.block_count"] == 3
        for old, new in ((0, 0), (2, 1), (4, 2)):
            name = "blk.{}.ffn_up.weight".format
            expected = before.tensors[name(old)].data
            assert np.abs(after.tensors[name(new)].dequantize() - expected).max() < 0.01
    with Model(out) as model:
        assert model.n_layer == 3
    weights = {f"blk.{i}.ffn_up.weight": np.ones(32) for i in range(5)}
    quantize(path, out, "Q4_0", prune_layers={0}, imatrix=weights)
    for bad in ([5], [-1], range(5), [0, 1, 0, 1, 0]):
        with pytest.raises(ArgumentError, match="prune_layers"):
            quantize(path, out, "Q8_0", prune_layers=bad)
    for bad in ("1", 1, ["1"], [1.5], [True, False]):
        with pytest.raises(TypeError, match="prune_layers"):
            quantize(path, out, "Q8_0", prune_layers=bad)
    with Gguf.open(path) as gguf:
        gguf["llama.attention.head_count_kv"] = [4] * 5
        gguf.write(path)
    with pytest.raises(ArgumentError, match="head_count_kv"):
        quantize(path, out, "Q8_0", prune_layers=[1])


def test_small_buffers(path, out, tmp_path):
    quantize(path, out, "Q4_K_M")
    quantize(path, tmp_path / "other.gguf", "Q4_K_M", max_buf_size=1)
    assert out.read_bytes() == (tmp_path / "other.gguf").read_bytes()


def test_experts(tmp_path, out):
    path = write_llama(tmp_path / "moe.gguf", n_embd=256, n_expert=4)
    with Gguf.open(path) as gguf:
        weights = {
            name: np.random.default_rng(1).random((*tensor.shape[:-2], tensor.shape[-1]))
            for name, tensor in gguf.tensors.items()
            if len(tensor.shape) > 1
        }
    assert weights["blk.0.ffn_up_exps.weight"].shape == (4, 256)
    result = quantize(path, out, "MXFP4_MOE", imatrix=weights)
    assert result.types["blk.0.ffn_up_exps.weight"] == GgmlType.MXFP4
    assert result.types["blk.0.ffn_gate_inp.weight"] == GgmlType.F32
    assert likeness(logits(path), logits(out)) > 0.9
    weights["blk.0.ffn_up_exps.weight"] = np.ones(256)
    with pytest.raises(ArgumentError, match=r"must have shape \(4, 256\)"):
        quantize(path, out, "Q4_0", imatrix=weights)


# Several files


def test_from_several_files(path, out, tmp_path):
    first = shards.split(path, tmp_path / "model", max_tensors=7)[0]
    quantize(first, out, "Q8_0")
    quantize(path, tmp_path / "whole.gguf", "Q8_0")
    assert types(out) == types(tmp_path / "whole.gguf")
    with Gguf.open(out) as gguf:
        assert not [key for key in gguf if key.startswith("split.")]
    assert np.array_equal(logits(out), logits(tmp_path / "whole.gguf"))


def test_to_several_files(path, tmp_path):
    first = shards.split(path, tmp_path / "model", max_tensors=7)[0]
    (tmp_path / "new").mkdir()
    result = quantize(first, tmp_path / "new" / "q8", "Q8_0", keep_split=True)
    assert sorted(result.paths) == sorted((tmp_path / "new").iterdir())
    assert [one.name for one in result.paths] == [f"q8-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert likeness(logits(path), logits(result.paths[0])) > 0.999
    with pytest.raises(ArgumentError, match="both input and output"):
        quantize(first, tmp_path / "model", "Q8_0", keep_split=True)
    with pytest.raises(QuantizeError, match="stopped"):
        quantize(first, tmp_path / "x", "Q8_0", keep_split=True, progress=lambda part: part < 0.7)
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(("x", "."))]


def test_a_file_that_pruning_leaves_empty(tmp_path):
    """C would use the metadata of a file that it has not created."""
    path = write_llama(tmp_path / "deep.gguf", n_embd=32, n_layer=3)
    with Gguf.open(path) as gguf:
        names = sorted(gguf.tensors, key=lambda name: "blk.1." not in name)
        with gguf.copy() as other:
            for name in list(other.tensors):
                other.remove_tensor(name)
            for name in names:
                other.add_tensor(name, gguf.tensors[name])
            other.write(path)
    n = sum("blk.1." in name for name in names)
    paths = shards.split(path, tmp_path / "model", max_tensors=n, no_tensor_first=True)
    with pytest.raises(ArgumentError, match="leaves one of the model's files empty"):
        quantize(paths[0], tmp_path / "x", "Q8_0", keep_split=True, prune_layers=[1])
    quantize(paths[0], tmp_path / "x.gguf", "Q8_0", prune_layers=[1])


# Progress


def test_progress(path, out):
    parts = []
    quantize(path, out, "Q8_0", progress=parts.append)
    assert (parts[0], parts[-1]) == (0, 1)
    assert parts == sorted(parts)
    assert len(parts) == len(types(path)) + 1
    quantize(path, None, "Q8_0", dry_run=True, progress=parts.append)
    assert len(parts) == len(types(path)) + 1


@pytest.mark.parametrize("at", [0.0, 0.3, 0.9])
def test_stopped_by_progress(path, out, at):
    out.write_bytes(b"before")
    seen = []

    def progress(part):
        seen.append(part)
        return part < at

    with pytest.raises(QuantizeError, match=r"stopped at .*%: progress returned False"):
        quantize(path, out, "Q4_0", progress=progress)
    assert [part >= at for part in seen] == [False] * (len(seen) - 1) + [True]
    assert out.read_bytes() == b"before"
    assert [one.name for one in out.parent.iterdir()] == ["out.gguf"]
    quantize(path, out, "Q4_0")


def test_an_exception_in_progress(path, out):
    class Mine(BaseException):
        pass

    def progress(part):
        if part > 0.5:
            raise Mine

    with pytest.raises(Mine):
        quantize(path, out, "Q4_0", progress=progress)
    assert not list(out.parent.iterdir())


def test_interrupted(run_python, path):
    """By a signal like that of Ctrl-C, while C is working."""
    code = """
        import os, signal, sys
        from llamacffi import quantize
        parts = []
        def progress(part):
            parts.append(part)
            if len(parts) == 3:
                os.kill(os.getpid(), signal.SIGINT)
        try:
            quantize(sys.argv[1], "out.gguf", "Q4_0", progress=progress)
        except KeyboardInterrupt:
            print(len(parts), os.listdir())
    """
    assert run_python(code, path).stdout == "3 []\n"


def test_calls_from_within_progress(path, out, tmp_path):
    """llama.cpp may be used there, even to quantize."""
    inner = []

    def progress(part):
        if not inner:
            inner.append(quantize(path, tmp_path / "inner.gguf", "Q8_0"))

    quantize(path, out, "Q4_0", progress=progress)
    assert set(inner[0].types) == set(types(out))
    assert types(tmp_path / "inner.gguf")["output.weight"] == GgmlType.Q8_0


# Failures


def test_sources_and_targets(path, out, tmp_path):
    with pytest.raises(ModelNotFoundError):
        quantize(tmp_path / "none.gguf", out)
    other = tmp_path / "other"
    other.write_bytes(b"no model")
    with pytest.raises(GgufError):
        quantize(other, out)
    with pytest.raises(ArgumentError, match="both input and output"):
        quantize(path, path)
    with pytest.raises(ArgumentError, match="directory"):
        quantize(path, tmp_path)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        quantize(path, tmp_path / "none" / "out.gguf")
    with pytest.raises(ArgumentError, match="dry_run=True"):
        quantize(path, None)


def test_a_model_that_llama_cpp_does_not_know(out, tmp_path):
    with Gguf.new() as gguf:
        gguf["general.architecture"] = "unheard-of"
        gguf.add_tensor("t.weight", np.zeros((32, 32), np.float32))
        gguf.write(tmp_path / "unknown.gguf")
    with pytest.raises(QuantizeError) as caught:
        quantize(tmp_path / "unknown.gguf", out)
    assert "unheard-of" in str([*getattr(caught.value, "__notes__", []), caught.value])


def test_a_tensor_without_elements(path, out, tmp_path):
    """C would divide by the number of elements."""
    with Gguf.open(path) as gguf:
        gguf.add_tensor("last.weight", np.zeros((2, 32), np.float32))
        raw = bytearray(gguf.to_bytes())
    at = raw.index(b"last.weight") + len(b"last.weight") + 4  # its first dimension
    assert raw[at : at + 16] == struct.pack("<qq", 32, 2)
    raw[at : at + 8] = bytes(8)
    (tmp_path / "empty.gguf").write_bytes(raw)
    with pytest.raises(QuantizeError, match=r"the empty tensor 'last\.weight'"):
        quantize(tmp_path / "empty.gguf", out, "Q8_0")


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"nthread": -1}, ArgumentError, "nthread must be .* not -1; 0 uses all"),
        ({"nthread": 10**6}, ArgumentError, "512"),
        ({"nthread": "2"}, TypeError, "nthread"),
        ({"max_buf_size": -1}, ArgumentError, "max_buf_size"),
        ({"pure": "yes"}, TypeError, "pure"),
        ({"unknown": 1}, TypeError, "unknown parameter 'unknown'"),
        ({"output_tensor_type": "q8_k"}, ArgumentError, "intermediate"),
        ({"output_tensor_type": "i32"}, ArgumentError, "weights cannot be converted to I32"),
        ({"output_tensor_type": "f64"}, ArgumentError, "weights cannot be converted to F64"),
        ({"token_embedding_type": "q9"}, ArgumentError, "one of f32, .*'q9'"),
        ({"tt_overrides": {"(": "q8_0"}}, ArgumentError, "regular expression"),
        ({"tt_overrides": {"x": "i8"}}, ArgumentError, "weights cannot be converted to I8"),
        ({"tt_overrides": {"x": None}}, TypeError, "must be a type"),
        ({"tt_overrides": {3: "q8_0"}}, TypeError, "pattern"),
        ({"tt_overrides": "x=q8_0"}, TypeError, "tt_overrides"),
        ({"tt_overrides": [("x",)]}, TypeError, "pairs"),
        ({"tt_overrides": {"x": "q8_0"}, "ftype": "F16"}, ArgumentError, "ignores tt_overrides"),
        ({"tt_overrides": {"x": "q8_0"}, "pure": True}, ArgumentError, "pure=True"),
        ({"only_copy": True, "pure": True}, ArgumentError, "only_copy=True"),
        ({"only_copy": True, "imatrix": {"output.weight": np.ones(256)}}, ArgumentError, "only_"),
    ],
)
def test_invalid_parameters(path, out, params, error, message):
    with pytest.raises(error, match=message):
        quantize(path, out, **params)
    assert not out.exists()


def test_rows_that_end_with_a_partial_block(tmp_path, out):
    path = write_llama(tmp_path / "narrow.gguf", n_embd=64)
    with pytest.raises(ArgumentError, match=r"output\.weight.*rows of 64.*multiple of 256"):
        quantize(path, out, "Q4_0", output_tensor_type="q4_k")
    result = quantize(path, out, "Q4_K_M")  # llama.cpp falls back to other types
    assert GgmlType.Q5_0 in result.types.values()
    assert likeness(logits(path), logits(out)) > 0.9


def test_a_full_disk(path, run_python):
    code = """
        import os, resource, sys
        from llamacffi import quantize
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            quantize(sys.argv[1], "out.gguf", "Q8_0")
        except OSError as error:
            print(os.listdir(), error)
    """
    result = run_python(code, path)
    assert result.stdout == "[] [Errno 27] File too large: 'out.gguf'\n", result.stderr


def test_the_public_name():
    assert llamacffi.quantize is quantize
