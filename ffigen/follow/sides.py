"""The two sides of a comparison: what the command line names, as facts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..lock import Facts, read_lock
from ..preprocess import GeneratorError
from ..project import Project
from ..vendor import commit_of, fetched_tree, read_pin
from .changes import Change
from .diff import compare
from .quirks import read_quirks, read_upstream, to_review
from .report import Report, Side
from .uses import mark_uses
from .versions import is_version, version_tree

# A lock that lies beside libraries says in a comment what they are of.
COMMIT = re.compile(r"^# llama\.cpp: (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Source:
    """One side, read."""

    side: Side
    facts: Facts
    hints: Mapping[str, str]
    """What the headers say of deprecated functions; a lock does not have it."""
    texts: Mapping[str, str] | None = None
    """The texts of the files that our workarounds are about; None of a lock."""


def read_side(name: str, project: Project, echo: Callable[[str], None]) -> Source:
    """Read what ``name`` names.

    Args:
        name: A version of the pin's package, a llama.cpp tree, an ``api.lock`` or a directory that
            has one, or ``pin`` for headers/api.lock.
        project: This source tree.
        echo: Is told what is done.

    Raises:
        GeneratorError: It does not exist, or cannot be read.
        VendorError: The version cannot be fetched.
    """
    path = Path(name)
    if name == "pin":
        pin, tree = read_pin(project.root), fetched_tree(project.root)
        side = Side(f"{pin.version} (the pin)", pin.commit)
        hints = hints_of(project, tree) if tree else {}
        texts = read_upstream(read_quirks(project.root), tree) if tree else None
        return Source(side, project.pinned, hints, texts)
    if is_version(name) and not path.exists():
        with version_tree(project.root, name, echo) as (tree, version):
            return read_tree(project, tree, Side(name, version.commit))
    if (path / "include").is_dir():
        return read_tree(project, path.resolve(), Side(name, commit_of(path.resolve())))
    file = path / "api.lock" if path.is_dir() else path
    if not file.is_file():
        raise GeneratorError(
            f"{name} is not a version, a llama.cpp tree or an api.lock: name one of these, or `pin`"
        )
    text = file.read_text(encoding="utf-8", errors="replace")
    told = COMMIT.search(text)
    commit = told[1] if told else f"lock-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return Source(Side(name, commit), read_lock(text, name), {})


def read_tree(project: Project, tree: Path, side: Side) -> Source:
    """Read the headers of a tree, and what our workarounds are about."""
    facts = read_lock(project.lock_text(tree), side.label)
    texts = read_upstream(read_quirks(project.root), tree)
    return Source(side, facts, hints_of(project, tree), texts)


def hints_of(project: Project, tree: Path) -> dict[str, str]:
    """Return what the headers of a tree say of deprecated functions."""
    functions = project.api(tree).functions
    return {one.name: one.deprecated for one in functions if one.deprecated}


def compare_sides(old: Source, new: Source, project: Project, *, uses: bool = True) -> Report:
    """Compare two sides; our own declarations, which are the same on both, count as one.

    Args:
        old: What was.
        new: What is.
        project: This source tree.
        uses: Whether to look for the places of our own code that are touched.
    """
    changes = [one for one in compare(old.facts, new.facts, new.hints) if not is_ours(one)]
    if uses:
        facts = old.facts, new.facts
        changes = mark_uses(changes, project.root, facts, project.surface["names"])
    reviews = None
    if old.texts is not None and new.texts is not None:
        reviews = to_review(read_quirks(project.root), old.texts, new.texts)
    return Report(old.side, new.side, changes, reviews)


def is_ours(change: Change) -> bool:
    """Tell whether a change is of headers/llamacffi/, which a lock has too."""
    return change.name.lower().startswith("llamacffi_")
