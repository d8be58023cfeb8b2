"""Whether an ELF file was truncated.  Imported each time: it needs nothing but builtins."""

from __future__ import annotations

HEADER_BYTES = 1024  # the ELF header, 64 bytes, and a table of up to 17 segments


def is_truncated(path: str) -> bool:
    """Return whether an ELF file ends before its segments do, as after a full disk.

    The loader maps the missing pages too, and touching one ends the process with SIGBUS.  A file
    that is not 64-bit little-endian ELF counts as complete: the loader reports what it is.

    Raises:
        OSError: The file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        head, size = file.read(HEADER_BYTES), file.seek(0, 2)
    if head[:6] != b"\x7fELF\x02\x01" or size < 64:
        return False
    words = memoryview(head[: len(head) // 8 * 8]).cast("Q")
    table, count = words[4] // 8, int.from_bytes(head[56:58], "little")
    if table + 7 * count > len(words):
        return size <= len(head)  # otherwise the table is further on, where no linker puts it
    # Seven words each: p_type and p_flags, p_offset, p_vaddr, p_paddr, p_filesz, ...
    segments = range(table, table + 7 * count, 7)
    return any(words[i + 1] + words[i + 4] > size for i in segments)
