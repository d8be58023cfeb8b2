"""Text that may come from a file or out of a model, as a terminal can show it."""

from __future__ import annotations

import re
from typing import TextIO

# A terminal obeys the control characters but for tab and newline, of ASCII and of Latin-1, and
# those that turn the direction of text around; the line and paragraph separators end lines.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)


def visible(text: str) -> str:
    r"""Return a text in which what a terminal would obey is spelled out, as ``\x1b``."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def fitting(text: str, stream: TextIO | None) -> str:
    """Return a text for a stream: as it is, unless that is a terminal."""
    return visible(text) if stream is not None and stream.isatty() else text
