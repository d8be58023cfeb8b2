"""What goes wrong is one line on stderr and an exit code."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamacffi import ContextError
from llamacffi.cli.failure import Failures

from .conftest import Cli, StartCli


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("llamacffi: ")
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["COMMAND", "--help"]),
        (["walk"], ["walk"]),
        (["run", "--bad"], ["--bad"]),
        (["run", "The", "llama"], ["llama"]),
        (["run", "-n", "x"], ["-n", "invalid int value: 'x'"]),
        (["run", "-n", "0"], ["-n", "0 is neither"]),
        (["run", "--temp", "-1"], ["--temp", "-1.0"]),
        (["run", "--temp", "nan"], ["--temp", "nan"]),
        (["run", "--top-k", "-1"], ["--top-k", "-1"]),
        (["run", "--top-p", "2"], ["--top-p", "2.0"]),
        (["run", "--min-p", "2"], ["--min-p", "2.0"]),
        (["run", "--repeat-penalty", "0"], ["--repeat-penalty"]),
        (["run", "--seed", "-1"], ["--seed", "-1"]),
        (["run", "--stop", ""], ["--stop", "empty"]),
        (["run", ""], ["the prompt is empty"]),
        (["run", "-"], ["the prompt is empty"]),
        (["run", "-m", "any.gguf"], ["no prompt"]),
        (["run", "-t", "0"], ["n_threads=0"]),
        (["run", "-c", "-1"], ["n_ctx=-1"]),
        (["tokenize", "--ids", "--count", "x"], ["--ids", "--count"]),
    ],
)
def test_wrong_usage(cli: Cli, args: list[str], words: list[str]) -> None:
    assert_one_line(cli(*args), 2, *words)


def test_a_prompt_that_does_not_fit(cli: Cli) -> None:
    done = cli("run", "-c", 8, "llama " * 400)
    assert_one_line(done, 2, "a context of 256", "--ctx")


@pytest.mark.parametrize("command", ["run", "tokenize"])
def test_models_that_cannot_be_loaded(cli: Cli, tmp_path: Path, command: str) -> None:
    text, broken = tmp_path / "text.gguf", tmp_path / "broken.gguf"
    text.write_text("no model")
    broken.write_bytes(b"GGUF\x03\0\0\0" + b"garbage " * 9)
    for path, words in (
        (tmp_path / "missing.gguf", ["no such model file", "missing.gguf"]),
        (tmp_path, ["Is a directory"]),
        (text, ["text.gguf", "no GGUF"]),
        (broken, ["cannot load", "broken.gguf", "number of tensors"]),
    ):
        assert_one_line(cli(command, "-m", path, "x"), 1, *words)


def test_the_log_of_a_failure_with_verbose(cli: Cli, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\0\0\0" + b"garbage " * 9)
    done = cli("run", "-v", "-m", broken, "x")
    *log, line = done.stderr.splitlines()
    assert line.startswith("llamacffi: cannot load")
    assert any("failed to load model" in one for one in log)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk(start_cli: StartCli) -> None:
    with open("/dev/full", "wb") as full, start_cli("tokenize", "x", stdout=full) as process:
        _, err = process.communicate(timeout=30)
    done = subprocess.CompletedProcess(process.args, process.returncode, "", err.decode())
    assert_one_line(done, 1, "No space left")


def test_the_traceback_is_for_those_who_ask(cli: Cli, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    env = {"XDG_CACHE_HOME": str(blocked)}
    assert_one_line(cli("tokenize", "x", env=env), 1, "Not a directory")
    done = cli("tokenize", "x", "--traceback", env=env)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr


@pytest.fixture
def failures() -> Iterator[Failures]:
    failures = Failures()
    yield failures
    failures.close()


def test_the_cause_is_the_first_error_of_the_log(failures: Failures) -> None:
    log = logging.getLogger("llamacffi")
    log.error("an older error")
    log.warning("a warning")
    log.error("the cause")
    log.error("what came of it")
    note = "llama.cpp's log:\n  a warning\n  the cause\n  what came of it"
    # The second is what `with_log` does where exceptions have no notes.
    noted, older = ContextError("cannot create it"), ContextError(f"cannot create it\n{note}")
    noted.__notes__ = [note]
    assert failures.line(noted) == failures.line(older) == "cannot create it: the cause"
    assert failures.line(ContextError("alone")) == "alone"


def test_other_exceptions_are_called_bugs(failures: Failures) -> None:
    assert failures.line(KeyError("a")).startswith("internal error: KeyError: 'a'")
    assert "\n" not in failures.line(RuntimeError("a\nb"))
    assert failures.code(RuntimeError()) == 1
