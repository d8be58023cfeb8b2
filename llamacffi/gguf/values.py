"""Values of GGUF metadata: choose a type for a Python value, store it in C, and read it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .._core.text import c_text
from .._core.values import check_text, is_text
from .._generated.enums import GgufType
from .._native import ffi, lib
from ..errors import ArgumentError, GgufError
from .number_types import (
    ELEMENTS,
    NUMBERS,
    SHORT,
    changes_any,
    changes_number,
    check_range,
    dtype_type,
    holds,
    inexact,
    is_default,
    scalar_type,
    usual_type,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    Array: TypeAlias = npt.NDArray[Any]
    AnyGgufType: TypeAlias = GgufType | int | str
    # What `Gguf` returns for a key.
    Value: TypeAlias = bool | int | float | str | list[str] | Array
    # What it accepts.
    Settable: TypeAlias = Value | bytes | bytearray | memoryview | np.generic | Sequence[Any]

BY_NAME = {name: type_ for type_, name in SHORT.items()} | {one.name.lower(): one for one in SHORT}

KEY_BYTES = 2**16 - 1  # the longest key, by the specification of the format
# upstream: ggml/src/gguf.cpp GGUF_MAX_STRING_LENGTH, GGUF_MAX_ARRAY_ELEMENTS: it reads no longer
# strings or arrays
MOST = 2**30


@dataclass(frozen=True)
class Typed:
    """A value in the form that C takes."""

    type: GgufType
    """The type of the value, or of the elements of an array."""
    value: Any
    """bool, int, float or bytes; for an array, a numpy array, or strings that each end with NUL."""
    array: bool = False


def gguf_type(type_: AnyGgufType) -> GgufType:
    """Return the type with this name (``"u32"`` or ``"uint32"``) or number.

    Raises:
        ArgumentError: The type does not exist, or is the type of arrays instead of elements.
    """
    try:
        found = BY_NAME[type_.lower()] if isinstance(type_, str) else GgufType(type_)
    except (KeyError, ValueError):
        found = GgufType.COUNT
    if found in (GgufType.COUNT, GgufType.ARRAY):
        names = ", ".join(name for one, name in SHORT.items() if one != GgufType.ARRAY)
        raise ArgumentError(
            f"type must be one of {names} (for an array, the type of its elements), not {type_!r}"
        )
    return found


def encode(text: str | bytes, what: str, limit: int = MOST) -> bytes:
    """Encode text for C.  Surrogates stand for bytes that are not valid UTF-8.

    Raises:
        TypeError: It is neither str nor bytes.
        GgufError: It cannot be stored.
    """
    if isinstance(text, str):
        try:
            raw = check_text(what, text, escaped=True)
        except ArgumentError as error:
            raise GgufError(str(error)) from None
    elif isinstance(text, bytes):
        raw = text
    else:
        raise TypeError(f"{what} must be str or bytes, not {text!r}")
    if b"\0" in raw:
        raise GgufError(f"{what} has a NUL byte at index {raw.index(0)}, which would end it in C")
    if len(raw) > limit:
        raise GgufError(f"{what} has {len(raw)} bytes, but GGUF can store at most {limit}")
    return raw


def encode_name(name: str, what: str, limit: int) -> bytes:
    """Encode a name for C.

    Raises:
        TypeError: It is not a str.
        GgufError: It cannot be stored.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be str, not {name!r}")
    if not name:
        raise GgufError(f"{what} cannot be empty")
    return encode(name, f"{what}, {name!r},", limit)


def plain(value: Any) -> Any:
    """Unwrap a zero-dimensional array, and convert bytes-like objects to bytes."""
    if isinstance(value, np.ndarray) and not value.ndim:
        return value[()]
    if is_text(value) and not isinstance(value, (str, bytes)):
        return bytes(value)
    return value


def typed(key: str, value: Any, type_: AnyGgufType | None) -> Typed:
    """Return what to store for ``value``.

    Args:
        key: The key, for messages.
        value: The value.
        type_: The type that the user requested, if any.

    Raises:
        TypeError: GGUF cannot store this kind of value.
        GgufError: The value does not fit the type.
    """
    wanted = None if type_ is None else gguf_type(type_)
    value = plain(value)
    if isinstance(value, (bool, int, float, str, bytes, np.generic)):
        wanted = scalar_type(key, value) if wanted is None else wanted
        return Typed(wanted, _scalar(key, value, wanted))
    if isinstance(value, (np.ndarray, Sequence)):
        return typed_array(key, value, wanted)
    raise TypeError(
        f"{key!r} cannot be {value!r}: GGUF stores bool, int, float, str, bytes and arrays of these"
    )


def _scalar(key: str, value: Any, type_: GgufType) -> Any:
    """Check a single value, and convert it to the Python type that CFFI takes."""
    if type_ == GgufType.STRING:
        return encode(value, f"the value of {key!r}")
    kind = NUMBERS[type_].kind
    if kind == "b":
        if isinstance(value, (bool, np.bool_)):
            return bool(value)
    elif kind == "f":
        if not isinstance(value, (str, bytes)):
            number = value if isinstance(value, (int, np.integer)) else float(value)
            check_range(key, number, number, type_)
            if changes_number(number, NUMBERS[type_]):
                raise inexact(key, type_, number)
            return float(number)
    elif isinstance(value, (int, np.integer)):
        check_range(key, int(value), int(value), type_)
        return int(value)
    raise TypeError(f"{key!r} has the type {SHORT[type_]} and cannot be {value!r}")


def typed_array(key: str, value: Any, type_: GgufType | None, old: Typed | None = None) -> Typed:
    """Return what to store for an array or a list; see `typed`.

    Args:
        key: The key, for messages.
        value: The array.
        type_: The type that the user requested, if any.
        old: The present value of the key, whose type a list keeps if that can hold it.
    """
    if isinstance(value, np.ndarray) and value.ndim != 1:
        raise GgufError(
            f"{key!r} has {value.ndim} dimensions, but GGUF stores only one-dimensional arrays"
        )
    if len(value) > MOST:
        raise GgufError(f"{key!r} has {len(value)} elements, but GGUF can store at most {MOST}")
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        array = value
        if type_ is None:
            usual = old is None and is_default(value.dtype)
            type_ = usual_type(value) if usual else dtype_type(key, value.dtype)
    else:
        items = value.tolist() if isinstance(value, np.ndarray) else list(value)
        if type_ is None:
            type_ = _element_type(key, items, old)
        if type_ == GgufType.STRING:
            return Typed(type_, _joined(key, items), True)
        array = _numbers(key, items, type_)
    return Typed(type_, _cast(key, array, type_), True)


def _joined(key: str, items: list[Any]) -> bytes:
    """Return strings for C, each with a NUL after it.  Fast, since a vocabulary has many."""
    try:
        raw = "".join([f"{one}\0" for one in items]).encode("utf-8", "surrogateescape")
        longest = max(map(len, items), default=0)
    except (TypeError, UnicodeEncodeError):
        longest = MOST
    all_text = all([type(one) is str for one in items])
    if all_text and 4 * longest < MOST and raw.count(0) == len(items):
        return raw
    # One by one: some are bytes, or the error must say which one is wrong.
    return b"".join([encode(one, f"an element of {key!r}") + b"\0" for one in items])


def _element_type(key: str, items: list[Any], old: Typed | None) -> GgufType:
    """Return the type for a list: the present type of the key, or the first that holds it all."""
    if not items:
        if old is None or not old.array:
            raise GgufError(
                f"{key!r} is an empty list: give the type of its elements with "
                "set(key, value, type=...)"
            )
        return old.type
    if all(isinstance(one, (str, bytes)) for one in items):
        return GgufType.STRING
    if all(isinstance(one, (bool, np.bool_)) for one in items):
        return GgufType.BOOL
    if any(isinstance(one, (bool, np.bool_)) for one in items):
        raise TypeError(f"{key!r} mixes bools with other elements: use one type for all")
    if all(isinstance(one, (int, np.integer)) for one in items):
        if old is not None and old.type in (GgufType.FLOAT32, GgufType.FLOAT64):
            return old.type
        present = () if old is None else (old.type,)
        lowest, highest = int(min(items)), int(max(items))
        fitting = (one for one in (*present, *ELEMENTS) if holds(one, lowest, highest))
        return next(fitting, GgufType.INT64)
    if all(isinstance(one, (int, float, np.integer, np.floating)) for one in items):
        exact = old is not None and old.type != GgufType.FLOAT32
        return GgufType.FLOAT64 if exact else GgufType.FLOAT32
    raise TypeError(f"{key!r} must have elements that are all bools, all numbers or all text")


def _numbers(key: str, items: list[Any], type_: GgufType) -> Array:
    """Convert a list to an array without changing any number."""
    kind = NUMBERS[type_].kind
    allowed: tuple[type, ...] = (bool, np.bool_) if kind == "b" else (int, np.integer)
    if kind == "f":
        allowed += (float, np.floating)
    wrong = [one for one in items if not isinstance(one, allowed)]
    if wrong:
        raise TypeError(
            f"{key!r} has elements of type {SHORT[type_]}, which cannot be {wrong[0]!r}"
        )
    if kind in "iu":
        if items:
            check_range(key, int(min(items)), int(max(items)), type_)
        return np.array(items, NUMBERS[type_])
    if kind == "b":
        return np.array(items, np.bool_)
    try:
        array = np.array(items, np.float64)
    except OverflowError:
        raise GgufError(
            f"{key!r} does not fit {SHORT[type_]}: it has a number that is too large"
        ) from None
    dtype, most = NUMBERS[type_], float(np.finfo(NUMBERS[type_]).max)
    for one in items:
        integer = isinstance(one, (int, np.integer)) and abs(int(one)) <= most
        if integer and changes_number(one, dtype):
            raise inexact(key, type_, one)
    return array


def _cast(key: str, array: Array, type_: GgufType) -> Array:
    dtype = NUMBERS.get(type_)
    if dtype is None:
        raise TypeError(f"{key!r} is an array of {array.dtype}, which cannot be stored as strings")
    if {array.dtype.kind, dtype.kind} not in ({"i"}, {"u"}, {"i", "u"}, {"b"}, {"f"}):
        raise TypeError(f"{key!r} is an array of {array.dtype}, which cannot be stored as {dtype}")
    if array.size and dtype.kind in "iu":
        check_range(key, int(array.min()), int(array.max()), type_)
    elif array.size and dtype.kind == "f":
        finite = array[np.isfinite(array)]
        if finite.size:
            check_range(key, float(finite.min()), float(finite.max()), type_)
            if changes_any(finite, dtype):
                raise inexact(key, type_, "its smallest numbers")
    return np.ascontiguousarray(array, dtype)


def type_at(ptr: Any, i: int) -> Typed:
    """Return the type of the value at an index, without the value.

    Source: ``gguf_get_kv_type``, ``gguf_get_arr_type``.
    """
    type_ = GgufType(lib.gguf_get_kv_type(ptr, i))
    if type_ != GgufType.ARRAY:
        return Typed(type_, None)
    return Typed(GgufType(lib.gguf_get_arr_type(ptr, i)), None, True)


def get(ptr: Any, i: int) -> Value:
    """Return the value at an index.

    Source: the ``gguf_get_val_*`` functions, ``gguf_get_arr_data``, ``gguf_get_arr_str``.
    """
    kind = type_at(ptr, i)
    if not kind.array:
        value = getattr(lib, f"gguf_get_val_{SHORT[kind.type]}")(ptr, i)
        return c_text(value, "surrogateescape") if kind.type == GgufType.STRING else value
    n = lib.gguf_get_arr_n(ptr, i)
    if kind.type == GgufType.STRING:
        string, at = ffi.string, lib.gguf_get_arr_str  # locals, since a vocabulary has many
        joined = b"\0".join([string(at(ptr, i, j)) for j in range(n)])
        return joined.decode("utf-8", "surrogateescape").split("\0") if n else []
    dtype = NUMBERS[kind.type]
    out = np.empty(n, dtype)
    if n:
        ffi.memmove(ffi.from_buffer(out), lib.gguf_get_arr_data(ptr, i), out.nbytes)
    return out


def put(ptr: Any, key: bytes, value: Typed) -> None:
    """Store a value.

    Source: the ``gguf_set_val_*`` functions, ``gguf_set_arr_data``, ``gguf_set_arr_str``.
    """
    if not value.array:
        getattr(lib, f"gguf_set_val_{SHORT[value.type]}")(ptr, key, value.value)
    elif value.type == GgufType.STRING:
        chars = ffi.from_buffer(value.value)
        ends = np.flatnonzero(np.frombuffer(value.value, np.uint8) == 0)
        starts = np.concatenate([[0], ends + 1])[:-1].astype(np.uintp)
        starts += int(ffi.cast("uintptr_t", chars))
        pointers = ffi.cast("const char **", ffi.from_buffer(starts))
        lib.gguf_set_arr_str(ptr, key, pointers, len(starts))
    else:
        lib.gguf_set_arr_data(ptr, key, value.type, ffi.from_buffer(value.value), len(value.value))
