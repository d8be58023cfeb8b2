"""Libraries of another build, chosen by ``LLAMACFFI_LIBRARY_DIR``.  Only imported if it is set.

The compiled module needs its libraries by name.  The loader takes what is loaded already under that
name, so those of the directory are loaded first; and afterwards we look which ones it took.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import layout as _layout
from .elf import dynamic, is_whole
from .library import Library, described, same_commit
from .loading import missing

VARIABLE = "LLAMACFFI_LIBRARY_DIR"
NAMES = "ggml-base", "ggml", "llama", "mtmd"  # each needs those before it
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"


def load(directory: str) -> str:
    """Load the libraries of a directory.

    Returns:
        Its absolute path.

    Raises:
        ImportError: It does not have all of them, or they cannot be loaded in place of ours.
    """
    path = Path(os.path.abspath(os.path.expanduser(directory)))
    files = [path / f"lib{name}{SUFFIX}" for name in NAMES]
    if absent := [file.name for file in files if not file.is_file()]:
        found = (
            sorted(one.name for one in path.glob("*")) if path.is_dir() else ["no such directory"]
        )
        raise ImportError(
            f"{VARIABLE}={directory}: {', '.join(absent)} missing in {path}: "
            f"{', '.join(found) or 'it is empty'}"
        )
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
    """Accept the libraries only if what the module was compiled with is true of them.

    Args:
        directory: Where they should be from.
        module: The file of the compiled module; beside it are the package's own facts.
        infos: The libraries that the module uses.
        ffi: Of the module.
        lib: Of the module.

    Raises:
        ImportError: They are not of one build, or their API is another, or nothing tells.
    """
    loaded = [described(info, ffi) for info in infos]
    _check_files(Path(directory), loaded)
    if len({one.stamp for one in loaded}) > 1:
        listed = "\n".join(f"  {one}" for one in loaded)
        raise ImportError(f"{VARIABLE}={directory}: the libraries are not of one build:\n{listed}")
    built, commit = _text(ffi, lib.llamacffi_built_commit()), loaded[0].commit
    if commit and same_commit(built, commit) and not built.endswith("-dirty"):
        return
    theirs = _read_lock(Path(directory), commit, built)
    ours = _own_lock(
        Path(module).parent / "lib" / "api.lock", _text(ffi, lib.llamacffi_built_layout())
    )
    if lines := _layout.differences(ours, theirs):
        raise ImportError(
            f"{VARIABLE}={directory}: llama.cpp {commit} has another API than {built}, which "
            f"llamacffi was compiled with:\n{_layout.shortened(lines)}\n"
            "compile llamacffi for it (LLAMACFFI_LLAMA_CPP=its sources), or choose libraries "
            "nearer to that commit"
        )


def _check_file(file: Path) -> None:
    if not is_whole(str(file)):
        raise ImportError(f"{VARIABLE}: {file} is not whole: copy or build it again")
    names = dynamic(str(file))
    if names and names.soname != file.name:
        raise ImportError(
            f"{VARIABLE}: {file} calls itself {names.soname or 'nothing'}, and so cannot stand in "
            f"for {file.name}; build it with -DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON"
        )


def _check_files(directory: Path, loaded: Sequence[Library]) -> None:
    for one in loaded:
        wanted = directory / f"lib{one.name}{SUFFIX}"
        if not one.path or not _is_same(one.path, wanted):
            raise ImportError(
                f"{VARIABLE}={directory}: {one.path or 'nothing'} is used in place of {wanted}; "
                "was it loaded by something else before (LD_PRELOAD, another package)?"
            )


def _is_same(path: str, wanted: Path) -> bool:
    try:
        return os.path.samefile(path, wanted)
    except OSError:  # it was loaded by a path from another working directory, or is gone
        return False


def _read_lock(directory: Path, commit: str | None, built: str) -> str:
    """Return the facts that lie beside the libraries."""
    how = f"python build_ffi.py lock --llama-cpp TREE --out {directory / 'api.lock'}"
    try:
        lock = (directory / "api.lock").read_text(encoding="utf-8")
    except OSError as error:
        raise ImportError(
            f"{VARIABLE}={directory}: the libraries are of llama.cpp {commit or 'of some commit'}, "
            f"llamacffi was compiled for {built}, and no api.lock tells whether the API is the "
            f"same; write it, from the sources of the libraries: {how}"
        ) from error
    of = _layout.commit_of(lock)
    if not of or (commit and not same_commit(of, commit)):
        raise ImportError(
            f"{VARIABLE}={directory}: the api.lock there is of llama.cpp {of or 'of no commit'}, "
            f"but the libraries are of {commit}; write it anew from their sources: {how} "
            f"(--commit {commit} if these are they, but do not know it)"
        )
    return lock


def _own_lock(file: Path, layout: str) -> str:
    try:
        lock = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ImportError(f"{file} cannot be read: {error}; reinstall llamacffi") from error
    if _layout.digest(lock) != layout:
        raise ImportError(f"{file} does not belong to the compiled module; reinstall llamacffi")
    return lock


def _text(ffi: Any, chars: Any) -> str:
    return str(ffi.string(chars), "utf-8")
