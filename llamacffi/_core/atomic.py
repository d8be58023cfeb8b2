"""Files that are written completely or not at all.

The new contents are written to a file beside the target, which they replace when complete.  Only a
regular file is replaced; links are followed, and the mode of the old file is kept, and so is its
owner if the system allows it.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import LlamaError
from .opening import open_owned
from .text import checked_path

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
# How many bytes of the target's name the file beside it gets: a name can have 255 bytes, and 143 in
# some file systems.
NAME_BYTES = 64
# How often to try: another process may replace the file between the two steps of a try.
ATTEMPTS = 10
PROBE = 2**20  # bytes to write to learn whether the disk is full


class Target:
    """A file to write."""

    __slots__ = ("name", "path", "status")

    name: str
    """The path as the caller gave it."""
    path: Path
    """The path of the file itself, with all links followed."""
    status: os.stat_result | None
    """The status of the existing file; None if there is none."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Inspect the file.

        Raises:
            OSError: It is not a regular file, or not writable.
            ArgumentError: The path is invalid.
        """
        self.name = os.fsdecode(checked_path(path))
        for _ in range(ATTEMPTS):
            self.status = self._look()
            self.path = Path(os.path.realpath(self.name))
            if self.status is None or self._is_at(self.path):
                return
        # A path in /proc, of a file that is open, but deleted: the link does not lead to it.
        raise self.error(errno.EINVAL, "it is a deleted or unnamed file, which cannot be replaced")

    def _is_at(self, path: Path) -> bool:
        """Return whether a path is that of the file found."""
        try:
            return self.status is not None and os.path.samestat(os.stat(path), self.status)
        except FileNotFoundError:
            return False

    def _look(self) -> os.stat_result | None:
        """Return the status of the file now; None if there is none."""
        try:
            status = os.stat(self.name)
        except FileNotFoundError:
            if not self.name:
                raise
            if os.path.basename(self.name) not in ("", os.curdir, os.pardir):
                return None
            raise self.error(
                errno.EISDIR, "this is the path of a directory; give that of a file"
            ) from None
        if stat.S_ISDIR(status.st_mode):
            raise self.error(errno.EISDIR, "it is a directory; give the path of a file")
        if not stat.S_ISREG(status.st_mode):
            kind = KINDS.get(stat.S_IFMT(status.st_mode), "a special file")
            raise self.error(errno.EINVAL, f"it is {kind}, but must be a regular file")
        effective = os.access in os.supports_effective_ids
        if not os.access(self.name, os.W_OK, effective_ids=effective):
            raise self.error(errno.EACCES, "it is write-protected")
        return status

    def error(self, number: int | None, reason: str | None) -> OSError:
        """Return an error with the path as the caller gave it."""
        return OSError(number or errno.EIO, reason or "it cannot be written", self.name)

    def beside(self) -> Path:
        """Return an unused path in the same directory."""
        start = os.fsencode(self.path.name)[:NAME_BYTES].decode("utf-8", "ignore")
        return self.path.with_name(f".{start}.{secrets.token_hex(4)}.part")

    def create(self, part: Path) -> io.FileIO:
        """Create an empty file with the mode and the owner of the target; return it open.

        Args:
            part: Its path.  The file may exist even if this fails.
        """
        # `tempfile` ignores the umask, and makes its files readable for their owner alone.
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
        mode = 0o666 if self.status is None else 0o600
        try:
            file = open_owned("r+", os.open, part, flags, mode)
        except OSError as error:
            raise self._reason(error) from None
        if self.status is not None:
            try:
                _copy_owner_and_mode(file.fileno(), self.status)
            except BaseException:  # also an interrupt: nothing else would close it
                file.close()
                raise
        return file

    def _reason(self, error: OSError) -> OSError:
        """Return the error that says why no file can be created beside the target."""
        directory = os.fspath(self.path.parent)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return self.error(
                error.errno,
                f"{error.strerror}: the new file is written beside it first, but no file can be "
                f"created in {directory!r}",
            )
        if error.errno == errno.ENOENT:
            return self.error(error.errno, f"the directory {directory!r} does not exist")
        return self.error(error.errno, error.strerror)

    def replace(self, part: Path) -> None:
        """Replace the target with another file.

        Raises:
            OSError: That is impossible.
        """
        self._look()  # raises if it is no longer a regular file
        try:
            os.replace(part, self.path)
        except OSError as error:
            raise self.error(error.errno, error.strerror) from None


def _copy_owner_and_mode(descriptor: int, status: os.stat_result) -> None:
    """Give a file the owner and the mode of another, as far as this process is allowed to."""
    if not hasattr(os, "fchmod"):  # Windows
        return
    mode, mine = stat.S_IMODE(status.st_mode), os.fstat(descriptor)
    if (mine.st_uid, mine.st_gid) != (status.st_uid, status.st_gid):
        try:
            os.fchown(descriptor, status.st_uid, status.st_gid)
        except OSError:
            try:
                os.fchown(descriptor, -1, status.st_gid)
            except OSError:  # another group gets the rights of others only
                mode = mode & ~0o070 | (mode & 0o007) << 3
    os.fchmod(descriptor, mode)


def check_target(path: str | os.PathLike[str]) -> None:
    """Check that a file can be written, before the work begins.

    Raises:
        OSError: It is not a regular file, or not writable.
        ArgumentError: The path is invalid.
    """
    Target(path)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a file to write; it becomes ``path`` at the end, or is removed after an exception.

    Other programs see either the old contents or all of the new ones.

    Raises:
        OSError: The file cannot be written.
        ArgumentError: The path is invalid.
    """
    target = Target(path)
    part = target.beside()
    with _removing([part]):
        with _adding_path(target), target.create(part) as raw, io.BufferedWriter(raw) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        target.replace(part)


@contextmanager
def replacing_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the path of an empty file for C to write, which becomes ``path`` as in `replacing`.

    Raises:
        OSError: The file cannot be written.
        ArgumentError: The path is invalid.
    """
    with replacing_all() as temporary:
        yield temporary(path)


@contextmanager
def replacing_all() -> Iterator[Callable[[str | os.PathLike[str]], Path]]:
    """Yield a function that creates, for a given path, an empty file beside it to write to.

    At the end, the files replace those at the given paths; after an exception, they are removed.

    Raises:
        OSError: A file cannot be replaced.
    """
    targets: dict[Path, Target] = {}

    def temporary(path: str | os.PathLike[str]) -> Path:
        target = Target(path)
        part = target.beside()
        targets[part] = target  # before `create`, which may be interrupted after creating the file
        target.create(part).close()
        return part

    with _removing(targets):
        yield temporary
        for target in targets.values():
            target._look()
        for part, target in targets.items():
            target.replace(part)


@contextmanager
def scratch_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new private directory beside ``path``, which is removed at the end.

    Raises:
        OSError: It cannot be created, or ``path`` cannot be written.
        ArgumentError: The path is invalid.
    """
    target = Target(path)
    directory = target.beside()
    with _removing([directory]):
        try:
            directory.mkdir(0o700)
        except OSError as error:
            raise target._reason(error) from None
        yield directory


@contextmanager
def _removing(parts: Collection[Path]) -> Iterator[None]:
    """Remove those of the files and directories that exist at the end.

    Nothing is left behind, wherever Ctrl-C comes.
    """
    try:
        try:
            yield
        finally:
            _remove(parts)
    finally:  # again: Ctrl-C may have interrupted the first attempt
        _remove(parts)


def _remove(parts: Collection[Path]) -> None:
    for part in parts:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def explain_failure(part: Path, path: str | os.PathLike[str]) -> None:
    """Raise the system's error if a file, which C failed to write, still cannot be written.

    Args:
        part: The path of the file.
        path: The path to name in the error.

    Raises:
        OSError: Nothing more can be written, for instance because the disk is full.
    """
    try:
        with open(part, "ab", buffering=0) as file:
            left = PROBE
            while left:
                left -= file.write(bytes(left))
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None


@contextmanager
def _adding_path(target: Target) -> Iterator[None]:
    """Add the path to an error of the system that has none."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None or isinstance(error, LlamaError):
            raise
        raise target.error(error.errno, error.strerror) from error
