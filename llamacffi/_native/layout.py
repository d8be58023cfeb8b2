"""Compare the APIs of two builds of llama.cpp by the facts in their ``api.lock``.

Only imported when libraries of another build are chosen, and by the generator; so it imports
nothing from the package.
"""

from __future__ import annotations

import hashlib
import re

# The subject of a fact, after its kind: a struct or enum (for its members too), or another name.
SUBJECT = re.compile(
    r"(?:struct|union|field|enum|constant) (\w+)|\w+ .*?(\w+)\)?\(|typedef .*?(\w+)[][\d]*;"
)
DEPRECATED = " deprecated"
LINES = 20


def facts(lock: str) -> list[str]:
    """Return the facts about llama.cpp in the text of a lock, in its order.

    Comments and deprecations are left out, as they do not change how a function is called; so is
    llamacffi's own header, which no llama.cpp library has.
    """
    lines = (line.removesuffix(DEPRECATED) for line in lock.splitlines())
    return [one for one in lines if one and one[0] != "#" and not _is_own(one)]


def digest(lock: str) -> str:
    """Return a hash of the facts; the order of the headers does not matter."""
    return hashlib.sha256("\n".join(sorted(facts(lock))).encode()).hexdigest()


def commit_of(lock: str) -> str | None:
    """Return the commit that a lock names as its source, if any."""
    found = re.search(r"^# llama\.cpp: (\S+)$", lock, re.MULTILINE)
    return found and found[1]


def differences(ours: str, theirs: str) -> list[str]:
    """Return what ``theirs`` lacks or changes of ``ours``, as the lines of a diff.

    Empty if they have everything that we have; additions do no harm.
    """
    mine, other = facts(ours), facts(theirs)
    gone = set(mine).difference(other)
    lines: list[str] = []
    for changed in dict.fromkeys(subject(fact) for fact in mine if fact in gone):
        before = {_name(fact): fact for fact in mine if subject(fact) == changed}
        for fact in (one for one in other if subject(one) == changed):
            old = before.pop(_name(fact), None)
            if old != fact:
                lines += [f"+{fact}"] if old is None else [f"-{old}", f"+{fact}"]
        lines += [f"-{fact}" for fact in before.values()]
    return lines


def shortened(lines: list[str]) -> str:
    """Join the first lines, and say how many more there are."""
    more = len(lines) - LINES
    return "\n".join(lines[:LINES] + [f"... and {more} more"] * (more > 0))


def subject(fact: str) -> str:
    """Return what a fact is about: ``llama_batch`` for its size and for each of its fields."""
    found = SUBJECT.match(fact)
    return next(filter(None, found.groups())) if found else fact


def _name(fact: str) -> str:
    """Return the part of a fact that stays the same when its value changes."""
    if fact.startswith(("function ", "typedef ")):
        return subject(fact)
    return re.split(" @| = | size ", fact)[0]


def _is_own(fact: str) -> bool:
    return subject(fact).lower().startswith("llamacffi_")
