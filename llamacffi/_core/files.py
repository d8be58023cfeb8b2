"""Open files, descriptors and bytes from Python, as a ``FILE *`` for C.

C gets a file of its own, which is opened again, so that its position is private: the position of
the caller's file never moves, and several threads can read from one open file at once.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._native import ffi, lib
from ..errors import ArgumentError, LoadError
from .opening import open_owned
from .ownership import make
from .values import INT32_MAX, integer

if TYPE_CHECKING:
    from typing import TypeAlias

    from . import types as types

    Buffer: TypeAlias = bytes | bytearray | memoryview

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe, which cannot be read twice",
    stat.S_IFSOCK: "a socket, which cannot be read twice",
    stat.S_IFCHR: "a character device",
}

PATH_BYTES = 1024  # the longest path of macOS
PIECE = 2**20  # bytes to copy at a time


@dataclass(frozen=True)
class OpenFile:
    """A file that C reads; valid inside `c_file`."""

    ptr: Any
    """The ``FILE *``, at `offset`."""
    descriptor: int
    offset: int
    """Where the contents begin, in bytes from the start of the file."""
    size: int
    """The size of the whole file, in bytes."""
    name: str
    """The name for messages: the path if there is one."""

    def read(self, size: int) -> bytes:
        """Return the first bytes of the contents; the position stays where it is.

        Raises:
            LoadError: The file cannot be read.
        """
        try:
            return os.pread(self.descriptor, size, self.offset)
        except OSError as error:
            raise LoadError(error.errno, error.strerror, self.name) from None


@contextmanager
def c_file(
    source: types.FileSource, *, offset: int | None = None, name: str | None = None
) -> Iterator[OpenFile]:
    """Open the file behind ``source`` again, for C, with a position of its own.

    Args:
        source: A binary file object with a descriptor, at any position; a descriptor; or bytes, a
            bytearray, a memoryview or an `io.BytesIO`, which are written to an anonymous file.
        offset: Where the contents begin, in bytes; by default the position of a file, and 0 for
            bytes.
        name: The name for messages; by default what `file_name` returns.

    Yields:
        The open file.  ``source`` stays open, and its position stays where it is.

    Raises:
        TypeError: ``source`` is a path, a text file, or something else.
        ArgumentError: It is closed, not open for reading, not a regular file, or shorter than
            ``offset``.
        LoadError: It cannot be read, or the anonymous file cannot be written.
    """
    if offset is not None:
        offset = _checked_offset(offset)
    name = file_name(source) if name is None else name
    if isinstance(source, (str, os.PathLike)):
        raise TypeError(f"{source!r} is a path; this takes a binary file, a descriptor or bytes")
    descriptor = _descriptor(source)
    if descriptor is None:
        view = _view(source, offset)
        with anonymous_file([view], name) as file, own_file(file.fileno(), 0, name) as c:
            yield c
        return
    check_readable(descriptor, name)
    position = file_position(source, descriptor)
    with (
        _opened_anew(descriptor, name) as file,
        own_file(file.fileno(), position if offset is None else offset, name) as c,
    ):
        yield c


def file_name(source: Any) -> str:
    """Return the name of ``source`` for messages."""
    name = source if isinstance(source, int) else getattr(source, "name", None)
    if isinstance(name, int):  # a file from os.fdopen
        return f"<descriptor {name}>"
    if isinstance(name, (str, bytes)) and name:
        return os.fsdecode(name)
    return f"<{type(source).__name__}>"


@contextmanager
def own_file(descriptor: int, offset: int, name: str) -> Iterator[OpenFile]:
    """Open a descriptor for C, which moves its position: do not use it elsewhere meanwhile."""
    size = os.fstat(descriptor).st_size
    if offset > size:
        raise ArgumentError(
            f"offset={offset} is beyond the end of {name!r}, which has {size} bytes"
        )
    file = make(lib.llamacffi_file_close, (), lib.llamacffi_file_open, descriptor, offset, False)[1]
    if file == ffi.NULL:
        raise LoadError(ffi.errno, os.strerror(ffi.errno), name)
    with file:  # closes it
        yield OpenFile(file, descriptor, offset, size, name)


def _opened_anew(descriptor: int, name: str) -> io.FileIO:
    """Open the file behind a descriptor again: a duplicate would share the position.

    Where that is impossible, for instance because this process may no longer open the file, the
    result is a copy.
    """
    wanted = os.fstat(descriptor)
    for path in _paths_of(descriptor, name):
        try:
            file = open_at_once(path)
        except OSError:  # it belongs to another user, or its name is gone
            continue
        if os.path.samestat(os.fstat(file.fileno()), wanted):
            return file
        file.close()
    return anonymous_file(_pieces(descriptor), name)


def _paths_of(descriptor: int, name: str) -> Iterator[str]:
    """Yield paths that may lead to the file behind a descriptor."""
    if sys.platform == "linux":
        yield f"/proc/self/fd/{descriptor}"  # also works for a deleted file
    elif sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):
            found = fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(PATH_BYTES))
            yield os.fsdecode(found.partition(b"\0")[0])
    yield name


def open_at_once(path: str) -> io.FileIO:
    """Open a file for reading, without waiting for a writer if it is a pipe.

    Raises:
        OSError: It cannot be opened, or is a directory.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    flags = (getattr(os, name, 0) for name in ("O_BINARY", "O_NONBLOCK", "O_CLOEXEC"))
    return open_owned("r", os.open, path, os.O_RDONLY | sum(flags))


def _pieces(descriptor: int) -> Iterator[bytes]:
    """Yield the contents of a file without moving its position."""
    at = 0
    while piece := os.pread(descriptor, PIECE, at):
        yield piece
        at += len(piece)


def _checked_offset(offset: Any) -> int:
    return integer("offset", offset, 0, 2**63 - 1)


def _descriptor(source: Any) -> int | None:
    """Return the descriptor behind a file object; None for bytes and others without one."""
    if isinstance(source, bool):
        raise TypeError(f"{source!r} is not a file")
    if isinstance(source, int):
        return source
    if not hasattr(source, "fileno"):
        return None
    if source.closed:
        raise ArgumentError(f"{file_name(source)!r} is closed")
    if isinstance(source, io.TextIOBase) or hasattr(source, "encoding"):
        raise TypeError(f"{file_name(source)!r} is a text file: open it in binary mode, 'rb'")
    try:
        return int(source.fileno())
    except OSError:
        return None


def file_position(source: Any, descriptor: int) -> int:
    """Return the caller's position in a file; flush what was written to it.

    Python may have read ahead, so the position of the descriptor can be different.
    """
    if isinstance(source, int):
        return os.lseek(descriptor, 0, os.SEEK_CUR)
    if source.writable():
        source.flush()
    return int(source.tell())


def check_readable(descriptor: int, name: str) -> None:
    """Raise unless a descriptor is open for reading, and its file is a regular one.

    Raises:
        ArgumentError: One of the two is not the case.
    """
    import fcntl  # missing on Windows, where nothing calls this

    integer("a file descriptor", descriptor, 0, INT32_MAX)
    try:
        mode = os.fstat(descriptor).st_mode
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    except OSError as error:
        raise ArgumentError(f"{name!r} is not open: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "not a regular file")
        raise ArgumentError(f"{name!r} is {kind}: read it, and pass the bytes")
    if flags & getattr(os, "O_PATH", 0):
        raise ArgumentError(f"{name!r} is open for its path only (O_PATH): open it with 'rb'")
    if flags & os.O_ACCMODE == os.O_WRONLY:
        raise ArgumentError(f"{name!r} is open for writing only: open it with 'rb'")


def _view(source: Any, offset: int | None) -> memoryview:
    """Return the bytes of ``source`` from ``offset`` on, without a copy."""
    if isinstance(source, io.BytesIO):
        offset = source.tell() if offset is None else offset
        source = source.getvalue()  # a view would block writes to it
    try:
        view = memoryview(source)
    except TypeError:
        wanted = "a binary file with a descriptor, a descriptor, or bytes"
        raise TypeError(f"{source!r} is not {wanted}: read it, and pass the bytes") from None
    if not view.c_contiguous:
        raise ArgumentError("the bytes are not contiguous: pass bytes(view)")
    view = view.cast("B") if view.nbytes else memoryview(b"")
    if (offset or 0) > len(view):
        raise ArgumentError(f"offset={offset} is beyond the end of the {len(view)} bytes")
    return view[offset or 0 :]


def anonymous_file(pieces: Iterable[Buffer], name: str) -> io.FileIO:
    """Write bytes to a file without a name, which exists as long as it is open or mapped.

    Args:
        pieces: The bytes, in pieces.
        name: The name for messages.

    Raises:
        LoadError: It cannot be written, for instance because the disk is full.
    """
    try:
        file = _new_anonymous()
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[file.write(view) :]
        except BaseException:  # also an interrupt: nothing else would close it
            file.close()
            raise
    except OSError as error:
        raise LoadError(error.errno, error.strerror, name) from error
    return file


def _new_anonymous() -> io.FileIO:
    if hasattr(os, "memfd_create"):
        return open_owned("r+", os.memfd_create, "llamacffi")
    with tempfile.TemporaryFile(buffering=0) as file:
        return open_owned("r+", os.dup, file.fileno())
