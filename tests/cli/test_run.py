"""``llamacffi run``: what is printed, and where."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.timing import HANGS

from .conftest import Cli, StartCli

SUMMARY = re.compile(
    r"prompt: (\d+) tokens?, \d+ tokens/s \| generation: (\d+) tokens?(?:, \d+ tokens/s)? \| "
    r"stopped: (\w+)(?: \| seed: (\d+))?"
)


def test_the_prompt_comes_first_and_greedy_text_after_it(cli: Cli, demo_path: Path) -> None:
    from llamacffi import Context, Model, SamplerChain, generate

    with Model(demo_path) as model, Context(model) as context:
        greedy = SamplerChain.default(temp=0)
        text = generate(context, "The llama", sampler=greedy, max_tokens=12).text()
    done = cli("run", "-m", demo_path, "The llama", "-n", 12, "--temp", 0)
    assert done.returncode == 0
    assert done.stdout == f"The llama{text}\n"


def test_a_seed_makes_it_repeatable(cli: Cli) -> None:
    first, second, other = (cli("run", "-q", "--seed", seed, "-n", 60) for seed in (7, 7, 8))
    assert first.stdout == second.stdout != other.stdout
    assert first.stdout.startswith("The llama")


def test_the_summary_names_the_seed_that_repeats_it(cli: Cli) -> None:
    first = cli("run", "-n", 40)
    match = SUMMARY.fullmatch(first.stderr.splitlines()[-1])
    assert match is not None
    assert cli("run", "-q", "-n", 40, "--seed", match[4]).stdout == first.stdout


def test_the_summary_counts(cli: Cli) -> None:
    done = cli("run", "-n", 5, "--seed", 7)
    match = SUMMARY.fullmatch(done.stderr.splitlines()[-1])
    assert match is not None
    assert match.groups() == ("3", "5", "length", "7")


def test_the_summary_and_the_notice_go_to_stderr(cli: Cli, demo_path: Path) -> None:
    done = cli("run", "--temp", 0, "-n", 1)
    notice, summary = done.stderr.splitlines()
    assert "built-in model" in notice
    assert "generation: 1 token |" in summary
    named = cli("run", "-m", demo_path, "The llama", "--temp", 0, "-n", 1)
    assert len(named.stderr.splitlines()) == 1


def test_quiet_is_silent(cli: Cli) -> None:
    assert cli("run", "-q", "-n", 5).stderr == ""


def test_verbose_shows_the_log(cli: Cli) -> None:
    done = cli("run", "-v", "-n", 2, "--temp", 0)
    assert "llama_context" in done.stderr
    assert done.stdout == cli("run", "-q", "-n", 2, "--temp", 0).stdout


@pytest.mark.parametrize("args", [(), ("-",)])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_prompt_may_be_piped_in(cli: Cli, args: tuple[str, ...], end: str) -> None:
    done = cli("run", "-q", "-n", 5, "--temp", 0, *args, stdin=f"The\n old tree{end}")
    assert done.stdout.startswith("The\n old tree stands by")


def test_generation_ends_at_a_stop_string(cli: Cli) -> None:
    args = ("run", "The old tree", "-n", 50, "--temp", 0)
    whole = cli(*args, "-q").stdout
    stop = whole.split()[8]
    done = cli(*args, "--stop", "nowhere", "--stop", f" {stop}")
    assert done.stdout == whole[: whole.index(f" {stop}", len("The old tree"))] + "\n"
    assert "stopped: stop" in done.stderr


def test_without_a_limit_it_goes_on_until_the_context_is_full(cli: Cli) -> None:
    done = cli("run", "--temp", 0, "-n", -1, "-c", 256)
    match = SUMMARY.fullmatch(done.stderr.splitlines()[-1])
    assert match is not None
    assert match[3] == "context"
    assert int(match[1]) + int(match[2]) == 256 + 1  # the last one need not be in memory


def test_every_option_about_sampling_has_an_effect(cli: Cli) -> None:
    def text(*args: object) -> str:
        return cli("run", "-q", "-n", 40, "--seed", 1, "--temp", 3, *args).stdout

    off = ("--top-k", 0, "--top-p", 1, "--min-p", 0)
    plain = text(*off)
    for option, value in (
        ("--top-k", 1),
        ("--top-p", 0.1),
        ("--min-p", 0.9),
        ("--repeat-penalty", 5),
        ("--temp", 0.2),
        ("--seed", 2),
    ):
        assert text(*off, option, value) != plain, option


def test_machine_options_do_not_change_the_text(cli: Cli) -> None:
    args = ("run", "-q", "-n", 10, "--temp", 0)
    assert cli(*args, "-t", 2, "--ngl", 0, "-c", 0).stdout == cli(*args).stdout


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_a_terminal_without_unicode_works(cli: Cli, env: dict[str, str]) -> None:
    done = cli("run", "-q", "Llamá", "-n", 3, "--temp", 0, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(r"Llam\xe1")


def test_the_prompt_need_not_be_utf8(cli: Cli) -> None:
    done = cli("run", "-q", "-n", 3, "--temp", 0, stdin=b"The \xff llama")
    assert done.returncode == 0
    assert done.stdout.startswith("The \N{REPLACEMENT CHARACTER} llama")


def test_it_samples_as_the_file_recommends(cli: Cli, demo_path: Path, tmp_path: Path) -> None:
    from llamacffi import Gguf

    with Gguf.open(demo_path) as gguf:
        gguf["general.sampling.temp"] = 0.0
        gguf.write(path := tmp_path / "greedy.gguf")
    args = ("run", "-q", "-n", 30, "The llama")
    greedy = cli(*args, "-m", demo_path, "--temp", 0)
    assert cli(*args, "-m", path).stdout == greedy.stdout
    lively = cli(*args, "-m", path, "--temp", 1.5, "--seed", 3)
    assert lively.stdout != greedy.stdout
    assert lively.stdout == cli(*args, "-m", demo_path, "--temp", 1.5, "--seed", 3).stdout


# By this measure every computation lacks CPU time; test_contention.py tests the real one.
STRICT = """if True:
    import sys
    from llamacffi.context import contention
    from llamacffi.cli import main
    contention.ENOUGH, contention.SWITCHES, contention.LACKING = 0, 0, -99
    sys.exit(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not count preemptions")
def test_the_reason_for_slowness(start_cli: StartCli) -> None:
    args = ("run", "-t", 2, "-n", 20, "-c", 256, "--temp", 0, "The")
    with start_cli(*args, code=STRICT, stderr=subprocess.PIPE) as process:
        _, stderr = process.communicate(timeout=HANGS)
    *_, reason, summary = stderr.decode().splitlines()
    assert reason.startswith("llamacffi: slow: other work uses the CPUs: 2 threads got ")
    assert reason.endswith("fewer threads are much faster; try -t 1")
    assert SUMMARY.fullmatch(summary)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (["-n", 5], ["--n-predict", 5]),
        (["-n", 5], ["--predict", 5]),
        (["-n", 5, "-c", 256], ["-n", 5, "--ctx-size", 256]),
        (["-n", 5, "--ngl", 0], ["-n", 5, "-ngl", 0]),
        (["-n", 5, "--ngl", 0], ["-n5", "--gpu-layers", 0]),
        (["-n", 5, "--ngl", 0], ["-n", 5, "--n-gpu-layers=0"]),
        (["-n", 5, "--temp", 2, "--seed", 3], ["-n", 5, "--temperature", 2, "-s", 3]),
    ],
)
def test_options_as_llama_cpp_spells_them(cli, ours, theirs):
    fixed = [] if "--seed" in ours else ["--temp", 0]
    done = cli("run", *fixed, *theirs, "The llama")
    assert done.returncode == 0
    assert done.stdout == cli("run", *fixed, *ours, "The llama").stdout
