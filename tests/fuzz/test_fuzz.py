"""The facade survives hostile calls: documented exceptions, no signal, no hang."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HOSTILE = Path(__file__).with_name("hostile.py")
# More for a longer hunt: LLAMACFFI_FUZZ_SEEDS=1000:1100 pytest tests/fuzz
FIRST, LAST = map(int, os.environ.get("LLAMACFFI_FUZZ_SEEDS", "0:5").split(":"))
CALLS = 1500


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Models and adapters, which each process copies."""
    directory = tmp_path_factory.mktemp("fuzz")
    code = "import sys, pathlib, hostile_files as f; f.prepare(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, directory], cwd=HOSTILE.parent, check=True)
    return directory


@pytest.mark.parametrize("seed", range(FIRST, LAST))
def test_hostile_calls(seed, files, tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", HOSTILE, str(seed), str(CALLS), files],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONHASHSEED": "0"},  # the same calls again, as far as C is the same
        timeout=600,
        check=False,
    )
    log = tmp_path / "calls.log"
    last = log.read_text(errors="replace") if log.exists() else "before the first call"
    assert done.returncode == 0, f"after {last}\n{done.stderr[-4000:]}"
    calls, functions = map(int, re.findall(r"(\d+) calls of (\d+) functions", done.stdout)[0])
    assert calls >= CALLS
    assert functions > 300
