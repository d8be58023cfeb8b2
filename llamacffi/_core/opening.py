"""Descriptors that have an owner from the beginning.

Ctrl-C raises KeyboardInterrupt between any two steps of the interpreter, so also between the call
that opens a file and the line that is to close it.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable


def open_owned(mode: str, function: Callable[..., int], *args: object) -> io.FileIO:
    """Return the file of a descriptor, which is closed with it.

    Opening it is one step for the interpreter, as in `llamacffi._handle.make`.

    Args:
        mode: As the descriptor can be used: ``"r"`` or ``"r+"``.
        function: What returns the descriptor, as `os.open`: no function in Python.
        *args: Its arguments.  It must not open a directory.

    Raises:
        OSError: Where ``function`` does.
    """
    return next(map(io.FileIO, itertools.starmap(function, (args,)), (mode,)))
