"""A progress bar on a terminal."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from typing_extensions import Self

# Seconds to wait before drawing: a bar for something shorter would only flicker.
PATIENCE = 0.2


class ProgressBar:
    """One line that is redrawn while something runs, and erased at the end.

    Call it with the fraction done, as ``Model(progress=...)`` does.
    """

    def __init__(self, title: str, stream: TextIO | None, *, quiet: bool = False) -> None:
        self._title = title if title.isprintable() else ascii(title)
        self._stream = stream if stream is not None and stream.isatty() and not quiet else None
        self._start = time.monotonic() + PATIENCE
        self._drawn = ""

    def __call__(self, part: float) -> None:
        """Show the fraction done, 0.0 to 1.0."""
        if self._stream is None or time.monotonic() < self._start:
            return
        line = render(self._title, part, _width(self._stream) - 1)
        if line != self._drawn:
            # The new line covers the old one, unless the terminal has become narrower.
            self._stream.write(f"\r{line}{' ' * (len(self._drawn) - len(line))}")
            self._stream.flush()
            self._drawn = line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None and self._drawn:
            self._stream.write(f"\r{' ' * len(self._drawn)}\r")
            self._stream.flush()


def render(title: str, part: float, width: int) -> str:
    """Return as much of title, bar and percentage as fits, dropping the first ones first."""
    part = min(max(part, 0.0), 1.0)
    percent = f"{round(100 * part):3} %"
    room = width - len(percent) - 1
    title = title[: max(room - 12, 0)]
    cells = min(room - len(title) - 3, 40)
    if cells < 4:
        return percent[: max(width, 0)]
    bar = "#" * round(cells * part)
    return f"{title} [{bar:{cells}}] {percent}".lstrip()


def _width(stream: TextIO) -> int:
    """Return the width of the terminal, or 80 if it does not report one."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80
