"""A part of the fuzz of hyperparameters, over every architecture; see tests/fuzz."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Another part: LLAMACFFI_FUZZ_SEED=7 pytest tests/reference/test_hyperparameters.py
SEED = os.environ.get("LLAMACFFI_FUZZ_SEED", "0")
SHARE = "0.001"


def test_wrong_numbers_are_refused_or_computed_with(models: Path, root: Path):
    program = [sys.executable, "-m", "tests.fuzz.hyperparameters", models]
    done = subprocess.run(
        [*program, "--share", SHARE, "--seed", SEED],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    n_cases = int(done.stdout.splitlines()[-1].split()[0])
    assert n_cases > 300
