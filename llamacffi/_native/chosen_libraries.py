"""Libraries of another build, chosen by ``LLAMACFFI_LIBRARY_DIR``.  Only imported if it is set.

The compiled module names the libraries that it needs.  The loader uses any that are loaded already
under that name, so the chosen ones are loaded first, and afterwards we check which ones it used.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import layout as _layout
from .dynamic_section import read_dynamic_section
from .elf import is_truncated
from .import_errors import missing
from .library import Library, c_text, describe_library, same_commit

VARIABLE = "LLAMACFFI_LIBRARY_DIR"
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"


def load(directory: str, names: Sequence[str]) -> str:
    """Load the libraries in a directory.

    Args:
        directory: The directory.
        names: The libraries, each after those that it needs.

    Returns:
        The absolute path of the directory.

    Raises:
        ImportError: A library is missing, or cannot be loaded in place of ours.
    """
    path = Path(os.path.abspath(os.path.expanduser(directory)))
    files = [path / f"lib{name}{SUFFIX}" for name in names]
    if absent := [file.name for file in files if not file.is_file()]:
        found = ", ".join(sorted(one.name for one in path.glob("*"))) or "nothing"
        has = f"contains {found}" if path.is_dir() else "is not a directory"
        raise ImportError(f"{VARIABLE}={directory}: {', '.join(absent)} not found: {path} {has}")
    for file in files:
        _check_file(file)
    for file in files:
        try:
            ctypes.CDLL(str(file))
        except OSError as error:
            needed = "\n".join(missing(str(error), files))
            raise ImportError(
                f"{VARIABLE}={directory}: {file} cannot be loaded: {error}\n{needed}".rstrip()
            ) from error
    return str(path)


def check(directory: str, module: str, infos: Sequence[Any], ffi: Any, lib: Any) -> None:
    """Accept the libraries only if they have the API that the module was compiled for.

    Args:
        directory: The directory that they should be from.
        module: The file of the compiled module; the package's own ``lib/api.lock`` is beside it.
        infos: The libraries that the module uses.
        ffi: The ``ffi`` of the module.
        lib: The ``lib`` of the module.

    Raises:
        ImportError: The libraries come from different builds, or their API differs or is unknown.
    """
    loaded = [describe_library(info, ffi) for info in infos]
    _check_files(Path(directory), loaded)
    if len({one.stamp for one in loaded}) > 1:
        listed = "\n".join(f"  {one}" for one in loaded)
        raise ImportError(
            f"{VARIABLE}={directory}: the libraries come from different builds:\n{listed}"
        )
    built, commit = c_text(ffi, lib.llamacffi_built_commit()), loaded[0].commit
    if commit and same_commit(built, commit) and not built.endswith("-dirty"):
        return
    theirs = _read_lock(Path(directory), commit, built)
    ours = _own_lock(
        Path(module).parent / "lib" / "api.lock", c_text(ffi, lib.llamacffi_built_layout())
    )
    if lines := _layout.differences(ours, theirs):
        raise ImportError(
            f"{VARIABLE}={directory}: the API of llama.cpp {commit} differs from that of {built}, "
            f"which llamacffi was compiled for:\n{_layout.shortened(lines)}\n"
            "compile llamacffi for it (LLAMACFFI_LLAMA_CPP=SOURCES), or choose libraries "
            f"closer to {built}"
        )


def _check_file(file: Path) -> None:
    if is_truncated(str(file)):
        raise ImportError(f"{VARIABLE}: {file} is truncated; copy or build it again")
    section = read_dynamic_section(str(file))
    if section and section.soname != file.name:
        soname = f"has the SONAME {section.soname}" if section.soname else "has no SONAME"
        raise ImportError(
            f"{VARIABLE}: {file} {soname}, so the loader would not use it as {file.name}; build it "
            "with -DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON"
        )


def _check_files(directory: Path, loaded: Sequence[Library]) -> None:
    for one in loaded:
        wanted = directory / f"lib{one.name}{SUFFIX}"
        if not one.path or not _is_same(one.path, wanted):
            raise ImportError(
                f"{VARIABLE}={directory}: {one.path or 'an unknown file'} is used instead of "
                f"{wanted}; LD_PRELOAD or another package may have loaded it earlier"
            )


def _is_same(path: str, wanted: Path) -> bool:
    try:
        return os.path.samefile(path, wanted)
    except OSError:  # its path is relative to an earlier working directory, or it was deleted
        return False


def _read_lock(directory: Path, commit: str | None, built: str) -> str:
    """Return the ``api.lock`` in the directory of the libraries."""
    how = f"python build_ffi.py lock --llama-cpp TREE --out {directory / 'api.lock'}"
    try:
        lock = (directory / "api.lock").read_text(encoding="utf-8")
    except OSError as error:
        raise ImportError(
            f"{VARIABLE}={directory}: the libraries were built from llama.cpp "
            f"{commit or '(unknown commit)'}, but llamacffi was compiled for {built}, and without "
            "an api.lock in that directory their APIs cannot be compared; write one from the "
            f"sources of the libraries: {how}"
        ) from error
    of = _layout.commit_of(lock)
    if not of or (commit and not same_commit(of, commit)):
        raise ImportError(
            f"{VARIABLE}={directory}: its api.lock describes llama.cpp {of or '(unknown commit)'}, "
            f"but the libraries were built from {commit}; write it again from their sources: {how} "
            f"(add --commit {commit} if TREE has these sources but no git history)"
        )
    return lock


def _own_lock(file: Path, layout: str) -> str:
    try:
        lock = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ImportError(f"{file} cannot be read: {error}; reinstall llamacffi") from error
    if _layout.digest(lock) != layout:
        raise ImportError(f"{file} was not made for the compiled module: reinstall llamacffi")
    return lock
