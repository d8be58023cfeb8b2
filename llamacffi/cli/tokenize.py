"""``llamacffi tokenize``: the tokens of a text."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from .failure import UsageError
from .inputs import add_model_option, model_path, read_text

if TYPE_CHECKING:
    from ..vocab.vocab import Vocab


def add_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "tokenize",
        help="print the tokens of a text",
        description="Print the tokens of a text, one per line: the id and the text.",
        allow_abbrev=False,
    )
    add_model_option(parser)
    parser.add_argument(
        "text", metavar="TEXT", nargs="?", help="the text (default, or -: all of stdin)"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--ids", action="store_true", help="print the ids as a JSON list")
    output.add_argument("--count", action="store_true", help="print the number of tokens")
    parser.add_argument(
        "--no-special", action="store_true", help="do not add special tokens, such as BOS"
    )
    parser.add_argument(
        "--parse-special",
        action="store_true",
        help="parse the text of special tokens as those tokens",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    text = read_text(args.text, args)
    if text is None:
        raise UsageError("the text is missing: give TEXT, or pipe it in")
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
    """Return the text of a token in quotes, or its bytes if they are not complete characters."""
    piece = vocab.piece(token)
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return repr(piece)
