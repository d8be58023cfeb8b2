"""Memory between pages that nobody may touch: an access one byte before or behind it is a death."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

from llamacffi import ffi

PAGE = mmap.PAGESIZE
SIZE = 1 << 20  # of a buffer, in bytes
FILLED = 64  # elements that are not zero

_libc = ctypes.CDLL(None, use_errno=True)
_PROT_NONE = 0


class Pages:
    """Buffers, which live as long as this does; each process has its own copy of their content."""

    def __init__(self) -> None:
        self._areas: list[Any] = []
        self._buffers: set[Any] = set()

    def new(self, size: int = SIZE) -> Any:
        """Return zeroed memory that ends where the next page does not exist: a ``char *``."""
        whole = -(-size // PAGE) * PAGE
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        start = ffi.from_buffer(mmap.mmap(-1, whole + 2 * PAGE, flags=private))
        self._areas.append(start)
        address = int(ffi.cast("uintptr_t", start))
        for edge in (address, address + PAGE + whole):
            if _libc.mprotect(ctypes.c_void_p(edge), ctypes.c_size_t(PAGE), _PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        return ffi.cast("char *", address + PAGE + whole - size)

    def array(self, pointer: Any, value: Any = 1) -> Any:
        """Return a buffer for a pointer type, whose first elements have a value."""
        elements = ffi.cast(pointer, self.new())
        for i in range(FILLED):
            elements[i] = value
        self._buffers.add(ffi.cast("void *", elements))
        return elements

    def is_array(self, pointer: Any) -> bool:
        """Tell whether a pointer is one that `array` returned."""
        return ffi.cast("void *", pointer) in self._buffers

    def text(self, content: bytes) -> Any:
        """Return a text that ends at the end of its page."""
        start = self.new(len(content) + 1)
        ffi.memmove(start, content, len(content))
        return start

    def struct(self, pointer: Any, value: Any = None, count: int = 1) -> Any:
        """Return structs of a type, copies of ``value`` or all zero."""
        size = ffi.sizeof(pointer.item)
        start = ffi.cast(pointer, self.new(size * count))
        for i in range(count if value is not None else 0):
            start[i] = value
        return start
