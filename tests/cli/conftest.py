"""The command line, run in separate processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.timing import HANGS

COMMAND = (sys.executable, "-X", "dev", "-m", "llamacffi")
Cli = Callable[..., "subprocess.CompletedProcess[str]"]
StartCli = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with its own cache directory for the built-in model."""
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture
def cli(environment: dict[str, str], tmp_path: Path) -> Cli:
    """Run a command to its end: ``cli("run", "-n", 5, stdin="The llama", env={...})``.

    ``run`` gets one thread, unless it is told otherwise: two of them wait for each other, which is
    slow while other tests have the processor.
    """

    def run(
        *args: object, stdin: str | bytes = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        if args[:1] == ("run",) and "-t" not in args:
            args = ("run", "-t", 1, *args[1:])
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [*COMMAND, *map(str, args)],
            check=False,
            input=data,
            capture_output=True,
            timeout=HANGS,
            cwd=tmp_path,
            env={**environment, **(env or {})},
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    return run


@pytest.fixture
def start_cli(environment: dict[str, str], tmp_path: Path) -> StartCli:
    """Start a command."""

    def start(*args: object, code: str | None = None, **options: object) -> subprocess.Popen[bytes]:
        """Start ``code``, which gets the arguments, or else the command."""
        program = COMMAND if code is None else (sys.executable, "-X", "dev", "-c", code)
        settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        settings |= {"stderr": subprocess.PIPE, "cwd": tmp_path, "env": environment}
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            [*program, *map(str, args)],
            **{**settings, **options},
        )

    return start
