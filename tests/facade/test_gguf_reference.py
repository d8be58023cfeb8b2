"""GGUF files of the independent ``gguf`` package, and its reading of ours."""

from __future__ import annotations

import gguf as reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamacffi import Gguf
from llamacffi._generated.enums import GgmlType, GgufType
from llamacffi.gguf.number_types import NUMBERS

VALUES = {
    GgufType.UINT8: [0, 255],
    GgufType.INT8: [-128, 127],
    GgufType.UINT16: [0, 2**16 - 1],
    GgufType.INT16: [-(2**15), 2**15 - 1],
    GgufType.UINT32: [0, 2**32 - 1],
    GgufType.INT32: [-(2**31), 2**31 - 1],
    GgufType.UINT64: [0, 2**64 - 1],
    GgufType.INT64: [-(2**63), 2**63 - 1],
    GgufType.FLOAT32: [0.5, -1e30],
    GgufType.FLOAT64: [0.1, 1e300],
    GgufType.BOOL: [True, False],
    GgufType.STRING: ["", "Straße \N{SNOWMAN}"],
}


def kind(type_):
    return reference.GGUFValueType(int(type_))


def write(path, keys, tensors, alignment=None):
    """Write a file with the reference.

    Args:
        path: The file.
        keys: Values and their types by key.
        tensors: Arrays and their types, or None, by name.
        alignment: Of the tensors.
    """
    writer = reference.GGUFWriter(path, "test")
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, (value, type_, element) in keys.items():
        writer.add_key_value(key, value, type_, element)
    for name, (array, type_) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def fields(path):
    """Read what the reference finds in a file."""
    reader = reference.GGUFReader(path)
    found = {
        key: (field.types, field.contents())
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    tensors = {
        one.name: (one.tensor_type, one.data.copy(), [int(n) for n in one.shape])
        for one in reader.tensors
    }
    return found, tensors


def test_their_values(tmp_path):
    keys = {}
    for type_, values in VALUES.items():
        for i, value in enumerate(values):
            keys[f"{type_.name}.{i}"] = (value, kind(type_), None)
        keys[f"{type_.name}.array"] = (values * 3, reference.GGUFValueType.ARRAY, kind(type_))
    write(tmp_path / "their.gguf", keys, {})
    with Gguf.open(tmp_path / "their.gguf") as gguf:
        assert gguf["general.architecture"] == "test"
        for type_, values in VALUES.items():
            for i, value in enumerate(values):
                expected = NUMBERS[type_].type(value).item() if type_ in NUMBERS else value
                assert gguf[f"{type_.name}.{i}"] == expected
                assert type(gguf[f"{type_.name}.{i}"]) is type(expected)
                assert gguf.type(f"{type_.name}.{i}") == type_
            array = gguf[f"{type_.name}.array"]
            assert gguf.is_array(f"{type_.name}.array")
            assert list(array) == list(np.array(values * 3, NUMBERS.get(type_)))


def test_our_values(tmp_path):
    with Gguf.new() as gguf:
        for type_, values in VALUES.items():
            gguf.set(f"{type_.name}", values[1], type=type_)
            gguf.set(f"{type_.name}.array", values, type=type_)
        gguf.write(tmp_path / "our.gguf")
    found, _ = fields(tmp_path / "our.gguf")
    for type_, values in VALUES.items():
        expected = [NUMBERS[type_].type(one).item() if type_ in NUMBERS else one for one in values]
        assert found[type_.name] == ([kind(type_)], expected[1])
        types, contents = found[f"{type_.name}.array"]
        assert (types[0], types[-1]) == (reference.GGUFValueType.ARRAY, kind(type_))
        assert contents == expected


TENSORS = [
    reference.GGMLQuantizationType[name]
    for name in ("F32", "F16", "F64", "I8", "I16", "I32", "I64", "BF16", "Q4_0", "Q5_1", "Q8_0")
]


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
def test_their_tensors(tmp_path, alignment):
    numbers = np.arange(192).reshape(2, 3, 32).astype(np.float32) - 90
    plain = {
        "F32": "f4",
        "F16": "f2",
        "F64": "f8",
        "I8": "i1",
        "I16": "i2",
        "I32": "i4",
        "I64": "i8",
    }
    tensors = {
        one.name: (numbers.astype(plain[one.name]), None)
        if one.name in plain
        else (reference.quantize(numbers, one), one)
        for one in TENSORS
    }
    write(tmp_path / "their.gguf", {}, tensors, alignment)
    with Gguf.open(tmp_path / "their.gguf") as gguf:
        assert gguf.alignment == (alignment or 32)
        assert list(gguf.tensors) == list(tensors)
        for name, (array, _type) in tensors.items():
            tensor = gguf.tensors[name]
            assert (tensor.type, tensor.shape) == (GgmlType[name], (2, 3, 32))
            assert np.array_equal(tensor.data.view(array.dtype).reshape(array.shape), array)
            assert np.abs(tensor.dequantize() - numbers).max() < 8
        gguf["added"] = 1
        gguf.write(tmp_path / "our.gguf")
    theirs, ours = fields(tmp_path / "their.gguf"), fields(tmp_path / "our.gguf")
    assert ours[0].pop("added") == ([reference.GGUFValueType.UINT32], 1)
    assert ours[0] == theirs[0]
    for name, (type_, data, shape) in theirs[1].items():
        assert ours[1][name][0] == type_
        assert ours[1][name][2] == shape
        assert np.array_equal(ours[1][name][1], data)


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(
        st.text("abc.é", min_size=1, max_size=10),
        st.tuples(
            st.lists(st.integers(2, 5), min_size=1, max_size=4).map(tuple),
            st.sampled_from(["f4", "f2", "f8", "i1", "i2", "i4", "i8"]),
        ),
        max_size=5,
    ),
    st.dictionaries(st.text("xyz", min_size=1, max_size=5), st.integers(-(2**31), 2**32 - 1)),
    st.sampled_from([8, 32, 256]),
)
def test_the_reference_reads_our_files(tmp_path_factory, described, numbers, alignment):
    path = tmp_path_factory.mktemp("our") / "our.gguf"
    with Gguf.new() as gguf:
        gguf["general.alignment"] = alignment
        gguf.update(numbers)
        for name, (shape, dtype) in described.items():
            array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
            gguf.add_tensor(name, array, type="f64" if dtype == "f8" else None)
        gguf.write(path)
        found, tensors = fields(path)
        assert {key: contents for key, (_types, contents) in found.items()} == {
            "general.alignment": alignment,
            **numbers,
        }
        assert list(tensors) == list(described)
        for name, (_type, data, shape) in tensors.items():
            assert tuple(reversed(shape)) == described[name][0]
            assert np.array_equal(data, gguf.tensors[name].data)
