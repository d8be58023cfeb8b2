"""Checks of arguments: each names the argument, its limits, and the value that was given.

A value of the wrong kind raises TypeError; one of the right kind, but out of range, ArgumentError.
"""

from __future__ import annotations

import math
import operator
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, SupportsFloat, TypeGuard

from ..errors import ArgumentError

if TYPE_CHECKING:
    import numpy.typing as npt

INT32_MAX = 2**31 - 1
INT32_MIN = -(2**31)
FLOAT_MAX = (2 - 2**-23) * 2.0**127
PACKAGE = __name__.partition(".")[0]


def shown(value: Any) -> str:
    """Return a value as a message shows it: its repr, cut to 80 characters."""
    try:
        return f"{value!r:.80}"
    except ValueError:  # an integer of more digits than Python writes
        return f"{type(value).__name__}, too long to print"


def integer(
    name: str, value: Any, least: int | None = None, most: int | None = None, remedy: str = ""
) -> int:
    """Return an integer as an int.

    Args:
        name: The argument, for the message.
        value: What was given; True and False are flags, not integers.
        least: The smallest that is allowed.
        most: The largest that is allowed.
        remedy: What the message of a value out of range ends with.

    Raises:
        TypeError: It is not an integer.
        ArgumentError: It is out of range.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {shown(value)}") from None
    if (least is not None and number < least) or (most is not None and number > most):
        if most is None:
            limits = f"at least {least}"
        elif least is None:
            limits = f"at most {most}"
        else:
            limits = f"{least}" if least == most else f"between {least} and {most}"
        raise ArgumentError(f"{name} must be {limits}, not {shown(number)}{remedy}")
    return number


def number(
    name: str, value: Any, least: float = -FLOAT_MAX, most: float = FLOAT_MAX, remedy: str = ""
) -> float:
    """Return a number that fits C's float as a float.

    Args:
        name: The argument, for the message.
        value: What was given.  Text, flags and arrays are refused, though float() takes some.
        least: The smallest that is allowed.
        most: The largest that is allowed.
        remedy: What the message of a value out of range ends with.

    Raises:
        TypeError: It is not a number.
        ArgumentError: It is infinite, NaN or out of range.
    """
    kind = getattr(getattr(value, "dtype", None), "kind", "f")
    single = kind in "iuf" and not getattr(value, "shape", ())
    if isinstance(value, bool) or not isinstance(value, SupportsFloat) or not single:
        raise TypeError(f"{name} must be a number, not {shown(value)}")
    try:
        converted = float(value)
    except OverflowError:
        converted = math.inf
    if not (math.isfinite(converted) and least <= converted <= most):
        limits = f"between {least:g} and {most:g}"
        if least == -FLOAT_MAX:
            limits = "a finite 32-bit float"
        elif most == FLOAT_MAX:
            limits = f"finite and at least {least:g}"
        plain = value.item() if hasattr(value, "item") else value  # a scalar of numpy
        raise ArgumentError(f"{name} must be {limits}, not {shown(plain)}{remedy}")
    return converted


def flag(name: str, value: Any) -> bool:
    """Return a flag as a bool: True and False, and those of numpy.

    Raises:
        TypeError: It is something else.  Numbers such as 1 are refused too: every object has a
            truth value, and it is seldom what the caller meant.
    """
    if value is True or value is False:
        return value
    if getattr(getattr(value, "dtype", None), "kind", "") == "b" and not value.shape:
        return bool(value)
    raise TypeError(f"{name} must be True or False, not {shown(value)}")


def is_text(value: Any) -> TypeGuard[str | bytes | bytearray | memoryview]:
    """Return whether a value is str, or bytes: UTF-8 text rather than a sequence of numbers."""
    if isinstance(value, memoryview):
        return value.itemsize == 1
    return isinstance(value, (str, bytes, bytearray))


def check_text(name: str, value: Any, *, escaped: bool = False) -> bytes:
    """Return text as C takes it.

    Args:
        name: The argument, for the message.
        value: The text.
        escaped: Accept surrogates that stand for bytes which are not UTF-8, as text that was read
            from a file has them.

    Raises:
        TypeError: It is not a str.
        ArgumentError: It has a NUL character, where C would end it, or a lone surrogate.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {shown(value)}")
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


def check_object(name: str, value: Any, kind: str, remedy: str = "") -> None:
    """Check that a value is an object of this package.

    Args:
        name: The argument, for the message.
        value: What was given.
        kind: The name of its class, or of a base: modules that take an object are often below
            its own, which they cannot import.
        remedy: What the message ends with.

    Raises:
        TypeError: It is something else.
    """
    for one in type(value).__mro__:
        if one.__name__ == kind and one.__module__.partition(".")[0] == PACKAGE:
            return
    article = "an" if kind[0] in "AEIOU" else "a"
    raise TypeError(f"{name} must be {article} {kind}, not {shown(value)}{remedy}")


def check_function(name: str, value: Any) -> None:
    """Check that a value can be called.

    Raises:
        TypeError: It cannot.
    """
    if not callable(value):
        raise TypeError(f"{name} must be a function, not {shown(value)}")


def mapping(name: str, value: Any, of: str) -> Mapping[Any, Any]:
    """Return a mapping as it is.

    Args:
        name: The argument, for the message.
        value: What was given.
        of: What it maps to what, such as ``"tokens to numbers"``.

    Raises:
        TypeError: It is not a mapping.
    """
    if isinstance(value, Mapping):
        return value
    raise TypeError(f"{name} must be a mapping of {of}, not {shown(value)}")


def elements(name: str, value: Any, of: str) -> list[Any]:
    """Return the elements of an iterable as a list.

    Args:
        name: The argument, for the message.
        value: What was given; str and bytes are refused.
        of: What the elements are, in the plural.

    Raises:
        TypeError: It is not an iterable.
    """
    try:
        if is_text(value):
            raise TypeError
        iterator = iter(value)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of {of}, not {shown(value)}") from None
    return list(iterator)


def checked_indices(name: str, values: Any) -> list[int]:
    """Return indices as a list of ints.

    Args:
        name: The argument, for the message.
        values: Integers, each once.

    Raises:
        TypeError: They are not integers; a mask of True and False is not either.
        ArgumentError: One is given twice, as in a mask of 0 and 1.
    """
    if is_text(values):
        raise TypeError(f"{name} must be integers, not {shown(values)}")
    try:
        given = list(values)
        numbers = [operator.index(one) for one in given]
    except TypeError:
        raise TypeError(f"{name} must be integers, not {shown(values)}") from None
    if any(isinstance(one, bool) for one in given):
        raise TypeError(
            f"{name} must be integers, not flags: give the indices of those that are True instead "
            f"of {shown(values)}"
        )
    if len(set(numbers)) < len(numbers):
        twice = next(one for one in numbers if numbers.count(one) > 1)
        raise ArgumentError(
            f"{name} has {twice} twice: give each index once, and not a mask of 0 and 1"
        )
    return numbers


def as_array(name: str, value: Any, dtype: Any = None) -> npt.NDArray[Any]:
    """Return a value as a numpy array.

    Args:
        name: The argument, for the message.
        value: An array, or numbers in lists.
        dtype: The type to convert it to; by default its own.

    Raises:
        TypeError: It is something else.
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
                f"{name} must have rows of one length, not {shown(value)}"
            ) from None
        raise TypeError(f"{name} must be numbers, not {shown(value)}: {error}") from None


def warn(message: str) -> None:
    """Warn at the line outside of this package that led here."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, RuntimeWarning, stacklevel=level)
