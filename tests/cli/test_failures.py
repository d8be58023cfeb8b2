"""A failure is one line on stderr and an exit code."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamacffi import ContextError
from llamacffi.cli.failure import Failures
from tests.timing import HANGS

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
        (["run", "-n", "0"], ["-n", "must be between 1 and 2147483647, not 0: give -1"]),
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
        (["run", "-m", "any.gguf"], ["the prompt is missing"]),
        (["run", "-t", "0"], ["--threads", "must be between 1 and 2147483647, not 0"]),
        (["run", "-c", "-1"], ["--ctx", "must be between 0 and 2147483647, not -1"]),
        (["run", "--ctx", "-4"], ["--ctx", "must be between 0 and 2147483647, not -4"]),
        (["run", "--ctx", str(2**31)], ["--ctx", f"must be between 0 and 2147483647, not {2**31}"]),
        (
            ["run", "--ngl", str(10**20)],
            ["--ngl", f"between -1 and 2147483647, not {10**20}"],
        ),
        (
            ["run", "-n", str(10**20)],
            ["--max-tokens", f"between 1 and 2147483647, not {10**20}"],
        ),
        (["run", "--temp", "-1"], ["--temp", ": must be finite and at least 0, not -1.0"]),
        (["run", "--modle", "x", "hi"], ["unknown option '--modle'; did you mean --model?"]),
        (["run", "--modle=x", "hi"], ["unknown option '--modle'; did you mean --model?"]),
        (["tokenize", "--parse-specials", "hi"], ["did you mean --parse-special?"]),
        (["run", "x.gguf"], ["'x.gguf' is a model", "did you mean -m x.gguf?"]),
        (["run", "x.gguf", "hi"], ["'x.gguf' is a model", "did you mean -m x.gguf?"]),
        (["tokenize", "dir/x.gguf"], ["did you mean -m dir/x.gguf?"]),
        (["run", "./dir/x.GGUF"], ["'./dir/x.GGUF' is a model", "did you mean -m ./dir/x.GGUF?"]),
        (["run", "my dir/x.gguf"], ["is a model", "did you mean -m 'my dir/x.gguf'?"]),
        (["run", "no such dir/x.gguf", "hi"], ["did you mean -m 'no such dir/x.gguf'?"]),
        (["run", "two", "words"], ["unexpected argument 'words'", "quote"]),
        (["info", "m.gguf"], ["'m.gguf' is a model: `llamacffi info` describes"]),
        (
            ["info", "-m", "m.gguf"],
            ["unknown option '-m': `llamacffi info` describes this machine"],
        ),
        (["info", "too"], ["unexpected argument 'too' (see llamacffi info"]),
        (["m.gguf"], ["'m.gguf' is a model: give a command first, as in", "run -m m.gguf`"]),
        (["-m", "m.gguf"], ["give a command first, as in `llamacffi run -m FILE`"]),
        (
            ["run", "-p", "hi"],
            ["unknown option '-p': give the text as an argument", "llamacffi run --help"],
        ),
        (["tokenize", "--prompt=hi"], ["unknown option '--prompt': give the text as an argument"]),
        (["run", "-hf", "a/b"], ["unknown option '-hf': download the file and give it with -m"]),
        (["run", "-cnv", "-n", "3"], ["unknown option '-cnv'", "Model.chat_template()"]),
        (["run", "hi", "--flash-attn", "on"], ["'--flash-attn': in Python, Model and Context"]),
        (["run", "--", "-p", "x"], ["unexpected argument 'x'"]),
        (["tokenize", "--ids", "--count", "x"], ["--ids", "--count"]),
    ],
)
def test_wrong_usage(cli: Cli, args: list[str], words: list[str]) -> None:
    assert_one_line(cli(*args), 2, *words)


def test_a_model_with_any_name_is_not_a_prompt(cli: Cli, demo_path: Path, tmp_path: Path) -> None:
    shutil.copy(demo_path, tmp_path / "model")
    assert_one_line(cli("run", "model"), 2, "'model' is a model", "did you mean -m model?")
    done = cli("run", "-q", "-n", 1, "-m", "model", "model")  # then it is really meant as text
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "text").write_text("no model")
    assert cli("run", "-q", "-n", 1, "text").stdout.startswith("text")
    assert cli("run", "-q", "-n", 1, "What is x.gguf").stdout.startswith("What is x.gguf")
    assert cli("run", "-q", "-n", 1, stdin="x.gguf").stdout.startswith("x.gguf")


def test_warnings_look_like_messages_of_the_command(cli: Cli) -> None:
    done = cli("run", "--ngl", 3, "-n", 1, "--temp", 0, "The llama")
    assert done.returncode == 0
    warning, *_ = done.stderr.splitlines()
    assert warning.startswith("llamacffi: warning: n_gpu_layers=3 has no effect")
    assert ".py" not in done.stderr
    assert "warn(" not in done.stderr
    assert cli("run", "-q", "--ngl", 3, "-n", 1, "--temp", 0, "The llama").stderr == ""


def test_the_home_directory_in_an_option(cli: Cli, demo_path: Path) -> None:
    done = cli("tokenize", f"--model=~/{demo_path.name}", "x", env={"HOME": str(demo_path.parent)})
    assert done.returncode == 0


def test_a_prompt_that_does_not_fit(cli: Cli) -> None:
    done = cli("run", "-c", 8, "llama " * 400)
    assert_one_line(done, 2, "the context is 256", "--ctx")


@pytest.mark.parametrize("command", ["run", "tokenize"])
def test_models_that_cannot_be_loaded(cli: Cli, tmp_path: Path, command: str) -> None:
    text, broken = tmp_path / "text.gguf", tmp_path / "broken.gguf"
    text.write_text("no model")
    broken.write_bytes(b"GGUF\x03\0\0\0" + b"garbage " * 9)
    for path, words in (
        (tmp_path / "missing.gguf", ["no such model file", "missing.gguf"]),
        (tmp_path, ["Is a directory"]),
        (text, ["text.gguf", "not a GGUF"]),
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
        _, err = process.communicate(timeout=HANGS)
    done = subprocess.CompletedProcess(process.args, process.returncode, "", err.decode())
    assert_one_line(done, 1, "No space left")


def test_a_traceback_on_request(cli: Cli, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    env = {"XDG_CACHE_HOME": str(blocked)}
    assert_one_line(cli("tokenize", "x", env=env), 1, "Not a directory")
    done = cli("tokenize", "x", "--traceback", env=env)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr


@pytest.mark.parametrize("left", [100, 1000, 300_000])
def test_a_truncated_file_is_reported_once(cli: Cli, demo_path: Path, left: int) -> None:
    path = demo_path.with_name("cut.gguf")
    path.write_bytes(demo_path.read_bytes()[:left])
    done = cli("run", "-m", str(path), "hi")
    assert_one_line(done, 1, "cut off")
    for words in ("tensor '", "failed to read", "remaining file size", "within the file"):
        assert done.stderr.count(words) <= 1, done.stderr


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
    # The second is what `with_log` does before Python 3.11, without notes.
    noted, older = ContextError("cannot create it"), ContextError(f"cannot create it\n{note}")
    noted.__notes__ = [note]
    assert failures.line(noted) == failures.line(older) == "cannot create it: the cause"
    assert failures.line(ContextError("alone")) == "alone"


def test_other_exceptions_are_internal_errors(failures: Failures) -> None:
    assert failures.line(KeyError("a")).startswith("internal error: KeyError: 'a'")
    assert "\n" not in failures.line(RuntimeError("a\nb"))
    assert failures.code(RuntimeError()) == 1


def test_a_url_is_named_as_it_was_given(cli: Cli) -> None:
    for url in ("https://host/x.gguf", "https:/host/x.gguf"):
        words = "it is a URL: download the file, and pass its path", repr(url)
        assert_one_line(cli("run", "-m", url, "hi"), 1, *words)


def test_an_empty_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    assert_one_line(cli("run", "-m", "empty.gguf", "hi"), 1, "is not a GGUF file: it is empty")
