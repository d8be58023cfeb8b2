"""All functions, one after another: what each accepts, and what ends the process."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamacffi import NativeError, ffi, lib

from . import child
from .arguments import Choice, NoMaker, choices, combinations
from .bad import ANY, NULL, OBJECT, Case, cases, nothing
from .later import use
from .signatures import Function
from .world import World

DEATHS = 60  # in the search, after which it ends
NOTHING, ANSWERED, ACCEPTED = range(3)  # how well arguments fit


@dataclass(frozen=True)
class Death:
    """One change that ended the process."""

    place: str
    kind: str
    value: str
    what: str
    stage: str


@dataclass
class Report:
    """What the calls of one function did.

    Attributes:
        function: Its name.
        calls: How many there were.
        accepted: Whether arguments were found with which it does its work.
        missing: The parameters of whose type there is no object: only NULL was given.
        valid_deaths: What ended the process although the arguments were valid, one by one.
        deaths: What ended the process.
    """

    function: str
    calls: int = 0
    accepted: bool = False
    missing: list[str] = field(default_factory=list)
    valid_deaths: list[str] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)


def walk(
    functions: Iterable[Function],
    directory: Path,
    few: bool = False,
    patience: float = child.PATIENCE,
    nulls: bool = False,
) -> Iterator[Report]:
    """Call functions with valid and with bad arguments, in children of this process.

    Args:
        functions: The functions.
        directory: Where files are, and where what is called may write.
        few: Only a few bad values for each place.
        patience: CPU seconds after which a call is one that does not end.
        nulls: Only NULL in each place.
    """
    world = World(directory)
    os.chdir(directory)
    child.prepare(patience)
    gc.disable()  # it would only touch memory that the children share
    gc.freeze()
    for function in functions:
        world.renew()
        world.restore()
        yield _examine(world, function, few, nulls)


def _examine(world: World, function: Function, few: bool, nulls: bool) -> Report:
    report = Report(function.name)
    pools: list[list[Choice]] = []
    for i, parameter in enumerate(function.parameters):
        try:
            pools.append(choices(world, function, i))
        except (NoMaker, NativeError):
            report.missing.append(parameter.name)
            pools.append([Choice("NULL", ffi.NULL)])
    arguments = _accepted(world, function, pools, report)
    attempt = _Attempt(world, function, arguments)
    if report.missing:
        absent = Case(report.missing[0], NULL, "NULL", nothing)
        attempt.one(absent, report)
        return report
    if attempt.one(Case(ANY, OBJECT, "what it was given", nothing), report):
        return report
    found = cases(world, function.parameters, arguments, pools, few)
    if nulls:
        found = (case for case in found if case.kind == NULL)
    if few:
        attempt.together(list(found), report)
    else:
        for case in found:
            attempt.one(case, report)
    return report


def _accepted(
    world: World, function: Function, pools: list[list[Choice]], report: Report
) -> list[Any]:
    """Return arguments with which the function does its work, or the best there are."""
    draws = [[one.value for one in draw] for draw in combinations(pools, function.name)]
    if report.missing:
        return draws[0]
    best, best_at, start, deaths = NOTHING, 0, 0, 0
    while start < len(draws) and best < ACCEPTED and deaths < DEATHS:

        def body(state: child.State, start: int = start) -> None:
            found, found_at = NOTHING, start
            for i in range(start, len(draws)):
                state.note(child.CALLING, found, found_at, i)
                fit = _fits(world, function, draws[i])
                if fit > found:
                    found, found_at = fit, i
                if found == ACCEPTED:
                    break
            state.note(child.DONE, found, found_at, len(draws))

        outcome = child.run(body, patient=False)
        report.calls += 1
        found, found_at, last = outcome.numbers
        if found > best:
            best, best_at = found, found_at
        if outcome.death:
            deaths += 1
            report.valid_deaths.append(f"{outcome.death} of draw {last}")
        start = last + 1
    report.accepted = best == ACCEPTED
    return draws[best_at]


def _fits(world: World, function: Function, arguments: list[Any]) -> int:
    try:
        result = getattr(lib, function.name)(*arguments)
    except Exception:  # of the guard or of CFFI; which one tells nothing more
        return NOTHING
    use(world, function, arguments, result)
    if isinstance(result, ffi.CData) and ffi.typeof(result).kind in ("pointer", "function"):
        return ANSWERED if result == ffi.NULL else ACCEPTED
    return ANSWERED if isinstance(result, int) and result < 0 else ACCEPTED


@dataclass
class _Attempt:
    """The calls of a function with one change each."""

    world: World
    function: Function
    arguments: list[Any]

    def one(self, case: Case, report: Report) -> bool:
        """Make one change, in a child, and tell whether it died."""

        def body(state: child.State) -> None:
            self._call(case, state)
            state.note(child.DONE)

        endless = any(
            one.place == case.place and one.what == child.ENDLESS for one in report.deaths
        )
        outcome = child.run(body, patient=not endless)
        report.calls += 1
        self.world.restore()
        if not outcome.death:
            return False
        death = Death(case.place, case.kind, case.value, outcome.death, outcome.stage)
        report.deaths.append(death)
        return True

    def together(self, cases: list[Case], report: Report) -> None:
        """Make many changes in one child after another; what one of them dies of, it dies alone.

        That is faster by much, but a call may find what an earlier one left.
        """
        start = 0
        while start < len(cases):

            def body(state: child.State, start: int = start) -> None:
                for i in range(start, len(cases)):
                    state.note(child.CALLING, i)
                    self._call(cases[i], state, i)
                state.note(child.DONE, len(cases))

            outcome = child.run(body)
            report.calls += 1
            start = outcome.numbers[0] + 1
            if outcome.death:
                self.one(cases[start - 1], report)

    def _call(self, case: Case, state: child.State, number: int = 0) -> None:
        changed = list(self.arguments)
        undo = case.apply(changed)
        result = None
        with suppress(Exception):  # of the guard, or of CFFI: both are what we want
            result = getattr(lib, self.function.name)(*changed)
        state.note(child.LATER, number)
        use(self.world, self.function, changed, result)  # a NULL may be called or read only there
        undo()
