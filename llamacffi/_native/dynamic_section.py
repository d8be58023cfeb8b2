"""The names in the dynamic section of an ELF library.  Only imported to explain a failure."""

from __future__ import annotations

import struct
from typing import NamedTuple

PT_LOAD, PT_DYNAMIC = 1, 2
DT_NEEDED, DT_STRTAB, DT_SONAME = 1, 5, 14


class DynamicSection(NamedTuple):
    """What a library is called, and which libraries it needs."""

    soname: str
    needed: tuple[str, ...]


def read_dynamic_section(path: str) -> DynamicSection | None:
    """Read the names; return None for a damaged file, or one that is not 64-bit ELF."""
    try:
        with open(path, "rb") as file:
            return _parse(file.read())
    except (OSError, ValueError, IndexError, struct.error):
        return None


def _parse(data: bytes) -> DynamicSection | None:
    if data[:5] != b"\x7fELF\x02":
        return None
    order = "<" if data[5] == 1 else ">"
    (table,) = struct.unpack_from(f"{order}Q", data, 32)
    size, count = struct.unpack_from(f"{order}2H", data, 54)
    # p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz
    segments = [struct.unpack_from(f"{order}2I4Q", data, table + i * size) for i in range(count)]
    entries: list[tuple[int, int]] = []
    for kind, _, offset, _, _, length in segments:
        if kind == PT_DYNAMIC:
            section = data[offset : offset + length // 16 * 16]
            entries = list(struct.iter_unpack(f"{order}2Q", section))
    names = dict(entries).get(DT_STRTAB)
    for kind, _, offset, address, _, length in segments:
        if kind == PT_LOAD and names is not None and address <= names < address + length:
            strings = offset + names - address
            break
    else:
        return None

    def string_at(index: int) -> str:
        start = strings + index
        return data[start : data.index(b"\0", start)].decode(errors="replace")

    found = {
        tag: [string_at(value) for key, value in entries if key == tag]
        for tag in (DT_SONAME, DT_NEEDED)
    }
    return DynamicSection("".join(found[DT_SONAME]), tuple(found[DT_NEEDED]))
