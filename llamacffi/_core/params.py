"""Keyword arguments as fields of a C parameter struct, checked before C sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from .._native import ffi
from ..errors import ArgumentError
from .hints import unknown_parameter
from .values import flag, integer, number, shown

# Returns the value of a field for C, and an object that must live as long as C uses it.
Converter: TypeAlias = Callable[[Any], tuple[Any, object]]


def fill(
    struct: Any,
    name: str,
    params: Mapping[str, Any],
    owned: Mapping[str, str],
    converters: Mapping[str, Converter] | None = None,
    limits: Mapping[str, tuple[int, int]] | None = None,
) -> list[object]:
    """Set the fields of ``struct`` that are in ``params``; the others keep their defaults.

    Args:
        struct: The cdata struct, filled with llama.cpp's defaults.
        name: Its C name, such as ``llama_model_params``.
        params: Values by field.
        owned: Fields that the facade sets itself, each with what to use instead.
        converters: Converters of fields that accept more than their C type.
        limits: The minimum and maximum of integer fields whose range is smaller than their type's.

    Returns:
        The objects that the fields point to: keep them as long as C may read them.

    Raises:
        TypeError: A field is unknown, or its value has the wrong type.
        ArgumentError: A value is out of range.
    """
    from .._generated.params import KINDS

    kinds, keep, limits = KINDS[name], [], limits or {}
    for field, value in params.items():
        if field not in kinds:
            raise TypeError(unknown_parameter(field, [one for one in kinds if one not in owned]))
        if field in owned:
            raise TypeError(f"{field!r} cannot be given: {owned[field]}")
        kind = kinds[field]
        if converters and field in converters:
            converted, kept = converters[field](value)
        elif kind == "int":
            least, most = limits.get(field) or _limits(name, field)
            converted = kept = integer(field, value, least, most)
        else:
            convert = CONVERTERS.get(kind) or _enum(kind)
            converted = kept = convert(field, value)
        keep.append(kept)
        try:
            setattr(struct, field, converted)
        except TypeError as error:
            raise TypeError(f"{field}={shown(value)}: {error}") from None
    return keep


def _limits(name: str, field: str) -> tuple[int, int]:
    """Return the minimum and the maximum of the type of an integer field."""
    struct: Any = ffi.typeof(f"struct {name}")
    ctype = dict(struct.fields)[field].type
    bits = 8 * ffi.sizeof(ctype)
    if int(ffi.cast(ctype, -1)) < 0:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def _pointer(field: str, value: Any) -> Any:
    if value is None:
        return ffi.NULL
    if isinstance(value, ffi.CData):
        return value
    raise TypeError(f"{field} must be a cdata pointer or None, not {shown(value)}")


def _enum(name: str) -> Callable[[str, Any], int]:
    """Return the converter for an enum, which accepts a member, its number or its name."""

    def convert(field: str, value: Any) -> int:
        from .._generated.enums import ENUMS

        enum = ENUMS[name]
        number = None if isinstance(value, str) else integer(field, value)
        try:
            return int(enum[value.upper()] if number is None else enum(number))
        except (KeyError, ValueError):
            names = ", ".join(member.name or "" for member in enum)
            raise ArgumentError(f"{field} must be one of {names}, not {shown(value)}") from None

    return convert


def enum_number(enum: str, name: str, value: Any) -> int:
    """Return the number of a member of ``enum``, given as a member, a number or a name."""
    return _enum(enum)(name, value)


# By kind.  Integers are missing, as they have limits; any other kind is the name of an enum.
CONVERTERS: Mapping[str, Callable[[str, Any], Any]] = {
    "bool": flag,
    "float": number,
    "pointer": _pointer,
}
