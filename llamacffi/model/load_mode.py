"""How weights are read: the parameter ``load_mode``.

Older versions of llama.cpp have flags instead; their defaults mean the same as ``"auto"``.
"""

from __future__ import annotations

from typing import Any

from .._native import lib


def is_auto(struct: Any) -> bool:
    """Return whether llama.cpp chooses how to read the weights."""
    if hasattr(struct, "load_mode"):
        return bool(struct.load_mode == lib.LLAMA_LOAD_MODE_AUTO)
    return bool(struct.use_mmap) and not (struct.use_mlock or is_direct(struct))


def is_mapped(struct: Any) -> bool:
    """Return whether the weights must be mapped into memory."""
    if hasattr(struct, "load_mode"):
        return struct.load_mode in (lib.LLAMA_LOAD_MODE_MMAP, lib.LLAMA_LOAD_MODE_MMAP_MLOCK)
    return bool(struct.use_mmap) and not is_auto(struct)


def is_direct(struct: Any) -> bool:
    """Return whether the weights are to be read with direct I/O, past the page cache."""
    if hasattr(struct, "load_mode"):
        return bool(struct.load_mode == lib.LLAMA_LOAD_MODE_DIRECT_IO)
    return bool(getattr(struct, "use_direct_io", False))


def is_read(struct: Any) -> bool:
    """Return whether the weights are to be read into memory that is not locked."""
    if hasattr(struct, "load_mode"):
        return struct.load_mode in (lib.LLAMA_LOAD_MODE_NONE, lib.LLAMA_LOAD_MODE_DIRECT_IO)
    return not (struct.use_mmap or struct.use_mlock)


def use_read(struct: Any) -> None:
    """Make llama.cpp read the weights into memory instead of mapping them."""
    if hasattr(struct, "load_mode"):
        struct.load_mode = lib.LLAMA_LOAD_MODE_NONE
    else:
        struct.use_mmap = False
