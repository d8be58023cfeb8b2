"""Files that are written at once or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ._text import checked_path


def part_of(path: str | os.PathLike[str]) -> Path:
    """Return a new name beside ``path``, for a file that takes its place when it is complete."""
    path = Path(checked_path(path))
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a file to write; it becomes ``path`` at the end, or vanishes if an exception passes.

    Others see either what was there before or all of the new.

    Raises:
        OSError: It cannot be written.
        ArgumentError: No file can be called so.
    """
    part = part_of(path)
    # Made here, since `tempfile` gives its files to their owner alone, whatever the umask says.
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(part, flags, 0o666)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:  # also if interrupted: leave nothing behind
        part.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_all() -> Iterator[Callable[[Path], Path]]:
    """Yield a function that returns for each path the one to write instead, beside it.

    At the end all of them take their places; if an exception passes, they vanish.

    Raises:
        OSError: One cannot take its place.
    """
    parts: dict[Path, Path] = {}

    def instead(path: Path) -> Path:
        return parts.setdefault(path, part_of(path))

    try:
        yield instead
        for path, part in parts.items():
            os.replace(part, path)
    except OSError as error:
        for path, part in parts.items():
            if error.filename == os.fspath(part):
                raise OSError(error.errno, error.strerror, os.fspath(path)) from None
        raise
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
