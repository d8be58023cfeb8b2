"""The rules of a grammar: checked for left recursion, and laid out in arrays for C."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._native import ffi, lib
from ..errors import GrammarError

ANY = 0x10FFFF  # the last character
SURROGATES = 0xD800, 0xDFFF  # code points that are not characters

Ranges = Iterable[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule in llama.cpp's sense, in which groups and repetitions are rules too."""

    name: str
    """The name of the rule in the text that it belongs to."""
    alternatives: Sequence[Sequence[int]]
    """The symbols of each: numbers of rules, or negative ones of `Terminals`."""


class Terminals:
    """The characters and tokens of a grammar, numbered -1, -2 and so on."""

    def __init__(self) -> None:
        self.ranges: array[int] = array("I")
        self.slots: list[tuple[int, int, int]] = []
        self._numbers: dict[object, int] = {}

    def chars(self, ranges: Ranges, *, negated: bool = False) -> int:
        """Return the number for a character inside (or, negated, outside) some ranges."""
        key = tuple(characters(ranges, negated=negated))
        number = self._numbers.get(key)
        if number is None:
            first = len(self.ranges) // 2
            for one in key:
                self.ranges.extend(one)
            number = self._add(key, (lib.LLAMACFFI_SLOT_CHARS, first, len(key)))
        return number

    def token(self, place: int, *, negated: bool) -> int:
        """Return the number for a token or, negated, for any other token."""
        kind = lib.LLAMACFFI_SLOT_NOT_TOKEN if negated else lib.LLAMACFFI_SLOT_TOKEN
        key = negated, place
        return self._numbers.get(key) or self._add(key, (kind, place, 0))

    def _add(self, key: object, slot: tuple[int, int, int]) -> int:
        self.slots.append(slot)
        self._numbers[key] = number = -len(self.slots)
        return number


def characters(ranges: Ranges, *, negated: bool = False) -> Iterator[tuple[int, int]]:
    """Yield ranges of characters in order, with overlapping and adjacent ranges merged."""
    found = sorted(ranges)
    if negated:
        found = list(_gaps(found))
    start = end = -1
    for low, high in sorted(_without_surrogates(found)):
        if low > end + 1 or start < 0:
            if start >= 0:
                yield start, end
            start = low
        end = max(end, high)
    if start >= 0:
        yield start, end


def _gaps(ranges: Ranges) -> Iterator[tuple[int, int]]:
    start = 0
    for low, high in ranges:
        if start < low:
            yield start, low - 1
        start = max(start, high + 1)
    yield start, max(start, ANY)


def _without_surrogates(ranges: Ranges) -> Iterator[tuple[int, int]]:
    first, last = SURROGATES
    for low, high in ranges:
        for start, end in ((low, min(high, first - 1)), (max(low, last + 1), min(high, ANY))):
            if start <= end:
                yield start, end


@dataclass(frozen=True, slots=True)
class Program:
    """The rules of a grammar in arrays, as ``struct llamacffi_grammar_rules`` has them."""

    slots: bytes
    alternatives: bytes
    first: bytes
    ranges: bytes
    root: int

    def struct(self) -> tuple[Any, list[object]]:
        """Return the ``struct llamacffi_grammar_rules *``, and what it points to."""
        made, keep = ffi.new("struct llamacffi_grammar_rules *"), list[object]()
        for name, type_, size, n in (
            ("slots", "int32_t[]", 12, "n_slots"),
            ("alternatives", "int32_t[]", 4, "n_alternatives"),
            ("first", "int32_t[]", 4, "n_rules"),
            ("ranges", "uint32_t[]", 8, "n_ranges"),
        ):
            data = getattr(self, name)
            keep.append(buffer := ffi.from_buffer(type_, data))
            setattr(made, name, buffer)
            setattr(made, n, len(data) // size)
        made.n_rules -= 1  # the last entry is where they end
        made.root = self.root
        return made, keep


def lower(rules: Mapping[int, Rule], root: int, terminals: Terminals) -> Program:
    """Return the arrays for rules, which are numbered from 0."""
    end = lib.LLAMACFFI_SLOT_END, 0, 0
    slots, alternatives, first = array("i"), array("i"), array("i", [0])
    for number in range(len(rules)):
        for symbols in rules[number].alternatives:
            alternatives.append(len(slots) // 3)
            for symbol in symbols:
                rule = lib.LLAMACFFI_SLOT_RULE, symbol, 0
                slots.extend(terminals.slots[-1 - symbol] if symbol < 0 else rule)
            slots.extend(end)
        first.append(len(alternatives))
    return Program(
        slots.tobytes(), alternatives.tobytes(), first.tobytes(), terminals.ranges.tobytes(), root
    )


def check_recursion(rules: Mapping[int, Rule]) -> None:
    """Raise `GrammarError` for a left recursive rule.

    upstream: src/llama-grammar.cpp llama_grammar_detect_left_recursion: rejects these, too.

    A rule that may consist of nothing but itself, such as the repetition of something that may be
    empty, is allowed.
    """
    empty = _nullable(rules)
    edges = {number: list(_first(rule, empty)) for number, rule in rules.items()}
    component = _components({number: [ref for ref, _ in refs] for number, refs in edges.items()})
    for number, refs in edges.items():
        for ref, followed in refs:
            if followed and component[number] == component[ref]:
                raise GrammarError(
                    f"the rule {rules[number].name!r:.80} is left recursive: it can start with "
                    'itself.  Use a repetition instead: `x ::= y ("," y)*` rather than '
                    '`x ::= x "," y | y`'
                )


def _first(rule: Rule, empty: set[int]) -> Iterator[tuple[int, bool]]:
    """Yield the rules that a rule can start with, and whether anything follows them."""
    for symbols in rule.alternatives:
        for i, symbol in enumerate(symbols):
            if symbol < 0:
                break
            yield symbol, i + 1 < len(symbols)
            if symbol not in empty:
                break


def _nullable(rules: Mapping[int, Rule]) -> set[int]:
    """Return the rules that match the empty string."""
    users: dict[int, list[tuple[int, Sequence[int]]]] = {}
    found: list[int] = []
    empty: set[int] = set()
    for number, rule in rules.items():
        for symbols in rule.alternatives:
            if not symbols:
                found.append(number)
            elif min(symbols) >= 0:
                for symbol in set(symbols):
                    users.setdefault(symbol, []).append((number, symbols))
    while found:
        one = found.pop()
        if one in empty:
            continue
        empty.add(one)
        for number, symbols in users.get(one, ()):
            if number not in empty and all(symbol in empty for symbol in symbols):
                found.append(number)
    return empty


def _components(graph: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """Number the strongly connected components; return the number of each node (Tarjan)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    component: dict[int, int] = {}
    stack: list[int] = []
    for start in graph:
        path = [] if start in index else [(start, iter(graph[start]))]
        while path:
            node, targets = path[-1]
            if node not in index:
                index[node] = low[node] = len(index)
                stack.append(node)
            step = next((one for one in targets if one not in component), None)
            if step is not None and step not in index:
                path.append((step, iter(graph[step])))
            elif step is not None:
                low[node] = min(low[node], index[step])
            else:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[node])
                if low[node] == index[node]:
                    while node not in component:
                        component[stack.pop()] = index[node]
    return component
