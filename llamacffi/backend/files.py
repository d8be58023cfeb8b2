"""Check the files of backends before ggml loads them.

upstream: ggml/src/ggml-backend-impl.h GGML_BACKEND_API_VERSION: the only thing that ggml compares,
which stays the same while structs and functions change.
upstream: ggml/src/ggml-backend-reg.cpp silent: backends that cannot be loaded are skipped without
a message.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from .. import _native
from .._core.text import c_text
from .._native import ffi, lib
from .._native.elf import is_truncated
from .._native.library import Library, describe_library, same_commit
from ..errors import LoadError

# upstream: ggml/src/ggml-backend-reg.cpp "GGML_BACKEND_PATH": one more backend for ggml to load
VARIABLE = "GGML_BACKEND_PATH"


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
    """Keep these libraries loaded during a ``with``, so that ggml uses the ones that were checked.

    Yields:
        The files that the loader refused, with its reasons; often a library of a driver is missing.

    Raises:
        LoadError: A file is truncated, or was built from another llama.cpp than the loaded
            libraries.
    """
    base = describe_library(_native.libraries()[0], ffi)
    info, error = ffi.new("struct llamacffi_library_info *"), ffi.new("char[]", 4096)
    handles, broken = [], {}
    try:
        for path in paths:
            if os.path.isfile(path) and is_truncated(path):
                raise LoadError(f"the backend {path} is truncated: copy or build it again")
            handle = lib.llamacffi_library_open(os.fsencode(path), info, error, len(error))
            if handle == ffi.NULL:
                broken[path] = c_text(error)
                continue
            handles.append(handle)
            _check(path, describe_library(info, ffi), base)
        yield broken
    finally:
        for handle in handles:
            lib.llamacffi_library_close(handle)


def _check(path: str, library: Library, base: Library) -> None:
    """Refuse a backend that is known to come from another commit; many do not say theirs."""
    if library.commit and base.commit and not same_commit(library.commit, base.commit):
        how = "was built from" if library.stamp else "contains its own ggml, from"
        raise LoadError(
            f"the backend {path} {how} llama.cpp {library.commit}, but {base.path} was built from "
            f"{base.commit}: build both from the same commit, or remove the backend"
        )
