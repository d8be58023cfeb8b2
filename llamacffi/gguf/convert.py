"""Convert values to the type that a key of GGUF metadata already has.

upstream: src/llama-model-loader.cpp get_key: llama.cpp expects keys to have certain types, so a new
value must not change the type of its key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._generated.enums import GgufType
from ..errors import GgufError
from .number_types import NUMBERS, SHORT, changes_any, changes_number, holds
from .values import Typed, plain, typed, typed_array


def convert_to_type(key: str, value: Any, old: Typed) -> Typed:
    """Return what to store for ``value`` under a key that has the type ``old``.

    A single value may replace an array, and an array a single value.

    Raises:
        TypeError: GGUF cannot store this kind of value.
        GgufError: The type cannot hold the value, which is out of range or of another kind, such as
            text for a number.
    """
    value = plain(value)
    if isinstance(value, (bool, int, float, str, bytes, np.generic)):
        return _scalar(key, value, old.type)
    if isinstance(value, (np.ndarray, Sequence)):
        return _array(key, value, old)
    return typed(key, value, None)  # raises


def _scalar(key: str, value: Any, type_: GgufType) -> Typed:
    kind = _kind(type_)
    if kind == "f" and isinstance(value, int) and not isinstance(value, bool):
        dtype = NUMBERS[type_]  # the integer may have more than 64 bits
        if abs(value) > float(np.finfo(dtype).max) or changes_number(value, dtype):
            raise _does_not_fit(key, type_, repr(value))
        return Typed(type_, float(value))
    new = typed(key, value, None)
    number = new.value
    if kind == "b" and _kind(new.type) in "iuf" and number in (0, 1):
        return Typed(type_, bool(number))
    if kind in "Sb" and kind == _kind(new.type):
        return new
    if not _both_numbers(type_, new.type):
        raise _does_not_fit(key, type_, repr(value))
    if isinstance(value, (float, np.floating)):
        number = float(value)  # not rounded
    if kind == "f":
        dtype = NUMBERS[type_]
        fits = not math.isfinite(number) or (
            abs(number) <= float(np.finfo(dtype).max) and not changes_number(number, dtype)
        )
        number = float(number) if fits else number
    else:
        fits = math.isfinite(number) and int(number) == number
        fits = fits and holds(type_, int(number), int(number))
        number = int(number) if fits else number
    if not fits:
        raise _does_not_fit(key, type_, repr(number))
    return Typed(type_, number)


def _array(key: str, value: Any, old: Typed) -> Typed:
    new = typed_array(key, value, None, old)
    array, type_ = new.value, old.type
    if _kind(type_) == "b" and _kind(new.type) in "iuf" and np.isin(array, (0, 1)).all():
        return Typed(type_, array.astype(bool), True)
    if _kind(type_) in "Sb" and _kind(type_) == _kind(new.type):
        return new
    if not _both_numbers(type_, new.type):
        raise _does_not_fit(key, type_, f"an array of {SHORT[new.type]}")
    dtype, finite = NUMBERS[type_], array[np.isfinite(array)]
    if dtype.kind == "f":
        fits = not finite.size or np.abs(finite.astype(np.float64)).max() <= float(
            np.finfo(dtype).max
        )
        fits = fits and not changes_any(finite, dtype)
    else:
        fits = len(finite) == len(array) and bool((np.trunc(array) == array).all())
        fits = fits and (not array.size or holds(type_, int(array.min()), int(array.max())))
    if not fits:
        raise _does_not_fit(key, type_, f"an array from {array.min()} to {array.max()}")
    return Typed(type_, np.ascontiguousarray(array, dtype), True)


def _kind(type_: GgufType) -> str:
    """Return numpy's letter for the kind of a type, and ``"S"`` for text."""
    return "S" if type_ == GgufType.STRING else NUMBERS[type_].kind


def _both_numbers(one: GgufType, other: GgufType) -> bool:
    return _kind(one) in "iuf" and _kind(other) in "iuf"


def _does_not_fit(key: str, type_: GgufType, what: str) -> GgufError:
    return GgufError(
        f"{key!r} has the type {SHORT[type_]}, which cannot hold {what:.80}; to change the type, "
        "use set(key, value, type=...), but llama.cpp may not read the key then"
    )
