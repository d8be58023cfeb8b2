"""Changes as text, as Markdown for a pull request, and as JSON."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..render import plain_environment
from .changes import Change, Level, Use, level_of
from .quirks import Quirk, Review

# From this many adjacent enumerators on, values that shifted by as much are reported in one line.
SHIFTED_TOGETHER = 3


@dataclass(frozen=True, slots=True)
class Side:
    """How a report names one side of a comparison."""

    label: str
    commit: str


@dataclass(frozen=True, slots=True)
class Report:
    """The changes between two sides."""

    old: Side
    new: Side
    changes: list[Change]
    reviews: list[Review] | None = None
    """The workarounds to look at again; None if only the headers of a side are known."""

    @property
    def level(self) -> Level:
        """How bad it is."""
        return level_of(self.changes)

    def render(self, template: str, templates: Path) -> str:
        """Render ``diff.txt.j2`` or ``diff.md.j2``."""
        env = plain_environment(templates)
        env.filters.update(by_kind=by_kind)
        groups = list(grouped(self.changes))
        parts = {True: "Breaking", False: "Compatible"}
        return env.get_template(template).render(
            report=self,
            level=self.level,
            counts={
                breaking: sum(c.breaking is breaking for c in self.changes) for breaking in parts
            },
            used=[one for one in groups if one.uses],
            reviews=by_reason(self.reviews or []),
            parts=[
                (title, [one for one in groups if one.breaking is breaking])
                for breaking, title in parts.items()
            ],
        )

    def json(self) -> str:
        """Return the whole report as JSON, with each change on its own."""
        sides = {"old": dataclasses.asdict(self.old), "new": dataclasses.asdict(self.new)}
        changes = [dataclasses.asdict(one) for one in self.changes]
        report: dict[str, Any] = {**sides, "level": self.level, "changes": changes}
        if self.reviews is not None:
            report["workarounds"] = [dataclasses.asdict(one) for one in self.reviews]
        return json.dumps(report, indent=1)


def grouped(changes: list[Change]) -> Iterator[Change]:
    """Yield the changes; values of one enum that shifted by as much become one."""
    for key, run in itertools.groupby(changes, key=_shift):
        together = list(run)
        if key is None or len(together) < SHIFTED_TOGETHER:
            yield from together
        else:
            yield _shifted(together, *key)


def _shift(change: Change) -> tuple[str, int] | None:
    """Return the enum and the distance, if all that changed is the value of an enumerator."""
    if (change.action, change.what, len(change.details)) != ("changed", "enumerator", 1):
        return None
    (old, _, enum), (new, _, _) = (text.partition(" of ") for text in (change.old, change.new))
    if not enum or old == new:  # it was a constant, or is in another enum
        return None
    return enum.removeprefix("enum "), int(new) - int(old)


def _shifted(together: list[Change], enum: str, distance: int) -> Change:
    ends = [f"{one.name} ({one.details[0]})" for one in (together[0], together[-1])]
    uses = tuple(sorted({use for one in together for use in one.uses}))
    detail = f"{len(together)} values shifted by {distance:+}, from {ends[0]} to {ends[1]}"
    return Change("changed", "enumerator", enum, True, details=(detail,), uses=uses)


def by_kind(uses: tuple[Use, ...]) -> list[tuple[str, list[str]]]:
    """Return the places by kind: the facade first, the lines of one file together."""
    order = ("facade", "native", "tests", "docs", "bench", "examples")
    found: dict[str, dict[str, list[int]]] = {}
    for one in sorted(uses, key=lambda use: (order.index(use.kind), use.file, use.line)):
        found.setdefault(one.kind, {}).setdefault(one.file, []).append(one.line)
    return [
        (kind, [f"{file}:{','.join(map(str, lines))}" for file, lines in files.items()])
        for kind, files in found.items()
    ]


def by_reason(reviews: list[Review]) -> list[tuple[str, str, list[Quirk]]]:
    """Return the workarounds to review by the file of llama.cpp and what happened to it."""
    found: dict[tuple[str, str], list[Quirk]] = {}
    for one in reviews:
        found.setdefault((one.quirk.path, one.reason), []).append(one.quirk)
    return [(path, reason, quirks) for (path, reason), quirks in found.items()]
