"""A copy of the installed package: run it, and tamper with its libraries."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llamacffi import _native, ffi, lib

COMMIT = ffi.string(lib.llamacffi_built_commit()).decode()
OTHER = "f" * 40

# An editable install finds the package by a hook, which comes before the search path.
PREFER = """
import sys
sys.meta_path[:] = [one for one in sys.meta_path if "ScikitBuild" not in type(one).__name__]
sys.path.insert(0, {directory!r})
"""

RunCopy = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def package(tmp_path: Path, root: Path) -> Path:
    """The copy."""
    target = tmp_path / "copy" / "llamacffi"
    shutil.copytree(root / "llamacffi", target, ignore=shutil.ignore_patterns("__pycache__", "lib"))
    shutil.copy(_native.module_path, target)
    shutil.copytree(_native.library_dir, target / "lib")
    return target


@pytest.fixture
def run_copy(run_python: RunCopy, package: Path) -> RunCopy:
    """Run code that imports the copy instead of the installed package."""

    def run(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        if "LD_PRELOAD" in environment:  # the address sanitizer is there too
            preload = os.environ.get("LD_PRELOAD", ""), environment["LD_PRELOAD"]
            environment["LD_PRELOAD"] = ":".join(filter(None, preload))
        setup = PREFER.format(directory=str(package.parent))
        return run_python(f"{setup}\n{code}", *arguments, env={**os.environ, **environment})

    return run


@pytest.fixture
def refusal(run_copy: RunCopy) -> Callable[..., str]:
    """Import the copy, and return the message of the ImportError that it must raise."""

    def run(before: str = "", **environment: str) -> str:
        code = f"""
{before}
try:
    import llamacffi
except ImportError as error:
    assert type(error) is ImportError, type(error)
    print(error)
else:
    raise AssertionError("it was imported")
"""
        done = run_copy(code, **environment)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


def of_another_commit(*files: Path, commit: str = OTHER) -> None:
    """Make libraries claim that they were built from another commit."""
    for file in files:
        patch(file, COMMIT.encode(), commit.encode())


def patch(file: Path, old: bytes, new: bytes) -> None:
    """Replace bytes in a file by the same number of others."""
    assert len(old) == len(new)
    data = file.read_bytes()
    assert old in data, (file, old)
    file.write_bytes(data.replace(old, new))


def rename(file: Path, old: str, new: str) -> None:
    """Replace a name in the string tables of an ELF file: a symbol, a SONAME or a needed library.

    This does not work with AddressSanitizer, where a variable's name is the end of a longer string.
    """
    patch(file, f"\0{old}\0".encode(), f"\0{new}\0".encode())
