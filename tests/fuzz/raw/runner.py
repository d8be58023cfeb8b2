"""Run the walk in processes of its own, several at once, and gather what they report."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from .child import PATIENCE
from .table import ROOT
from .walk import Death, Report

ADDR_NO_RANDOMIZE = 0x0040000
_libc = ctypes.CDLL(None)


def run(
    names: Sequence[str],
    jobs: int = 1,
    few: bool = False,
    patience: float = PATIENCE,
    nulls: bool = False,
) -> list[Report]:
    """Examine functions, each in one of several processes, and return the reports in their order.

    Raises:
        RuntimeError: A process ended early.
    """
    shares = [names[i::jobs] for i in range(jobs)]
    with tempfile.TemporaryDirectory() as directory:
        started = []
        for i, share in enumerate(shares):
            place = Path(directory) / str(i)
            place.mkdir()
            (place / "names").write_text("\n".join(share))
            command = [sys.executable, "-m", "tests.fuzz.raw", "--in", str(place)]
            command += ["--patience", str(patience)]
            with (place / "printed").open("wb") as printed:  # C prints, and much of it
                command += ["--few"] * few + ["--nulls"] * nulls
                started.append(_start(command, printed))
        codes = [one.wait() for one in started]
        reports = {}
        for i, code in enumerate(codes):
            place = Path(directory) / str(i)
            if code:
                printed_text = (place / "printed").read_text(errors="replace")[-3000:]
                raise RuntimeError(f"a process of the fuzz ended with {code}:\n{printed_text}")
            for line in (place / "reports").read_text().splitlines():
                report = _report(json.loads(line))
                reports[report.function] = report
    return [reports[name] for name in names]


def _start(command: list[str], printed: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a process whose memory is laid out like that of the next: reads beyond are the same."""
    environ = {**os.environ, "PYTHONHASHSEED": "0"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environ,
        stdout=printed,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: _libc.personality(ADDR_NO_RANDOMIZE),  # it may be forbidden
    )


def write(report: Report) -> str:
    """Return a report as a line."""
    return json.dumps(dataclasses.asdict(report)) + "\n"


def _report(data: dict) -> Report:  # type: ignore[type-arg]
    data["deaths"] = [Death(**one) for one in data["deaths"]]
    return Report(**data)
