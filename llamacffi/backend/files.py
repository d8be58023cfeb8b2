"""The files of backends, looked at before ggml loads them.

ggml compares only the version of its interface, which stays the same while structs and functions
change; and of a backend that it cannot load it says nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from .. import _native
from .._native import ffi, lib
from .._native.elf import is_whole
from .._native.library import Library, described, same_commit
from ..errors import LoadError

VARIABLE = "GGML_BACKEND_PATH"  # ggml loads this one too


def files() -> list[str]:
    """Return the files that ``ggml_backend_load_all_from_path`` may load."""
    with os.scandir(_native.library_dir) as entries:
        names = sorted(entry.name for entry in entries)
    found = [
        os.path.join(_native.library_dir, name)
        for name in names
        if name.startswith("libggml-") and name.endswith(".so") and name != "libggml-base.so"
    ]
    return [*found, *filter(None, [os.environ.get(VARIABLE)])]


@contextmanager
def opened(paths: Iterable[str]) -> Iterator[Mapping[str, str]]:
    """Have these libraries loaded for a ``with``, so that ggml takes what was looked at.

    Yields:
        Those that the loader does not load, with its reason: often a library is missing that comes
        with a driver.

    Raises:
        LoadError: One is of another llama.cpp than the libraries that are loaded, or was cut off.
    """
    base = described(_native.libraries()[0], ffi)
    info, error = ffi.new("struct llamacffi_library_info *"), ffi.new("char[]", 4096)
    handles, broken = [], {}
    try:
        for path in paths:
            if os.path.isfile(path) and not is_whole(path):
                raise LoadError(f"the backend {path} is not whole: copy or build it again")
            handle = lib.llamacffi_library_open(os.fsencode(path), info, error, len(error))
            if handle == ffi.NULL:
                broken[path] = ffi.string(error).decode(errors="replace")
                continue
            handles.append(handle)
            _check(path, described(info, ffi), base)
        yield broken
    finally:
        for handle in handles:
            lib.llamacffi_library_close(handle)


def _check(path: str, library: Library, base: Library) -> None:
    """Refuse a backend that is known to be of another commit; of many nothing is known."""
    if library.commit and base.commit and not same_commit(library.commit, base.commit):
        whose = "was built from" if library.stamp else "brings a ggml of its own, from"
        raise LoadError(
            f"the backend {path} {whose} llama.cpp {library.commit}, but {base.path} is of "
            f"{base.commit}: build both from one commit, or take it away"
        )
