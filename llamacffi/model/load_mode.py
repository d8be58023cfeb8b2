"""How the weights are read: ``load_mode`` of the parameters.

An older llama.cpp has flags for it, whose defaults are what ``"auto"`` does.
"""

from __future__ import annotations

from typing import Any

from .._native import lib


def is_auto(struct: Any) -> bool:
    """Tell whether llama.cpp chooses how to read."""
    if hasattr(struct, "load_mode"):
        return bool(struct.load_mode == lib.LLAMA_LOAD_MODE_AUTO)
    return bool(struct.use_mmap) and not (struct.use_mlock or is_direct(struct))


def is_mapped(struct: Any) -> bool:
    """Tell whether the weights are to be mapped, and nothing else will do."""
    if hasattr(struct, "load_mode"):
        return struct.load_mode in (lib.LLAMA_LOAD_MODE_MMAP, lib.LLAMA_LOAD_MODE_MMAP_MLOCK)
    return bool(struct.use_mmap) and not is_auto(struct)


def is_direct(struct: Any) -> bool:
    """Tell whether the weights are to be read past the cache of the system."""
    if hasattr(struct, "load_mode"):
        return bool(struct.load_mode == lib.LLAMA_LOAD_MODE_DIRECT_IO)
    return bool(getattr(struct, "use_direct_io", False))


def is_read(struct: Any) -> bool:
    """Tell whether the weights are to be read into memory, not locked there."""
    if hasattr(struct, "load_mode"):
        return struct.load_mode in (lib.LLAMA_LOAD_MODE_NONE, lib.LLAMA_LOAD_MODE_DIRECT_IO)
    return not (struct.use_mmap or struct.use_mlock)


def read(struct: Any) -> None:
    """Have the weights read into memory."""
    if hasattr(struct, "load_mode"):
        struct.load_mode = lib.LLAMA_LOAD_MODE_NONE
    else:
        struct.use_mmap = False
