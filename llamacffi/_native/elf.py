"""What an ELF file says of itself to the loader: whether it is whole, its name, what it needs."""

from __future__ import annotations

from typing import NamedTuple

PT_LOAD, PT_DYNAMIC = 1, 2
DT_NEEDED, DT_STRTAB, DT_SONAME = 1, 5, 14


class Dynamic(NamedTuple):
    """The names in the dynamic section of a library."""

    soname: str
    needed: tuple[str, ...]


def is_whole(path: str) -> bool:
    """Tell whether an ELF file was not cut off, as where a disk was full.

    The loader maps what is not there too, and reading it ends the process.  What is no 64-bit
    little-endian ELF file counts as whole: the loader will say what it is.
    """
    with open(path, "rb") as file:
        head, size = file.read(4096), file.seek(0, 2)
    if head[:6] != b"\x7fELF\x02\x01" or size < 64:
        return True
    words = memoryview(head[: len(head) // 8 * 8]).cast("Q")
    table, count = words[4] // 8, int.from_bytes(head[56:58], "little")
    if table + 7 * count > len(words):
        return size > len(head)  # a table that is elsewhere
    # Seven words each: p_type and p_flags, p_offset, p_vaddr, p_paddr, p_filesz, ...
    segments = range(table, table + 7 * count, 7)
    return all(words[i + 1] + words[i + 4] <= size for i in segments)


def dynamic(path: str) -> Dynamic | None:
    """Read the names, or return None if it is no 64-bit ELF file, or a damaged one."""
    import struct  # not needed where all is well

    try:
        with open(path, "rb") as file:
            return _dynamic(file.read())
    except (OSError, ValueError, IndexError, struct.error):
        return None


def _dynamic(data: bytes) -> Dynamic | None:
    import struct

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
