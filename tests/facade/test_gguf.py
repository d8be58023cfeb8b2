"""Metadata of GGUF files: round trips of every type, and refused values."""

from __future__ import annotations

import io
import itertools
import math
import struct
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamacffi import (
    ArgumentError,
    ClosedError,
    Gguf,
    GgufError,
    LoadError,
    Model,
    ModelNotFoundError,
    lib,
)
from llamacffi._generated.enums import GgufType
from llamacffi.gguf.number_types import NUMBERS, SHORT, TYPES


@pytest.fixture
def gguf():
    with Gguf.new() as one:
        yield one


def again(gguf):
    """Write and read it."""
    return Gguf.from_bytes(gguf.to_bytes())


# Which type a value gets


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        (True, GgufType.BOOL),
        (0, GgufType.UINT32),
        (2**32 - 1, GgufType.UINT32),
        (-1, GgufType.INT32),
        (-(2**31), GgufType.INT32),
        (2**32, GgufType.UINT64),
        (2**64 - 1, GgufType.UINT64),
        (-(2**31) - 1, GgufType.INT64),
        (-(2**63), GgufType.INT64),
        (0.5, GgufType.FLOAT32),
        (math.inf, GgufType.FLOAT32),
        (1e300, GgufType.FLOAT64),
        ("a", GgufType.STRING),
        (b"a", GgufType.STRING),
        (np.uint8(3), GgufType.UINT8),
        (np.int16(-3), GgufType.INT16),
        (np.float16(0.5), GgufType.FLOAT32),
        (np.float64(0.5), GgufType.FLOAT32),
        (np.float64(1e300), GgufType.FLOAT64),
        (1e-50, GgufType.FLOAT64),
        (np.int64(7), GgufType.UINT32),
        (np.int64(-7), GgufType.INT32),
        (np.uint64(2**40), GgufType.UINT64),
        (np.array(3, np.int8), GgufType.INT8),
        (bytearray(b"a"), GgufType.STRING),
        (memoryview(b"a"), GgufType.STRING),
    ],
)
def test_a_scalar_has_the_type_that_llama_cpp_looks_for(gguf, value, type_):
    gguf["key"] = value
    assert gguf.type("key") == type_
    assert not gguf.is_array("key")
    assert again(gguf)["key"] == (value if type_ != GgufType.STRING else "a")


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        ([1, 2], GgufType.INT32),
        ((-1, 2**31), GgufType.INT64),
        ([2**32 - 1], GgufType.UINT32),
        ([2**64 - 1], GgufType.UINT64),
        (range(3), GgufType.INT32),
        ([1, 0.5], GgufType.FLOAT32),
        ([True, False], GgufType.BOOL),
        (["a", ""], GgufType.STRING),
        (np.zeros(2, np.uint16), GgufType.UINT16),
        (np.zeros(2, ">i4"), GgufType.INT32),
        (np.zeros(0, np.int64), GgufType.INT32),
        (np.array([1, -(2**40)]), GgufType.INT64),
        (np.array([0.5, -1.0]), GgufType.FLOAT32),
        (np.array([0.5, 1e-50]), GgufType.FLOAT64),
        (np.array(["a", "b"]), GgufType.STRING),
        (np.arange(10)[::2], GgufType.INT32),
    ],
)
def test_an_array_has_the_first_type_that_holds_it(gguf, value, type_):
    gguf["key"] = value
    assert gguf.type("key") == type_
    assert gguf.is_array("key")
    assert list(again(gguf)["key"]) == list(value)


@pytest.mark.parametrize("made", [int, float, *(NUMBERS[one].type for one in NUMBERS)])
@pytest.mark.parametrize("type_", list(NUMBERS))
@pytest.mark.parametrize("shape", [(), (2,)])
def test_a_key_keeps_its_type_if_that_holds_the_value(gguf, type_, made, shape):
    """For any numpy type: a single value, an array and a list may replace each other."""
    for value in (1, 0):
        one = made(value)
        for new in (one, np.array(one), [one, one], np.array([one, one])):
            gguf.set("key", np.zeros(shape, NUMBERS[type_])[()], type=type_)
            if made is np.bool_ and type_ != GgufType.BOOL:
                with pytest.raises(GgufError, match="cannot hold"):
                    gguf["key"] = new
                continue
            gguf["key"] = new
            assert gguf.type("key") == type_
            assert gguf.is_array("key") == (np.ndim(new) == 1)
            assert np.array_equal(again(gguf)["key"], np.full(np.shape(new), value))


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        ("u8", [256, -1, 1.5, np.int64(256), np.float32(0.5), float("nan"), float("inf")]),
        ("u32", [2**32, -1, np.int64(-1), np.uint64(2**40), 0.1, np.float64(1e20)]),
        ("i32", [2**31, np.uint32(2**31), -(2**31) - 1, 10**400]),
        ("i64", [np.uint64(2**63), 0.5, np.float64(2.0**63)]),
        ("f32", [1e39, np.float64(-1e39), 10**60, 10**400, 2**24 + 1, np.int64(-(2**24) - 1)]),
        ("f32", [1e-50, np.float64(-1e-50), np.int64(2**62 + 1)]),
        ("f64", [2**53 + 1, np.int64(2**53 + 1), 10**400]),
    ],
)
def test_a_number_does_not_change_the_type_of_a_key_without_a_word(gguf, type_, values):
    for start in (1, [1]):
        gguf.set("key", start, type=type_)
        before = gguf.to_bytes()
        for value in values:
            for new in (value, [value, value]):
                with pytest.raises(GgufError, match=r"'key'.*(cannot hold|does not fit)"):
                    gguf["key"] = new
                assert gguf.to_bytes() == before
    gguf.set("key", 3, type="i16")  # what was asked for
    assert gguf.type("key") == GgufType.INT16


def test_a_value_of_another_kind_needs_a_type():
    """llama.cpp would not find the key, or would refuse the file: rarely what the caller wants."""
    flags, texts, numbers = (
        (True, [True], np.bool_(0)),
        ("4096", ["a"], b"4", bytearray(b"4")),
        (2, [2]),
    )
    for old, wrong in (
        *((7, (*flags, *texts)), (0.5, (*flags, *texts)), ([1, 2], (*flags, *texts))),
        *((True, (*texts, *numbers, 0.5)), ([True], (*texts, *numbers, 0.5))),
        *(("text", (*flags, *numbers, 0.5)), (["a"], (*flags, *numbers, 0.5))),
    ):
        with Gguf.new() as gguf:
            gguf["key"] = old
            before = gguf.to_bytes()
            for value in wrong:
                with pytest.raises(GgufError, match=r"'key' has the type .* cannot hold .*type="):
                    gguf["key"] = value
                assert gguf.to_bytes() == before
    gguf = Gguf.new()
    gguf["key"] = 7
    gguf.set("key", "text", type="str")
    assert gguf["key"] == "text"
    gguf["key"] = bytearray(b"more")
    assert gguf["key"] == "more"
    del gguf["key"]
    gguf["key"] = True
    gguf["key"] = 0
    assert gguf["key"] is False
    gguf.close()


def test_floats_are_rounded_where_nobody_minds(gguf):
    """But integers do not change, and numbers do not become zero: see above."""
    gguf.set("key", 1.0, type="f32")
    for value in (0.1, 1e-40, 2**24, 10_000_000, 2**100, 16777217.0, [0.1, 2**24], np.array([0.1])):
        gguf["key"] = value
        assert np.allclose(again(gguf)["key"], value, rtol=1e-4)
    for type_, value in (("f32", 2**24 + 1), ("f32", 1e-50), ("f64", 2**53 + 1)):
        for new in (value, [value], *([np.array([value])] if isinstance(value, float) else [])):
            with pytest.raises(GgufError, match=r"does not fit f[36]"):
                gguf.set("new", new, type=type_)
    assert "new" not in gguf


def test_a_model_loads_with_values_of_numpys(demo_path, tmp_path):
    path = tmp_path / "edited.gguf"
    with Gguf.open(demo_path) as gguf:
        types = {key: (gguf.type(key), gguf.is_array(key)) for key in gguf}
        for key in list(gguf):
            value = gguf[key]
            if isinstance(value, bool):
                gguf[key] = np.bool_(value)
            elif isinstance(value, (int, float)):
                gguf[key] = (np.int64 if isinstance(value, int) else np.float64)(value)
            elif isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
                gguf[key] = value.astype(np.float64 if value.dtype.kind == "f" else np.int64)
        assert {key: (gguf.type(key), gguf.is_array(key)) for key in gguf} == types
        gguf.write(path)
    assert path.stat().st_size == demo_path.stat().st_size
    Model(path, n_gpu_layers=0).close()


def test_other_values_for_a_key_that_has_a_type(gguf):
    gguf.set("n", 1, type="u8")
    gguf["n"] = 255
    assert gguf.type("n") == GgufType.UINT8
    gguf.set("f", 1, type="f64")
    gguf["f"] = 3
    assert (gguf.type("f"), gguf["f"]) == (GgufType.FLOAT64, 3.0)
    gguf["f"] = 0.1
    assert gguf["f"] == 0.1
    gguf.set("a", [1], type="i64")
    gguf["a"] = []
    assert gguf.type("a") == GgufType.INT64
    gguf["a"] = [3, 4]
    assert gguf.type("a") == GgufType.INT64
    gguf["a"] = 3
    assert (gguf.type("a"), gguf["a"], gguf.is_array("a")) == (GgufType.INT64, 3, False)
    gguf.set("a", "text", type="str")
    gguf["a"] = ["more", "text"]
    assert gguf["a"] == ["more", "text"]
    del gguf["a"]
    gguf["a"] = 1
    assert gguf.type("a") == GgufType.UINT32


@pytest.mark.parametrize("type_", list(NUMBERS))
def test_every_number_type_by_each_of_its_names(gguf, type_):
    for name in (type_, type_.name, type_.name.lower(), SHORT[type_], int(type_)):
        gguf.set("scalar", True if type_ == GgufType.BOOL else 1, type=name)
        gguf.set("array", [True] if type_ == GgufType.BOOL else [1], type=name)
        assert gguf.type("scalar") == gguf.type("array") == type_
    assert again(gguf)["array"].dtype == NUMBERS[type_]


@pytest.mark.parametrize(
    ("value", "type_", "error"),
    [
        (256, "u8", GgufError),
        (-1, "u64", GgufError),
        (2**64, None, GgufError),
        (10**400, "f64", GgufError),
        (1e39, "f32", GgufError),
        ([1, 300], "u8", GgufError),
        (np.array([1, 300]), "u8", GgufError),
        (np.array([1e39]), "f32", GgufError),
        ([2**64], None, GgufError),
        ([2**63, -1], None, GgufError),
        ([], None, GgufError),
        (np.zeros((2, 2)), None, GgufError),
        ("a\0b", None, GgufError),
        (["a\0b"], None, GgufError),
        ("\ud800", None, GgufError),
        (None, None, TypeError),
        ({}, None, TypeError),
        (1.5, "u8", TypeError),
        (1, "str", TypeError),
        ("1", "u8", TypeError),
        (1, "bool", TypeError),
        ([1, "a"], None, TypeError),
        ([True, 1], None, TypeError),
        ([[1]], None, TypeError),
        ([1.5], "i32", TypeError),
        (np.array([1.5]), "i32", TypeError),
        (np.array([1]), "str", TypeError),
        (np.zeros(2, complex), None, TypeError),
        (np.float128(1) if hasattr(np, "float128") else np.complex64(1), None, TypeError),
        (1, "u128", ArgumentError),
        (1, 99, ArgumentError),
        (1, GgufType.ARRAY, ArgumentError),
        (1, GgufType.COUNT, ArgumentError),
    ],
)
def test_refused_values_change_nothing(gguf, value, type_, error):
    gguf["key"] = 7
    before = gguf.to_bytes()
    with pytest.raises(error):
        gguf.set("key", value, type=type_)
    assert gguf.to_bytes() == before


@pytest.mark.parametrize("key", ["", "a\0b", "x" * 2**16, "\ud800"])
def test_names_that_cannot_be_stored(gguf, key):
    with pytest.raises(GgufError):
        gguf[key] = 1
    assert key not in gguf
    assert len(gguf) == 0


def test_a_name_must_be_text(gguf):
    with pytest.raises(TypeError, match="key"):
        gguf[b"key"] = 1
    with pytest.raises(KeyError):
        gguf[1]
    assert 1 not in gguf


# The mapping


def test_it_is_a_mapping(gguf):
    gguf.update({"a": 1, "b": "x"}, c=[1, 2])
    assert list(gguf) == ["a", "b", "c"]
    assert len(gguf) == 3
    assert "a" in gguf
    assert gguf.get("z") is None
    assert gguf.pop("a") == 1
    gguf["b"] = "y"  # C puts what is set to the end
    assert list(gguf) == ["c", "b"]
    for call in (lambda: gguf["a"], lambda: gguf.__delitem__("a"), lambda: gguf.type("a")):
        with pytest.raises(KeyError, match="'a'"):
            call()
    gguf.clear()
    assert len(gguf) == 0
    assert repr(gguf) == "<Gguf of 0 keys and 0 tensors>"


def test_update_from_another_keeps_the_types(gguf):
    with Gguf.new() as other:
        other.set("a", 1, type="i8")
        other.set("b", [], type="u16")
        gguf.update(other)
    assert (gguf.type("a"), gguf.type("b")) == (GgufType.INT8, GgufType.UINT16)


def test_a_value_read_is_a_copy(gguf):
    gguf["a"] = [1, 2]
    first = gguf["a"]
    first[0] = 9
    assert list(gguf["a"]) == [1, 2]


def test_text_that_is_not_utf8_goes_through(gguf):
    gguf["raw"] = b"\xff\xfe caf\xc3\xa9"
    text = again(gguf)["raw"]
    assert text.encode("utf-8", "surrogateescape") == b"\xff\xfe caf\xc3\xa9"
    gguf["again"] = text
    assert gguf["again"] == text


def test_a_nul_in_a_string_that_was_read_survives(gguf):
    gguf["text"] = "abXcd"
    gguf["list"] = ["abXcd"]
    raw = gguf.to_bytes().replace(b"abXcd", b"ab\0cd")
    with Gguf.from_bytes(raw) as read:
        assert read["text"] == "ab"
        assert read["list"] == ["ab"]
        read["general.alignment"] = 64  # the C object is made anew
        read.add_tensor("t", np.zeros(3, np.float32))
        assert read.to_bytes().count(b"ab\0cd") == 2
        with read.copy() as copy:
            assert copy.to_bytes() == read.to_bytes()


numbers = st.one_of(
    *(
        st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)).map(dtype.type)
        for dtype in NUMBERS.values()
        if dtype.kind in "iu"
    ),
    st.floats(width=32).map(np.float32),
    st.floats().map(np.float64),
    st.booleans().map(np.bool_),
)
text = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    st.binary(max_size=20)
    .map(lambda raw: raw.replace(b"\0", b""))
    .map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)
arrays = st.sampled_from([dtype for dtype in NUMBERS.values()]).flatmap(
    lambda dtype: st.binary(max_size=64).map(
        lambda raw: (
            np.frombuffer(raw, np.uint8) > 99
            if dtype.kind == "b"
            else np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype)
        )
    )
)
keys = text.filter(bool).filter(lambda key: key != "general.alignment")
metadata = st.dictionaries(
    keys, st.one_of(numbers, text, arrays, st.lists(text, min_size=1, max_size=5)), max_size=8
)


def same(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    return type(one) is type(other) and (one == other or (one != one and other != other))


@settings(deadline=None)
@given(metadata)
def test_any_metadata_there_and_back(values):
    with Gguf.new() as gguf:
        for key, value in values.items():
            gguf.set(key, value, type=TYPES.get(getattr(value, "dtype", None)))
        raw = gguf.to_bytes()
        with Gguf.from_bytes(raw) as read:
            assert list(read) == list(values)
            for key, value in values.items():
                plain = value.item() if isinstance(value, np.generic) else value
                assert same(read[key], plain)
                assert read.type(key) == gguf.type(key)
            assert read.to_bytes() == raw


operations = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.sampled_from("abcd"), numbers),
        st.tuples(st.just("del"), st.sampled_from("abcd"), st.none()),
        st.tuples(st.just("align"), st.sampled_from([1, 8, 32, 4096]), st.none()),
        st.tuples(st.just("add"), st.sampled_from("xyz"), st.integers(1, 40)),
        st.tuples(st.just("remove"), st.sampled_from("xyz"), st.none()),
        st.tuples(st.just("replace"), st.sampled_from("xyz"), st.integers(1, 40)),
        st.tuples(st.just("rename"), st.sampled_from("xyz"), st.sampled_from("xyz")),
        st.tuples(st.just("read"), st.none(), st.none()),
    ),
    max_size=25,
)


def converted(value, dtype):
    """Convert a number to a type; return None if that cannot hold it."""
    number = value.item()
    if dtype.kind == "b":
        return np.bool_(number) if number in (0, 1) else None
    if dtype.kind == "f":
        beyond = math.isfinite(number) and abs(number) > float(np.finfo(dtype).max)
        new = None if beyond else dtype.type(number)
        integer = isinstance(number, int)
        other = new is not None and (int(new) != number if integer else not new and number)
        return None if other else new
    if not math.isfinite(number) or number != int(number):
        return None
    limits = np.iinfo(dtype)
    return dtype.type(int(number)) if limits.min <= int(number) <= limits.max else None


def stored(value, old):
    """Return what a number becomes under a key with a type; None if that cannot hold it."""
    if old is None:
        return fresh(value)
    if (value.dtype.kind == "b") > (old.dtype.kind == "b"):
        return None
    return converted(value, old.dtype)


def fresh(value):
    """Return what a number becomes under a new key."""
    if value.dtype.kind == "b" or value.dtype.itemsize < 8:
        return value
    order = (np.uint32, np.int32, np.uint64, np.int64)
    types = (np.float32, np.float64) if value.dtype.kind == "f" else order
    return next(new for one in types if (new := converted(value, np.dtype(one))) is not None)


SOME = [
    new
    for dtype in NUMBERS.values()
    for number in (0, 1, 2, -1, 2.5, 300, 3e9, 1e39, math.inf, math.nan)
    if (new := converted(np.float64(number), dtype)) is not None
]


@pytest.mark.parametrize("type_", NUMBERS)
def test_any_number_in_the_place_of_another(gguf, type_):
    olds = [old for old in SOME if old.dtype == NUMBERS[type_]]
    n_refused = 0
    for old, value in itertools.product(olds, SOME):
        gguf.set("key", old, type=type_)
        if (new := stored(value, old)) is None:
            new, n_refused = old, n_refused + 1
            with pytest.raises(GgufError, match="cannot hold"):
                gguf["key"] = value
        else:
            gguf["key"] = value
        assert NUMBERS[gguf.type("key")] == new.dtype
        assert same(gguf["key"], new.item())
    assert n_refused


@settings(deadline=None)
@given(operations)
def test_any_edits_are_written(steps):
    """Compare with a dictionary of values and one of tensors."""
    values, tensors, gguf = {}, {}, Gguf.new()
    for what, name, value in steps:
        match what:
            case "set":
                if (new := stored(value, values.get(name))) is None:
                    with pytest.raises(GgufError, match="cannot hold"):
                        gguf[name] = value
                    continue
                gguf[name] = value
                values.pop(name, None)
                values[name] = new
            case "del" if name in values:
                del gguf[name], values[name]
            case "align":
                gguf["general.alignment"] = name
                values.pop("general.alignment", None)
                values["general.alignment"] = np.uint32(name)
            case "add" if name not in tensors:
                gguf.add_tensor(name, np.full(value, value, np.float32))
                tensors[name] = value
            case "remove" if name in tensors:
                gguf.remove_tensor(name)
                del tensors[name]
            case "replace" if name in tensors:
                gguf.replace_tensor(name, np.full(value, value, np.float32))
                tensors[name] = value
            case "rename" if name in tensors and (value == name or value not in tensors):
                gguf.rename_tensor(name, value)
                tensors = {(value if one == name else one): n for one, n in tensors.items()}
            case "read":
                gguf, old = again(gguf), gguf
                old.close()
        assert lib.gguf_get_n_tensors(gguf.ptr) == len(tensors)
    with gguf, again(gguf) as read:
        assert read.alignment == values.get("general.alignment", 32)
        assert list(read) == list(values)
        for key, value in values.items():
            assert NUMBERS[read.type(key)] == value.dtype
            assert same(read[key], value.item())
        assert list(read.tensors) == list(tensors)
        for name, n in tensors.items():
            assert read.tensors[name].data.tolist() == [n] * n


# Alignment


def test_alignment_is_a_power_of_two(gguf):
    assert gguf.alignment == 32
    for bad in (0, 3, 48):
        with pytest.raises(GgufError, match="power of two"):
            gguf["general.alignment"] = bad
    for bad in (-1, 2**32):
        with pytest.raises(GgufError, match="u32"):
            gguf["general.alignment"] = bad
    for bad in ("32", 32.0, [32], None):
        with pytest.raises((TypeError, GgufError)):
            gguf["general.alignment"] = bad
    gguf["general.alignment"] = 64
    assert gguf.alignment == 64
    del gguf["general.alignment"]
    assert gguf.alignment == 32


# Files


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such file"):
        Gguf.open(tmp_path / "none.gguf")
    with pytest.raises(LoadError):
        Gguf.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGML" + bytes(100), bytes(100)])
def test_other_files(tmp_path, content):
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError, match=r"other\.gguf"):
        Gguf.open(path)
    with pytest.raises(GgufError):
        Gguf.from_bytes(content)


def test_the_reason_is_in_the_notes():
    raw = b"GGUF" + struct.pack("<Iqq", 1, 0, 0)
    with pytest.raises(GgufError) as caught:
        Gguf.from_bytes(raw)
    assert "GGUFv1" in str([*getattr(caught.value, "__notes__", []), caught.value])


def test_a_file_at_an_offset(tmp_path, gguf):
    gguf["a"] = 1
    gguf.add_tensor("t", np.arange(100, dtype=np.float32))
    path = tmp_path / "packed.bin"
    for before in (0, 1, 4096, 5000):
        path.write_bytes(bytes(before) + gguf.to_bytes())
        with path.open("rb") as file:
            file.seek(before)
            with Gguf.from_file(file) as read:
                assert file.tell() == before
                file.close()
                assert read["a"] == 1
                assert read.tensors["t"].data.tolist() == list(range(100))
                assert read.tensors["t"].dequantize().tolist() == list(range(100))


def test_a_file_that_the_system_does_not_have(gguf, tmp_path):
    import gzip

    gguf["a"] = 1
    file = io.BytesIO(b"xyz" + gguf.to_bytes())
    file.seek(3)
    with Gguf.from_file(file) as read:
        assert read["a"] == 1
    assert file.tell() == 3
    with gzip.open(tmp_path / "x.gz", "wb") as packed:
        packed.write(gguf.to_bytes())
    with gzip.open(tmp_path / "x.gz", "rb") as packed, Gguf.from_file(packed) as read:
        assert read["a"] == 1
    with pytest.raises(TypeError):
        Gguf.from_file(io.StringIO("GGUF"))


def test_writing_over_the_open_file(tmp_path, demo_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(demo_path.read_bytes())
    path.chmod(0o640)
    with Gguf.open(path) as gguf:
        before = gguf.tensors["output.weight"].data.copy()
        gguf["general.name"] = "edited"
        gguf.write(path)
        assert np.array_equal(gguf.tensors["output.weight"].data, before)
    with Gguf.open(path) as gguf:
        assert gguf["general.name"] == "edited"
        assert np.array_equal(gguf.tensors["output.weight"].data, before)
    assert [one.name for one in tmp_path.iterdir()] == ["model.gguf"]


def test_a_failed_write_leaves_the_old_file(tmp_path, gguf, run_python):
    code = """
        import resource
        from pathlib import Path
        import numpy as np
        from llamacffi import Gguf
        Path("out.gguf").write_bytes(b"before")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        gguf = Gguf.new()
        gguf.add_tensor("t", np.zeros(100_000, np.float32))
        try:
            gguf.write("out.gguf")
        except OSError as error:
            print(list(Path().iterdir()), Path("out.gguf").read_bytes())
    """
    result = run_python(code)
    assert result.stdout == "[PosixPath('out.gguf')] b'before'\n", result.stderr


def test_an_unchanged_file_is_written_as_it_was(demo_path, tmp_path):
    with Gguf.open(demo_path) as gguf:
        gguf.write(tmp_path / "copy.gguf")
        assert gguf.data_offset % gguf.alignment == 0
        assert gguf.version == lib.GGUF_VERSION
    assert (tmp_path / "copy.gguf").read_bytes() == demo_path.read_bytes()


# Ownership


def test_closed(gguf):
    gguf["a"] = 1
    gguf.close()
    gguf.close()
    calls = [
        lambda: gguf["a"],
        lambda: list(gguf),
        lambda: len(gguf),
        lambda: "a" in gguf,
        lambda: gguf.set("a", 1),
        lambda: gguf.tensors,
        lambda: gguf.add_tensor("t", np.zeros(1, np.float32)),
        lambda: gguf.remove_tensor("t"),
        lambda: gguf.to_bytes(),
        lambda: gguf.ptr,
        lambda: gguf.copy(),
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()
    assert repr(gguf) == "<Gguf closed>"


def test_several_threads(gguf):
    """Without a lock, C's vector would move while another thread reads it."""
    errors = []

    def work(which):
        try:
            for i in range(200):
                gguf[f"{which}.{i}"] = "x" * i
                assert gguf[f"{which}.{i}"] == "x" * i
                assert f"{which}.0" in list(gguf)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(gguf) == 800
