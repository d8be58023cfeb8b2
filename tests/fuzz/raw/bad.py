"""What to change in arguments that a function accepts: one place at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llamacffi import ffi

from .arguments import Choice
from .pages import FILLED, SIZE
from .signatures import Parameter
from .structs import is_transparent
from .world import N_BATCH, N_CTX, World

NUMBER, CONTENT, NULL, TEXT, OBJECT = "number", "content", "NULL", "text", "object"
ANY = "any"  # the place of a death that needs no change
FLOATS = (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e30, -1e30, 1e-45)
DEPTH = 3
OTHERS = 20  # objects
TEXT_LONG = 100_000


Change = Callable[[list[Any]], Callable[[], None]]


@dataclass(frozen=True)
class Case:
    """One change.

    Attributes:
        place: Which argument, or which part of it: ``batch.n_tokens``, ``tokens[]``.
        kind: What is changed there.
        value: To what, in words.
        apply: Makes the change in a list of arguments, and returns what undoes it.
    """

    place: str
    kind: str
    value: str
    apply: Change


def cases(
    world: World,
    parameters: tuple[Parameter, ...],
    arguments: list[Any],
    pools: list[list[Choice]],
    few: bool = False,
) -> Iterator[Case]:
    """Yield what to change in some arguments."""
    for i, (parameter, pool) in enumerate(zip(parameters, pools, strict=True)):
        yield from _changes(world, parameter.name, parameter.type, (i,), arguments, few)
        if not few and parameter.type.cname in world.objects:
            others = [one for one in pool if one.value != arguments[i]]
            for choice in others[:OTHERS]:
                yield Case(parameter.name, OBJECT, choice.label, _set((i,), choice.value))


Path = tuple[int | str, ...]  # from the arguments to a place: indexes and fields


def _step(at: Any, key: int | str) -> Any:
    return getattr(at, key) if isinstance(key, str) else at[key]


def nothing(_: list[Any]) -> Callable[[], None]:
    """Change nothing."""
    return lambda: None


def _set(path: Path, value: Any) -> Change:
    def apply(arguments: list[Any]) -> Callable[[], None]:
        at: Any = arguments
        for key in path[:-1]:
            at = _step(at, key)
        before = _step(at, path[-1])
        _put(at, path[-1], value)
        return lambda: _put(at, path[-1], before)

    return apply


def _put(at: Any, key: int | str, value: Any) -> None:
    if isinstance(key, str):
        setattr(at, key, value)
    else:
        at[key] = value


def _set_all(path: Path, value: Any) -> Change:
    def apply(arguments: list[Any]) -> Callable[[], None]:
        at: Any = arguments
        for key in path:
            at = _step(at, key)
        before = [at[i] for i in range(FILLED)]
        _fill(at, [value] * FILLED)
        return lambda: _fill(at, before)

    return apply


def _fill(at: Any, values: list[Any]) -> None:
    for i, value in enumerate(values):
        at[i] = value


def _changes(
    world: World, place: str, type_: Any, path: Path, arguments: list[Any], few: bool
) -> Iterator[Case]:
    if type_.kind in ("primitive", "enum"):
        for value in numbers(world, type_, few):
            yield Case(place, NUMBER, str(value), _set(path, value))
        return
    at: Any = arguments
    for key in path:
        at = _step(at, key)
    if type_.kind == "struct" and len(path) <= 2 * DEPTH and is_transparent(type_):
        for name, field in type_.fields or ():
            yield from _changes(world, f"{place}.{name}", field.type, (*path, name), arguments, few)
        return
    if type_.kind == "array":
        yield from _changes(world, f"{place}[0]", type_.item, (*path, 0), arguments, few)
        return
    if type_.kind not in ("pointer", "function") or at == ffi.NULL:
        return
    yield Case(place, NULL, "NULL", _set(path, ffi.NULL))
    if type_.kind == "pointer":
        yield from _behind(world, place, type_, path, arguments, at, few)


def _behind(
    world: World, place: str, type_: Any, path: Path, arguments: list[Any], at: Any, few: bool
) -> Iterator[Case]:
    """Yield changes of what a pointer leads to."""
    item = type_.item
    if type_.cname == "char *":
        for label, text in texts(few) if ffi.string(at, 1) else ():  # not of a buffer to write to
            yield Case(place, TEXT, label, _set(path, world.pages.text(text)))
    elif item.kind in ("primitive", "enum"):
        for value in numbers(world, item, few=True) if world.pages.is_array(at) else ():
            yield Case(f"{place}[]", CONTENT, str(value), _set_all(path, value))
    elif len(path) <= 2 * DEPTH and (item.kind in ("pointer", "function") or is_transparent(item)):
        yield from _changes(world, f"{place}[0]", item, (*path, 0), arguments, few)


def texts(few: bool) -> Iterator[tuple[str, bytes]]:
    """Yield odd texts, and what to call them."""
    yield "empty", b""
    yield "not UTF-8", b"\xff\xfe\x80"
    if not few:
        yield "100,000 characters", b"x" * TEXT_LONG
        yield "formats", b"%s%n" * 8


def numbers(world: World, type_: Any, few: bool) -> list[Any]:
    """Return bad numbers of a type: the limits, around zero, and around what the objects have."""
    if type_.cname in ("float", "double"):
        return list(FLOATS[:3] if few else FLOATS)
    if type_.cname == "_Bool":
        return [False, True]
    bits = 8 * ffi.sizeof(type_)
    signed = int(ffi.cast(type_, -1)) < 0
    least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if type_.kind == "enum":
        known = sorted(type_.elements)
        edges = [-1, known[-1] + 1, 1000, least, most]
        return _fitting(edges if few else [*edges, *known], least, most)
    edges = [-1, 0, most, least, 2, SIZE + 1]
    if few:
        return _fitting(edges, least, most)
    sizes = [1, 63, 64, 65, N_CTX, N_BATCH + 1, 1000, world.n_vocab - 1, world.n_vocab]
    large = [1 << 31, 1 << 32, 1 << 40, 1 << 62, most - 7, -2]
    return _fitting([*edges, *sizes, world.n_vocab + 1, *large], least, most)


def _fitting(values: list[int], least: int, most: int) -> list[int]:
    return [one for one in dict.fromkeys(values) if least <= one <= most]
