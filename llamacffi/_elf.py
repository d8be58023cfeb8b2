"""What an ELF file says of itself to the loader, for errors: its name, and what it needs."""

from __future__ import annotations

import struct
from typing import NamedTuple

PT_LOAD, PT_DYNAMIC = 1, 2
DT_NEEDED, DT_STRTAB, DT_SONAME = 1, 5, 14


class Dynamic(NamedTuple):
    """The names in the dynamic section of a library."""

    soname: str
    needed: tuple[str, ...]


def dynamic(path: str) -> Dynamic | None:
    """Read the names, or return None if it is no 64-bit ELF file, or a damaged one."""
    try:
        with open(path, "rb") as file:
            return _dynamic(file.read())
    except (OSError, ValueError, IndexError, struct.error):
        return None


def _dynamic(data: bytes) -> Dynamic | None:
    if data[:5] != b"\x7fELF\x02":
        return None
    order = "<" if data[5] == 1 else ">"
    (table,) = struct.unpack_from(f"{order}Q", data, 32)
    size, count = struct.unpack_from(f"{order}2H", data, 54)
    # p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz
    headers = [struct.unpack_from(f"{order}2I4Q", data, table + i * size) for i in range(count)]
    entries: list[tuple[int, int]] = []
    for kind, _, offset, _, _, length in headers:
        if kind == PT_DYNAMIC:
            section = data[offset : offset + length // 16 * 16]
            entries = list(struct.iter_unpack(f"{order}2Q", section))
    names = dict(entries).get(DT_STRTAB)
    for kind, _, offset, address, _, length in headers:
        if kind == PT_LOAD and names is not None and address <= names < address + length:
            strings = offset + names - address
            break
    else:
        return None

    def text(at: int) -> str:
        start = strings + at
        return data[start : data.index(b"\0", start)].decode(errors="replace")

    found = {
        tag: [text(value) for key, value in entries if key == tag] for tag in (DT_SONAME, DT_NEEDED)
    }
    return Dynamic("".join(found[DT_SONAME]), tuple(found[DT_NEEDED]))
