"""The only import of the compiled module, and the checks that it fits what was loaded with it."""

from __future__ import annotations

import os
import sys
from typing import Any

from .elf import is_whole

__all__ = [
    "__version__",
    "check_generated",
    "ffi",
    "lib",
    "libraries",
    "library_dir",
    "module_path",
]

_PACKAGE = __package__.rpartition(".")[0]

__version__ = "0.1.0"  # of the Python files, to be compared with the compiled module


def check_files() -> None:
    """Look whether a file was cut off while it was installed; loading it would end the process.

    Raises:
        ImportError: One was.
    """
    for directory in sys.modules[_PACKAGE].__path__:  # more than one if it is editable
        libraries = os.path.join(directory, "lib")
        for folder, prefix in (directory, "_llama."), (libraries, "lib"):
            for name in os.listdir(folder) if os.path.isdir(folder) else ():
                path = os.path.join(folder, name)
                if name.startswith(prefix) and name.endswith(".so") and not is_whole(path):
                    raise ImportError(f"{path} is not whole: reinstall llamacffi")


_chosen = os.environ.get("LLAMACFFI_LIBRARY_DIR")
if _chosen:
    from . import chosen_libraries as _chosen_libraries

    _chosen = _chosen_libraries.load(_chosen)

check_files()
try:
    from .. import _llama
    from .._llama import ffi, lib
except ImportError as error:
    from .loading import explain

    raise ImportError(explain(error, _chosen), name=f"{_PACKAGE}._llama") from error

module_path: str = _llama.__file__ or ""
library_dir: str = _chosen or os.path.join(os.path.dirname(module_path), "lib")
"""Where the libraries and backends are."""


def libraries() -> list[Any]:
    """Describe the libraries that the module uses, as ``struct llamacffi_library_info *``."""
    found: list[Any] = []
    info = ffi.new("struct llamacffi_library_info *")
    while lib.llamacffi_library(len(found), info):
        found.append(info)
        info = ffi.new("struct llamacffi_library_info *")
    return found


def check_version() -> None:
    """Compare the Python files with the compiled module.

    Raises:
        ImportError: They are of different versions of llamacffi.
    """
    built = getattr(lib, "llamacffi_built_version", None)  # others may not have it yet
    version = ffi.string(built()).decode() if built else "another version"
    if version != __version__:
        raise ImportError(
            f"{__file__} is of llamacffi {__version__}, but the compiled module {module_path} of "
            f"{version}: an upgrade was not finished; reinstall llamacffi"
        )


def check_libraries() -> None:
    """Compare the llama.cpp that `_llama` was compiled from with the libraries that were loaded.

    Raises:
        ImportError: They differ: structs could be laid out differently, and every call be wrong.
    """
    built, loaded = ffi.string(lib.llamacffi_built_commit()), libraries()
    if _chosen:
        _chosen_libraries.check(_chosen, module_path, loaded, ffi, lib)
    elif any(not one.commit or ffi.string(one.commit) != built for one in loaded):
        from .loading import mismatch

        raise ImportError(mismatch(library_dir, built.decode(), loaded, ffi))


def check_generated(digest: str) -> None:
    """Compare the generated Python, which calls this, with the compiled module.

    Raises:
        ImportError: They were made from different declarations.
    """
    if ffi.string(lib.llamacffi_built_cdef()).decode() != digest:
        generated = os.path.join(os.path.dirname(os.path.dirname(__file__)), "_generated")
        raise ImportError(
            f"{generated} was not made with "
            f"the compiled module {module_path}: an upgrade was not finished; reinstall llamacffi"
        )


check_version()
check_libraries()
lib.llamacffi_install()  # in C only: log lines to the ring, failed assertions to the guard
public_lib = lib
if lib.llamacffi_missing(0, ffi.new("struct llamacffi_missing_name *")):
    # Not the llama.cpp that the package was written for.  Type checkers know what the build has.
    from .missing import complete

    globals()["lib"] = complete(lib, ffi)
