"""Files that are written at once or not at all.

What is written grows beside the file that it is to replace, and takes its place when it is
complete.  Only a regular file is replaced: a link is followed, and what is there keeps its mode
and, where the system lets it, its owner.
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
# Of a file's name in that of the one beside it: a whole name takes at most 255 bytes, and in some
# file systems 143.
MOST_BYTES = 64
# How often to look: another process may replace the file between two looks.
LOOKS = 10
PROBE = 2**20  # bytes that find out whether there is room


class Target:
    """A file that is to be written."""

    __slots__ = ("name", "path", "status")

    name: str
    """What the caller calls it."""
    path: Path
    """The file itself, behind all links."""
    status: os.stat_result | None
    """What is there now; None if nothing is."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Look at what is there.

        Raises:
            OSError: It is no regular file, or must not be written.
            ArgumentError: No file can be called so.
        """
        self.name = os.fsdecode(checked_path(path))
        for _ in range(LOOKS):
            self.status = self._look()
            self.path = Path(os.path.realpath(self.name))
            if self.status is None or self._is_at(self.path):
                return
        # The name of a file that is open and deleted leads elsewhere.
        raise self.error(errno.EINVAL, "it is a file without a name, which cannot be replaced")

    def _is_at(self, path: Path) -> bool:
        """Return whether the file that was found has this path."""
        try:
            return self.status is not None and os.path.samestat(os.stat(path), self.status)
        except FileNotFoundError:
            return False

    def _look(self) -> os.stat_result | None:
        """Return what is there now."""
        try:
            status = os.stat(self.name)
        except FileNotFoundError:
            if not self.name:
                raise
            if os.path.basename(self.name) not in ("", os.curdir, os.pardir):
                return None
            raise self.error(errno.EISDIR, "this names a directory; name a file") from None
        if stat.S_ISDIR(status.st_mode):
            raise self.error(errno.EISDIR, "it is a directory; name a file")
        if not stat.S_ISREG(status.st_mode):
            kind = KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
            raise self.error(errno.EINVAL, f"it is {kind}, and only a regular file can be written")
        effective = os.access in os.supports_effective_ids
        if not os.access(self.name, os.W_OK, effective_ids=effective):
            raise self.error(errno.EACCES, "it is write-protected")
        return status

    def error(self, number: int | None, reason: str | None) -> OSError:
        """Return an error that names the file as the caller does."""
        return OSError(number or errno.EIO, reason or "it cannot be written", self.name)

    def beside(self) -> Path:
        """Return a new name beside it."""
        start = os.fsencode(self.path.name)[:MOST_BYTES].decode("utf-8", "ignore")
        return self.path.with_name(f".{start}.{secrets.token_hex(4)}.part")

    def create(self, part: Path) -> io.FileIO:
        """Make an empty file, with the mode and the owner that the file has; return it open.

        Args:
            part: Its name.  If this fails, it may be there.
        """
        # `tempfile` gives its files to their owner alone, whatever the umask says.
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
        mode = 0o666 if self.status is None else 0o600
        try:
            file = open_owned("r+", os.open, part, flags, mode)
        except OSError as error:
            raise self._reason(error) from None
        if self.status is not None:
            try:
                _be_like(file.fileno(), self.status)
            except BaseException:  # also if interrupted: nobody else would close it
                file.close()
                raise
        return file

    def _reason(self, error: OSError) -> OSError:
        """Return why there can be no file beside it."""
        directory = os.fspath(self.path.parent)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return self.error(
                error.errno,
                f"{error.strerror}: it is replaced at once by a file that is written beside it, "
                f"and no file can be made in {directory!r}",
            )
        if error.errno == errno.ENOENT:
            return self.error(error.errno, f"there is no directory {directory!r}")
        return self.error(error.errno, error.strerror)

    def replace(self, part: Path) -> None:
        """Let another file take its place.

        Raises:
            OSError: It cannot.
        """
        self._look()  # it may be something else by now
        try:
            os.replace(part, self.path)
        except OSError as error:
            raise self.error(error.errno, error.strerror) from None


def _be_like(descriptor: int, status: os.stat_result) -> None:
    """Give a file the owner and the mode of another, as far as this process may."""
    if not hasattr(os, "fchmod"):  # Windows
        return
    mode, mine = stat.S_IMODE(status.st_mode), os.fstat(descriptor)
    if (mine.st_uid, mine.st_gid) != (status.st_uid, status.st_gid):
        try:
            os.fchown(descriptor, status.st_uid, status.st_gid)
        except OSError:
            try:
                os.fchown(descriptor, -1, status.st_gid)
            except OSError:  # what was for that group is not for another
                mode = mode & ~0o070 | (mode & 0o007) << 3
    os.fchmod(descriptor, mode)


def check_target(path: str | os.PathLike[str]) -> None:
    """Raise for what cannot be written, before the work.

    Raises:
        OSError: It is no regular file, or must not be written.
        ArgumentError: No file can be called so.
    """
    Target(path)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a file to write; it becomes ``path`` at the end, or vanishes if an exception passes.

    Others see either what was there before or all of the new.

    Raises:
        OSError: It cannot be written.
        ArgumentError: No file can be called so.
    """
    target = Target(path)
    part = target.beside()
    with _vanishing([part]):
        with _naming(target), target.create(part) as raw, io.BufferedWriter(raw) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        target.replace(part)


@contextmanager
def replacing_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the path of an empty file for C to write, which becomes ``path`` as in `replacing`.

    Raises:
        OSError: It cannot be written.
        ArgumentError: No file can be called so.
    """
    with replacing_all() as instead:
        yield instead(path)


@contextmanager
def replacing_all() -> Iterator[Callable[[str | os.PathLike[str]], Path]]:
    """Yield a function that makes for each path an empty file to write instead, beside it.

    At the end all of them take their places; if an exception passes, they vanish.

    Raises:
        OSError: One cannot take its place.
    """
    targets: dict[Path, Target] = {}

    def instead(path: str | os.PathLike[str]) -> Path:
        target = Target(path)
        part = target.beside()
        targets[part] = target  # first: it may be made, and the exception come then
        target.create(part).close()
        return part

    with _vanishing(targets):
        yield instead
        for target in targets.values():
            target._look()
        for part, target in targets.items():
            target.replace(part)


@contextmanager
def scratch_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new directory beside ``path``, for this user alone; it vanishes in the end.

    Raises:
        OSError: There cannot be one, or ``path`` cannot be written.
        ArgumentError: No file can be called so.
    """
    target = Target(path)
    directory = target.beside()
    with _vanishing([directory]):
        try:
            directory.mkdir(0o700)
        except OSError as error:
            raise target._reason(error) from None
        yield directory


@contextmanager
def _vanishing(parts: Collection[Path]) -> Iterator[None]:
    """Remove files and directories in the end, those that there are by then.

    Wherever Ctrl-C comes, nothing is left.
    """
    try:
        try:
            yield
        finally:
            _remove(parts)
    finally:  # Ctrl-C may have kept the first from it
        _remove(parts)


def _remove(parts: Collection[Path]) -> None:
    for part in parts:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def explain_failure(part: Path, path: str | os.PathLike[str]) -> None:
    """Raise the system's reason for a file that C could not write, if it still has one.

    Args:
        part: What was written of it.
        path: What to call it.

    Raises:
        OSError: Nothing more can be written to it.
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
def _naming(target: Target) -> Iterator[None]:
    """Name the file in an error of the system's that names none."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None or isinstance(error, LlamaError):
            raise
        raise target.error(error.errno, error.strerror) from error
