"""Convert between the bytes of a GGUF file and llama.cpp's ``struct gguf_context``."""

from __future__ import annotations

import io
import mmap
import os
import struct
from typing import Any, BinaryIO

from .._core.files import check_readable, file_name, file_position, open_at_once
from .._core.ownership import make, own
from .._core.path_hints import no_file
from .._core.text import checked_path
from .._native import ffi, lib
from ..errors import GgufError, LoadError, NativeError
from ..log import drain, with_log
from .tensors import GgufBuffer

# The header: "GGUF", version, number of tensors, number of keys.
HEADER = struct.Struct("<4sIqq")
# A temporary key that marks the end of the metadata; it is too long to be the name of a tensor.
END = "llamacffi.end".ljust(lib.GGML_MAX_NAME, ".").encode()


def map_file(descriptor: int, start: int, name: str) -> memoryview:
    """Map a file from ``start`` to its end, read-only.

    Raises:
        GgufError: The file is empty.
        OSError: It cannot be mapped.
    """
    before = start % mmap.ALLOCATIONGRANULARITY  # a mapping must begin at a page
    try:
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ, offset=start - before)
    except ValueError:  # mmap refuses an empty file
        raise GgufError(f"{name} is empty") from None
    return memoryview(mapped)[before:]


def map_path(path: str | os.PathLike[str]) -> GgufBuffer:
    """Map the file at a path; see `Gguf.open`.

    Raises:
        ModelNotFoundError: The file does not exist.
        LoadError: It cannot be read.
        ArgumentError: It is not a regular file, or the path is invalid.
    """
    name = checked_path(path)
    try:
        with open_at_once(name) as file:
            check_readable(file.fileno(), name)
            return GgufBuffer(map_file(file.fileno(), 0, repr(name)), 0, repr(name), name)
    except FileNotFoundError:
        raise no_file("there is no such file", name) from None
    except OSError as error:
        raise LoadError(error.errno, error.strerror, name) from None


def read_open_file(file: BinaryIO) -> GgufBuffer:
    """Map or read an open file from its position; see `Gguf.from_file`.

    Raises:
        TypeError: It is not a file, or opened in text mode.
        LoadError: It cannot be read.
    """
    if not hasattr(file, "read") or not hasattr(file, "tell"):
        raise TypeError(f"file must be an open binary file, not {file!r}")
    called = file_name(file)
    name = f"the file {called!r}"
    if isinstance(file, io.TextIOBase):
        raise TypeError(f"{called!r} is a text file: open it in binary mode, 'rb'")
    try:
        # Other objects may have a descriptor too, such as that of the compressed file.
        if isinstance(getattr(file, "raw", file), io.FileIO):
            check_readable(file.fileno(), called)
            data = map_file(file.fileno(), file_position(file, file.fileno()), name)
        elif isinstance(file, io.BytesIO):
            data = memoryview(file.getvalue())[file.tell() :]
        else:
            start = file.tell()
            data = memoryview(file.read())
            file.seek(start)
    except OSError as error:
        raise LoadError(error.errno, error.strerror or str(error), called) from None
    path = called if isinstance(getattr(file, "name", None), (str, bytes)) else None
    return GgufBuffer(data, 0, name, path)


def parse(source: GgufBuffer) -> Any:
    """Return an owned ``struct gguf_context *``.

    Raises:
        GgufError: The data is not a GGUF that llama.cpp can read.
    """
    failure = f"{source.name} is not a GGUF that llama.cpp can read"
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
    """Return the metadata and the list of tensors in the format of the file."""
    content = bytearray(lib.gguf_get_meta_size(ptr))
    lib.gguf_get_meta_data(ptr, ffi.from_buffer(content, require_writable=True))
    return content


def metadata_of(ptr: Any) -> bytearray:
    """Return the metadata as a GGUF without tensors.

    upstream: ggml/src/gguf.cpp gguf_get_meta_data: it writes the tensors too, and no function
    removes tensors or returns where the metadata end; so a temporary last key marks the place.
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
