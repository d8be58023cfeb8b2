"""What changed between two APIs, fact by fact."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from ..lock import (
    ConstantFact,
    EnumeratorFact,
    Facts,
    FieldFact,
    FunctionFact,
    RecordFact,
    TypedefFact,
)
from ..signatures import compare_types
from .changes import Action, Change, What
from .renames import likely_renames

F = TypeVar("F", ConstantFact, EnumeratorFact, FieldFact, FunctionFact, RecordFact, TypedefFact)


def compare(old: Facts, new: Facts, hints: Mapping[str, str] | None = None) -> list[Change]:
    """Return what changed from ``old`` to ``new``, kind by kind in the order of the headers.

    Args:
        old: The facts before.
        new: The facts after.
        hints: What the new headers say of deprecated functions, by name; a lock does not have it.
    """
    changes = [
        *compare_kind(old.functions, new.functions, FUNCTIONS),
        *compare_kind(old.records, new.records, RECORDS),
        *compare_kind(old.typedefs, new.typedefs, TYPEDEFS),
        *compare_kind(old.enumerators, new.enumerators, ENUMERATORS),
        *compare_kind(old.constants, new.constants, CONSTANTS),
    ]
    return [with_hint(one, hints or {}) for one in across_kinds(changes)]


@dataclass(frozen=True, slots=True)
class Kind(Generic[F]):
    """How the facts of one kind are compared."""

    what: Callable[[F], What]
    text: Callable[[F], str]
    """The declaration or value that a change shows."""
    alike: Callable[[F, F], bool]
    """Whether one may be the other under a new name."""
    differences: Callable[[F, F], Iterator[Change]]
    """What is different between two that are taken for one."""


def compare_kind(old: Mapping[str, F], new: Mapping[str, F], kind: Kind[F]) -> Iterator[Change]:
    """Yield what changed among the facts of one kind: first what is gone, then the rest."""
    gone = {name: fact for name, fact in old.items() if name not in new}
    come = {name: fact for name, fact in new.items() if name not in old}
    renames = likely_renames(gone, come, kind.alike)
    for name, fact in gone.items():
        if name not in renames:
            yield Change("removed", kind.what(fact), name, True, kind.text(fact))
    for name, fact in new.items():
        if name in old:
            yield from kind.differences(old[name], fact)
        elif name not in renames.values():
            details = tuple(one.text for one in getattr(fact, "fields", ()))
            yield Change("added", kind.what(fact), name, False, "", kind.text(fact), "", details)
    for name, new_name in renames.items():
        one, other = old[name], new[new_name]
        texts = kind.text(one), kind.text(other)
        yield Change("renamed", kind.what(other), name, True, *texts, new_name)
        yield from kind.differences(one, other)


def across_kinds(changes: list[Change]) -> Iterator[Change]:
    """Make one change of a name that goes as one kind and comes as another.

    To Python an enumerator and a constant are the same, if they have the same value.
    """
    come = {one.name: one for one in changes if one.action == "added"}
    moved = {one.name for one in changes if one.action == "removed" and one.name in come}
    for one in changes:
        if one.name not in moved:
            yield one
        elif one.action == "removed":
            new = come[one.name]
            numbers = {one.what, new.what} == {"enumerator", "constant"}
            same = numbers and one.old.split(" of ")[0] == new.new.split(" of ")[0]
            detail = f"the {one.what} is now the {new.what} {new.new}"
            texts = one.old, new.new
            yield Change("changed", new.what, one.name, not same, *texts, details=(detail,))


def with_hint(change: Change, hints: Mapping[str, str]) -> Change:
    """Add what the headers say of a function that is deprecated now."""
    hint = hints.get(change.new_name or change.name)
    if hint and change.what == "function" and change.action in ("deprecated", "added"):
        return replace(change, details=(*change.details, f"deprecated: {hint}"))
    return change


def changed(
    what: What, name: str, texts: tuple[str, str], details: list[str], *, breaking: bool = True
) -> Iterator[Change]:
    """Yield a change if there are details."""
    if details:
        yield Change("changed", what, name, breaking, *texts, details=tuple(details))


# --- Functions and typedefs -----------------------------------------------------------------------


def function_differences(old: FunctionFact, new: FunctionFact) -> Iterator[Change]:
    """Compare two functions."""
    details, breaking = compare_types(old.type, new.type, called=True)
    yield from changed("function", old.name, (old.text, new.text), details, breaking=breaking)
    if old.deprecated != new.deprecated:
        action: Action = "deprecated" if new.deprecated else "no longer deprecated"
        yield Change(action, "function", new.name, False, old.text, new.text)


def typedef_differences(old: TypedefFact, new: TypedefFact) -> Iterator[Change]:
    """Compare two typedefs."""
    details, breaking = compare_types(old.type, new.type)
    yield from changed("typedef", old.name, (old.text, new.text), details, breaking=breaking)


def types_of(one: FunctionFact) -> list[object]:
    """Return what a function takes and returns, without the names."""
    return [
        one.type.result,
        one.type.variadic,
        *(argument.type for argument in one.type.parameters),
    ]


# --- Structs --------------------------------------------------------------------------------------


def record_text(one: RecordFact) -> str:
    """Write what a change shows of a struct."""
    return f"{one.kind} {one.name}, " + ("opaque" if one.size is None else f"{one.size} bytes")


def record_differences(old: RecordFact, new: RecordFact) -> Iterator[Change]:
    """Compare two structs: their fields, and then all that is left of the layout."""
    details: list[str] = []
    if old.kind != new.kind:
        details.append(f"the {old.kind} is now a {new.kind}")
    if old.size is None or new.size is None:
        breaking = bool(details) or new.size is None
        if old.size is not new.size:
            details.append(f"its fields are {'not ' if new.size is None else ''}public now")
    else:
        breaking = True
        yield from field_changes(old, new)
        if old.size != new.size:
            details.append(f"{old.size} bytes are now {new.size}")
        details += moved_fields(old, new)
    texts = record_text(old), record_text(new)
    yield from changed(record_what(new), old.name, texts, details, breaking=breaking)


def field_changes(old: RecordFact, new: RecordFact) -> Iterator[Change]:
    """Compare the fields of a struct that has some before and after."""
    before, after = fields_by_name(old), fields_by_name(new)
    for change in compare_kind(before, after, FIELDS):
        details = change.details
        if change.action == "added":
            details = (field_place(new, change.name),)
        new_name = f"{new.name}.{change.new_name}" if change.new_name else ""
        yield replace(change, name=f"{old.name}.{change.name}", new_name=new_name, details=details)


def moved_fields(old: RecordFact, new: RecordFact) -> Iterator[str]:
    """Describe the fields that are in another place, but for those of another name."""
    after = fields_by_name(new)
    both = [(one, after[one.name]) for one in old.fields if one.name in after]
    order = [one.name for one in new.fields if one.name in fields_by_name(old)]
    if [one.name for one, _ in both] != order:
        yield "the order of its fields is another"
    runs = itertools.groupby(both, key=lambda pair: pair[1].offset - pair[0].offset)
    for distance, pairs in runs:
        if distance:
            yield moved_run(list(pairs), distance)


def moved_run(pairs: list[tuple[FieldFact, FieldFact]], distance: int) -> str:
    """Describe fields next to each other that have moved by as much."""
    places = [f"{old.name} (offset {old.offset} is now {new.offset})" for old, new in pairs]
    what = f"{places[0]} moved"
    if len(pairs) > 1:
        what = f"{len(pairs)} fields moved, from {places[0]} to {places[-1]},"
    return f"{what} by {distance:+} bytes"


def field_place(record: RecordFact, name: str) -> str:
    """Tell where a new field is."""
    index = [one.name for one in record.fields].index(name)
    place = f"at offset {record.fields[index].offset}"
    if index + 1 < len(record.fields):
        return f"{place}, before {record.fields[index + 1].name}"
    return f"{place}, at the end"


def fields_by_name(record: RecordFact) -> dict[str, FieldFact]:
    """Return the fields of a struct by name."""
    return {one.name: one for one in record.fields}


def field_differences(old: FieldFact, new: FieldFact) -> Iterator[Change]:
    """Compare two fields; that one has moved is said of its struct."""
    details, breaking = compare_types(old.type, new.type)
    yield from changed("field", old.name, (old.text, new.text), details, breaking=breaking)


def record_what(one: RecordFact) -> What:
    """Return the word for a struct."""
    return "union" if one.kind == "union" else "struct"


def alike_records(old: RecordFact, new: RecordFact) -> bool:
    """Tell whether two structs have the same fields."""
    names = [[one.name for one in record.fields] for record in (old, new)]
    return old.kind == new.kind and names[0] == names[1]


# --- Enumerators and constants --------------------------------------------------------------------


def enumerator_text(one: EnumeratorFact) -> str:
    """Write what a change shows of an enumerator."""
    return f"{one.value} of {f'enum {one.enum}' if one.enum else 'an enum without a name'}"


def enumerator_differences(old: EnumeratorFact, new: EnumeratorFact) -> Iterator[Change]:
    """Compare two enumerators.  To be in another enum alone changes no program in C."""
    details = [f"value {old.value} is now {new.value}"] if old.value != new.value else []
    breaking = bool(details)
    if old.enum != new.enum:
        details.append("it is in another enum")
    texts = enumerator_text(old), enumerator_text(new)
    yield from changed("enumerator", old.name, texts, details, breaking=breaking)


def constant_differences(old: ConstantFact, new: ConstantFact) -> Iterator[Change]:
    """Compare two constants."""
    details = [f"value {old.value} is now {new.value}"] if old.value != new.value else []
    yield from changed("constant", old.name, (old.value, new.value), details)


FUNCTIONS: Kind[FunctionFact] = Kind(
    what=lambda one: "function",
    text=lambda one: one.text,
    alike=lambda old, new: types_of(old) == types_of(new),
    differences=function_differences,
)
RECORDS = Kind(record_what, record_text, alike_records, record_differences)
FIELDS: Kind[FieldFact] = Kind(
    what=lambda one: "field",
    text=lambda one: one.text,
    alike=lambda old, new: old.type == new.type,
    differences=field_differences,
)
TYPEDEFS: Kind[TypedefFact] = Kind(
    what=lambda one: "typedef",
    text=lambda one: one.text,
    alike=lambda old, new: old.type == new.type,
    differences=typedef_differences,
)
ENUMERATORS: Kind[EnumeratorFact] = Kind(
    what=lambda one: "enumerator",
    text=enumerator_text,
    alike=lambda old, new: old.value == new.value,
    differences=enumerator_differences,
)
CONSTANTS: Kind[ConstantFact] = Kind(
    what=lambda one: "constant",
    text=lambda one: one.value,
    alike=lambda old, new: old.value == new.value,
    differences=constant_differences,
)
