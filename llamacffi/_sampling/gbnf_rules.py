"""The rules of a grammar: whether llama.cpp comes to an end with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import GrammarError

# In an alternative: a character or a token, as opposed to the number of a rule.
TERMINAL = -1

# llama.cpp tries all ways from a rule down to its first character, again for each way that leads to
# the rule, and calls itself for each step.
MAX_WAYS = 200_000
MAX_DEPTH = 2000


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as llama.cpp has it, without its terminals: groups and repetitions are rules too."""

    name: str
    """The name of the rule in whose text it stands."""
    alternatives: Sequence[Sequence[int]]
    """Each the numbers of rules, or `TERMINAL`."""


def check_recursion(rules: Mapping[int, Rule]) -> None:
    """Raise `GrammarError` for rules whose beginning llama.cpp cannot find.

    It looks for left recursion itself, but not through rules that are empty in a roundabout way;
    there it would push onto its stacks until memory is full.
    """
    empty = {number for number, rule in rules.items() if not all(rule.alternatives)}
    direct = {number: [ref for ref, _ in _first(rule, empty)] for number, rule in rules.items()}
    _check_ways(rules, direct)
    empty = _nullable(rules)
    edges = {number: list(_first(rule, empty)) for number, rule in rules.items()}
    component = _components({number: [ref for ref, _ in refs] for number, refs in edges.items()})
    for number, refs in edges.items():
        for ref, followed in refs:
            if followed and component[number] == component[ref]:
                raise _left_recursion(rules[number])


def _left_recursion(rule: Rule) -> GrammarError:
    return GrammarError(
        f"the rule {rule.name!r} is left recursive: it can begin with itself.  Write what comes "
        'first in front, and repeat the rest: not `x ::= x "," y | y` but `x ::= y ("," y)*`'
    )


def _first(rule: Rule, empty: set[int]) -> Iterator[tuple[int, bool]]:
    """Yield the rules that a rule can begin with, and whether something follows them."""
    for symbols in rule.alternatives:
        for i, symbol in enumerate(symbols):
            if symbol == TERMINAL:
                break
            yield symbol, i + 1 < len(symbols)
            if symbol not in empty:
                break


def _nullable(rules: Mapping[int, Rule]) -> set[int]:
    """Return the rules that the empty text matches."""
    users: dict[int, list[tuple[int, Sequence[int]]]] = {}
    found: list[int] = []
    empty: set[int] = set()
    for number, rule in rules.items():
        for symbols in rule.alternatives:
            if not symbols:
                found.append(number)
            elif TERMINAL not in symbols:
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


def _check_ways(rules: Mapping[int, Rule], first: Mapping[int, list[int]]) -> None:
    """Check that there is no way from a rule to itself, and that there are not too many ways."""
    ways: dict[int, int] = {}
    depth: dict[int, int] = {}
    for start in rules:
        path = [(start, iter(first[start]))]
        on_path = {start} if start not in ways else set()
        while path and start not in ways:
            number, refs = path[-1]
            ref = next((one for one in refs if one not in ways), None)
            if ref is not None:
                if ref in on_path:
                    raise _left_recursion(rules[ref])
                on_path.add(ref)
                path.append((ref, iter(first[ref])))
                continue
            path.pop()
            on_path.discard(number)
            ways[number] = 1 + sum(ways[one] for one in first[number])
            depth[number] = 1 + max((depth[one] for one in first[number]), default=0)
            if ways[number] > MAX_WAYS or depth[number] > MAX_DEPTH:
                raise GrammarError(
                    f"the rule {rules[number].name!r} can begin in more ways than llama.cpp can "
                    f"follow ({ways[number]}, through up to {depth[number]} rules): let its "
                    "alternatives begin differently, with what they share in front of them"
                )


def _components(graph: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """Return a number for each node, the same for those that can reach each other (Tarjan)."""
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
