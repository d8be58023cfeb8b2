"""The parameters of a model in Python's terms: what C gets, and what it must not."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest

from llamacffi import (
    ArgumentError,
    BackendUnavailableError,
    LoadError,
    Model,
    backend,
    device,
    enums,
    ffi,
    lib,
)
from llamacffi.model.overrides import EXPERTS, expert_overrides, kv_overrides, tensor_buft_overrides
from llamacffi.model.params import devices, model_params, tensor_split, used_devices

NO_GPU = not any(one.kind != "cpu" for one in backend.devices())


def text(chars):
    return ffi.string(chars).decode()


# Devices


@pytest.mark.parametrize("value", ["none", [], (), iter([])])
def test_the_cpu_alone(value, demo_path):
    array, _ = devices(value)
    assert array[0] == ffi.NULL
    with Model(demo_path, devices="none") as model:
        assert model.devices == ()


def test_the_cpu_alone_is_not_listed_as_a_device(demo_path):
    # Listed alone, it would only lose its best layout for weights.
    for value in ("CPU", ["CPU"], device("CPU"), [device("CPU")], [device("CPU").ptr]):
        array, _ = devices(value)
        assert array[0] == ffi.NULL
    with Model(demo_path, devices=[device("CPU")]) as model:
        assert model.devices == ()


@pytest.mark.parametrize("value", [["CUDA99"], "CUDA99", ["CPU", ""], ["C\0PU"]])
def test_an_unknown_device(value, demo_path):
    with pytest.raises(BackendUnavailableError, match=r"there is no device .*; available: CPU"):
        Model(demo_path, devices=value)


def test_lists_of_something_other_than_devices():
    with pytest.raises(ArgumentError, match="lists a device twice"):
        devices(["CPU", "CPU"])
    for value in (3, 1.5, [3], [None], b"CPU"):
        with pytest.raises(TypeError, match="device"):
            devices(value)


def test_a_raw_list_of_devices(demo_path):
    array = ffi.new("ggml_backend_dev_t[]", [device("CPU").ptr, ffi.NULL])
    with Model(demo_path, devices=array) as model:
        assert model.devices == (device("CPU"),)
        assert "on CPU>" in repr(model)


def test_main_gpu():
    with pytest.raises(ArgumentError, match="main_gpu=1 works only with split_mode='none'"):
        model_params({"main_gpu": 1})
    array = ffi.new("ggml_backend_dev_t[]", [device("CPU").ptr, ffi.NULL])
    with pytest.raises(ArgumentError, match="main_gpu must be at most 0, not 1"):
        model_params({"split_mode": "none", "main_gpu": 1, "devices": array})
    for number in (0, -1):
        struct, _ = model_params({"split_mode": "none", "main_gpu": number, "devices": array})
        assert struct.main_gpu == number
    assert model_params({"main_gpu": 0})  # as by default


def test_split_mode_tensor_needs_devices():
    with pytest.raises(BackendUnavailableError, match="split_mode='tensor' needs a GPU"):
        model_params({"split_mode": "tensor", "devices": []})


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
@pytest.mark.parametrize(
    "params",
    [
        *({"n_gpu_layers": 3}, {"tensor_split": [1, 2]}, {"main_gpu": 1, "split_mode": "none"}),
        *({"split_mode": "row"}, {"split_mode": enums.SplitMode.LAYER}, {"no_host": True}),
        *({"cpu_moe": True}, {"n_cpu_moe": 2}),
    ],
    ids=lambda params: next(iter(params)),
)
def test_a_gpu_parameter_without_a_gpu_warns(params, demo_path):
    name = next(iter(params))
    with pytest.warns(
        RuntimeWarning, match=f"{name}=.* has no effect: llama.cpp found no GPU"
    ) as seen:
        Model(demo_path, **params).close()
    assert len(seen) == 1
    assert seen[0].filename == __file__  # not a line of ours
    with pytest.warns(RuntimeWarning) as seen, open(demo_path, "rb") as file:
        Model.from_file(file, **params).close()
    assert seen[0].filename == __file__


def test_parameters_that_need_no_gpu_do_not_warn(demo_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for layers in (-1, -5, 0):
            Model(demo_path, n_gpu_layers=layers).close()
        Model(demo_path, split_mode="none", no_host=False, cpu_moe=False, n_cpu_moe=0).close()


@pytest.mark.parametrize("params", [{"cpu_moe": True}, {"n_cpu_moe": 2}], ids=["all", "some"])
def test_experts_of_a_model_without_any(demo_path, params):
    array = ffi.new("ggml_backend_dev_t[]", [device("CPU").ptr, ffi.NULL])
    (name,) = params
    with pytest.warns(RuntimeWarning, match=f"{name}=.* has no effect: .* no experts") as seen:
        Model(demo_path, devices=array, **params).close()
    assert [one.filename for one in seen] == [__file__]


# tensor_split


def test_tensor_split_is_padded_with_zeros():
    limit = lib.llama_max_devices()
    for value in ([3, 1.5], (3.0, 1.5), np.array([3, 1.5]), iter([3, 1.5])):
        array, keep = tensor_split(value)
        assert list(array) == [3.0, 1.5] + [0.0] * (limit - 2)
        assert keep is array
    assert list(tensor_split(range(1, limit + 1))[0]) == list(range(1, limit + 1))


@pytest.mark.parametrize(
    "value",
    [[], [0, 0], [-1, 2], [float("nan")], [float("inf")], [1e39], [1] * 17],
    ids=str,
)
def test_invalid_splits(value, demo_path):
    with pytest.raises(ArgumentError, match="tensor_split"):
        Model(demo_path, tensor_split=value)


@pytest.mark.parametrize("value", ["12", b"12", 1, [None], ["1"], {"CPU": object()}])
def test_splits_of_another_type(value, demo_path):
    with pytest.raises(TypeError, match="tensor_split"):
        Model(demo_path, tensor_split=value)


def test_a_split_for_more_devices_than_given(demo_path):
    array = ffi.new("ggml_backend_dev_t[]", [device("CPU").ptr, ffi.NULL])
    with pytest.raises(ArgumentError, match="tensor_split has 2 parts, but there are 1 devices"):
        Model(demo_path, tensor_split=[1, 2], devices=array)


# kv_overrides


def test_overrides_of_all_four_types(demo_path):
    overrides = {
        "llama.context_length": 99,
        "llama.rope.scaling.factor": 4.0,
        "tokenizer.ggml.add_bos_token": False,
        "general.architecture": "llama",
        "llama.rope.scaling.type": "linear",
    }
    with Model(demo_path) as model:
        assert (model.n_ctx_train, model.rope_freq_scale_train) == (2048, 1.0)
        assert model.vocab.add_bos
    with Model(demo_path, kv_overrides=overrides) as model:
        assert (model.n_ctx_train, model.rope_freq_scale_train) == (99, 0.25)
        assert not model.vocab.add_bos
    with pytest.raises(LoadError, match="unknown model architecture: 'abc'"):
        Model(demo_path, kv_overrides={"general.architecture": "abc"})


def test_overrides_as_c_gets_them():
    value = {"a": True, "b": 1, "c": 2.5, "d": "äé", "e": np.int64(-7), "f": np.float32(0.5)}
    value["g"] = np.bool_(True)
    array, _ = kv_overrides(value)
    tags = [
        lib.LLAMA_KV_OVERRIDE_TYPE_BOOL,
        lib.LLAMA_KV_OVERRIDE_TYPE_INT,
        lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT,
        lib.LLAMA_KV_OVERRIDE_TYPE_STR,
        lib.LLAMA_KV_OVERRIDE_TYPE_INT,
        lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT,
        lib.LLAMA_KV_OVERRIDE_TYPE_BOOL,
    ]
    assert [one.tag for one in array][:-1] == tags
    assert [text(one.key) for one in array] == [*"abcdefg", ""]
    assert (array[0].val_bool, array[1].val_i64, array[2].val_f64) == (True, 1, 2.5)
    assert (text(array[3].val_str), array[4].val_i64, array[5].val_f64) == ("äé", -7, 0.5)
    assert array[6].val_bool is True
    assert len(kv_overrides({})[0]) == 1
    for number in (2**63 - 1, -(2**63)):
        assert kv_overrides({"a": number})[0][0].val_i64 == number


LONGEST = ffi.sizeof("struct llama_model_kv_override") and len(
    ffi.new("struct llama_model_kv_override *").key
)


def test_the_longest_key_and_string():
    value = {"k" * (LONGEST - 1): "ä" * ((LONGEST - 1) // 2)}
    array, _ = kv_overrides(value)
    assert {text(array[0].key): text(array[0].val_str)} == value
    for key, string, match in (
        ("k" * LONGEST, "", "the key"),
        ("ä" * (LONGEST // 2), "", "128 bytes long in UTF-8, but llama.cpp takes at most 127"),
        ("k", "s" * LONGEST, r"kv_overrides\['k'\] is 128 bytes"),
        ("k\0", "", "NUL"),
        ("k", "\0", "NUL"),
    ):
        with pytest.raises(ArgumentError, match=match):
            kv_overrides({key: string})


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, float("nan"), float("inf")])
def test_overrides_out_of_range(value, demo_path):
    with pytest.raises(ArgumentError, match=r"kv_overrides\['llama.context_length'\]"):
        Model(demo_path, kv_overrides={"llama.context_length": value})


@pytest.mark.parametrize(
    "value", [3, "a=b", ["a"], {3: 4}, {"": 1}, {"a": None}, {"a": [1]}, {"a": b"x"}, {"a": 1j}]
)
def test_overrides_of_another_type(value, demo_path):
    with pytest.raises(TypeError, match="kv_overrides"):
        Model(demo_path, kv_overrides=value)


def test_an_override_has_the_type_that_llama_cpp_reads(demo_path):
    # llama.cpp would ignore it otherwise.
    rms = "llama.attention.layer_norm_rms_epsilon"
    with Model(demo_path, kv_overrides={rms: 1}) as model:
        assert rms in model.metadata
    for key, value, kind in (
        ("llama.context_length", 1.5, "u32"),
        ("llama.context_length", "99", "u32"),
        (rms, "1", "f32"),
        ("general.name", 3, "str"),
        ("tokenizer.ggml.tokens", "x", "arr"),
    ):
        with pytest.raises(ArgumentError, match=f"{key}.* in the file it is {kind}"):
            Model(demo_path, kv_overrides={key: value})
        with pytest.raises(ArgumentError, match=kind), open(demo_path, "rb") as file:
            Model.from_file(file, kv_overrides={key: value})
    with open(demo_path, "rb") as file:
        with Model.from_file(file, kv_overrides={"llama.context_length": 77}) as model:
            assert model.n_ctx_train == 77
        assert file.tell() == 0


# tensor_buft_overrides


def test_places_by_pattern():
    cpu = device("CPU")
    value = {
        r"ffn_(up|down)\.weight$": cpu,
        "attn_[qkv]": "CPU",
        "^output": cpu.buffer_type,
        ".*": cpu.buffer_type.ptr,
    }
    for given in (value, list(value.items()), iter(value.items())):
        array, keep = tensor_buft_overrides(given)
        assert len(array) == 5
        assert [text(one.pattern) for one in array[0:4]] == list(value)
        assert all(one.buft == lib.ggml_backend_cpu_buffer_type() for one in array[0:4])
        assert array[4].pattern == ffi.NULL
        del keep


def test_overridden_tensors_load(demo_path):
    with Model(demo_path, tensor_buft_overrides={".*": "CPU"}) as model:
        assert sum(model.placement.values()) == model.size


@pytest.mark.parametrize("pattern", ["(", "a[", "*", "a{2", "(?<=x)a", "[z-a]", "\\"])
def test_invalid_patterns(pattern, demo_path):
    with pytest.raises(
        ArgumentError, match=re.escape(f"the pattern {pattern!r} is not a regular exp")
    ):
        Model(demo_path, tensor_buft_overrides={pattern: "CPU"})


@pytest.mark.parametrize(
    "pattern",
    [
        "(" * 101 + ")" * 101,
        "a" * 1001,
        "a{1001}",
        "(a{40}){40}",
        "(|a){9,999999}",
        "a" * 10**6,
        "(|a){1000}",
    ],
    ids=lambda pattern: pattern[:20],
)
def test_patterns_that_could_overflow_the_stack(pattern, demo_path):
    with pytest.raises(ArgumentError, match="pattern"):
        Model(demo_path, tensor_buft_overrides={pattern: "CPU"})


@pytest.mark.no_asan
def test_patterns_at_the_limits(run_python, demo_path):
    code = """
        import sys, threading
        from llamacffi import Model
        threading.stack_size(512 * 1024)
        def load():
            deep = "(" * 100 + "a" + ")" * 100
            for pattern in (deep, "a" * 1000, "(ab){1000}", "((ab){30}){30}"):
                Model(sys.argv[1], tensor_buft_overrides={pattern: "CPU"}).close()
            print("ok")
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
    """
    result = run_python(code, demo_path)
    assert (result.returncode, result.stdout) == (0, "ok\n"), result


def test_invalid_places(demo_path):
    with pytest.raises(BackendUnavailableError, match=r"no device or buffer type 'GPU'.* from CPU"):
        Model(demo_path, tensor_buft_overrides={"a": "GPU"})
    # Only llama.cpp knows which weights fit into a device-specific layout.
    for one in device("CPU").extra_buffer_types:
        with pytest.raises(BackendUnavailableError, match=one.name):
            Model(demo_path, tensor_buft_overrides={".*": one})
    for value in (3, "a=CPU", {"a": 3}, {"a": None}, {3: "CPU"}, [("a",)], [("a", "CPU", 1)]):
        with pytest.raises(TypeError):
            Model(demo_path, tensor_buft_overrides=value)
    with pytest.raises(ArgumentError, match="NUL"):
        Model(demo_path, tensor_buft_overrides={"a\0b": "CPU"})


def test_too_many_places():
    limit = lib.llama_max_tensor_buft_overrides() - 1
    cpu = device("CPU").buffer_type.ptr
    with pytest.raises(ArgumentError, match=f"has {limit + 1} patterns, but .* at most {limit}"):
        tensor_buft_overrides([("a", cpu)] * (limit + 1))
    assert len(tensor_buft_overrides([("a", cpu)] * limit)[0]) == limit + 1


# Experts

EXPERT_NAMES = [
    f"blk.{i}.ffn_{kind}_{exps}.{end}"
    for i in (0, 1, 10, 11)
    for kind in ("up", "down", "gate", "gate_up")
    for exps in ("exps", "chexps")
    for end in ("weight", "bias", "scale")
]
OTHER_NAMES = [
    "token_embd.weight",
    "blk.0.ffn_up.weight",
    "blk.0.ffn_up_shexp.weight",
    "blk.0.ffn_gate_inp.weight",
    "blk.0.ffn_norm_exps.weight",
    "blk.0.attn_q.weight",
]


def test_names_of_experts():
    assert all(re.search(EXPERTS, name) for name in EXPERT_NAMES)
    assert not any(re.search(EXPERTS, name) for name in OTHER_NAMES)


def test_experts_of_the_first_layers():
    pairs = expert_overrides(False, 2)
    found = [name for name in EXPERT_NAMES if any(re.search(one, name) for one, _ in pairs)]
    assert {name.split(".")[1] for name in found} == {"0", "1"}
    assert len(found) == len(EXPERT_NAMES) // 2


def test_experts_come_after_other_overrides():
    array = ffi.new("ggml_backend_dev_t[]", [device("CPU").ptr, ffi.NULL])
    some = {"devices": array}
    struct, _keep = model_params({**some, "cpu_moe": True, "tensor_buft_overrides": {"a": "CPU"}})
    found = struct.tensor_buft_overrides
    assert [text(found[i].pattern) for i in range(2)] == ["a", EXPERTS]
    assert found[2].pattern == ffi.NULL
    struct, _keep = model_params({**some, "n_cpu_moe": 3})
    assert struct.tensor_buft_overrides[3].pattern == ffi.NULL
    struct, _keep = model_params({**some, "n_cpu_moe": 0, "cpu_moe": False})
    assert struct.tensor_buft_overrides == ffi.NULL


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"cpu_moe": 1}, TypeError),
        ({"cpu_moe": None}, TypeError),
        ({"n_cpu_moe": "2"}, TypeError),
        ({"n_cpu_moe": 1.0}, TypeError),
        ({"n_cpu_moe": -1}, ArgumentError),
        ({"n_cpu_moe": 5000}, ArgumentError),
        ({"cpu_moe": True, "n_cpu_moe": 2}, ArgumentError),
    ],
)
def test_invalid_numbers_of_experts(params, error, demo_path):
    with pytest.raises(error):
        Model(demo_path, **params)


# Parameters that exclude each other


@pytest.mark.parametrize("mode", [*enums.LoadMode])
def test_every_load_mode(mode, demo_path):
    with Model(demo_path, load_mode=mode) as model:
        mapped = mode in (enums.LoadMode.AUTO, enums.LoadMode.MMAP, enums.LoadMode.MMAP_MLOCK)
        assert list(model.placement) == ["CPU_Mapped" if mapped else "CPU"]


@pytest.mark.parametrize("mode", [*enums.LazyMode])
def test_every_lazy_mode(mode, demo_path):
    with Model(demo_path, lazy_mode=mode) as model:
        assert sum(model.placement.values()) == model.size


@pytest.mark.parametrize("mode", ["mmap", "mmap_mlock", "mlock"])
def test_a_model_without_weights_cannot_be_mapped(mode, demo_path):
    with pytest.raises(ArgumentError, match="use load_mode='none'"):
        Model(demo_path, no_alloc=True, load_mode=mode)


@pytest.mark.parametrize("mode", ["auto", "none", "direct_io", None])
def test_a_model_without_memory(mode, demo_path):
    params = {} if mode is None else {"load_mode": mode}
    with Model(demo_path, no_alloc=True, **params) as model:
        assert model.without_weights == "no_alloc"
        assert model.n_layer == 1


@pytest.mark.parametrize("name", ["vocab_only", "no_alloc"])
def test_weights_that_are_not_loaded_cannot_be_checked(name, demo_path):
    with pytest.raises(ArgumentError, match=f"check_tensors=True reads .*{name}=True"):
        Model(demo_path, check_tensors=True, **{name: True})


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("use_mmap", "load_mode='mmap'"),
        ("use_mlock", "load_mode='mlock'"),
        ("use_direct_io", "load_mode='direct_io'"),
        ("override_tensor", "tensor_buft_overrides"),
        ("n_ctx", "parameter of Context"),
        ("n_threads", "parameter of Context"),
        ("n_gpu_layer", "did you mean 'n_gpu_layers'"),
    ],
)
def test_names_that_belong_elsewhere(name, match, demo_path):
    with pytest.raises(TypeError, match=match):
        Model(demo_path, **{name: True})


def test_progress_must_be_a_function(demo_path):
    for value in (3, "x", True):
        with pytest.raises(TypeError, match="progress must be a function"):
            Model(demo_path, progress=value)


def test_what_was_given_is_kept_alive():
    struct, keep = model_params(
        {"kv_overrides": {"a": 1}, "tensor_buft_overrides": {"b": "CPU"}, "devices": []}
    )
    assert len(keep) == 3
    assert used_devices(struct) == []
    assert text(struct.tensor_buft_overrides[0].pattern) == "b"
