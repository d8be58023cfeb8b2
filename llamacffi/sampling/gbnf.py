"""Reads the text of a grammar (GBNF), as llama.cpp does.

llama.cpp says on stderr alone why it cannot parse a grammar.  Of those that it can parse, some mean
less than they say, so that a bound is no bound: each of these is an error here, with its place in
the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn

from ..errors import GrammarError
from .gbnf_rules import ANY, Program, Rule, Terminals, check_recursion, lower

# MAX_REPETITION_THRESHOLD of llama-grammar.cpp.  A larger maximum it takes as "without end".
MAX_REPETITIONS = 2000
MAX_TEXT = 1_000_000  # characters
# The parser calls itself for each level, as llama.cpp's does.
MAX_NESTING = 200
# What repetitions may unfold to, in symbols of 12 bytes.
MAX_ELEMENTS = 1_000_000
MAX_DIGITS = 9

_BLANKS = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_DIGITS = re.compile(r"[0-9]+")
_CHAR = r'(?:\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[trn\\"\[\]-])|[^\\])'
_ONE = re.compile(_CHAR, re.DOTALL)
_LITERAL = re.compile(rf'"((?:(?!"){_CHAR})*)"', re.DOTALL)
_CLASS = re.compile(rf"\[(\^?)((?:(?!\]){_CHAR})*)\]", re.DOTALL)
_RANGE = re.compile(rf"({_CHAR})(?:-(?!$)({_CHAR}))?", re.DOTALL)
_TOKEN = re.compile(r"!?<(?:\[([0-9]+)\]>|(?!\[)([^>]*)>)")
_REPEAT = re.compile(r"\*|\+|\?|\{")


@dataclass(frozen=True, slots=True)
class TokenReference:
    """A token in a grammar, ``<[7]>`` or ``<think>``, to be looked up in a vocabulary."""

    position: int
    """Where it is first, see `place`."""
    id: int | None
    text: str
    """As it is written, with its angle brackets."""
    number: int
    """Which of those in the grammar it is."""


def parse(text: str, root: str) -> tuple[Program, tuple[TokenReference, ...]]:
    """Return what a grammar is for C, and the tokens that it names.

    Raises:
        GrammarError: It has a mistake, or it is too large.
    """
    if len(text) > MAX_TEXT:
        raise GrammarError(f"the grammar has {len(text)} characters; {MAX_TEXT} is the limit")
    parser = _Parser(text)
    parser.run()
    if not parser.rules:
        raise GrammarError("the grammar has no rules")
    if root not in parser.defined:
        known = ", ".join(list(parser.defined)[:10])
        raise GrammarError(f"the grammar has no rule {root!r} to start from; it has {known}")
    for name, position in parser.used.items():
        if name not in parser.defined:
            parser.fail(f"the rule {name!r:.80} is not defined", position)
    check_recursion(parser.rules)
    program = lower(parser.rules, parser.ids[root], parser.terminals)
    return program, tuple(parser.tokens.values())


def place(text: str, position: int) -> str:
    """Return a position as a reader counts."""
    line = text.count("\n", 0, position) + 1
    column = position - (text.rfind("\n", 0, position) + 1) + 1
    return f"line {line}, column {column}"


@dataclass(slots=True)
class _Sequence:
    """An alternative while it is read."""

    symbols: list[int] = field(default_factory=list)
    last: int = 0
    """Where the symbols of the last item begin."""
    n_rules: int = 1
    """How many rules llama.cpp counts for the last item."""

    def begin(self, n_rules: int = 1) -> None:
        self.last, self.n_rules = len(self.symbols), n_rules


class _Parser:
    """Reads as llama.cpp's ``llama_grammar_parser`` does, and numbers the rules alike."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.ids: dict[str, int] = {}
        self.rules: dict[int, Rule] = {}
        self.defined: dict[str, int] = {}  # name -> where
        self.used: dict[str, int] = {}
        self.tokens: dict[str, TokenReference] = {}
        self.terminals = Terminals()
        self.n_elements = 0
        self.nesting = 0

    def run(self) -> None:
        """Read all rules."""
        self.skip(_SPACE)
        while self.pos < len(self.text):
            self.rule()

    def place(self, position: int) -> str:
        return place(self.text, position)

    def fail(self, reason: str, position: int | None = None) -> NoReturn:
        """Raise `GrammarError`."""
        raise GrammarError(f"{self.place(self.pos if position is None else position)}: {reason}")

    def skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.pos)
        assert match is not None, "it matches the empty text too"
        self.pos = match.end()

    def peek(self) -> str:
        return self.text[self.pos : self.pos + 1]

    def take(self, pattern: re.Pattern[str], wanted: str) -> re.Match[str]:
        match = pattern.match(self.text, self.pos)
        if match is None:
            self.fail(f"expected {wanted}, not {self.text[self.pos : self.pos + 20]!r}")
        self.pos = match.end()
        return match

    def rule(self) -> None:
        """Read ``name ::= alternatives``, up to the end of its line."""
        start = self.pos
        name = self.take(_NAME, "the name of a rule").group()
        if name in self.defined:
            first = self.place(self.defined[name])
            self.fail(f"the rule {name!r:.80} is defined a second time: first at {first}", start)
        self.defined[name] = start
        number = self.ids.setdefault(name, len(self.ids))
        self.skip(_BLANKS)
        if not self.text.startswith("::=", self.pos):
            self.fail(f"expected '::=' after the name of the rule {name!r:.80}")
        self.pos += 3
        self.skip(_SPACE)
        self.alternatives(name, number, nested=False)
        if self.peek() not in ("", "\r", "\n"):
            self.fail(f"expected the end of the rule {name!r:.80}, not {self.peek()!r}")
        self.skip(_SPACE)

    def alternatives(self, name: str, number: int, *, nested: bool) -> None:
        found = [self.sequence(name, nested=nested)]
        while self.peek() == "|":
            self.pos += 1
            self.skip(_SPACE)
            found.append(self.sequence(name, nested=nested))
        self.add(number, Rule(name, found))

    def sequence(self, name: str, *, nested: bool) -> list[int]:
        """Read one alternative: what follows one after the other."""
        items = _Sequence()
        space = _SPACE if nested else _BLANKS
        while char := self.peek():
            if char == '"':
                items.begin()
                items.symbols += self.literal()
            elif char == "[":
                items.begin()
                items.symbols.append(self.char_class())
            elif char in "<!":
                items.begin()
                items.symbols.append(self.token())
            elif _NAME.match(char):
                items.begin()
                items.symbols.append(self.reference())
            elif char == "(":
                before = len(self.ids)
                group = self.group(name)
                items.begin(max(1, len(self.ids) - before))
                items.symbols.append(group)
            elif char == ".":
                items.begin()
                items.symbols.append(self.terminals.chars([(0, ANY)]))
                self.pos += 1
            elif _REPEAT.match(char):
                self.repeat(name, items, space)
            else:
                break
            self.skip(space)
        return items.symbols

    def literal(self) -> list[int]:
        """Read ``"text"``, and return its characters."""
        match = _LITERAL.match(self.text, self.pos)
        if match is None:
            self.fail_in_quotes('"')
        self.pos = match.end()
        codes = map(_code_point, _ONE.findall(match[1]))
        return [self.terminals.chars([(code, code)]) for code in codes]

    def char_class(self) -> int:
        """Read ``[a-z]``."""
        start = self.pos
        match = _CLASS.match(self.text, self.pos)
        if match is None:
            self.fail_in_quotes("]")
        if not match[2]:  # llama.cpp takes it for an empty text
            self.fail(f"{match[0]} has no characters; any character is written '.'")
        ranges: list[tuple[int, int]] = []
        for low, high in _RANGE.findall(match[2]):
            ranges.append((_code_point(low), _code_point(high or low)))
            if ranges[-1][0] > ranges[-1][1]:
                self.fail(
                    f"the range {low}-{high} is empty: its end is before its beginning", start
                )
        self.pos = match.end()
        self.count(len(ranges), start)
        return self.terminals.chars(ranges, negated=bool(match[1]))

    def fail_in_quotes(self, end: str) -> NoReturn:
        """Raise for what begins here and does not come to its ``end``."""
        start, position = self.pos, self.pos + 1
        while (char := self.text[position : position + 1]) and char != end:
            match = _ONE.match(self.text, position)
            if match is None:
                escape = self.text[position : position + 2]
                self.fail(f"the escape {escape!r} is unknown, or not complete", position)
            position = match.end()
        self.fail(f"there is no {end} to end what begins here", start)

    def token(self) -> int:
        start = self.pos
        match = self.take(_TOKEN, "a token such as <[7]> or <think>")
        number = None if match[1] is None else self.number(match[1])
        text = match[0].removeprefix("!")
        self.tokens.setdefault(text, TokenReference(start, number, text, len(self.tokens)))
        return self.terminals.token(self.tokens[text].number, negated=match[0].startswith("!"))

    def number(self, digits: str) -> int:
        """Return a number; of one that is beyond every limit some other that is too."""
        significant = digits.lstrip("0")
        return int(significant or "0") if len(significant) <= MAX_DIGITS else 10**MAX_DIGITS

    def reference(self) -> int:
        start = self.pos
        name = self.take(_NAME, "the name of a rule").group()
        self.used.setdefault(name, start)
        return self.ids.setdefault(name, len(self.ids))

    def group(self, name: str) -> int:
        """Read ``( ... )``, and return the number of the rule that it becomes."""
        start = self.pos
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            self.fail(f"more than {MAX_NESTING} parentheses are open", start)
        self.pos += 1
        self.skip(_SPACE)
        number = self.generate()
        self.alternatives(name, number, nested=True)
        if self.peek() != ")":
            self.fail(f"expected ')' for the '(' at {self.place(start)}")
        self.pos += 1
        self.nesting -= 1
        return number

    def repeat(self, name: str, items: _Sequence, space: re.Pattern[str]) -> None:
        """Read ``*``, ``+``, ``?`` or ``{m,n}``, and unfold the last item as llama.cpp does."""
        start = self.pos
        least, most = self.bounds(space)
        repeated = items.symbols[items.last :]
        if not repeated:
            self.fail("there is nothing before it to repeat", start)
        total = most or least or 1
        if items.n_rules * total > MAX_REPETITIONS:
            self.fail(
                f"repeated {total} times, this becomes {items.n_rules * total} rules: llama.cpp "
                f"takes at most {MAX_REPETITIONS}",
                start,
            )
        items.n_rules *= total
        self.count(len(repeated) * max(least - 1, 0), start)
        items.symbols[items.last :] = repeated * least
        optional = 1 if most is None else most - least
        inner: int | None = None
        for _ in range(optional):
            number = self.generate()
            tail = number if most is None else inner
            self.add(number, Rule(name, [repeated + ([] if tail is None else [tail]), []]), start)
            inner = number
        if inner is not None:
            items.symbols.append(inner)

    def bounds(self, space: re.Pattern[str]) -> tuple[int, int | None]:
        """Read how often something is repeated: at least, and at most if there is a limit."""
        start, char = self.pos, self.peek()
        self.pos += 1
        if char != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        self.skip(space)
        least = self.number(self.take(_DIGITS, "a number after '{'").group())
        most: int | None = least
        self.skip(space)
        if self.peek() == ",":
            self.pos += 1
            self.skip(space)
            match = _DIGITS.match(self.text, self.pos)
            most = None if match is None else self.number(match.group())
            self.pos = self.pos if match is None else match.end()
            self.skip(space)
        if self.peek() != "}":
            self.fail(f"expected '}}' for the '{{' at {self.place(start)}")
        self.pos += 1
        if max(least, most or 0) > MAX_REPETITIONS:
            self.fail(f"llama.cpp repeats something at most {MAX_REPETITIONS} times", start)
        if most is not None and most < least:
            self.fail(f"at least {least} times is more than at most {most} times", start)
        return least, most

    def generate(self) -> int:
        """Return the number of a new rule, which has no name in the text."""
        number = len(self.ids)
        self.ids[f"_{number}"] = number  # no name has an underscore
        return number

    def add(self, number: int, rule: Rule, position: int | None = None) -> None:
        self.rules[number] = rule
        self.count(sum(len(one) + 1 for one in rule.alternatives), position)

    def count(self, n: int, position: int | None) -> None:
        self.n_elements += n
        if self.n_elements > MAX_ELEMENTS:
            self.fail(f"up to here the grammar unfolds to over {MAX_ELEMENTS} elements", position)


def _code_point(char: str) -> int:
    if char[0] != "\\":
        return ord(char)
    if char[1] in "xuU":
        return int(char[2:], 16)
    return ord({"t": "\t", "r": "\r", "n": "\n"}.get(char[1], char[1]))
