"""``llamacffi tokenize``."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from llamacffi import Model

from .conftest import Cli

TEXT = "The llama's Größe: 5 </s>"


@pytest.mark.parametrize(
    ("options", "special", "parse"),
    [((), True, False), (("--no-special",), False, False), (("--parse-special",), True, True)],
)
def test_ids_match_the_vocabulary(
    cli: Cli, demo_path: Path, options: tuple[str, ...], special: bool, parse: bool
) -> None:
    with Model(demo_path) as model:
        expected = model.vocab.tokenize(TEXT, add_special=special, parse_special=parse)
    done = cli("tokenize", "-m", demo_path, TEXT, "--ids", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == expected
    assert cli("tokenize", TEXT, "--count", *options).stdout == f"{len(expected)}\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_lines_have_the_id_and_the_piece(cli: Cli, demo_path: Path, encoding: str) -> None:
    done = cli("tokenize", TEXT, env={"PYTHONIOENCODING": encoding})
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    with Model(demo_path) as model:
        tokens = model.vocab.tokenize(TEXT)
        pieces = [model.vocab.piece(token) for token in tokens]
    assert [int(token) for token, _piece in lines] == tokens
    printed = [ast.literal_eval(piece) for _token, piece in lines]
    assert [one if isinstance(one, bytes) else one.encode() for one in printed] == pieces
    assert any(isinstance(one, bytes) for one in printed)


@pytest.mark.parametrize("args", [(), ("-",)])
def test_stdin_is_read_to_the_last_byte(cli: Cli, args: tuple[str, ...]) -> None:
    given, piped = cli("tokenize", "a\n"), cli("tokenize", *args, stdin="a\n")
    assert given.stdout == piped.stdout
    assert cli("tokenize", "--no-special", "--count", *args).stdout == "0\n"
    assert cli("tokenize", "--no-special", stdin="").stdout == ""
