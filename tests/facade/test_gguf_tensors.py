"""Tensors in GGUF files: every type as an array, conversion in C, and refused data."""

from __future__ import annotations

import struct

import gguf as reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamacffi import ArgumentError, ClosedError, Gguf, GgufError, ffi, lib
from llamacffi._generated.enums import GgmlType
from llamacffi.gguf.gguf import dequantize_array, quantize_array

TYPES = [one for one in GgmlType if one != GgmlType.COUNT]
PLAIN = {
    "F32": "float32",
    "F16": "float16",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}
# What llama.cpp makes for itself alone, and has no way back from.
INTERNAL = ("Q8_1", "Q8_K")
# IQ1 is in the tests of quantize(): C takes ten seconds to prepare for it.
BLOCKS = [one for one in TYPES if one.name not in (*PLAIN, *INTERNAL, "BF16", "IQ1_S", "IQ1_M")]


@pytest.fixture
def gguf():
    with Gguf.new() as one:
        yield one


@pytest.fixture(scope="module")
def numbers():
    return np.random.default_rng(1).standard_normal((3, 5, 512)).astype(np.float32)


def again(gguf):
    return Gguf.from_bytes(gguf.to_bytes())


def quantized(numbers, type_):
    imatrix = np.ones(numbers.shape[-1], np.float32)
    return quantize_array(numbers, type_, imatrix=imatrix)


def param_or_zero(dtype):
    """Return the type to request: float64 without a request would warn."""
    return "f64" if dtype == "float64" else None


@pytest.mark.parametrize("dtype", PLAIN.values())
def test_plain_arrays_are_themselves(gguf, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    tensor = gguf.add_tensor("t", array, type=param_or_zero(dtype))
    assert np.shares_memory(tensor.data, array)
    with again(gguf) as read:
        tensor = read.tensors["t"]
        assert PLAIN[tensor.type.name] == dtype
        assert (tensor.shape, tensor.n_elements, tensor.nbytes) == ((2, 3, 4), 24, array.nbytes)
        assert tensor.data.dtype == dtype
        assert np.array_equal(tensor.data, array)
        assert np.array_equal(tensor.dequantize(), array.astype(np.float32))
        assert tensor.dequantize().dtype == np.float32
        assert repr(tensor) == f"<GgufTensor 't' {tensor.type.name} (2, 3, 4)>"


@pytest.mark.parametrize("type_", BLOCKS)
def test_every_quantized_type_there_and_back(gguf, numbers, type_):
    imatrix = np.ones(512, np.float32)
    gguf.add_tensor("t", numbers, type=type_.name.lower(), imatrix=imatrix)
    gguf.add_tensor("blocks", gguf.tensors["t"].data, type=type_)
    row = lib.ggml_row_size(type_, 512)
    with again(gguf) as read:
        tensor = read.tensors["t"]
        assert (tensor.type, tensor.shape, tensor.nbytes) == (type_, (3, 5, 512), 15 * row)
        assert (tensor.data.dtype, tensor.data.shape) == (np.uint8, (3, 5, row))
        assert np.array_equal(tensor.data, read.tensors["blocks"].data)
        values = tensor.dequantize()
        assert values.shape == (3, 5, 512)
        # 8 bits are nearly exact; those of one or two keep at least the direction.
        assert np.corrcoef(values.ravel(), numbers.ravel())[0, 1] > 0.65
        assert np.array_equal(dequantize_array(tensor.data[1:, 2], type_), values[1:, 2])


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "Q4_K", "Q6_K"])
def test_the_reference_decodes_the_same(numbers, name):
    blocks = quantize_array(numbers, name)
    raw = blocks.view(np.uint8)
    expected = reference.dequantize(raw, reference.GGMLQuantizationType[name])
    assert np.allclose(dequantize_array(blocks, name), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16"])
def test_the_reference_encodes_the_same(numbers, name):
    expected = reference.quantize(numbers, reference.GGMLQuantizationType[name])
    assert np.array_equal(quantize_array(numbers, name).view(np.uint8), expected)


def test_bfloat16_are_bits(gguf, numbers):
    tensor = gguf.add_tensor("t", numbers, type="bf16")
    assert tensor.data.dtype == np.uint16
    assert tensor.data.shape == numbers.shape
    gguf.add_tensor("bits", tensor.data, type="bf16")
    assert np.array_equal(gguf.tensors["bits"].dequantize(), tensor.dequantize())
    assert np.allclose(tensor.dequantize(), numbers, rtol=2**-8)


def test_an_imatrix_makes_the_columns_that_matter_better(numbers):
    rows = numbers.reshape(15, 512)
    imatrix = np.full(512, 1e-3, np.float32)
    imatrix[::8] = 1

    def error(**options):
        return np.abs(dequantize_array(quantize_array(rows, "q4_k", **options), "q4_k") - rows)

    better, plain = error(imatrix=imatrix), error()
    assert better[:, ::8].mean() < 0.9 * plain[:, ::8].mean()


@pytest.mark.parametrize("factor", [2.0**100, 2.0**-100])
def test_only_the_ratios_of_an_imatrix_count(numbers, factor):
    weights = np.random.default_rng(3).random(512).astype(np.float32)
    expected = quantize_array(numbers, "iq2_xs", imatrix=weights)
    assert np.array_equal(quantize_array(numbers, "iq2_xs", imatrix=weights * factor), expected)


def test_an_imatrix_of_zeros_is_one_of_ones(numbers):
    weights = np.ones((3, 512), np.float32)
    expected = quantize_array(numbers, "iq2_xs", imatrix=weights)
    weights[1] = 0
    assert np.array_equal(quantize_array(numbers, "iq2_xs", imatrix=weights), expected)


def test_numbers_that_are_not_finite_are_kept_by_floats(gguf):
    array = np.array([np.inf, -np.inf, np.nan, 1], np.float32)
    for name in ("f16", "f32", "f64", "bf16"):
        assert np.array_equal(
            gguf.add_tensor(name, array, type=name).dequantize(), array, equal_nan=True
        )


def test_an_imatrix_for_each_expert(numbers):
    weights = np.random.default_rng(2).random((3, 512)).astype(np.float32)
    together = quantize_array(numbers, "iq2_xs", imatrix=weights)
    alone = [quantize_array(numbers[i], "iq2_xs", imatrix=weights[i]) for i in range(3)]
    assert np.array_equal(together, np.stack(alone))
    assert not np.array_equal(alone[0], quantize_array(numbers[0], "iq2_xs", imatrix=weights[1]))


@pytest.mark.parametrize(
    ("shape", "stored"),
    [((1,), (1,)), ((1, 7), (7,)), ((7, 1), (7, 1)), ((1, 1, 2, 3), (2, 3)), ((2, 1, 3, 4),) * 2],
)
def test_ones_in_front_are_not_stored(gguf, shape, stored):
    assert gguf.add_tensor("t", np.zeros(shape, np.float32)).shape == stored
    assert again(gguf).tensors["t"].shape == stored


def test_a_tensor_that_is_read_may_be_empty():
    """But it cannot be written: C leaves its last dimension out."""
    raw = header(2, 0) + described("t", [4, 0], 0) + described("u", [3], 0)
    raw += bytes(-len(raw) % 32) + np.ones(3, np.float32).tobytes()
    with Gguf.from_bytes(raw) as read:
        tensor = read.tensors["t"]
        assert tensor.shape == tensor.data.shape == tensor.dequantize().shape == (0, 4)
        assert read.tensors["u"].data.tolist() == [1, 1, 1]
        with pytest.raises(GgufError, match="no elements"):
            read.to_bytes()
        read.remove_tensor("t")
        assert again(read).tensors["u"].data.tolist() == [1, 1, 1]


def test_arrays_that_lie_differently(gguf):
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    for name, other in {"t": array.T, "s": array[::2, ::3], "b": array.astype(">f4")}.items():
        gguf.add_tensor(name, other)
        assert np.array_equal(again(gguf).tensors[name].data, other)
    with pytest.warns(RuntimeWarning, match="float64 .* type='f32'"):
        gguf.add_tensor("list", [[1.5, 2], [3, 4]])
    assert gguf.tensors["list"].data.dtype == np.float64


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (np.zeros(33, np.float32), {"type": "q8_0"}, GgufError, "rows of 33 .* multiple of 32"),
        (np.zeros((2, 33), np.uint8), {"type": "q8_0"}, GgufError, "33 bytes .* have 34"),
        (np.full(32, np.nan, np.float32), {"type": "q8_0"}, GgufError, "NaN or infinity"),
        (np.full(256, np.inf, np.float32), {"type": "iq2_s"}, GgufError, "NaN or infinity"),
        (np.zeros(256, np.float32), {"type": "iq1_s"}, ArgumentError, "give imatrix"),
        (
            np.zeros(256, np.float32),
            {"type": "iq1_s", "imatrix": np.ones(255)},
            ArgumentError,
            r"\(255,\), but for a tensor of shape \(256,\) it must have \(256,\)",
        ),
        (
            np.zeros(256, np.float32),
            {"type": "q4_k", "imatrix": np.full(256, -1)},
            ArgumentError,
            "negative or not finite",
        ),
        (np.full(32, 1e9), {"type": "q8_0"}, GgufError, r"Q8_0 .* as large as 1e\+09"),
        (np.full(256, 1e20), {"type": "iq2_s", "imatrix": np.ones(256)}, GgufError, "IQ2_S"),
        (np.full(32, 1e9), {"type": "f16"}, GgufError, "too large for F16"),
        (np.zeros(256, np.float32), {"type": "q8_k"}, ArgumentError, "intermediate"),
        (np.zeros(256, np.float32), {"type": "q4_2"}, ArgumentError, "one of f32, .*'q4_2'"),
        (np.zeros(256, np.float32), {"type": 4}, ArgumentError, "one of f32, .* not 4"),
        (np.zeros(256, np.float32), {"type": "count"}, ArgumentError, "one of f32, .*'count'"),
        (np.zeros((1,) * 4 + (2,), np.float32), {}, GgufError, "5 dimensions"),
        (np.zeros((0, 2), np.float32), {}, GgufError, "no elements"),
        (np.float32(1), {}, GgufError, "at least one dimension"),
        (np.zeros(3, np.uint32), {}, GgufError, "uint32"),
        (np.zeros(3, complex), {"type": "f32"}, GgufError, "complex"),
        (np.array(["a"]), {"type": "q8_0"}, GgufError, "give numbers"),
        (np.array([1.5]), {"type": "i32"}, GgufError, "convert it first"),
        (np.array([300]), {"type": "i8"}, GgufError, "convert it first"),
    ],
)
def test_data_that_cannot_be_a_tensor(gguf, data, options, error, message):
    gguf.add_tensor("there", np.ones(2, np.float32))
    before = gguf.to_bytes()
    with pytest.raises(error, match=message):
        gguf.add_tensor("t", data, **options)
    with pytest.raises(error, match=message):
        gguf.replace_tensor("there", data, **options)
    assert gguf.to_bytes() == before


@pytest.mark.parametrize("name", ["", "x" * 64, "a\0b", "\N{SNOWMAN}" * 22, "there"])
def test_names(gguf, name):
    gguf.add_tensor("there", np.ones(2, np.float32))
    with pytest.raises(GgufError):
        gguf.add_tensor(name, np.ones(2, np.float32))
    gguf.add_tensor("other", np.ones(2, np.float32))
    with pytest.raises(GgufError):
        gguf.rename_tensor("other", name)
    with pytest.raises(TypeError):
        gguf.add_tensor(b"t", np.ones(2, np.float32))
    assert list(gguf.tensors) == ["there", "other"]


def test_longest_name(gguf):
    gguf.add_tensor("x" * 63, np.ones(2, np.float32))
    assert list(again(gguf).tensors) == ["x" * 63]


def test_a_shape_that_numpy_cannot_represent():
    raw = header(1, 0) + described("t", [2**62, 0], 0) + bytes(100)
    with Gguf.from_bytes(raw) as read:
        assert read.tensors["t"].nbytes == 0
        for call in (lambda: read.tensors["t"].data, read.to_bytes, read.hash):
            with pytest.raises(GgufError):
                call()


def test_edits_keep_the_order(gguf):
    for name in "abc":
        gguf.add_tensor(name, np.full(2, ord(name), np.int32))
    view = gguf.tensors
    gguf.replace_tensor("b", np.zeros((2, 32), np.float32), type="q4_0")
    gguf.rename_tensor("a", "z")
    gguf.rename_tensor("c", "c")
    assert list(view) == list(again(gguf).tensors) == ["z", "b", "c"]
    assert gguf.remove_tensor("z").data.tolist() == [97, 97]
    assert list(view) == list(again(gguf).tensors) == ["b", "c"]
    for call in (
        lambda: gguf.remove_tensor("z"),
        lambda: gguf.rename_tensor("z", "y"),
        lambda: gguf.replace_tensor("z", np.zeros(1, np.float32)),
    ):
        with pytest.raises(KeyError):
            call()


def test_tensors_of_another_file(gguf, demo_path):
    with Gguf.open(demo_path) as other:
        output = other.tensors["output.weight"]
        gguf.add_tensor("copy", output)
        assert np.shares_memory(gguf.tensors["copy"].data, output.data)
        gguf.add_tensor("small", output, type="q8_0")
        expected = output.dequantize()
        with again(gguf) as read:
            assert np.array_equal(read.tensors["copy"].data, expected)
            assert np.abs(read.tensors["small"].dequantize() - expected).max() < 0.1
    with pytest.raises(ClosedError, match="copy"):
        gguf.to_bytes()
    gguf.remove_tensor("copy")
    assert again(gguf).tensors["small"].nbytes < output.nbytes / 3


def test_data_are_the_file_itself(demo_path):
    with Gguf.open(demo_path) as gguf:
        tensor = gguf.tensors["output.weight"]
        data = tensor.data
        assert np.shares_memory(data, tensor.data)
        assert not data.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            data.flags.writeable = True
        begin = gguf.data_offset + tensor.offset
        assert demo_path.read_bytes()[begin : begin + tensor.nbytes] == data.tobytes()
        assert np.array_equal(data, tensor.dequantize())
    # The array keeps the file mapped; the closed object gives no more of them.
    assert data.sum() != 0
    with pytest.raises(ClosedError):
        tensor.data  # noqa: B018


def test_added_arrays_are_read_only_for_others(gguf):
    array = np.zeros(3, np.float32)
    tensor = gguf.add_tensor("t", array)
    assert not tensor.data.flags.writeable
    assert array.flags.writeable


def test_tensors_pass_from_file_to_file(gguf, tmp_path):
    """The data is not copied into Python's memory."""
    import tracemalloc

    for i in range(4):
        gguf.add_tensor(f"t{i}", np.full(2_000_000, i, np.float32))
    gguf.write(tmp_path / "one.gguf")
    with Gguf.open(tmp_path / "one.gguf") as read:
        read["new"] = 1
        read.remove_tensor("t1")
        tracemalloc.start()
        read.write(tmp_path / "two.gguf")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1_000_000
    with Gguf.open(tmp_path / "two.gguf") as read:
        assert [int(read.tensors[name].data[-1]) for name in read.tensors] == [0, 2, 3]


def test_metadata_alone(demo_path, tmp_path):
    with Gguf.open(demo_path) as gguf:
        offset, names = gguf.data_offset, list(gguf.tensors)
        expected = gguf.tensors["output.weight"].data.copy()
    start = tmp_path / "start.gguf"
    start.write_bytes(demo_path.read_bytes()[: offset + 100])
    with pytest.raises(GgufError, match="is truncated"):
        Gguf.open(start)
    with Gguf.open(start, metadata_only=True) as gguf:
        assert list(gguf.tensors) == names
        tensor = gguf.tensors["output.weight"]
        with demo_path.open("rb") as file:
            file.seek(gguf.data_offset + tensor.offset)
            assert file.read(tensor.nbytes) == expected.tobytes()
        for call in (lambda: tensor.data, gguf.to_bytes, tensor.dequantize):
            with pytest.raises(GgufError, match="metadata_only"):
                call()
    with pytest.raises(GgufError, match="metadata_only"):
        tensor.data  # noqa: B018


def test_c_knows_the_tensors(gguf):
    gguf.add_tensor("a", np.zeros((4, 32), np.float32), type="q8_0")
    ptr = gguf.ptr
    assert gguf.ptr == ptr
    gguf.add_tensor("b", np.zeros(5, np.int8))
    gguf.remove_tensor("a")
    names = [
        ffi.string(lib.gguf_get_tensor_name(gguf.ptr, i))
        for i in range(lib.gguf_get_n_tensors(gguf.ptr))
    ]
    assert names == [b"b"]
    assert lib.gguf_get_n_tensors(ptr) == 1  # the one from before is alive while it is held


def test_conversion_of_wrong_arrays():
    with pytest.raises(GgufError, match="uint8"):
        dequantize_array(np.zeros(34, np.float32), "q8_0")
    with pytest.raises(GgufError, match="33 bytes"):
        dequantize_array(np.zeros(33, np.uint8), "q8_0")
    with pytest.raises(ArgumentError, match="cannot convert"):
        dequantize_array(np.zeros(292, np.uint8), "q8_k")
    with pytest.raises(GgufError):
        dequantize_array(np.uint8(1), "q8_0")


def test_misaligned_blocks():
    blocks = quantize_array(np.arange(64, dtype=np.float32), "q8_0")
    raw = np.frombuffer(b"x" + blocks.tobytes(), np.uint8)[1:]
    assert np.array_equal(dequantize_array(raw, "q8_0"), dequantize_array(blocks, "q8_0"))
    raw = np.frombuffer(b"x" + np.arange(4, dtype=np.float16).tobytes(), np.uint8)[1:]
    assert dequantize_array(raw.view(np.float16), "f16").tolist() == [0, 1, 2, 3]


shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text("abc.é", min_size=1, max_size=10),
        st.tuples(shapes, st.sampled_from(sorted(PLAIN.values()))),
        max_size=6,
    ),
    st.sampled_from([1, 2, 32, 128]),
)
def test_any_tensors_there_and_back(described, alignment):
    arrays = {
        name: np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        for name, (shape, dtype) in described.items()
    }
    with Gguf.new() as gguf:
        gguf["general.alignment"] = alignment
        for name, array in arrays.items():
            gguf.add_tensor(name, array, type=param_or_zero(array.dtype))
        with again(gguf) as read:
            assert list(read.tensors) == list(arrays)
            for name, array in arrays.items():
                tensor = read.tensors[name]
                assert np.array_equal(tensor.data.reshape(array.shape), array)
                assert tensor.offset % alignment == 0
            assert read.to_bytes() == gguf.to_bytes()


# Files that are wrong


def header(n_tensors, n_keys):
    return struct.pack("<4sIqq", b"GGUF", 3, n_tensors, n_keys)


def described(name, ne, type_, offset=0):
    raw = name.encode()
    return struct.pack(f"<Q{len(raw)}sI{len(ne)}qiQ", len(raw), raw, len(ne), *ne, type_, offset)


def key_u8(name):
    raw = name.encode()
    return struct.pack(f"<Q{len(raw)}siB", len(raw), raw, 0, 1)


@pytest.mark.parametrize(
    "content",
    [
        header(2**62, 0),
        header(0, 2**62),
        header(-1, 0),
        header(2, 0) + described("t", [1], 0) + described("t", [1], 0, 32) + bytes(100),
        header(2, 0) + described("t", [1], 0) + described("u", [1], 0, 33) + bytes(100),
        header(2, 0) + described("t\0a", [1], 0) + described("t\0b", [1], 0, 32) + bytes(100),
        header(1, 0) + described("t", [2**40, 2**30], 0) + bytes(100),
        header(1, 0) + described("t", [-1], 0) + bytes(100),
        header(1, 0) + described("t", [0, 2**40, 2**40], 0) + bytes(2),
        header(1, 0) + described("t", [1] * 5, 0) + bytes(100),
        header(1, 0) + described("t", [1], 4) + bytes(100),
        header(1, 0) + described("t", [1], 10**9) + bytes(100),
        header(1, 0) + described("t", [33], 8) + bytes(100),
        header(1, 0) + described("t" * 64, [1], 0) + bytes(100),
        header(1, 0) + described("", [1], 0) + bytes(100),
        header(1, 0) + described("t", [1000], 0) + bytes(100),
        header(0, 2) + key_u8("a") * 2,
        header(0, 2) + key_u8("a\0b") + key_u8("a\0c"),
        header(0, 1) + key_u8("\0a"),
        header(0, 1) + struct.pack("<Q", 2**63),
        header(0, 1) + struct.pack("<Q1siiQ", 1, b"a", 9, 8, 2**40),
        header(0, 1) + struct.pack("<Q1siiQ", 1, b"a", 9, 9, 1),
        header(0, 1) + struct.pack("<Q1si", 1, b"a", 13),
    ],
)
def test_hostile_files(content, tmp_path):
    with pytest.raises(GgufError):
        Gguf.from_bytes(content)
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError):
        Gguf.open(path)


@pytest.mark.no_asan
def test_damaged_files_never_crash(run_python, demo_path):
    """Flip, cut and insert bytes, in 1 GB of memory: an error, or something that can be used."""
    code = """
        import resource, sys
        import numpy as np
        from pathlib import Path
        from llamacffi import Gguf, GgufError
        gguf = Gguf.new()
        gguf.update({"a": 1, "b": "text", "c": ["x", "y"], "d": np.arange(5), "e": 0.5, "f": True})
        gguf["general.alignment"] = 32
        for i, name in enumerate(["q8_0", "q4_0", "f16", "bf16"]):
            gguf.add_tensor(f"t{i}", np.ones((2, 32), np.float32), type=name)
        whole = gguf.to_bytes()
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        random = np.random.default_rng(7)
        good = bad = 0
        for i in range(3000):
            raw = bytearray(whole)
            for _ in range(random.integers(1, 4)):
                at = int(random.integers(len(raw)))
                match random.integers(4):
                    case 0: raw[at] = int(random.integers(256))
                    case 1: del raw[at:]
                    case 2: raw[at:at] = random.bytes(int(random.integers(1, 9)))
                    case 3: raw[at : at + 8] = int(random.integers(2**63)).to_bytes(8, "little")
            try:
                read = Gguf.from_bytes(bytes(raw))
                dict(read), read.type
                for tensor in read.tensors.values():
                    tensor.dequantize() if tensor.type.name not in ("Q8_1", "Q8_K") else 0
                assert dict(Gguf.from_bytes(read.to_bytes())).keys() == dict(read).keys()
                good += 1
            except GgufError:
                bad += 1
        print(good > 100, bad > 1000)
    """
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "True True\n"
