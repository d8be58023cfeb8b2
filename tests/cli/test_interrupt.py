"""Ctrl-C, and readers that close the output."""

from __future__ import annotations

import signal
import subprocess
import threading

import pytest

from tests.timing import HANGS

from .conftest import StartCli

ENDLESS = ("run", "-t", 1, "--temp", 0, "-n", -1, "-c", 200_000)


def test_ctrl_c_ends_a_generation(start_cli: StartCli) -> None:
    with start_cli(*ENDLESS) as process:
        assert process.stdout is not None
        start = process.stdout.read(200)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=HANGS)
    assert process.returncode == 130
    assert start.startswith(b"The llama")
    assert rest.endswith(b"\n")
    assert b"Traceback" not in err
    assert b"stopped: interrupted" in err.splitlines()[-1]


def test_ctrl_c_while_the_prompt_is_computed(start_cli: StartCli) -> None:
    process = start_cli(*ENDLESS, stdin=subprocess.PIPE)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        prompt = b"The llama" + 60_000 * b" llama"
        process.stdin.write(prompt)
        process.stdin.close()
        process.stdin = None
        assert process.stdout.read(len(prompt)) == prompt
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=HANGS)
    assert process.returncode == 130
    assert rest == b"\n"
    assert b"generation: 0 tokens | stopped: interrupted" in err.splitlines()[-1]


def test_ctrl_c_while_the_model_loads(start_cli: StartCli) -> None:
    code = """if True:
        import signal, sys
        from llamacffi.cli import main, progress
        progress.ProgressBar.__call__ = lambda self, part: signal.raise_signal(signal.SIGINT)
        sys.exit(main())
    """
    with start_cli("run", code=code) as process:
        out, err = process.communicate(timeout=HANGS)
    assert (process.returncode, out, err) == (130, b"", b"llamacffi: interrupted\n")


def test_ctrl_c_while_waiting_for_stdin(start_cli: StartCli) -> None:
    code = """if True:
        import sys
        from llamacffi.cli import main

        class Stdin:
            def isatty(self):
                return False

            @property
            def buffer(self):
                print("ready", file=sys.stderr, flush=True)
                return sys.__stdin__.buffer

        sys.stdin = Stdin()
        sys.exit(main())
    """
    with start_cli("run", code=code, stdin=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=HANGS) == 130
        assert process.stderr.read() == b"llamacffi: interrupted\n"


def test_ctrl_c_reaches_a_computation_immediately() -> None:
    from llamacffi.cli.interrupt import ctrl_c_cancels

    class Computation:
        cancelled = threading.Event()

        def cancel(self) -> None:
            self.cancelled.set()

    computation, n_threads = Computation(), threading.active_count()
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda *_: None)  # as if Python could not run its handler yet
    try:
        with ctrl_c_cancels(computation):  # type: ignore[arg-type]
            signal.raise_signal(signal.SIGINT)
            assert computation.cancelled.wait(HANGS)
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == n_threads


@pytest.mark.parametrize(
    "args", [ENDLESS, ("info",), ("tokenize", 20_000 * " llama"), ("run", "--help")]
)
def test_a_reader_that_closes_the_output_is_not_an_error(
    start_cli: StartCli, args: tuple[object, ...]
) -> None:
    with start_cli(*args) as process:
        assert process.stdout is not None
        if args is ENDLESS:
            process.stdout.read(10)
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read().decode()
        assert process.wait(timeout=HANGS) == (0 if "--help" in args else 141)
    assert [line for line in err.splitlines() if "built-in model" not in line] == []


def test_without_stdout_and_stdin(start_cli: StartCli) -> None:
    code = """if True:
        import os, subprocess, sys
        os.close(0), os.close(1)
        os.execv(sys.executable, [sys.executable, "-m", "llamacffi", *sys.argv[1:]])
    """
    with start_cli("run", "-t", 1, "--temp", 0, "-n", 3, code=code) as process:
        assert process.stderr is not None
        err = process.stderr.read()
    assert process.returncode == 0
    assert b"stopped: length" in err
