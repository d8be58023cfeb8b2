"""Files that are written at once or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def part_of(path: str | os.PathLike[str]) -> Path:
    """Return a new name beside ``path``, for a file that takes its place when it is complete."""
    path = Path(path)
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a file to write; it becomes ``path`` at the end, or vanishes if an exception passes.

    Others see either what was there before or all of the new.

    Raises:
        OSError: It cannot be written.
    """
    part = part_of(path)
    # Made here, since `tempfile` gives its files to their owner alone, whatever the umask says.
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
    descriptor = os.open(part, flags, 0o666)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:  # also if interrupted: leave nothing behind
        part.unlink(missing_ok=True)
        raise
