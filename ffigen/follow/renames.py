"""Which of the names that are gone stand under another name now: a guess, and said to be one."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

# So much of two names must be the same if their facts are alike, and so much if they are not; found
# by looking at renames of llama.cpp.
SIMILAR = 0.6
NEARLY_THE_SAME = 0.85


def likely_renames(
    gone: Mapping[str, Any], come: Mapping[str, Any], alike: Callable[[Any, Any], bool]
) -> dict[str, str]:
    """Pair names that are gone with new ones, the most similar first.

    Args:
        gone: The facts that are gone, by name.
        come: The facts that are new, by name.
        alike: Whether one may be the other.

    Returns:
        The new name by the old.
    """
    pairs: list[tuple[bool, float, str, str]] = []
    for old, new in itertools.product(gone, come):
        same, score = alike(gone[old], come[new]), similarity(old, new)
        if score >= (SIMILAR if same else NEARLY_THE_SAME):
            pairs.append((not same, -score, old, new))
    renames: dict[str, str] = {}
    taken: set[str] = set()
    for _, _, old, new in sorted(pairs):
        if old not in renames and new not in taken:
            renames[old] = new
            taken.add(new)
    return renames


def similarity(one: str, other: str) -> float:
    """Tell how much of two names is the same, 0 to 1: by words or by letters, whichever is more.

    The words that both begin with say little: all of an API or an enum begins with them.
    """
    words, others = (name.lower().split("_") for name in (one, other))
    both = min(len(words), len(others))
    if words != others and words[:both] == others[:both] and both > 1:
        return NEARLY_THE_SAME  # one goes on where the other ends
    while len(words) > 1 and len(others) > 1 and words[0] == others[0]:
        words, others = words[1:], others[1:]
    by_words = difflib.SequenceMatcher(None, words, others, autojunk=False)
    by_letters = difflib.SequenceMatcher(None, "_".join(words), "_".join(others), autojunk=False)
    return max(by_words.ratio(), by_letters.ratio())
