"""File descriptors that have an owner from the start.

Ctrl-C raises KeyboardInterrupt between any two steps of the interpreter: also between the call that
opens a file and the line that stores the result.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable


def open_owned(mode: str, function: Callable[..., int], *args: object) -> io.FileIO:
    """Open a descriptor, and return a file object that closes it.

    For the interpreter this is a single step, as in `llamacffi._core.ownership.make`.

    Args:
        mode: What the descriptor allows: ``"r"`` or ``"r+"``.
        function: A C function that returns a descriptor, such as `os.open`.  The descriptor must
            not be that of a directory.
        *args: The arguments of ``function``.

    Raises:
        OSError: ``function`` failed.
    """
    return next(map(io.FileIO, itertools.starmap(function, (args,)), (mode,)))
