"""The inputs of a command: its model and its text."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys

from .failure import UsageError


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Add the option ``-m``."""
    parser.add_argument(
        "-m", "--model", metavar="FILE", help="a GGUF file (default: the built-in model)"
    )


def model_path(args: argparse.Namespace) -> str:
    """Return the path given with ``-m``, or that of the built-in model."""
    if args.model is not None:
        # The shell does not expand --model=~/m.gguf.  Keep a string: a Path would alter a URL.
        path: str = os.path.expanduser(args.model)
        return path
    from .. import demo

    return os.fspath(demo.path())


def is_model(text: str) -> bool:
    """Return whether a text names a model file, whether or not the file exists."""
    from ..model.file_kind import MAGIC

    # A question may end like this too, but it rarely contains a directory.
    if text.lower().endswith(".gguf") and (len(text.split()) == 1 or os.path.dirname(text)):
        return True
    with contextlib.suppress(OSError, ValueError):  # ValueError: not a possible file name
        if os.path.isfile(text):
            with open(text, "rb") as file:
                return file.read(len(MAGIC)) == MAGIC
    return False


def model_hint(text: str) -> str | None:
    """Return a hint for a text that names a model; None for any other text."""
    if not is_model(text):
        return None
    return f"{text!r} is a model, not a text: did you mean -m {shlex.quote(text)}?"


def read_text(argument: str | None, args: argparse.Namespace) -> bytes | None:
    """Return the text for a command: its argument, or what is piped in.

    Args:
        argument: The argument; ``-`` and None stand for stdin.
        args: All arguments.

    Returns:
        Bytes, which need not be UTF-8.  None without an argument if stdin is a terminal.

    Raises:
        UsageError: The text names a model, and ``-m`` is missing.
    """
    if argument is not None and argument != "-":
        if args.model is None and (hint := model_hint(argument)):
            raise UsageError(hint)
        return os.fsencode(argument)
    if sys.stdin is None or (argument is None and sys.stdin.isatty()):
        return None
    return sys.stdin.buffer.read()
