"""A changed file in a few words: the valid one, what is done with it, and the changes."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass

from .layout import ALIGNMENT, Layout

Edit = tuple[str, str]
"""The name of a part and the bytes to put there, as hexadecimal digits; or ``cut`` and a size; or
``@start:end`` and bytes; or ``fill`` and the name of a part with the bytes to repeat in it; or
``items`` of an array, with the first byte and the last."""


@dataclass(frozen=True)
class Recipe:
    """How to make and use a file."""

    seed: str
    use: str
    edits: tuple[Edit, ...]

    def __str__(self) -> str:
        return json.dumps([self.seed, self.use, *self.edits], separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Read what `str` has made of one."""
        seed, use, *edits = json.loads(text)
        return cls(seed, use, tuple((name, value) for name, value in edits))


def make(data: bytes, edits: tuple[Edit, ...]) -> bytes:
    """Return the bytes of the changed file."""
    layout = Layout(data) if data.startswith(b"GGUF") else None
    spans: list[tuple[int, int, bytes]] = []
    for name, value in edits:
        if name == "cut":
            continue
        if name.startswith("fill "):
            assert layout is not None
            part, pattern = layout.parts[name[5:]], bytes.fromhex(value)
            size = part.end - part.start
            spans.append((part.start, part.end, (pattern * (size // len(pattern) + 1))[:size]))
        elif name.startswith("@"):
            start, _, end = name[1:].partition(":")
            spans.append((int(start), int(end), bytes.fromhex(value)))
        else:
            assert layout is not None
            name, _, within = name.partition("@")
            part = layout.parts[name]
            first, last = map(int, within.split(":")) if within else (0, part.end - part.start)
            spans.append((part.start + first, part.start + last, bytes.fromhex(value)))
    changed = _replace(data, spans, layout)
    for name, value in edits:
        if name == "cut":
            changed = changed[: int(value)]
    return _with_checksum(changed)


def _replace(data: bytes, spans: list[tuple[int, int, bytes]], layout: Layout | None) -> bytes:
    """Put bytes in the place of others; the data of a GGUF stay aligned."""
    out = bytearray(data)
    moved, free = 0, len(data) + 1
    for start, end, new in sorted(spans, reverse=True):
        if end > free:  # within what is replaced already
            continue
        out[start:end] = new
        free = start
        if layout is not None and start < layout.head:
            moved += len(new) - (end - start)
    if layout is not None and moved:
        head = layout.head + moved
        out[head : layout.start + moved] = bytes(-head % ALIGNMENT)
    return bytes(out)


def _with_checksum(data: bytes) -> bytes:
    """Correct the checksum of a saved state, or nobody would look at what was changed."""
    from llamacffi.context import state_format as format

    if not data.startswith(format.MAGIC) or len(data) < format.HEADER.size:
        return data
    fields = list(format.HEADER.unpack_from(data))
    fields[2] = zlib.crc32(data[format.CHECKED_FROM :])
    return format.HEADER.pack(*fields) + data[format.HEADER.size :]
