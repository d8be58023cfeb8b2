"""The facts of an API, read back from the text of an ``api.lock``.

A lock has one fact a line and is all that a comparison needs, wherever it came from: the headers of
a tree, another version of the pin, or a file that somebody kept.  Its declarations are C, and are
read by the same parser as the headers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

from .api import Declaration, Function, FunctionType, Struct, Type, Typedef
from .nodes import parse
from .parse import Reader
from .preprocess import GeneratorError
from .typing import INTEGERS


class LockError(GeneratorError):
    """A text is not an ``api.lock``."""


@dataclass(frozen=True, slots=True)
class ConstantFact:
    """A ``#define`` or ``static const``."""

    name: str
    value: str
    """As C writes it."""


@dataclass(frozen=True, slots=True)
class EnumeratorFact:
    """A member of an enum."""

    name: str
    enum: str
    """The enum; empty if that has no name."""
    value: str


@dataclass(frozen=True, slots=True)
class FieldFact:
    """A field of a struct or union."""

    name: str
    type: Type
    offset: int
    """In bytes."""
    text: str
    """The declaration."""


@dataclass(frozen=True, slots=True)
class RecordFact:
    """A struct or union."""

    name: str
    kind: str
    size: int | None
    """In bytes; None if the headers do not show the fields."""
    fields: tuple[FieldFact, ...] = ()


@dataclass(frozen=True, slots=True)
class TypedefFact:
    """A typedef."""

    name: str
    type: Type
    text: str


@dataclass(frozen=True, slots=True)
class FunctionFact:
    """A function."""

    name: str
    type: FunctionType
    text: str
    deprecated: bool = False


@dataclass(slots=True)
class Facts:
    """All facts of an API, by name, in the order of the headers."""

    constants: dict[str, ConstantFact] = field(default_factory=dict)
    enumerators: dict[str, EnumeratorFact] = field(default_factory=dict)
    records: dict[str, RecordFact] = field(default_factory=dict)
    typedefs: dict[str, TypedefFact] = field(default_factory=dict)
    functions: dict[str, FunctionFact] = field(default_factory=dict)

    def names(self) -> Iterator[str]:
        """Yield the name of every fact; of a field as ``struct.field``."""
        for record in self.records.values():
            yield record.name
            yield from (f"{record.name}.{one.name}" for one in record.fields)
        for facts in (self.constants, self.enumerators, self.typedefs, self.functions):
            yield from facts


# The kinds of lines, by their first word.
CONSTANT = re.compile(r"constant (\w+) = (.*)")
ENUMERATOR = re.compile(r"enum (\w*)\.(\w+) = (.*)")
OPAQUE = re.compile(r"(?:(struct|union) )?(\w+) opaque")
RECORD = re.compile(r"(struct|union) (\w+) size (\d+)")
FIELD = re.compile(r"field (\w+)\.(\w+) @(\d+): (.*;)")
TYPEDEF = re.compile(r"(typedef .*;)()")
FUNCTION = re.compile(r"function (.*;)( deprecated)?")
# What a line may declare: a name in front of its parameters, or at the end of a typedef.
DECLARED = re.compile(r"(\w+)(?:\(|\)\(|(?:\[\w*\])*;$)")

# What the C library declares, and CFFI knows by itself.
LIBC_NAMES = sorted({"bool", "FILE"} | {name for name in INTEGERS if name.endswith("_t")})


@lru_cache(maxsize=4)  # for both sides; the facts are never modified
def read_lock(text: str, where: str = "api.lock") -> Facts:
    """Read the facts of a lock.

    Args:
        text: What `build_ffi.py lock` writes.
        where: What to call it in an error.

    Raises:
        LockError: It is something else.
    """
    facts = Facts()
    declarations: list[re.Match[str]] = []
    fields: dict[str, list[re.Match[str]]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        if match := CONSTANT.fullmatch(line):
            facts.constants[match[1]] = ConstantFact(match[1], match[2])
        elif match := ENUMERATOR.fullmatch(line):
            facts.enumerators[match[2]] = EnumeratorFact(match[2], match[1], match[3])
        elif match := OPAQUE.fullmatch(line):
            facts.records[match[2]] = RecordFact(match[2], match[1] or "struct", None)
        elif match := RECORD.fullmatch(line):
            facts.records[match[2]] = RecordFact(match[2], match[1], int(match[3]))
        elif match := FIELD.fullmatch(line):
            fields.setdefault(match[1], []).append(match)
        elif match := TYPEDEF.fullmatch(line) or FUNCTION.fullmatch(line):
            declarations.append(match)
        else:
            raise LockError(f"{where}:{number}: not a fact of an api.lock: {line[:80]}")
    if not facts.functions and not declarations:
        raise LockError(f"{where} has no function: it is not an api.lock")
    _read_declarations(facts, declarations, fields, where)
    return facts


def _read_declarations(
    facts: Facts,
    declarations: list[re.Match[str]],
    fields: dict[str, list[re.Match[str]]],
    where: str,
) -> None:
    """Parse what is C in a lock, and add it to ``facts``."""
    lines = [match[1] for match in declarations]
    holders = [
        f"struct llamacffi_of_{name} {{ {_fields_text(of)} }};" for name, of in fields.items()
    ]
    try:
        parsed = _parse(list(_prologue(facts, lines)), [*lines, *holders])
    except GeneratorError as error:
        raise LockError(f"{where} has a declaration that is not understood: {error}") from error
    for match, one in zip(declarations, parsed, strict=False):
        if isinstance(one, Typedef):
            facts.typedefs[one.name] = TypedefFact(one.name, one.type, match[1])
        elif isinstance(one, Function):
            deprecated = bool(match[2])
            facts.functions[one.name] = FunctionFact(one.name, one.type, match[1], deprecated)
    for (name, matches), holder in zip(fields.items(), parsed[len(lines) :], strict=True):
        assert isinstance(holder, Struct)
        read = zip(matches, holder.record.fields or (), strict=True)
        found = tuple(FieldFact(m[2], one.type, int(m[3]), m[4]) for m, one in read)
        facts.records[name] = replace(facts.records[name], fields=found)


def _fields_text(matches: list[re.Match[str]]) -> str:
    return " ".join(match[4] for match in matches)


def _prologue(facts: Facts, lines: list[str]) -> Iterator[str]:
    """Yield C that declares the types which the lines of a lock use without declaring them."""
    for name in LIBC_NAMES:
        yield f"typedef int {name};"
    # Whether a struct has a tag or only the name of a typedef, a lock does not say: here it has
    # both, unless that is the name of a function or typedef.
    taken = {name for line in lines for name in DECLARED.findall(line)}
    for record in facts.records.values():
        if record.name not in taken:
            yield f"typedef {record.kind} {record.name} {record.name};"
    for name in dict.fromkeys(one.enum for one in facts.enumerators.values()):
        if name and name not in taken:
            yield f"typedef enum {name} {name};"


def _parse(prologue: list[str], lines: list[str]) -> list[Declaration]:
    """Return what each of ``lines`` declares."""
    reader = Reader({})
    declarations: list[Declaration] = []
    for number, node in enumerate(parse("\n".join([*prologue, *lines])).ext):
        if number < len(prologue):
            reader.typedefs[node.name] = node.type
        else:
            *_, declared = reader.read_node(node)
            declarations.append(declared)
    return declarations
