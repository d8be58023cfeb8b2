"""Where a command's model and text come from."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys

from .failure import UsageError


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Add ``-m``."""
    parser.add_argument(
        "-m", "--model", metavar="FILE", help="a GGUF file (default: the built-in model)"
    )


def model_path(args: argparse.Namespace) -> str:
    """Return the file of ``-m``, or of the built-in model."""
    if args.model is not None:
        # The shell does that, but not in --model=~/m.gguf.  No Path: that of a URL is another text.
        path: str = os.path.expanduser(args.model)
        return path
    from .. import demo

    return os.fspath(demo.path())


def is_model(text: str) -> bool:
    """Tell whether a text is the name of a model, there or not."""
    from ..model.file_kind import MAGIC

    # A question may end so too, but seldom with a directory in it.
    if text.lower().endswith(".gguf") and (len(text.split()) == 1 or os.path.dirname(text)):
        return True
    with contextlib.suppress(OSError, ValueError):  # ValueError: no file can be called so
        if os.path.isfile(text):
            with open(text, "rb") as file:
                return file.read(len(MAGIC)) == MAGIC
    return False


def model_hint(text: str) -> str | None:
    """Return what to say of a text that is the name of a model; None if it is none."""
    if not is_model(text):
        return None
    return f"{text!r} is a model and no text: did you mean -m {shlex.quote(text)}?"


def read_text(argument: str | None, args: argparse.Namespace) -> bytes | None:
    """Return the text of a command: its argument, or what is piped in.

    Args:
        argument: As given; ``-`` and None stand for stdin.
        args: All that was given.

    Returns:
        As bytes, for it need not be UTF-8.  None if there is no argument and stdin is a terminal.

    Raises:
        UsageError: It is the name of a model, and no model is named.
    """
    if argument is not None and argument != "-":
        if args.model is None and (hint := model_hint(argument)):
            raise UsageError(hint)
        return os.fsencode(argument)
    if sys.stdin is None or (argument is None and sys.stdin.isatty()):
        return None
    return sys.stdin.buffer.read()
