"""Random grammars, and a parser that tries everything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from hypothesis import strategies as st

# A symbol is characters, a rule name or a group; an item is a symbol and its repetition.
Item: TypeAlias = "tuple[tuple[str, Any], str]"
Alternatives: TypeAlias = list[list[Item]]
Rules: TypeAlias = dict[str, Alternatives]

NAMES = ("root", "x", "y")
# Minimum and maximum; nine counts as unlimited for the short texts here.
BOUNDS = {"": (1, 1), "*": (0, 9), "+": (1, 9), "?": (0, 1), "{2}": (2, 2), "{0,2}": (0, 2)}
BOUNDS["{1,}"] = BOUNDS["+"]

symbols = st.one_of(
    st.sampled_from([("char", "a"), ("char", "b"), ("char", "ab")]),
    st.sampled_from([("rule", name) for name in NAMES]),
)
repeats = st.sampled_from(["", "", "", *BOUNDS])
items = st.recursive(
    st.tuples(symbols, repeats),
    lambda inner: st.tuples(
        st.tuples(st.just("group"), st.lists(st.lists(inner, max_size=2), min_size=1, max_size=2)),
        repeats,
    ),
    max_leaves=3,
)
loose_grammars: st.SearchStrategy[Rules] = st.fixed_dictionaries(
    {name: st.lists(st.lists(items, max_size=3), min_size=1, max_size=3) for name in NAMES}
)


def written(grammar: Rules) -> str:
    """Return the text of a grammar."""
    return "\n".join(f"{name} ::= {_alternatives_text(grammar[name])}" for name in NAMES)


def _alternatives_text(alternatives: Alternatives) -> str:
    return " | ".join(" ".join(map(_item_text, one)) or '""' for one in alternatives)


def _item_text(item: Item) -> str:
    (kind, content), repeat = item
    if kind == "group":
        return f"({_alternatives_text(content)}){repeat}"
    return (f'"{content}"' if kind == "char" else content) + repeat


def accepts(grammar: Rules, text: str) -> bool:
    """Return whether the grammar matches a text."""
    return len(text) in _ends(grammar, text)["root", 0]


def _ends(grammar: Rules, text: str) -> dict[tuple[str, int], set[int]]:
    """Return where each rule can end, for each start; repeat until nothing new is found."""
    known: dict[tuple[str, int], set[int]]
    known = {(name, i): set() for name in NAMES for i in range(len(text) + 1)}

    def ends(alternatives: Alternatives, i: int) -> set[int]:
        return set().union(*(sequence(one, {i}) for one in alternatives))

    def sequence(one: list[Item], starts: set[int]) -> set[int]:
        for item in one:
            starts = set().union(*(repeated(item, i) for i in starts))
        return starts

    def repeated(item: Item, i: int) -> set[int]:
        least, most = BOUNDS[item[1]]
        here, found = {i}, set() if least else {i}
        for n in range(1, most + 1):
            here = set().union(*(single(item[0], k) for k in here))
            found |= here if n >= least else set()
        return found

    def single(symbol: tuple[str, Any], i: int) -> set[int]:
        kind, content = symbol
        if kind == "char":
            return {i + len(content)} if text.startswith(content, i) else set()
        return known[content, i] if kind == "rule" else ends(content, i)

    while True:
        new = {(name, i): ends(grammar[name], i) for name, i in known}
        if new == known:
            return known
        known = new


def left_recursive(grammar: Rules) -> bool:
    """Return whether a rule can start with itself and then continue."""
    empty = {name for (name, _), ends in _ends(grammar, "").items() if ends}
    edges = {name: set(_first(grammar[name], empty, followed=False)) for name in NAMES}
    reached = {name: {name} for name in NAMES}
    for _ in NAMES:
        for name in NAMES:
            reached[name] |= set().union(*(reached[target] for target, _ in edges[name]))
    return any(
        followed and name in reached[target] for name in NAMES for target, followed in edges[name]
    )


def _first(
    alternatives: Alternatives, empty: set[str], *, followed: bool
) -> Iterator[tuple[str, bool]]:
    """Yield the rules that these can start with, and whether anything follows."""
    for one in alternatives:
        for i, item in enumerate(one):
            (kind, content), repeat = item
            more = followed or i + 1 < len(one) or BOUNDS[repeat][1] > 1
            if kind == "rule":
                yield content, more
            elif kind == "group":
                yield from _first(content, empty, followed=more)
            if not _can_be_empty(item, empty):
                break


def _can_be_empty(item: Item, empty: set[str]) -> bool:
    (kind, content), repeat = item
    if not BOUNDS[repeat][0]:
        return True
    if kind == "group":
        return any(all(_can_be_empty(inner, empty) for inner in one) for one in content)
    return kind == "rule" and content in empty


def _without_left_recursion(grammar: Rules) -> Rules:
    """Return the grammar, changed so that no rule starts with itself or an earlier rule."""
    if not left_recursive(grammar):
        return grammar
    return {name: _behind(grammar[name], NAMES[i + 1 :]) for i, name in enumerate(NAMES)}


def _behind(alternatives: Alternatives, later: tuple[str, ...]) -> Alternatives:
    """Return alternatives with ``a`` for the rules but ``later`` ones that they can begin with."""
    new: Alternatives = []
    for one in alternatives:
        new.append([])
        begun = False
        for (kind, content), repeat in one:
            if kind == "group" and not begun:
                new[-1].append(((kind, _behind(content, later)), repeat))
            elif kind == "rule" and not begun and content not in later:
                new[-1].append((("char", "a"), repeat))
            else:
                new[-1].append(((kind, content), repeat))
            begun = begun or (kind == "char" and BOUNDS[repeat][0] > 0)
    return new


grammars = loose_grammars.map(_without_left_recursion)
