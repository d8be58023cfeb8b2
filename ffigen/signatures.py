"""Two C types side by side: what is different, argument by argument."""

from __future__ import annotations

import difflib
from dataclasses import replace

from .api import FunctionType, Name, Parameter, Pointer, Tag, Type, declare

# One type by two names, on every machine that llama.cpp runs on.
SPELLED_OUT = {
    "int8_t": "signed char",
    "int16_t": "short",
    "int32_t": "int",
    "uint8_t": "unsigned char",
    "uint16_t": "unsigned short",
    "uint32_t": "unsigned int",
}


def compare_types(old: Type, new: Type, *, called: bool = False) -> tuple[list[str], bool]:
    """Return in words what is different between two types, and whether that breaks a program.

    Another name of a parameter is a difference that breaks nothing: C has no keyword arguments.

    Args:
        old: The type before.
        new: The type after.
        called: It is of a function that programs call, not of one that they write.
    """
    if old == new:
        return [], False
    before, after = _function_of(old), _function_of(new)
    if before is None or after is None:
        return [f"type {declare(old)} is now {declare(new)}"], not is_same(old, new)
    details: list[str] = []
    breaking = before.variadic != after.variadic or not is_same(before.result, after.result)
    if before.result != after.result:
        details.append(f"it returned {declare(before.result)} and returns {declare(after.result)}")
    if before.variadic != after.variadic:
        details.append("it is variadic now" if after.variadic else "it is not variadic now")
    arguments, others = _compare_parameters(before.parameters, after.parameters, called)
    return [*details, *arguments], breaking or others


def is_same(old: Type, new: Type) -> bool:
    """Tell whether two types are one, however they are spelled."""
    return _spelled_out(old) == _spelled_out(new)


def takes_all(old: Type, new: Type) -> bool:
    """Tell whether a parameter takes now what it took before: C adds a const by itself."""
    if isinstance(old, Pointer) and isinstance(new, Pointer):
        to = new.to
        if isinstance(to, Name | Tag | Pointer) and to.const and to != old.to:
            return is_same(old.to, replace(to, const=False))
    return is_same(old, new)


def _spelled_out(type_: Type) -> Type:
    match type_:
        case Name(name=name) if name in SPELLED_OUT:
            return replace(type_, name=SPELLED_OUT[name])
        case Pointer(to=to):
            return replace(type_, to=_spelled_out(to))
        case _:
            return type_


def _function_of(type_: Type) -> FunctionType | None:
    """Return the function that a type is, or points to."""
    if isinstance(type_, Pointer):
        type_ = type_.to
    return type_ if isinstance(type_, FunctionType) else None


def _compare_parameters(
    old: tuple[Parameter, ...], new: tuple[Parameter, ...], called: bool
) -> tuple[list[str], bool]:
    """Align two lists of parameters and describe each that has no equal."""
    fits = takes_all if called else is_same
    details: list[str] = []
    breaking = False
    for same, before, after in _aligned(old, new):
        if same:
            continue
        for (i, one), (j, other) in zip(before, after, strict=False):
            details.append(_changed(i, one, j, other))
            breaking = breaking or not fits(one.type, other.type)
        rest = min(len(before), len(after))
        details += [f"argument {i + 1} {_shown(one)} is gone" for i, one in before[rest:]]
        details += [f"argument {i + 1} {_shown(one)} is new" for i, one in after[rest:]]
        breaking = breaking or len(before) != len(after)
    return details, breaking


Numbered = list[tuple[int, Parameter]]


def _aligned(
    old: tuple[Parameter, ...], new: tuple[Parameter, ...]
) -> list[tuple[bool, Numbered, Numbered]]:
    """Return runs of parameters that are the same in both, or differ.

    Those between two that are the same are aligned by their types, and else by their names.
    """
    runs: list[tuple[bool, Numbered, Numbered]] = []
    before, after = list(enumerate(old)), list(enumerate(new))
    keys = [[(one.name, one.type) for one in side] for side in (old, new)]
    whole = difflib.SequenceMatcher(None, keys[0], keys[1], autojunk=False)
    for tag, i, i_end, j, j_end in whole.get_opcodes():
        if tag == "equal" or i_end - i == j_end - j:
            runs.append((tag == "equal", before[i:i_end], after[j:j_end]))
            continue
        for key in ("type", "name"):
            part = [[getattr(one, key) for one in side] for side in (old[i:i_end], new[j:j_end])]
            inner = difflib.SequenceMatcher(None, part[0], part[1], autojunk=False)
            if inner.ratio() > 0:
                break
        for _, k, k_end, m, m_end in inner.get_opcodes():
            runs.append((False, before[i + k : i + k_end], after[j + m : j + m_end]))
    return runs


def _changed(i: int, one: Parameter, j: int, other: Parameter) -> str:
    place = f"argument {i + 1}" if i == j else f"argument {i + 1}, now {j + 1},"
    if one.type == other.type:
        return f"{place} {_shown(one)} is now called {other.name or 'nothing'}"
    return f"{place} {_shown(one)} is now {_shown(other)}"


def _shown(one: Parameter) -> str:
    return declare(one.type, one.name)
