"""Packages like that of the pin, made of the real llama.cpp, and an index that has them."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ffigen.fetch import sha256_of
from ffigen.follow.trial import sources
from ffigen.preprocess import INCLUDE_DIRS
from ffigen.project import Project
from ffigen.vendor import change_pin

NAME = "tinyllama"
# What the module's own C includes, and what shows that it is a llama.cpp tree.
PATTERNS = (
    *(f"{folder}/*.h" for folder in INCLUDE_DIRS),
    "src/*.h",
    "ggml/src/*.h",
    "CMakeLists.txt",
)
# A build backend in the package itself, so that pip needs nothing else to get its metadata.
BACKEND = """\
import pathlib
def prepare_metadata_for_build_wheel(directory, config_settings=None):
    info = pathlib.Path(directory, f"tinyllama-{pathlib.Path('VERSION').read_text()}.dist-info")
    info.mkdir()
    (info / "METADATA").write_text(pathlib.Path("PKG-INFO").read_text())
    return info.name
def build_wheel(directory, config_settings=None, metadata_directory=None):
    raise NotImplementedError
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'

Change = Callable[[str], str]


def make_package(
    index: Path, version: str, commit: str, tree: Path, changes: dict[str, Change] | None = None
) -> Path:
    """Write a version of the package into an index, with some headers changed."""
    archive = index / f"{NAME}-{version}.tar.gz"
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\n",
        "VERSION": version,
        "pyproject.toml": PYPROJECT,
        "backend.py": BACKEND,
        ".git/modules/vendor/llama.cpp/HEAD": f"{commit}\n",
    }
    for pattern in PATTERNS:
        for path in sorted(tree.glob(pattern)):
            name = path.relative_to(tree).as_posix()
            text = path.read_text(encoding="utf-8")
            changed = (changes or {}).get(name, lambda same: same)(text)
            assert name not in (changes or {}) or changed != text, f"nothing changed in {name}"
            files[f"vendor/llama.cpp/{name}"] = changed
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"{NAME}-{version}/{name}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return archive


class Site:
    """A copy of our own sources, whose pin leads to an index with packages of our making."""

    def __init__(self, directory: Path, root: Path, tree: Path) -> None:
        self.index = directory / "index"
        self.index.mkdir()
        self.root = directory / "project"
        self.tree = tree
        for name in sources(root):
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((root / name).read_bytes())
        subprocess.run(["git", "init", "--quiet", str(self.root)], check=True)
        archive = make_package(self.index, "1.0", "a" * 40, tree)
        pin = self.root / "vendor" / "llama.toml"
        values = {"name": NAME, "version": "1.0", "commit": "a" * 40, "sha256": sha256_of(archive)}
        pin.write_text(change_pin(pin.read_text(), **values))
        (self.root / "vendor" / "history.toml").write_text("")

    def publish(self, version: str, commit: str, changes: dict[str, Change] | None = None) -> Path:
        """Add a version to the index."""
        return make_package(self.index, version, commit, self.tree, changes)

    @property
    def project(self) -> Project:
        """The copy."""
        return Project(self.root)

    def files(self) -> dict[str, tuple[bytes, int]]:
        """Return every file there is, with its bytes and its time."""
        return {
            path.relative_to(self.root).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in self.root.rglob("*")
            if path.is_file() and ".git" not in path.relative_to(self.root).parts
            if "__pycache__" not in path.parts
        }


@pytest.fixture
def site(tmp_path: Path, root: Path, llama_cpp: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Such a copy, and pip configured for its index."""
    made = Site(tmp_path, root, llama_cpp)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.index))
    return made
