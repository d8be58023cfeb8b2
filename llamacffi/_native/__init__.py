"""The only import of the compiled module, and the checks that it fits the libraries it loaded."""

from __future__ import annotations

import os
import sys

from .elf import is_truncated

TYPE_CHECKING = False  # type checkers know the name; importing `typing` would double the time
if TYPE_CHECKING:
    from typing import Any

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

__version__ = "0.1.0"  # of the Python files; compared with that of the compiled module

LINKED = "ggml-base", "ggml", "llama", "mtmd"  # what the module is linked to, in order of need


def check_files() -> None:
    """Check the files that are loaded next: a truncated one would end the process.

    Backends are loaded later, and checked then.

    Raises:
        ImportError: A file is truncated.
    """
    for directory in sys.modules[_PACKAGE].__path__:  # more than one if the install is editable
        names = [
            *(f"lib/lib{name}.so" for name in LINKED),
            *(name for name in os.listdir(directory) if name.startswith("_llama.")),
        ]
        for path in (os.path.join(directory, name) for name in names if name.endswith(".so")):
            if os.path.exists(path) and is_truncated(path):
                raise ImportError(f"{path} is truncated; reinstall llamacffi")


_chosen = os.environ.get("LLAMACFFI_LIBRARY_DIR")
if _chosen:
    from . import chosen_libraries as _chosen_libraries

    _chosen = _chosen_libraries.load(_chosen, LINKED)

check_files()
try:
    from .. import _llama
    from .._llama import ffi, lib
except ImportError as error:
    from .import_errors import explain

    raise ImportError(explain(error, _chosen), name=f"{_PACKAGE}._llama") from error

module_path: str = _llama.__file__ or ""
library_dir: str = _chosen or os.path.join(os.path.dirname(module_path), "lib")
"""The directory of the libraries and backends."""


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
        ImportError: They are from different versions of llamacffi.
    """
    built = getattr(lib, "llamacffi_built_version", None)  # older modules do not have it
    version = ffi.string(built()).decode() if built else "an older version"
    if version != __version__:
        raise ImportError(
            f"{__file__} is from llamacffi {__version__}, but the compiled module {module_path} is "
            f"from {version}: an upgrade was interrupted; reinstall llamacffi"
        )


def check_libraries() -> None:
    """Compare the llama.cpp that `_llama` was compiled for with the libraries that were loaded.

    Raises:
        ImportError: They differ, so structs may be laid out differently and any call go wrong.
    """
    built, loaded = ffi.string(lib.llamacffi_built_commit()), libraries()
    if _chosen:
        _chosen_libraries.check(_chosen, module_path, loaded, ffi, lib)
    elif any(not one.commit or ffi.string(one.commit) != built for one in loaded):
        from .import_errors import mismatch

        raise ImportError(mismatch(library_dir, built.decode(), loaded, ffi))


def check_generated(digest: str) -> None:
    """Compare the generated Python, which calls this, with the compiled module.

    Raises:
        ImportError: They were generated from different declarations.
    """
    if ffi.string(lib.llamacffi_built_cdef()).decode() != digest:
        generated = os.path.join(os.path.dirname(os.path.dirname(__file__)), "_generated")
        raise ImportError(
            f"{generated} does not belong to the compiled module {module_path}: an upgrade was "
            "interrupted; reinstall llamacffi"
        )


check_version()
check_libraries()
lib.llamacffi_install()  # log lines go to the ring and failed assertions to the guard, all in C
public_lib = lib
if lib.llamacffi_missing(0, ffi.new("struct llamacffi_missing_name *")):
    # Another llama.cpp than the package was written for.  Type checkers see what the build has.
    from .missing import complete

    globals()["lib"] = complete(lib, ffi)
