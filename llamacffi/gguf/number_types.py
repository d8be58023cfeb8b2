"""The number types of GGUF metadata: choose one for a value, and check whether it can hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .._core.text import c_text
from .._generated.enums import GgufType
from .._native import lib
from ..errors import GgufError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array: TypeAlias = npt.NDArray[Any]

NUMBERS: dict[GgufType, np.dtype[Any]] = {
    GgufType.UINT8: np.dtype(np.uint8),
    GgufType.INT8: np.dtype(np.int8),
    GgufType.UINT16: np.dtype(np.uint16),
    GgufType.INT16: np.dtype(np.int16),
    GgufType.UINT32: np.dtype(np.uint32),
    GgufType.INT32: np.dtype(np.int32),
    GgufType.FLOAT32: np.dtype(np.float32),
    GgufType.BOOL: np.dtype(np.bool_),
    GgufType.UINT64: np.dtype(np.uint64),
    GgufType.INT64: np.dtype(np.int64),
    GgufType.FLOAT64: np.dtype(np.float64),
}
TYPES = {dtype: type_ for type_, dtype in NUMBERS.items()}
# "u8", "str", ...: the suffixes of gguf_get_val_* and gguf_set_val_*.
SHORT: dict[GgufType, str] = {
    type_: c_text(lib.gguf_type_name(type_)) for type_ in GgufType if type_ != GgufType.COUNT
}

# upstream: src/llama-model-loader.cpp get_key, get_arr: most keys are read as uint32, and most
# arrays as int32, so these come first
SCALARS = (GgufType.UINT32, GgufType.INT32, GgufType.UINT64, GgufType.INT64)
ELEMENTS = (GgufType.INT32, GgufType.UINT32, GgufType.INT64, GgufType.UINT64)

EXEMPT = (float("inf"), float("-inf"))  # every float type has these, as well as NaN


def scalar_type(key: str, value: Any) -> GgufType:
    """Return the type in which to store a single Python or numpy value."""
    if isinstance(value, (str, bytes)):
        return GgufType.STRING
    if isinstance(value, np.generic) and not is_default(value.dtype):
        return dtype_type(key, value.dtype)
    if isinstance(value, bool):
        return GgufType.BOOL
    if isinstance(value, (int, np.integer)):
        fitting = (one for one in SCALARS if holds(one, int(value), int(value)))
        return next(fitting, GgufType.INT64)  # if none fits, checking INT64 raises the error
    return float_type(np.array([value]))


def is_default(dtype: np.dtype[Any]) -> bool:
    """Return whether a type is numpy's default, so that the caller may not have chosen it."""
    return dtype.kind in "iuf" and dtype.itemsize == 8


def float_type(array: Array) -> GgufType:
    """Return the type for floats: float32, which llama.cpp reads, unless its range is too small."""
    dtype = NUMBERS[GgufType.FLOAT32]
    large = np.abs(array[np.isfinite(array)]) > float(np.finfo(dtype).max)
    return GgufType.FLOAT64 if large.any() or changes_any(array, dtype) else GgufType.FLOAT32


def changes_number(number: Any, dtype: np.dtype[Any]) -> bool:
    """Return whether a float type would change an integer, or turn a nonzero number into zero.

    Rounding of fractions does not count.  The number must be in the range of the type.
    """
    if isinstance(number, (int, np.integer)):
        return int(dtype.type(int(number))) != int(number)
    return bool(number != 0 and dtype.type(number) == 0)


def changes_any(array: Array, dtype: np.dtype[Any]) -> bool:
    """Return whether `changes_number` holds for any number in an array."""
    if array.dtype.kind == "f":
        return bool(((array.astype(dtype) == 0) & (array != 0)).any())
    exact = 2 ** (np.finfo(dtype).nmant + 1)
    return any(changes_number(one, dtype) for one in array[(array > exact) | (array < -exact)])


def dtype_type(key: str, dtype: np.dtype[Any]) -> GgufType:
    """Return the GGUF type that stores the numbers of a numpy type."""
    if dtype == np.float16:
        return GgufType.FLOAT32  # holds every float16 exactly
    found = TYPES.get(dtype.newbyteorder("="))
    if found is None:
        raise TypeError(f"{key!r} has the numpy type {dtype}, which GGUF cannot store: convert it")
    return found


def holds(type_: GgufType, lowest: int, highest: int) -> bool:
    """Return whether an integer type covers the range."""
    dtype = NUMBERS.get(type_)
    if dtype is None or dtype.kind not in "iu":
        return False
    limits = np.iinfo(dtype)
    return bool(limits.min <= lowest and highest <= limits.max)


def usual_type(array: Array) -> GgufType:
    """Return the type for an array of numbers: the one that llama.cpp reads, if it holds them."""
    if array.dtype.kind == "f":
        return float_type(array)
    lowest, highest = (int(array.min()), int(array.max())) if array.size else (0, 0)
    return next(one for one in ELEMENTS if holds(one, lowest, highest))


def check_range(key: str, lowest: Any, highest: Any, type_: GgufType) -> None:
    """Raise unless the finite numbers from ``lowest`` to ``highest`` fit the type."""
    dtype = NUMBERS[type_]
    if dtype.kind == "f":
        most = float(np.finfo(dtype).max)
        fits = all(abs(one) <= most or one in EXEMPT or one != one for one in (lowest, highest))
        limits = f"from {-most:.4g} to {most:.4g}"
    else:
        fits = holds(type_, lowest, highest)
        limits = f"from {np.iinfo(dtype).min} to {np.iinfo(dtype).max}"
    if not fits:
        raise GgufError(
            f"{key!r} does not fit {SHORT[type_]}, which holds numbers {limits}: "
            + (f"its value is {lowest}" if lowest == highest else f"it has {lowest} to {highest}")
        )


def inexact(key: str, type_: GgufType, what: object) -> GgufError:
    """Return the error for a value that the type would change."""
    return GgufError(f"{key!r} does not fit {SHORT[type_]}, which cannot represent {what}")
