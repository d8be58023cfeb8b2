"""Makes text from a file or a model safe to show on a terminal."""

from __future__ import annotations

import re
from typing import TextIO

# What a terminal would interpret: the control characters of ASCII and Latin-1 other than tab and
# newline, those that change the direction of text, and the line and paragraph separators.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)


def visible(text: str) -> str:
    r"""Return a text with what a terminal would interpret escaped, such as ``\x1b``."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def fitting(text: str, stream: TextIO | None) -> str:
    """Return a text for a stream: unchanged, unless the stream is a terminal."""
    return visible(text) if stream is not None and stream.isatty() else text
