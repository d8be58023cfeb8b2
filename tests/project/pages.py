"""The code of the documentation: how it is found in a page, and run.

A page of ``docs/guide`` is one program: its blocks run one after the other in one process.  Blocks
of other pages run each on its own.  A ``text`` block right after a Python block is what that
prints, with ``...`` for what differs from run to run.  A Python block with a title, such as
``python title="Needs a GPU"``, is only compiled.
"""

from __future__ import annotations

import doctest
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# One processor for a page: threads that spin on a busy machine would take long for nothing.
START = """\
import os
if hasattr(os, "sched_setaffinity"):
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[os.getpid() % len(cpus)]})
del os
"""
# Between the blocks in what a program prints; no page has it.
MARK = "\N{SYMBOL FOR RECORD SEPARATOR}"


@dataclass(frozen=True)
class Block:
    """A Python block of a page."""

    place: str
    """The file and the line of its first line of code, as compilers say it."""
    line: int
    code: str
    title: str
    """Why it does not run; empty if it does."""
    output: str | None
    """What it prints; None if the page does not say."""

    def source(self) -> str:
        """Return code that runs the block as a part of a program, with its own line numbers."""
        padded = "\n" * (self.line - 1) + self.code
        run = f"exec(compile({padded!r}, {self.place!r}, 'exec'))\n"
        return f"{run}print({MARK!r}, flush=True)\n"

    def prints(self, printed: str) -> bool:
        """Return whether that is what the page says."""
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        return self.output is None or doctest.OutputChecker().check_output(
            self.output, printed, flags
        )


def blocks(path: Path) -> list[Block]:
    """Return the Python blocks of a page."""
    return list(_blocks(path))


def _blocks(path: Path) -> Iterator[Block]:
    text = path.read_text()
    fences = list(FENCE.finditer(text))
    for fence, after in itertools.zip_longest(fences, fences[1:]):
        if fence[1] != "python":
            continue
        title = re.fullmatch(r' title="(.+)"', fence[2])
        assert title or not fence[2], f"{path}: unknown words after ```python: {fence[2]}"
        output = None
        if (
            after is not None
            and after[1] == "text"
            and not text[fence.end() : after.start()].strip()
        ):
            output = after[3]
        line = text.count("\n", 0, fence.start(3)) + 1
        yield Block(str(path), line, fence[3], title[1] if title else "", output)


def source(program: list[Block]) -> str:
    """Return the code of a process."""
    return START + "".join(block.source() for block in program)


def programs(path: Path) -> list[list[Block]]:
    """Return the blocks that run, by the process that they run in."""
    run = [block for block in blocks(path) if not block.title]
    return [run] if path.parent.name == "guide" else [[block] for block in run]
