"""The code of the documentation: how to find it in a page, and run it.

A page of ``docs/guide`` is one program whose blocks run in order in one process.  Blocks of other
pages each run alone.  A ``text`` block right after a Python block is its output, with ``...`` for
what differs from run to run.  A Python block with a title, such as ``python title="Needs a GPU"``,
is only compiled.
"""

from __future__ import annotations

import doctest
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Each page runs on one processor: spinning threads would only waste time on a busy machine.
START = """\
import os
if hasattr(os, "sched_setaffinity"):
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[os.getpid() % len(cpus)]})
del os
"""
# Separates the outputs of blocks; occurs in no page.
MARK = "\N{SYMBOL FOR RECORD SEPARATOR}"


@dataclass(frozen=True)
class Block:
    """A Python block of a page."""

    place: str
    """The file, for tracebacks."""
    line: int
    code: str
    title: str
    """Why it does not run; empty if it runs."""
    output: str | None
    """What it prints; None if the page does not show it."""

    def source(self) -> str:
        """Return code that runs the block as a part of a program, with its own line numbers."""
        padded = "\n" * (self.line - 1) + self.code
        run = f"exec(compile({padded!r}, {self.place!r}, 'exec'))\n"
        return f"{run}print({MARK!r}, flush=True)\n"

    def prints(self, printed: str) -> bool:
        """Return whether the page shows this output."""
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        return self.output is None or doctest.OutputChecker().check_output(
            self.output, printed, flags
        )


def blocks(path: Path) -> list[Block]:
    """Return the Python blocks of a page."""
    text, found = path.read_text(), []
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
        found.append(Block(str(path), line, fence[3], title[1] if title else "", output))
    return found


def source(program: list[Block]) -> str:
    """Return the code that runs blocks in one process."""
    return START + "".join(block.source() for block in program)


def programs(path: Path) -> list[list[Block]]:
    """Return the blocks to run, grouped by process."""
    run = [block for block in blocks(path) if not block.title]
    return [run] if path.parent.name == "guide" else [[block] for block in run]
