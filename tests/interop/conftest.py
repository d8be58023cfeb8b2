"""Builds for other libraries, against the llamacffi that is installed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.builds import check_run


@pytest.fixture(scope="session")
def built(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Build an example from scratch, by pip; return where its package is."""
    made: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in made:
            directory = tmp_path_factory.mktemp(name)
            source, target = directory / "source", directory / "target"
            clean = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
            shutil.copytree(root / "examples" / name, source, ignore=clean)
            options = ["--no-build-isolation", "--no-deps", "--no-index", "--target", target]
            check_run(sys.executable, "-m", "pip", "install", *options, source, cwd=directory)
            made[name] = target
        return made[name]

    return build
