"""Checks of single values, each with a message that names the value and its limits."""

from __future__ import annotations

import math
import operator
import sys
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, SupportsFloat, TypeGuard

from ..errors import ArgumentError

if TYPE_CHECKING:
    import numpy.typing as npt

INT32_MAX = 2**31 - 1
FLOAT_MAX = (2 - 2**-23) * 2.0**127
PACKAGE = __name__.partition(".")[0]


def check_object(name: str, value: Any, kind: str) -> None:
    """Check that a value is an object of this package.

    Args:
        name: What to call the value.
        value: The value.
        kind: The name of its class, or of a base: those who take an object are often in modules
            below its own, which cannot import it.

    Raises:
        TypeError: It is another.
    """
    for one in type(value).__mro__:
        if one.__name__ == kind and one.__module__.partition(".")[0] == PACKAGE:
            return
    article = "an" if kind[0] in "AEIOU" else "a"
    raise TypeError(f"{name} must be {article} {kind}, not {value!r}")


def flag(name: str, value: Any) -> bool:
    """Return a flag as a bool: True and False, and those of numpy.

    Raises:
        TypeError: It is something else.  1 is a number, and meant for another argument; any other
            object has a truth too, and it is seldom what is meant.
    """
    if value is True or value is False:
        return value
    if getattr(getattr(value, "dtype", None), "kind", "") == "b" and not value.shape:
        return bool(value)
    raise TypeError(f"{name} must be True or False, not {value!r:.80}")


def integer(name: str, value: Any) -> int:
    """Return an integer as an int; True and False are meant for another argument.

    Raises:
        TypeError: It is something else.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r:.80}") from None


def elements(name: str, value: Any, of: str) -> list[Any]:
    """Return the elements of an iterable as a list.

    Args:
        name: The argument.
        value: What was given; a text or bytes are no iterable of something else.
        of: What the elements are, in the plural.

    Raises:
        TypeError: It is no iterable.
    """
    if isinstance(value, Iterable) and not is_text(value):
        return list(value)
    raise TypeError(f"{name} must be a sequence of {of}, not {value!r:.80}")


def is_text(value: Any) -> TypeGuard[str | bytes | bytearray | memoryview]:
    """Return whether a value is a text, or bytes: a text in UTF-8, and no sequence of numbers."""
    if isinstance(value, memoryview):
        return value.itemsize == 1
    return isinstance(value, (str, bytes, bytearray))


def as_float(name: str, value: Any) -> float:
    """Return a number as a float, infinite if it is too large for one.

    Raises:
        TypeError: It is none.  Text, flags and arrays are none, though float() takes some of them.
    """
    kind = getattr(getattr(value, "dtype", None), "kind", "f")
    single = kind in "iuf" and not getattr(value, "shape", ())
    if isinstance(value, bool) or not isinstance(value, SupportsFloat) or not single:
        raise TypeError(f"{name} must be a number, not {value!r:.80}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def number(name: str, value: Any) -> float:
    """Return a number that C's float can hold; what is not finite only makes every logit nan.

    Raises:
        TypeError: It is no number.
        ArgumentError: It is too large, or not finite.
    """
    converted = as_float(name, value)
    if not abs(converted) <= FLOAT_MAX:
        raise ArgumentError(f"{name}={value!r:.80} is not a finite 32-bit number")
    return converted


def check_int(name: str, value: Any, least: int, most: int, remedy: str = "") -> None:
    """Check an integer.

    Raises:
        TypeError: It is none; True and False are none either.
        ArgumentError: It is not in ``least`` to ``most``.
    """
    if not least <= integer(name, value) <= most:
        raise ArgumentError(f"{name}={value} is not in {least} to {most}{remedy}")


def as_array(name: str, value: Any, dtype: Any = None) -> npt.NDArray[Any]:
    """Return what numpy makes an array of, as one.

    Args:
        name: What to call the value.
        value: An array, or numbers in lists.
        dtype: The type to convert it to; by default the one that it has.

    Raises:
        TypeError: It is no array.
        ArgumentError: Its rows have different lengths, or a number does not fit.
    """
    import numpy as np

    try:
        return np.asarray(value, dtype)
    except OverflowError as error:
        raise ArgumentError(f"{name} has a number that does not fit: {error}") from None
    except (TypeError, ValueError) as error:
        if "inhomogeneous" in str(error):
            raise ArgumentError(
                f"{name} has rows of different lengths, and an array needs rows of one length: "
                f"{value!r:.80}"
            ) from None
        raise TypeError(f"{name} must be numbers, not {value!r:.80}: {error}") from None


def checked_indices(name: str, values: Any) -> list[int]:
    """Return what names some of several as a list of ints, each once.

    Args:
        name: What to call the values.
        values: Integers.

    Raises:
        TypeError: They are no integers; True and False are none either.
        ArgumentError: One is given twice, as in flags of 0 and 1.
    """
    if is_text(values):
        raise TypeError(f"{name} must be integers, not {values!r}")
    try:
        given = list(values)
        numbers = [operator.index(one) for one in given]
    except TypeError:
        raise TypeError(f"{name} must be integers, not {values!r}") from None
    if any(isinstance(one, bool) for one in given):
        raise TypeError(
            f"{name} must be numbers and no flags: give the indices of those that are "
            f"True, and not {values!r}"
        )
    if len(set(numbers)) < len(numbers):
        twice = next(one for one in numbers if numbers.count(one) > 1)
        raise ArgumentError(
            f"{name} names {twice} twice: it takes the number of each once, and no flags of 0 and 1"
        )
    return numbers


def check_number(
    name: str, value: Any, least: float = -FLOAT_MAX, most: float = FLOAT_MAX, remedy: str = ""
) -> None:
    """Check a number that C gets as a 32-bit float.

    Raises:
        TypeError: It is none; text, True and False are none either.
        ArgumentError: It is not finite, or not in ``least`` to ``most``.
    """
    converted = as_float(name, value)
    if not (math.isfinite(converted) and least <= converted <= most):
        limits = f"is not in {least:g} to {most:g}"
        if least == -FLOAT_MAX:
            limits = "is not a finite 32-bit number"
        elif most == FLOAT_MAX:
            limits = f"is not a finite number of at least {least:g}"
        raise ArgumentError(f"{name}={value} {limits}{remedy}")


def check_text(name: str, value: Any, *, escaped: bool = False) -> bytes:
    """Return text as C takes it.

    Args:
        name: What to call it.
        value: The text.
        escaped: Whether surrogates may stand for bytes that are not UTF-8, as in what was read.

    Raises:
        TypeError: It is no text.
        ArgumentError: It has a zero, where C would end it, or cannot be UTF-8.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, not {value!r}")
    if "\0" in value:
        raise ArgumentError(
            f"{name} has a NUL character at index {value.index(chr(0))}, where C would end it"
        )
    try:
        return value.encode(errors="surrogateescape" if escaped else "strict")
    except UnicodeEncodeError as error:
        raise ArgumentError(
            f"{name} has a lone surrogate at index {error.start}, which UTF-8 cannot encode; clean "
            "it with text.encode('utf-8', 'replace').decode()"
        ) from None


def warn(message: str) -> None:
    """Warn at the line outside of this package that led here."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, RuntimeWarning, stacklevel=level)
