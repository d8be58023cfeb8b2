"""Parses the text of a grammar (GBNF), as llama.cpp does.

llama.cpp explains only on stderr why it cannot parse a grammar.  It accepts some grammars that it
then misreads, such as a large bound that it ignores: here each of those is an error that says where
in the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NoReturn

from ..errors import GrammarError
from .gbnf_rules import ANY, Program, Rule, Terminals, check_recursion, lower

# upstream: src/llama-grammar.cpp MAX_REPETITION_THRESHOLD: a larger maximum means "unlimited"
# there, and so is an error here.
MAX_REPETITIONS = 2000
MAX_TEXT = 1_000_000  # characters
# upstream: src/llama-grammar.cpp parse_alternates: recurses for each level, as this parser does.
MAX_NESTING = 200
# Limit for the unfolded repetitions, in symbols of 12 bytes.
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
    """Where it first occurs, see `place`."""
    id: int | None
    text: str
    """The text in the grammar, with its angle brackets."""
    number: int
    """Its index among the distinct tokens in the grammar."""


def parse(text: str, root: str) -> tuple[Program, tuple[TokenReference, ...]]:
    """Parse a grammar; return its program for C, and the tokens that it names.

    Raises:
        GrammarError: The grammar has a mistake, or is too large.
    """
    if len(text) > MAX_TEXT:
        raise GrammarError(f"the grammar has {len(text)} characters; the limit is {MAX_TEXT}")
    parser = _Parser(text)
    parser.run()
    if not parser.rules:
        raise GrammarError("the grammar has no rules")
    if root not in parser.defined:
        known = ", ".join(list(parser.defined)[:10])
        raise GrammarError(f"the grammar does not define its root rule {root!r}, only {known}")
    for name, position in parser.used.items():
        if name not in parser.defined:
            parser.fail(f"the rule {name!r:.80} is not defined", position)
    check_recursion(parser.rules)
    program = lower(parser.rules, parser.ids[root], parser.terminals)
    return program, tuple(parser.tokens.values())


def place(text: str, position: int) -> str:
    """Return a position as line and column, counted from 1."""
    line = text.count("\n", 0, position) + 1
    column = position - (text.rfind("\n", 0, position) + 1) + 1
    return f"line {line}, column {column}"


@dataclass(slots=True)
class _Sequence:
    """An alternative that is being parsed."""

    symbols: list[int] = field(default_factory=list)
    last: int = 0
    """Where the symbols of the last item start."""
    n_rules: int = 1
    """Number of rules that llama.cpp counts for the last item."""

    def begin(self, n_rules: int = 1) -> None:
        self.last, self.n_rules = len(self.symbols), n_rules


class _Parser:
    """Parses a grammar and numbers its rules in the same order as llama.cpp.

    upstream: src/llama-grammar.cpp llama_grammar_parser: we parse the same notation.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.ids: dict[str, int] = {}
        self.rules: dict[int, Rule] = {}
        self.defined: dict[str, int] = {}  # name -> position
        self.used: dict[str, int] = {}
        self.tokens: dict[str, TokenReference] = {}
        self.terminals = Terminals()
        self.n_elements = 0
        self.nesting = 0

    def run(self) -> None:
        """Parse all rules."""
        self.skip(_SPACE)
        while self.pos < len(self.text):
            self.rule()

    def place(self, position: int) -> str:
        return place(self.text, position)

    def fail(self, reason: str, position: int | None = None) -> NoReturn:
        """Raise `GrammarError` for a position, by default the current one."""
        raise GrammarError(f"{self.place(self.pos if position is None else position)}: {reason}")

    def skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.pos)
        assert match is not None, "it also matches the empty string"
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
        """Parse ``name ::= alternatives``, up to the end of the line."""
        start = self.pos
        name = self.take(_NAME, "the name of a rule").group()
        if name in self.defined:
            first = self.place(self.defined[name])
            self.fail(f"the rule {name!r:.80} is already defined at {first}", start)
        self.defined[name] = start
        number = self.ids.setdefault(name, len(self.ids))
        self.skip(_BLANKS)
        if not self.text.startswith("::=", self.pos):
            self.fail(f"expected '::=' after the rule name {name!r:.80}")
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
        """Parse one alternative, a sequence of items."""
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
        """Parse ``"text"`` and return its characters."""
        match = _LITERAL.match(self.text, self.pos)
        if match is None:
            self.fail_in_quotes('"')
        self.pos = match.end()
        codes = map(_code_point, _ONE.findall(match[1]))
        return [self.terminals.chars([(code, code)]) for code in codes]

    def char_class(self) -> int:
        """Parse ``[a-z]``."""
        start = self.pos
        match = _CLASS.match(self.text, self.pos)
        if match is None:
            self.fail_in_quotes("]")
        # upstream: src/llama-grammar.cpp parse_sequence: an empty class matches the empty string.
        if not match[2]:
            self.fail(f"{match[0]} matches no character; write '.' for any character")
        ranges: list[tuple[int, int]] = []
        for low, high in _RANGE.findall(match[2]):
            ranges.append((_code_point(low), _code_point(high or low)))
            if ranges[-1][0] > ranges[-1][1]:
                self.fail(f"the range {low}-{high} is empty: it ends before it starts", start)
        self.pos = match.end()
        self.count(len(ranges), start)
        return self.terminals.chars(ranges, negated=bool(match[1]))

    def fail_in_quotes(self, end: str) -> NoReturn:
        """Raise for a literal or class that starts here and is not closed by ``end``."""
        start, position = self.pos, self.pos + 1
        while (char := self.text[position : position + 1]) and char != end:
            match = _ONE.match(self.text, position)
            if match is None:
                escape = self.text[position : position + 2]
                self.fail(f"the escape {escape!r} is unknown or incomplete", position)
            position = match.end()
        self.fail(f"the closing {end} is missing", start)

    def token(self) -> int:
        start = self.pos
        match = self.take(_TOKEN, "a token such as <[7]> or <think>")
        number = None if match[1] is None else self.number(match[1])
        text = match[0].removeprefix("!")
        self.tokens.setdefault(text, TokenReference(start, number, text, len(self.tokens)))
        return self.terminals.token(self.tokens[text].number, negated=match[0].startswith("!"))

    def number(self, digits: str) -> int:
        """Return a number; if it is beyond every limit, any other that is."""
        significant = digits.lstrip("0")
        return int(significant or "0") if len(significant) <= MAX_DIGITS else 10**MAX_DIGITS

    def reference(self) -> int:
        start = self.pos
        name = self.take(_NAME, "the name of a rule").group()
        self.used.setdefault(name, start)
        return self.ids.setdefault(name, len(self.ids))

    def group(self, name: str) -> int:
        """Parse ``( ... )`` and return the number of its generated rule."""
        start = self.pos
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            self.fail(f"parentheses are nested more than {MAX_NESTING} deep", start)
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
        """Parse ``*``, ``+``, ``?`` or ``{m,n}``, and unfold the last item.

        upstream: src/llama-grammar.cpp handle_repetitions: unfolds it into the same rules.
        """
        start = self.pos
        least, most = self.bounds(space)
        repeated = items.symbols[items.last :]
        if not repeated:
            self.fail("this repetition follows nothing that it could repeat", start)
        total = most or least or 1
        if items.n_rules * total > MAX_REPETITIONS:
            self.fail(
                f"{total} repetitions unfold to {items.n_rules * total} rules; llama.cpp allows at "
                f"most {MAX_REPETITIONS}",
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
        """Parse a repetition and return its minimum, and its maximum or None."""
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
            self.fail(f"llama.cpp allows at most {MAX_REPETITIONS} repetitions", start)
        if most is not None and most < least:
            self.fail(f"the minimum, {least}, is larger than the maximum, {most}", start)
        return least, most

    def generate(self) -> int:
        """Return the number of a new rule that has no name in the text."""
        number = len(self.ids)
        self.ids[f"_{number}"] = number  # names in the text have no underscore
        return number

    def add(self, number: int, rule: Rule, position: int | None = None) -> None:
        self.rules[number] = rule
        self.count(sum(len(one) + 1 for one in rule.alternatives), position)

    def count(self, n: int, position: int | None) -> None:
        self.n_elements += n
        if self.n_elements > MAX_ELEMENTS:
            self.fail(
                f"up to here, the grammar unfolds to more than {MAX_ELEMENTS} elements", position
            )


def _code_point(char: str) -> int:
    if char[0] != "\\":
        return ord(char)
    if char[1] in "xuU":
        return int(char[2:], 16)
    return ord({"t": "\t", "r": "\r", "n": "\n"}.get(char[1], char[1]))
