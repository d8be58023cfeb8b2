"""A parser of C++ regular expressions (ECMAScript), to run them or to estimate their cost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from ..errors import ArgumentError

# The last character: one for each byte that is not UTF-8 follows the code points of Unicode.
LAST = 0x1100FF
MAX_DEPTH = 100  # nested groups
MAX_COUNT = 100_000  # the largest N of {N}
MAX_REPEATED = 3  # quantifiers that follow each other directly

Ranges: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of a set."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Sequenced:
    """Several nodes, one after the other."""

    items: Sequence[Node]


@dataclass(frozen=True, slots=True)
class Either:
    """One of several alternatives; the first that matches."""

    choices: Sequence[Node]


@dataclass(frozen=True, slots=True)
class Repeated:
    """A node, repeated."""

    item: Node
    least: int
    most: int | None
    greedy: bool


@dataclass(frozen=True, slots=True)
class Group:
    """A capturing group."""

    item: Node
    number: int


@dataclass(frozen=True, slots=True)
class Assertion:
    """A position: the start or the end of the text, or whether a word begins or ends there."""

    kind: str


@dataclass(frozen=True, slots=True)
class Look:
    """A lookahead, positive or negative."""

    item: Node


@dataclass(frozen=True, slots=True)
class Back:
    """A back reference: the text that a group has matched."""

    number: int


Node: TypeAlias = Chars | Sequenced | Either | Repeated | Group | Assertion | Look | Back

_COUNT = re.compile(r"\{([0-9]+)(,?)([0-9]*)\}")
_HEX = {"x": re.compile("[0-9a-fA-F]{2}"), "u": re.compile("[0-9a-fA-F]{4}")}
_POSIX = re.compile(r"\[:([a-z]+):\]")
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}


def _complement(ranges: Sequence[tuple[int, int]]) -> Ranges:
    found, start = list[tuple[int, int]](), 0
    for low, high in sorted(ranges):
        if start < low:
            found.append((start, low - 1))
        start = max(start, high + 1)
    return (*found, (start, LAST)) if start <= LAST else tuple(found)


_DIGITS: Ranges = ((48, 57),)
_WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE: Ranges = ((9, 13), (32, 32))
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_CLASSES |= {name.upper(): _complement(ranges) for name, ranges in _CLASSES.items()}
_NAMED: dict[str, Ranges] = {
    **{"digit": _DIGITS, "d": _DIGITS, "w": _WORD, "space": _SPACE, "s": _SPACE},
    **{"upper": ((65, 90),), "lower": ((97, 122),), "alpha": ((65, 90), (97, 122))},
    **{"alnum": ((48, 57), (65, 90), (97, 122)), "xdigit": ((48, 57), (65, 70), (97, 102))},
    **{"blank": ((9, 9), (32, 32)), "cntrl": ((0, 31), (127, 127)), "print": ((32, 126),)},
    **{"graph": ((33, 126),), "punct": ((33, 47), (58, 64), (91, 96), (123, 126))},
}
_ANY = _complement(((10, 10), (13, 13)))


def parse(pattern: str) -> Node:
    """Read a regular expression.

    Raises:
        ArgumentError: It is invalid; the message says why.
    """
    reader = _Reader(pattern)
    node = reader.either()
    if reader.peek():
        reader.fail(f"{reader.peek()!r} is unmatched")
    return node


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.pos = text, 0
        self.n_groups = self.depth = 0

    def fail(self, reason: str) -> NoReturn:
        raise ArgumentError(f"{reason}, at character {self.pos}")

    def peek(self) -> str:
        return self.text[self.pos : self.pos + 1]

    def skip(self, text: str) -> bool:
        found = self.text.startswith(text, self.pos)
        self.pos += len(text) * found
        return found

    def either(self) -> Node:
        choices = [self.sequence()]
        while self.skip("|"):
            choices.append(self.sequence())
        return choices[0] if len(choices) == 1 else Either(choices)

    def sequence(self) -> Node:
        items: list[Node] = []
        while self.peek() not in ("", "|", ")"):
            item, n = self.item(), 0
            while not isinstance(item, Assertion) and self.peek() in ("*", "+", "?", "{"):
                item, n = self.repeated(item), n + 1
                if n > MAX_REPEATED:
                    self.fail(
                        f"more than {MAX_REPEATED} quantifiers in a row: put groups around them"
                    )
            items.append(item)
        return items[0] if len(items) == 1 else Sequenced(items)

    def repeated(self, item: Node) -> Node:
        char = self.peek()
        if char != "{":
            self.pos += 1
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
            return Repeated(item, least, most, not self.skip("?"))
        match = _COUNT.match(self.text, self.pos)
        if match is None:
            self.fail("'{' is not followed by a valid count")
        if max(len(match[1]), len(match[3])) > 6:
            self.fail(f"a count is above {MAX_COUNT}")
        least = int(match[1])
        limit = int(match[3]) if match[3] else None if match[2] else least
        if max(least, limit or 0) > MAX_COUNT or (limit is not None and limit < least):
            self.fail(f"the count {match[0]} is out of order, or above {MAX_COUNT}")
        self.pos = match.end()
        return Repeated(item, least, limit, not self.skip("?"))

    def item(self) -> Node:
        char = self.peek()
        if char in "*+?{":
            self.fail(f"{char!r} has nothing before it to repeat")
        if char == "(":
            return self.group()
        if char == "[":
            return Chars(self.bracket())
        self.pos += 1
        if char in "^$":
            return Assertion(char)
        if char == ".":
            return Chars(_ANY)
        return self.escape() if char == "\\" else Chars(((ord(char), ord(char)),))

    def group(self) -> Node:
        start, self.pos = self.pos, self.pos + 1
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"groups are nested more than {MAX_DEPTH} deep")
        number = 0
        looks = self.skip("?=") or self.skip("?!")
        if not looks and not self.skip("?:"):
            self.n_groups += 1
            number = self.n_groups
        item = self.either()
        if not self.skip(")"):
            self.pos = start
            self.fail("'(' has no matching ')'")
        self.depth -= 1
        if looks:
            return Look(item)
        return Group(item, number) if number else item

    def escape(self) -> Node:
        """Read what follows a backslash."""
        char = self.peek()
        if char in ("b", "B"):
            self.pos += 1
            return Assertion(char)
        if char.isascii() and char.isdigit() and char != "0":
            self.pos += 1
            if int(char) > self.n_groups:
                self.fail(f"\\{char} refers to a group that does not exist before it")
            return Back(int(char))
        return Chars(self.character_escape())

    def character_escape(self) -> Ranges:
        char = self.peek()
        self.pos += 1
        if char in _CLASSES:
            return _CLASSES[char]
        if char in _HEX:
            match = _HEX[char].match(self.text, self.pos)
            if match is None:
                self.fail(f"\\{char} must be followed by hexadecimal digits")
            self.pos = match.end()
            code = int(match[0], 16)
        elif char == "c" and self.peek().isascii() and self.peek().isalpha():
            code = ord(self.peek()) % 32
            self.pos += 1
        elif not char:
            self.fail("'\\' is the last character")
        else:
            code = _CONTROLS.get(char, ord(char))
        return ((code, code),)

    def bracket(self) -> Ranges:
        """Read ``[...]``."""
        start, self.pos = self.pos, self.pos + 1
        negated, found = self.skip("^"), list[tuple[int, int]]()
        while not self.skip("]"):
            if not self.peek():
                self.pos = start
                self.fail("'[' has no matching ']'")
            low = self.bracket_item()
            single = len(low) == 1 and low[0][0] == low[0][1]
            if single and self.peek() == "-" and self.text[self.pos + 1 : self.pos + 2] != "]":
                self.pos += 1
                high = self.bracket_item()
                low = ((low[0][0], high[0][0]),)
                if len(high) != 1 or high[0][0] != high[0][1] or low[0][0] > low[0][1]:
                    self.fail("a range ends before it begins")
            found += low
        return _complement(found) if negated else tuple(sorted(found))

    def bracket_item(self) -> Ranges:
        if match := _POSIX.match(self.text, self.pos):
            if match[1] not in _NAMED:
                self.fail(f"unknown character class {match[1]!r}")
            self.pos = match.end()
            return _NAMED[match[1]]
        if self.text.startswith(("[.", "[="), self.pos):
            self.fail("collating elements are not supported")
        char = self.peek()
        if not char:
            self.fail("'[' has no matching ']'")
        self.pos += 1
        if char != "\\":
            return ((ord(char), ord(char)),)
        if self.peek().isascii() and self.peek().isdigit() and self.peek() != "0":
            self.fail(f"the back reference \\{self.peek()} cannot be inside '[...]'")
        return ((8, 8),) if self.skip("b") else self.character_escape()
