"""A copy of our sources, elsewhere, to build and test in; what happens there leaves no trace."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..preprocess import GeneratorError

# What says where it broke, in the output of compilers, CMake and pytest.
TELLING = re.compile(r"error[: ]|CMake Error|^(FAILED|ERROR) |^E  |Traceback|undefined reference")
SHOWN = 25


class StepError(GeneratorError):
    """A step failed; the text names it and shows the lines that tell why."""

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(f"{step}: {reason}")
        self.step = step


@contextmanager
def trial(root: Path) -> Iterator[Path]:
    """Yield a copy of the sources in ``root``, with all that is not ignored by git."""
    with tempfile.TemporaryDirectory(prefix="llamacffi-trial-") as scratch, stoppable():
        copy = Path(scratch, "llamacffi")
        for name in sources(root):
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target, follow_symlinks=False)
        for command in ("init", "--quiet"), ("add", "--all"):  # a checkout, as the tests expect
            run_step("copy", ["git", *command], copy)
        yield copy


@contextmanager
def stoppable() -> Iterator[None]:
    """Clean up if the process is told to end, as at an interrupt."""

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def sources(root: Path) -> list[str]:
    """Return the files of a checkout that belong to it, new ones among them.

    Raises:
        GeneratorError: It is not a git checkout.
    """
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        raise GeneratorError(f"{root} is not a git checkout: {listed.stderr.decode().strip()}")
    names = listed.stdout.decode().split("\0")
    return [name for name in names if name and (root / name).is_file()]


def run_step(
    step: str,
    command: Sequence[str],
    copy: Path,
    environ: Mapping[str, str] = os.environ,
    echo: Callable[[str], None] = lambda line: None,
) -> str:
    """Run a command in the copy; return what it printed.

    Raises:
        StepError: It failed.
    """
    echo(f"{step}: {' '.join(command)}")
    process = subprocess.Popen(
        command,
        cwd=copy,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate()
    except BaseException:  # also if interrupted: nothing goes on by itself
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its compilers, too
        process.wait()
        raise
    if process.returncode:
        raise StepError(step, telling(output).replace(f"{copy}{os.sep}", ""))
    return output


def telling(output: str) -> str:
    """Return the lines of an output that say what is wrong, or else the last ones."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    found = list(dict.fromkeys(line for line in lines if TELLING.search(line)))
    shown = found[:SHOWN] if found else lines[-SHOWN:]
    return "\n".join(["it failed", *(f"    {line.strip()}" for line in shown)])


def build(copy: Path, environ: Mapping[str, str], echo: Callable[[str], None]) -> None:
    """Make an environment in the copy, and build and install it there.

    Raises:
        StepError: That failed.
    """
    run_step("build", ["make", "build", f"PYTHON={sys.executable}"], copy, environ, echo)


def python(copy: Path) -> str:
    """Return the interpreter of the copy's environment."""
    return str(copy / ".venv" / "bin" / "python")
