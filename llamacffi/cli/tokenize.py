"""``llamacffi tokenize``: the tokens of a text."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from .failure import UsageError
from .source import add_model_option, model_path, read_text

if TYPE_CHECKING:
    from ..vocab.vocab import Vocab


def add_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    """Describe the command."""
    parser = commands.add_parser(
        "tokenize",
        help="print the tokens of a text",
        description="Print the tokens of a text, one per line: its id and what it stands for.",
        allow_abbrev=False,
    )
    add_model_option(parser)
    parser.add_argument(
        "text", metavar="TEXT", nargs="?", help="the text (default, or -: stdin, to its last byte)"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--ids", action="store_true", help="print the ids as a JSON list")
    output.add_argument("--count", action="store_true", help="print how many there are")
    parser.add_argument(
        "--no-special", action="store_true", help="add no tokens around the text, such as BOS"
    )
    parser.add_argument(
        "--parse-special", action="store_true", help="read the texts of special tokens as those"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    text = read_text(args.text, args)
    if text is None:
        raise UsageError("there is no text: give TEXT, or pipe it in")
    from ..model.model import Model

    with Model(model_path(args), vocab_only=True) as model:
        tokens = model.vocab.tokenize(
            text, add_special=not args.no_special, parse_special=args.parse_special
        )
        if args.count:
            print(len(tokens))
        elif args.ids:
            print(json.dumps(tokens))
        else:
            width = len(str(max(tokens, default=0)))
            for token in tokens:
                print(f"{token:{width}}  {_piece(model.vocab, token)}")
    return 0


def _piece(vocab: Vocab, token: int) -> str:
    """Return the text of a token in quotes, or its bytes where they are no whole characters."""
    piece = vocab.piece(token)
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return repr(piece)
