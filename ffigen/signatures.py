"""Two C types side by side: what is different, argument by argument."""

from __future__ import annotations

import difflib

from .api import FunctionType, Parameter, Pointer, Type, declare


def compare_types(old: Type, new: Type) -> tuple[list[str], bool]:
    """Return in words what is different between two types, and whether that breaks a program.

    Another name of a parameter is a difference that breaks nothing: C has no keyword arguments.
    """
    if old == new:
        return [], False
    before, after = _function_of(old), _function_of(new)
    if before is None or after is None:
        return [f"type {declare(old)} is now {declare(new)}"], True
    details: list[str] = []
    if before.result != after.result:
        details.append(f"it returned {declare(before.result)} and returns {declare(after.result)}")
    if before.variadic != after.variadic:
        details.append("it is variadic now" if after.variadic else "it is not variadic now")
    arguments, breaking = _compare_parameters(before.parameters, after.parameters)
    return [*details, *arguments], breaking or bool(details)


def _function_of(type_: Type) -> FunctionType | None:
    """Return the function that a type is, or points to."""
    if isinstance(type_, Pointer):
        type_ = type_.to
    return type_ if isinstance(type_, FunctionType) else None


def _compare_parameters(
    old: tuple[Parameter, ...], new: tuple[Parameter, ...]
) -> tuple[list[str], bool]:
    """Align two lists of parameters and describe each that has no equal."""
    details: list[str] = []
    breaking = False
    for same, before, after in _aligned(old, new):
        if same:
            continue
        for (i, one), (j, other) in zip(before, after, strict=False):
            details.append(_changed(i, one, j, other))
            breaking = breaking or one.type != other.type
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
