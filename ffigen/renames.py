"""Which of the names that are gone stand under another name now: a guess, and said to be one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

# Of two names whose facts are alike, so much must be the same; found by looking at renames of llama.cpp.
SIMILAR = 0.6


def likely_renames(
    gone: Mapping[str, Any], come: Mapping[str, Any], alike: Callable[[Any, Any], bool]
) -> dict[str, str]:
    """Pair names that are gone with new ones whose facts are alike, the most similar first.

    Args:
        gone: The facts that are gone, by name.
        come: The facts that are new, by name.
        alike: Whether one may be the other.

    Returns:
        The new name by the old.
    """
    pairs = sorted(
        (
            (similarity(old, new), old, new)
            for old in gone
            for new in come
            if alike(gone[old], come[new])
        ),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    renames: dict[str, str] = {}
    taken: set[str] = set()
    for score, old, new in pairs:
        if score >= SIMILAR and old not in renames and new not in taken:
            renames[old] = new
            taken.add(new)
    return renames


def similarity(one: str, other: str) -> float:
    """Tell how much of two names is the same, 0 to 1: by words or by letters, whichever is more.

    The words that both begin with say little: all of an API or an enum begins with them.
    """
    words, others = (name.lower().split("_") for name in (one, other))
    while len(words) > 1 and len(others) > 1 and words[0] == others[0]:
        words, others = words[1:], others[1:]
    by_words = difflib.SequenceMatcher(None, words, others, autojunk=False)
    by_letters = difflib.SequenceMatcher(None, "_".join(words), "_".join(others), autojunk=False)
    return max(by_words.ratio(), by_letters.ratio())
