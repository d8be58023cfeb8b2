"""Open files for C, read the GGUF in one, and compute a digest that identifies it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .._core.files import OpenFile, c_file, check_readable, open_at_once, own_file
from .._core.path_hints import no_file
from .._core.text import checked_path
from ..errors import LoadError

if TYPE_CHECKING:
    from .._core import types as types
    from .gguf import Gguf

# What `sample_digest` reads.  Files up to the product of these are read completely.
N_SAMPLES, SAMPLE_BYTES = 64, 4096


@contextlib.contextmanager
def opened(source: str | os.PathLike[str] | types.FileSource) -> Iterator[OpenFile]:
    """Open a path, or anything that `c_file` accepts, for C.

    Raises:
        ModelNotFoundError: The file does not exist.
        LoadError: It cannot be read.
        ArgumentError: It is not a regular file, or the path is invalid.
    """
    if not isinstance(source, (str, os.PathLike)):
        with c_file(source) as file:
            yield file
        return
    name = checked_path(source)
    try:
        stream = open_at_once(name)
    except FileNotFoundError:
        raise no_file("there is no such file", name) from None
    except OSError as error:
        raise LoadError(error.errno, error.strerror, name) from None
    with stream:
        check_readable(stream.fileno(), name)
        with own_file(stream.fileno(), 0, name) as file:
            yield file


@contextlib.contextmanager
def gguf_of(file: OpenFile) -> Iterator[Gguf]:
    """Read the GGUF in an open file without moving its position, which C relies on.

    Raises:
        GgufError: The file is not a GGUF, or is damaged.
        LoadError: It cannot be read.
    """
    from .files import map_file  # imports numpy, which the other functions do not need
    from .gguf import Gguf
    from .tensors import GgufBuffer

    try:
        data = map_file(file.descriptor, file.offset, repr(file.name))
    except OSError as error:
        raise LoadError(error.errno, error.strerror, file.name) from None
    with Gguf(GgufBuffer(data, 0, repr(file.name))) as gguf:
        yield gguf


def sample_digest(descriptor: int, offset: int, size: int) -> str:
    """Return a digest that tells a model file from others: a hash of its size and of samples.

    It takes well under a millisecond for any size.  It detects other weights, but not every change
    of a single byte.

    Args:
        descriptor: The open file; its position does not move.
        offset: Where the contents begin.
        size: Where they end.
    """
    digest = hashlib.blake2b((size - offset).to_bytes(8, "little"), digest_size=16)
    step = max(SAMPLE_BYTES, (size - offset - SAMPLE_BYTES) // (N_SAMPLES - 1))
    for i in range(N_SAMPLES):
        if offset + i * step < size:
            digest.update(os.pread(descriptor, min(SAMPLE_BYTES, size), offset + i * step))
    return digest.hexdigest()
