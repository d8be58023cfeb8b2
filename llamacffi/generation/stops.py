"""Stop conditions: strings, special tokens inside strings, and tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from .._core.text import StopFinder
from .._core.values import elements
from ..errors import ArgumentError
from ..vocab.entries import textless_tokens

if TYPE_CHECKING:
    from ..vocab.vocab import Vocab

# Limit for all stop strings together, in characters: each takes some hundred bytes to search for.
MAX_STOPS = 100_000
# Text decoded from UTF-8 never contains surrogates, so they can stand for tokens.
MARKS = re.compile("[\ud800-\udfff]+")


def mark_of(token: int) -> str:
    """Return the mark that stands for a token in a text; all marks have the same length."""
    digits = ((token >> shift) & 0x3FF for shift in (20, 10, 0))
    return "\ud800" + "".join(chr(0xDC00 + digit) for digit in digits)


class MarkFinder(StopFinder):
    """Finds stop strings in text that contains marks for tokens, and removes the marks.

    Args:
        names: The strings to find, with marks, and the name that `found` returns for each.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__(list(names))
        self._names = names

    def feed(self, text: str) -> str:
        """Add text, and return the part that cannot belong to a stop string."""
        return MARKS.sub("", super().feed(text))

    def finish(self) -> str:
        """Return the text that was held back."""
        return MARKS.sub("", super().finish())

    @property
    def found(self) -> str | None:
        """The stop string that was found, or the text of the stop token."""
        return None if self.match is None else self._names[self.match]


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the argument ``stop`` of `generate`, checked."""
    if stop is None:
        return ()
    stops = [stop] if isinstance(stop, str) else elements("stop", stop, "strings")
    for i, one in enumerate(stops):
        if not isinstance(one, str):
            raise TypeError(
                f"stop must be a string or several: stop[{i}] is {one!r:.80}; stop_tokens= takes "
                "tokens"
            )
        if not one:
            raise ArgumentError(f"stop[{i}] is empty, which would match everywhere: omit it")
    if (n := sum(map(len, stops))) > MAX_STOPS:
        raise ArgumentError(
            f"the stop strings have {n} characters together; the limit is {MAX_STOPS}"
        )
    return tuple(stops)


def stop_tokens_of(vocab: Vocab, tokens: Iterable[int] | None) -> Sequence[int]:
    """Return the argument ``stop_tokens`` of `generate`, checked."""
    if tokens is None:
        return ()
    if isinstance(tokens, str):
        raise TypeError(
            f"stop_tokens must be a sequence of tokens, not {tokens!r:.80}; stop= takes strings"
        )
    given = elements("stop_tokens", tokens, "tokens")
    try:
        return list(vocab.check(given))
    except ArgumentError as error:
        raise ArgumentError(f"stop_tokens: {error}") from None
    except TypeError as error:
        raise TypeError(f"stop_tokens: {error}; stop= takes strings") from None


def stop_finder(
    vocab: Vocab, stops: Sequence[str], ends: Sequence[int]
) -> tuple[StopFinder, dict[int, str]]:
    """Return a finder for the end of a generation.

    Args:
        vocab: The vocabulary of the model.
        stops: Stop strings.  The text of a special token inside one matches both that text and the
            token, which is generated without text.
        ends: Stop tokens.

    Returns:
        The finder, and the marks to feed it for some tokens, in place of their text.
    """
    special = textless_tokens(vocab) if stops else {}
    inside = {text: ids for text, ids in special.items() if any(text in stop for stop in stops)}
    if not inside and not ends:
        return StopFinder(stops), {}
    names, marks = {stop: stop for stop in stops}, {}
    if inside:
        longest_first = sorted(inside, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, longest_first)))
        for stop in stops:
            names[pattern.sub(lambda match: mark_of(inside[match[0]][0]), stop)] = stop
        marks = {token: mark_of(ids[0]) for ids in inside.values() for token in ids}
    for token in ends:
        mark = marks.setdefault(token, mark_of(token))
        names.setdefault(mark, vocab.piece(token).decode(errors="replace"))
    return MarkFinder(names), marks
