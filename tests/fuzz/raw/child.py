"""One call in a process of its own: a fork, so that it starts from objects that are as new."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CPU_SECONDS, SECONDS = 0.5, 300.0
PATIENCE = 12.0  # CPU seconds that what did not end in the first ones gets
MEMORY = 2 << 30  # more than the parent has
FILE = 1 << 28

_M_PERTURB = -6

CALLING, LATER, DONE = range(3)
_STAGES = ("in the call", "later")
_STATE = struct.Struct("iiii")  # the stage, and three numbers of the caller's

# The signals that end a child, by what they tell.
ENDLESS = "does not end"
_NAMES = {signal.SIGPROF: ENDLESS, signal.SIGALRM: ENDLESS}


@dataclass(frozen=True)
class Outcome:
    """What became of a child.

    Attributes:
        death: The name of the signal that ended it, ``does not end``, ``exit``; None if none did.
        stage: When: ``in the call`` or ``later``.
        numbers: What the child noted last.
    """

    death: str | None
    stage: str
    numbers: tuple[int, int, int]


class State:
    """What a child tells its parent, in memory that both have."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)

    def note(self, stage: int, *numbers: int) -> None:
        """Tell how far the child is."""
        _STATE.pack_into(self._shared, 0, stage, *numbers, *[0] * (3 - len(numbers)))

    def read(self) -> tuple[int, tuple[int, int, int]]:
        """Return what the child told last."""
        stage, *numbers = _STATE.unpack_from(self._shared)
        return stage, (numbers[0], numbers[1], numbers[2])


STATE = State()
_patience = PATIENCE


def prepare(patience: float = PATIENCE) -> None:
    """Set limits for this process, the parent, that its children have then, too."""
    global _patience
    _patience = patience
    size = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    # Fresh and freed memory is not zero by luck.  Not before the objects are made: forks of a
    # process that has touched all of its memory are slow.
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_PERTURB, 0xA5)


def run(body: Callable[[State], None], patient: bool = True) -> Outcome:
    """Run a function in a child, and wait for its end.

    Args:
        body: The function.
        patient: What does not end in the first seconds gets a second try, with more.
    """
    outcome = _run(body, CPU_SECONDS)
    return _run(body, _patience) if outcome.death == ENDLESS and patient else outcome


def _run(body: Callable[[State], None], cpu_seconds: float) -> Outcome:
    STATE.note(CALLING)
    child = os.fork()
    if child == 0:
        _limit(cpu_seconds)
        try:
            body(STATE)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    stage, numbers = STATE.read()
    return Outcome(_death(status, stage), _STAGES[min(stage, LATER)], numbers)


def _limit(cpu_seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)


def _death(status: int, stage: int) -> str | None:
    if os.WIFSIGNALED(status):
        number = signal.Signals(os.WTERMSIG(status))
        return _NAMES.get(number, number.name)
    return None if stage == DONE else "exit"
