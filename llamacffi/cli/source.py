"""Where a command's model and text come from."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Add ``-m``."""
    parser.add_argument(
        "-m", "--model", metavar="FILE", help="a GGUF file (default: the built-in model)"
    )


def model_path(args: argparse.Namespace) -> Path:
    """Return the file of ``-m``, or of the built-in model."""
    if args.model is not None:
        return Path(args.model)
    from .. import demo

    return demo.path()


def read_text(argument: str | None) -> bytes | None:
    """Return the text of a command: its argument, or what is piped in.

    Args:
        argument: As given; ``-`` and None stand for stdin.

    Returns:
        As bytes, for it need not be UTF-8.  None if there is no argument and stdin is a terminal.
    """
    if argument not in (None, "-"):
        return os.fsencode(argument)
    if sys.stdin is None or (argument is None and sys.stdin.isatty()):
        return None
    return sys.stdin.buffer.read()
