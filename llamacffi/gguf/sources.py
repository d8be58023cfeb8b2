"""Files that are given by path or open, and what identifies them."""

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

# What `sample_digest` reads: a file of this size or less is read as a whole.
N_SAMPLES, SAMPLE_BYTES = 64, 4096


@contextlib.contextmanager
def opened(source: str | os.PathLike[str] | types.FileSource) -> Iterator[OpenFile]:
    """Open a path, or what `c_file` takes, for C.

    Raises:
        ModelNotFoundError: There is no such file.
        LoadError: It cannot be read.
        ArgumentError: It is no regular file, or no file can be called so.
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
    """Read the GGUF in an open file, and leave its position where C believes it to be.

    Raises:
        GgufError: It is none, or damaged.
        LoadError: It cannot be read.
    """
    from .files import map_file  # takes numpy, which the rest need not
    from .gguf import Gguf
    from .tensors import Source

    try:
        data = map_file(file.descriptor, file.offset, repr(file.name))
    except OSError as error:
        raise LoadError(error.errno, error.strerror, file.name) from None
    with Gguf(Source(data, 0, repr(file.name))) as gguf:
        yield gguf


def sample_digest(descriptor: int, offset: int, size: int) -> str:
    """Return what tells a file from others of its kind: a hash of its size and of samples.

    It takes well below a millisecond, whatever the size, and finds out other weights, but not every
    change of a byte.

    Args:
        descriptor: The open file; its position stays.
        offset: Where the contents begin.
        size: Where they end.
    """
    digest = hashlib.blake2b((size - offset).to_bytes(8, "little"), digest_size=16)
    step = max(SAMPLE_BYTES, (size - offset - SAMPLE_BYTES) // (N_SAMPLES - 1))
    for i in range(N_SAMPLES):
        if offset + i * step < size:
            digest.update(os.pread(descriptor, min(SAMPLE_BYTES, size), offset + i * step))
    return digest.hexdigest()
