"""Interrupt an operation at a line, or between two instructions, and check what remains.

python -m tests.facade.interrupts MODEL LORA (interrupt|close) KIND N SEED [OPERATION...]

"interrupt" acts like Ctrl-C: afterwards, all objects must be usable.  "close" closes one of the
objects, as a signal handler or another thread would: the operation may only raise a `LlamaError`.

KIND is "line" or "opcode": where to interrupt.  "opcode:locks.py" does so only in files whose names
end with that.

N is at how many places of each operation, chosen at random; 0 is all of them.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

import llamacffi
from llamacffi import LlamaError, SamplerChain
from llamacffi._core.ownership import Handle, live_objects
from tests.facade.operations import OPERATIONS, VICTIMS, Subject

PACKAGE = os.path.dirname(os.path.abspath(llamacffi.__file__ or ""))
T = TypeVar("T")
# Every operation takes more steps than this; with fewer, the package was not traced.
STEPS = 100
# Stop trying an operation after this many findings.
FINDINGS = 5


def interrupt() -> None:
    """Act like Ctrl-C."""
    raise KeyboardInterrupt


class Stop:
    """Counts the lines or instructions of the package that run, and acts at one of them."""

    def __init__(self, at: int, kind: str, act: Callable[[], object] = interrupt) -> None:
        self.at, self.act = at, act
        unit, _, self.file = kind.partition(":")
        self.opcodes = {"line": False, "opcode": True}[unit]
        self.n = 0
        self.where = ""

    def __call__(self, frame: FrameType, _event: str, _argument: object) -> Any:
        """Trace a call if its function belongs to the package."""
        file = frame.f_code.co_filename
        if not (file.startswith(PACKAGE) and file.endswith(self.file)):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = self.opcodes, not self.opcodes
        return self.step

    def step(self, frame: FrameType, event: str, _argument: object) -> Any:
        """Count one step."""
        if event in ("line", "opcode"):
            self.n += 1
            if self.n == self.at:
                file = frame.f_code.co_filename[len(PACKAGE) + 1 :]
                self.where = f"{file}:{frame.f_lineno} {frame.f_code.co_name}"
                sys.settrace(None)
                self.act()
                return None
        return self.step

    def run(self, operation: Callable[[], object]) -> bool:
        """Run an operation under the trace function; return whether it was interrupted."""

        def apart() -> Iterator[None]:
            # A generator has its own stack of handled exceptions: CPython 3.11 leaves an exception
            # on it if a trace function raises at the end of a `with`.
            operation()
            yield

        sys.settrace(self)
        try:
            next(apart())
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False


@dataclass
class Tally:
    """The results of the trials of one operation."""

    planned: int = 0
    done: int = 0
    wrong: list[str] = field(default_factory=list)

    def judge(self, name: str, counter: Stop) -> None:
        """Report an operation whose trials did not reach enough places."""
        # It takes fewer steps if an interrupted call or `check` has done some of its work already.
        least, share = (0, 0.5) if counter.file else (STEPS, 0.8)
        if counter.n < least or self.done < share * self.planned:
            self.wrong.append(f"{name}: {self.done} of {self.planned} places in {counter.n} steps")


def try_interrupts(
    make: Callable[[], Subject], name: str, kind: str, n: int, chance: random.Random
) -> Tally:
    """Interrupt an operation at some places, and keep using the same objects."""
    counter, tally, subject = Stop(0, kind), Tally(), None
    for at in some_of(range(1, count_steps(make, name, counter) + 1), n, chance):
        if len(tally.wrong) == FINDINGS:
            break
        if subject is None:
            subject = make()
            getattr(subject, name)()
            subject.check()
            gc.collect()
            before, opened = live_objects(), subject.left()
        stop, wrong = Stop(at, kind), ""
        tally.planned += 1
        try:
            interrupted = stop.run(getattr(subject, name))
            subject.check()
        except Exception as error:
            wrong = repr(error)
        else:
            gc.collect()
            # One more or less: whether the context has a pool for one token and one for several.
            if live_objects() > before + 1:
                wrong = f"{live_objects() - before} objects are left"
            elif (left := subject.left()) != opened:
                wrong = f"left are {left}"
            elif stop.where and not interrupted:
                wrong = "the interrupt was lost"
        tally.done += bool(stop.where)
        if wrong:
            tally.wrong.append(f"{name} interrupted at {stop.where}: {wrong}")
            subject = None
    tally.judge(name, counter)
    return tally


def try_closes(
    make: Callable[[], Subject], name: str, kind: str, n: int, chance: random.Random
) -> Tally:
    """Close one of the objects at some places of an operation."""
    counter, tally = Stop(0, kind), Tally()
    places = range(1, count_steps(make, name, counter) + 1)
    gc.collect()
    before = live_objects()
    for at, victim in some_of([(at, one) for at in places for one in VICTIMS], n, chance):
        if len(tally.wrong) == FINDINGS:
            break
        tally.planned += 1
        where, wrong = close_once(make(), name, Stop(at, kind), victim)
        gc.collect()
        if not wrong and live_objects() != before:
            wrong, before = f"{live_objects() - before} objects are left", live_objects()
        tally.done += bool(where)
        if wrong:
            tally.wrong.append(f"{name}, {victim} closed at {where}: {wrong}")
    tally.judge(name, counter)
    return tally


def close_once(subject: Subject, name: str, stop: Stop, victim: str) -> tuple[str, str]:
    """Close an object at a place; return the place, and what went wrong."""
    operation, wrong = getattr(subject, name), ""
    operation()
    subject.made, opened, closed = None, subject.left(), list[Handle | SamplerChain]()

    def close() -> None:
        closed.append(getattr(subject, victim))
        closed[0].close()

    stop.act = close
    try:
        stop.run(operation)
    except LlamaError:
        pass
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        wrong = f"{error!r} ({os.path.basename(frame.filename)}:{frame.lineno})"
    if stop.where and not wrong:
        if not closed[0].closed:
            wrong = "it is not closed"
        elif (left := subject.left()) != opened:
            wrong = f"left are {left}"
    return stop.where, wrong


def count_steps(make: Callable[[], Subject], name: str, counter: Stop) -> int:
    """Return how many steps an operation takes when it runs for the second time."""
    operation = getattr(make(), name)
    operation()
    counter.run(operation)
    return counter.n


def some_of(places: Sequence[T], n: int, chance: random.Random) -> Sequence[T]:
    """Return a random choice of the places; all of them if ``n`` is 0."""
    return chance.sample(places, min(n, len(places))) if n else places


def main(path: str, lora: str, what: str, kind: str, n: str, seed: str, *names: str) -> int:
    """Try all operations, and report the number of trials and the failures."""
    trial = {"interrupt": try_interrupts, "close": try_closes}[what]
    done, wrong = 0, list[str]()
    gc.freeze()  # keep the collector from scanning existing objects each time
    with tempfile.TemporaryDirectory() as directory:
        for name in names or OPERATIONS:
            tally = trial(
                lambda: Subject(path, lora, directory),
                name,
                kind,
                int(n),
                random.Random(f"{seed} {name}"),
            )
            done += tally.done
            wrong += tally.wrong
    gc.collect()
    kept = sys.exc_info()[1]  # by CPython 3.11, with the objects of its frames: see above
    if live_objects() and not wrong and kept is None:
        wrong.append(f"{live_objects()} objects are left")
    print(*wrong, f"{done} places, {len(wrong)} findings", sep="\n")
    return min(len(wrong), 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
