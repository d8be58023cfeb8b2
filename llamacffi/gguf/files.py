"""The way of a GGUF between a file and llama.cpp's description of it."""

from __future__ import annotations

import mmap
import struct
from typing import Any

from .._core.ownership import make, own
from .._native import ffi, lib
from ..errors import GgufError, NativeError
from ..log import drain, with_log
from .tensors import Source

# The header: "GGUF", version, number of tensors, number of keys.
HEADER = struct.Struct("<4sIqq")
# A key that marks the end of the metadata while they are cut out; too long for a tensor's name.
END = "llamacffi.end".ljust(lib.GGML_MAX_NAME, ".").encode()


def map_file(descriptor: int, start: int, name: str) -> memoryview:
    """Map a file from ``start`` to its end, for reading."""
    # A map begins at a page.
    before = start % mmap.ALLOCATIONGRANULARITY
    try:
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ, offset=start - before)
    except ValueError:  # there is nothing to map
        raise GgufError(f"{name} is empty") from None
    return memoryview(mapped)[before:]


def parse(source: Source) -> Any:
    """Return an owned ``struct gguf_context *``.

    Raises:
        GgufError: It is no GGUF.
    """
    failure = f"{source.name} is no GGUF that llama.cpp can read"
    drain()
    try:
        made = make(
            lib.gguf_free,
            (),
            lib.gguf_init_from_buffer,
            ffi.from_buffer(source.buffer),
            len(source.buffer or b""),
            ffi.new("struct gguf_init_params *", {"no_alloc": True})[0],
        )
    except NativeError as error:
        raise with_log(GgufError(f"{failure}: {error}")) from error
    if made[1] == ffi.NULL:
        raise with_log(GgufError(failure))
    return own(made)


def serialize(ptr: Any) -> bytearray:
    """Return the metadata and the list of tensors as they are in a file."""
    content = bytearray(lib.gguf_get_meta_size(ptr))
    lib.gguf_get_meta_data(ptr, ffi.from_buffer(content, require_writable=True))
    return content


def metadata_of(ptr: Any) -> bytearray:
    """Return the metadata as a GGUF without tensors.

    C can neither forget a tensor nor say where the metadata end: a last key shows it.
    """
    end = END
    while lib.gguf_find_key(ptr, end) >= 0:
        end += b"."
    lib.gguf_set_val_u8(ptr, end, 0)
    try:
        content = serialize(ptr)
    finally:
        lib.gguf_remove_key(ptr, end)
    magic, version, _n_tensors, n_keys = HEADER.unpack_from(content)
    del content[content.rindex(struct.pack("<Q", len(end)) + end) :]
    HEADER.pack_into(content, 0, magic, version, 0, n_keys - 1)
    return content
