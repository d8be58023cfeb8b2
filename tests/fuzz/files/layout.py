"""Where the parts of a GGUF are, so that they can be changed by name."""

from __future__ import annotations

import struct
from dataclasses import dataclass

# Of numbers, by the number of their type; 8 is text, 9 an array.
FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "B",
    10: "Q",
    11: "q",
    12: "d",
}
TEXT, ARRAY = 8, 9
ALIGNMENT = 32


@dataclass(frozen=True)
class Part:
    """A part of a file."""

    start: int
    end: int
    kind: str
    """What it is: a format of `struct`, or ``text``, ``items``, ``entry``, ``data``, ``raw``."""


class Layout:
    """The parts of a valid GGUF by name."""

    def __init__(self, data: bytes) -> None:
        """Find them."""
        self.data = data
        self.parts: dict[str, Part] = {}
        self._at = 0
        self._number("header.magic", "I")
        self._number("header.version", "I")
        n_tensors, n_keys = self._number("header.n_tensors", "Q"), self._number("header.n_kv", "Q")
        for _ in range(n_keys):
            self._key()
        names = [self._tensor() for _ in range(n_tensors)]
        self.head = self._at
        """Where the description ends."""
        self.start = self._at + -self._at % ALIGNMENT
        """Where the data begin."""
        offsets = [self.value(f"tensor.{name}.offset") for name in names]
        for name, offset in zip(names, offsets, strict=True):
            end = min([one for one in offsets if one > offset], default=len(data) - self.start)
            self.parts[f"data.{name}"] = Part(self.start + offset, self.start + end, "data")

    def value(self, name: str) -> int:
        """Return a number of the file."""
        part = self.parts[name]
        number: int = struct.unpack_from(f"<{part.kind}", self.data, part.start)[0]
        return number

    def bytes_of(self, name: str) -> bytes:
        """Return the bytes of a part."""
        part = self.parts[name]
        return self.data[part.start : part.end]

    def _add(self, name: str, end: int, kind: str) -> None:
        self.parts[name] = Part(self._at, end, kind)
        self._at = end

    def _number(self, name: str, kind: str) -> int:
        self._add(name, self._at + struct.calcsize(f"<{kind}"), kind)
        return self.value(name)

    def _text(self, name: str) -> str:
        (length,) = struct.unpack_from("<Q", self.data, self._at)
        self._add(name, self._at + 8 + length, "text")
        return self.data[self._at - length : self._at].decode("utf-8", "replace")

    def _key(self) -> None:
        start = self._at
        key = f"kv.{self._text('')}"
        self.parts[f"{key}.key"] = self.parts.pop("")
        type_ = self._number(f"{key}.type", "I")
        if type_ == ARRAY:
            type_ = self._number(f"{key}.elements", "I")
            n = self._number(f"{key}.n", "Q")
            at = self._at
            for _ in range(n):
                at += 8 + struct.unpack_from("<Q", self.data, at)[0] if type_ == TEXT else 0
            if type_ != TEXT:
                at += n * struct.calcsize(f"<{FORMATS[type_]}")
            self._add(f"{key}.items", at, "items")
        elif type_ == TEXT:
            self._text(f"{key}.value")
        else:
            self._number(f"{key}.value", FORMATS[type_])
        self.parts[key] = Part(start, self._at, "entry")

    def _tensor(self) -> str:
        start = self._at
        name = self._text("")
        key = f"tensor.{name}"
        self.parts[f"{key}.name"] = self.parts.pop("")
        for i in range(self._number(f"{key}.n_dims", "I")):
            self._number(f"{key}.dim{i}", "Q")
        self._number(f"{key}.type", "I")
        self._number(f"{key}.offset", "Q")
        self.parts[key] = Part(start, self._at, "entry")
        return name

    def items(self, name: str) -> list[tuple[int, int]]:
        """Return where the elements of an array are, from the start of its ``items``."""
        part = self.parts[f"{name}.items"]
        type_, n = self.value(f"{name}.elements"), self.value(f"{name}.n")
        spans, at = [], 0
        for _ in range(n):
            size = struct.calcsize(f"<{FORMATS[type_]}") if type_ != TEXT else 0
            if type_ == TEXT:
                size = 8 + struct.unpack_from("<Q", self.data, part.start + at)[0]
            spans.append((at, at + size))
            at += size
        return spans
