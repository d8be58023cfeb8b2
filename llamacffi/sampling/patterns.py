"""The trigger patterns of a lazy grammar, compiled to programs that read each character once."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

from .._core.regex import (
    Assertion,
    Back,
    Chars,
    Either,
    Group,
    Look,
    Node,
    Repeated,
    Sequenced,
    parse,
)
from .._native import ffi, lib
from ..errors import ArgumentError

# Upper bound on the work for one character of text.
MAX_STEPS = 5000
MAX_GROUPS = 30


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression, compiled for ``struct llamacffi_pattern``."""

    steps: bytes
    ranges: bytes
    n_saved: int

    def fill(self, struct: Any) -> list[object]:
        """Fill a ``struct llamacffi_pattern``, and return what it points to."""
        steps = ffi.from_buffer("int32_t[]", self.steps)
        ranges = ffi.from_buffer("uint32_t[]", self.ranges)
        struct.steps, struct.n_steps = steps, len(steps) // 3
        struct.ranges, struct.n_ranges = ranges, len(ranges) // 2
        struct.n_saved = self.n_saved
        return [steps, ranges]


def compile_pattern(pattern: str) -> Pattern:
    """Compile a regular expression for C.

    Raises:
        ArgumentError: It is not a regular expression, or it would read a character twice.
    """
    compiler = _Compiler()
    compiler.save(0)
    compiler.node(parse(pattern))
    compiler.save(1)
    compiler.emit(lib.LLAMACFFI_PATTERN_MATCH)
    steps = array("i", [number for step in compiler.steps for number in step])
    return Pattern(steps.tobytes(), compiler.ranges.tobytes(), 2 * compiler.n_groups + 2)


class _Compiler:
    """Translates the nodes of a parsed expression into steps."""

    def __init__(self) -> None:
        self.steps: list[list[int]] = []
        self.ranges = array("I")
        self.n_groups = 0

    def emit(self, op: int, a: int = 0, b: int = 0) -> list[int]:
        if len(self.steps) >= MAX_STEPS:
            raise ArgumentError(
                f"its repetitions unfold to more than {MAX_STEPS} steps; repeat fewer times, or "
                "without a limit (* or +), which adds only two steps"
            )
        self.steps.append([op, a, b])
        return self.steps[-1]

    def save(self, number: int) -> None:
        self.emit(lib.LLAMACFFI_PATTERN_SAVE, number)

    def node(self, node: Node) -> None:
        match node:
            case Chars(ranges):
                self.chars(ranges)
            case Sequenced(items):
                for item in items:
                    self.node(item)
            case Either(choices):
                self.either(list(choices))
            case Repeated():
                self.repeated(node)
            case Group(item, number):
                if number > MAX_GROUPS:
                    raise ArgumentError(
                        f"it has more than {MAX_GROUPS} groups; make some of them (?:...)"
                    )
                self.n_groups = max(self.n_groups, number)
                self.save(2 * number)
                self.node(item)
                self.save(2 * number + 1)
            case Assertion(kind):
                self.emit(getattr(lib, f"LLAMACFFI_PATTERN_{ASSERTIONS[kind]}"))
            case Look() | Back():
                what = "(?=...) and (?!...)" if isinstance(node, Look) else "\\1"
                raise ArgumentError(
                    f"{what} would read the text more than once: write the pattern without"
                )

    def chars(self, ranges: Any) -> None:
        first, end = len(self.ranges) // 2, -1
        for low, high in sorted(ranges):
            if low <= end:
                self.ranges[-1] = max(end, high)
            else:
                self.ranges.extend((low, high))
            end = self.ranges[-1]
        self.emit(lib.LLAMACFFI_PATTERN_SET, first, len(self.ranges) // 2 - first)

    def either(self, choices: list[Node]) -> None:
        jumps = []
        for choice in choices[:-1]:
            split = self.emit(lib.LLAMACFFI_PATTERN_SPLIT, len(self.steps) + 1)
            self.node(choice)
            jumps.append(self.emit(lib.LLAMACFFI_PATTERN_JUMP))
            split[2] = len(self.steps)
        self.node(choices[-1])
        for jump in jumps:
            jump[1] = len(self.steps)

    def repeated(self, node: Repeated) -> None:
        for _ in range(node.least):
            self.node(node.item)
        if node.most is None:
            start = len(self.steps)
            split = self.emit(lib.LLAMACFFI_PATTERN_SPLIT)
            self.node(node.item)
            self.emit(lib.LLAMACFFI_PATTERN_JUMP, start)
            self.branch(split, start + 1, node.greedy)
            return
        splits = []
        for _ in range(node.most - node.least):
            splits.append((self.emit(lib.LLAMACFFI_PATTERN_SPLIT), len(self.steps)))
            self.node(node.item)
        for split, inside in splits:
            self.branch(split, inside, node.greedy)

    def branch(self, split: list[int], inside: int, greedy: bool) -> None:
        """Let a split lead inside or past the repetition, the preferred one first."""
        outside = len(self.steps)
        split[1:] = (inside, outside) if greedy else (outside, inside)


ASSERTIONS = {"^": "BEGIN", "$": "END", "b": "WORD", "B": "INSIDE"}
