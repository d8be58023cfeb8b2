"""Control sequences in files or model output never reach a terminal."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llamacffi import Gguf, demo
from llamacffi.cli.terminal import fitting, visible
from tests.facade.gguf_models import write_altered
from tests.timing import HANGS

from .conftest import Cli, StartCli

ESCAPES = "\x1b[31m\x07\x9b2J\x9d0;x\x9c\x7f\r\b\u202eabc\u2066"
HARMLESS = "tab\tnewline\nblank é 漢字 🦙 \N{ZERO WIDTH JOINER}"


def obeyed(data: bytes) -> list[str]:
    """Return the control characters that a terminal interprets, except tab and newline."""
    text = data.decode(errors="replace").replace("\r\n", "\n")  # a terminal's own line ends
    return [char for char in text if char not in "\t\n" and visible(char) != char]


def test_what_is_escaped() -> None:
    assert visible(HARMLESS) == HARMLESS
    assert visible("a\x1b[0mb") == r"a\x1b[0mb"
    assert visible("\u202ex\u2069") == r"\u202ex\u2069"
    assert obeyed(visible(ESCAPES).encode()) == []
    for code in (*range(32), *range(127, 160)):
        assert (visible(chr(code)) == chr(code)) == (chr(code) in "\t\n")
    assert fitting(ESCAPES, None) == ESCAPES


@pytest.fixture
def hostile(tmp_path: Path) -> Callable[..., Path]:
    """Make the built-in model with changed metadata and a word made of escape sequences."""

    def make(**changes: str) -> Path:
        path = tmp_path / "hostile.gguf"
        with Gguf.from_bytes(demo.to_bytes()) as gguf:
            tokens = list(gguf["tokenizer.ggml.tokens"])
        tokens[tokens.index("\N{LOWER ONE EIGHTH BLOCK}llama")] = ESCAPES
        metadata = {"tokenizer__ggml__tokens": tokens, "general__name": ESCAPES}
        return write_altered(path, **metadata | changes)

    return make


@pytest.fixture
def on_terminal(start_cli: StartCli) -> Callable[..., bytes]:
    """Run a command with a terminal for output and errors; return what the terminal received."""
    pty = pytest.importorskip("pty")

    def run(*args: object) -> bytes:
        master, slave = pty.openpty()
        with start_cli(*args, stdout=slave, stderr=slave) as process:
            os.close(slave)
            output = b""
            with contextlib.suppress(OSError):  # Linux reports closed writers like this
                while data := os.read(master, 4096):
                    output += data
            process.wait(HANGS)
        os.close(master)
        return output

    return run


@pytest.mark.parametrize(
    "args",
    [
        ("run", "-t", 1, "-n", 30, "--temp", 0, "The"),
        ("run", "-v", "-t", 1, "-n", 1, "The"),
        ("tokenize", "The " + ESCAPES),
        ("tokenize", "-v", "The"),
        ("run", "-t", 1, "-n", 3, ESCAPES),
    ],
    ids=lambda args: " ".join(map(str, args[:2])),
)
def test_a_terminal_gets_no_control_sequences(
    on_terminal: Callable[..., bytes], hostile: Callable[..., Path], args: tuple[object, ...]
) -> None:
    output = on_terminal(args[0], "-m", hostile(), *args[1:])
    assert obeyed(output) == []
    assert rb"\x1b" in output


@pytest.mark.parametrize(
    "changes",
    [
        {"general__architecture": ESCAPES},
        {"tokenizer__ggml__model": ESCAPES},
        {"tokenizer__ggml__pre": ESCAPES, "tokenizer__ggml__model": "gpt2"},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("options", [(), ("-v", "--traceback")])
def test_errors_have_no_control_sequences(
    cli: Cli, hostile: Callable[..., Path], changes: dict[str, str], options: tuple[str, ...]
) -> None:
    for command in ("run", "tokenize"):
        done = cli(command, *options, "-m", hostile(**changes), "The")
        assert done.returncode == 1
        assert obeyed(done.stderr.encode()) == []


def test_file_names_have_no_control_sequences(cli: Cli) -> None:
    for args in (("run", "-m", ESCAPES, "x"), ("run", f"--{ESCAPES}", "x"), ("run", "a", ESCAPES)):
        done = cli(*args)
        assert done.returncode in (1, 2)
        assert obeyed(done.stderr.encode()) == []


def test_info_has_no_control_sequences(cli: Cli) -> None:
    done = cli("info", env={"XDG_CACHE_HOME": f"/tmp/{ESCAPES}"})
    assert done.returncode == 0
    assert obeyed(done.stdout.encode()) == []


def test_a_pipe_gets_the_output_unchanged(cli: Cli, hostile: Callable[..., Path]) -> None:
    done: subprocess.CompletedProcess[str] = cli(
        "run", "-m", hostile(), "-q", "-n", 1, "--temp", 0, "The"
    )
    assert done.stdout == f"The{ESCAPES}\n"
