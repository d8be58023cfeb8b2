"""The progress bar: only on a terminal, redrawn in place, and erased at the end."""

from __future__ import annotations

import os
import pty
import re

import pytest

from llamacffi.cli.progress import ProgressBar, render
from tests.timing import HANGS

from .conftest import Cli, StartCli

IMPATIENT = """if True:
    import sys
    from llamacffi.cli import main, progress
    progress.PATIENCE = 0
    sys.exit(main())
"""


def all_of(terminal: int) -> str:
    """Return what is written to a terminal until its writers close it; then close it."""
    written = b""
    try:
        while part := os.read(terminal, 4096):  # it arrives in pieces, some of them late
            written += part
    except OSError:  # Linux reports the end like this
        pass
    os.close(terminal)
    return written.decode()


def on_terminal(start_cli: StartCli, *args: object, code: str | None) -> str:
    """Return what a command writes to a terminal on stderr."""
    ours, theirs = pty.openpty()
    with start_cli("run", "-t", 1, "-n", 2, *args, code=code, stderr=theirs) as process:
        os.close(theirs)
        written = all_of(ours)
        process.communicate(timeout=HANGS)
    assert process.returncode == 0
    return written


def test_it_is_drawn_in_place_and_erased(start_cli: StartCli) -> None:
    written = on_terminal(start_cli, code=IMPATIENT)
    drawn = re.findall(r"\rloading demo-v\d+\.gguf \[([# ]+)\] +(\d+) %", written)
    assert len(drawn) > 2
    percents = [int(percent) for _bar, percent in drawn]
    assert percents == sorted(percents)
    assert (drawn[-1][0].strip("#"), percents[-1]) == ("", 100)
    # Then spaces over it, and the following lines.
    assert re.search(r"%\r +\rllamacffi: using the small.*\r\nprompt: .*\r\n$", written) is not None


def test_it_does_not_flicker_for_a_small_model(start_cli: StartCli) -> None:
    code = IMPATIENT.replace("PATIENCE = 0", "PATIENCE = 30")
    assert "loading" not in on_terminal(start_cli, code=code)


def test_quiet_hides_it(start_cli: StartCli) -> None:
    assert on_terminal(start_cli, "-q", code=IMPATIENT) == ""


def test_a_file_does_not_get_it(cli: Cli) -> None:
    assert "loading" not in cli("run", "-n", 1).stderr


def test_it_is_erased_if_loading_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamacffi.cli.progress.PATIENCE", 0)
    ours, theirs = pty.openpty()
    with open(theirs, "w") as stream, pytest.raises(KeyError):  # noqa: SIM117, PT012
        with ProgressBar("loading x", stream) as bar:
            bar(0.5)
            raise KeyError
    # The terminal keeps unread output, even after the other end is closed.
    written = all_of(ours)
    line = written.split("\r")[1]
    assert written == f"\r{line}\r{' ' * len(line)}\r"


@pytest.mark.parametrize("part", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_it_fits_the_terminal(part: float) -> None:
    for width in range(100):
        line = render("loading a-model-with-a-long-name.gguf", part, width)
        assert len(line) <= width
        assert width < 5 or line.endswith(" %")
