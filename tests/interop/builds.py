"""ChainedRunner the tools of a build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Build tools that pip has installed come before those of the system.
SCRIPTS = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}


def check_run(*command: object, **options: object) -> str:
    """Run a program; return what it prints, and fail with it if the program does."""
    result = subprocess.run(
        [str(one) for one in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **{"env": ENVIRONMENT, **options},  # type: ignore[call-overload]
    )
    assert result.returncode == 0, result.stdout
    return str(result.stdout)
