"""For other packages: where the headers and libraries are, and the types for their CFFI modules.

C and C++ extensions use `include_dir` and `library_dir`, or `cmake_dir`; CFFI modules include
`ffi_builder`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import _native

# The declarations that the compiled module was made from, beside the Python generated with them.
CDEF = Path(__file__).parent.parent / "_generated" / "cdef.h"


def include_dir() -> Path:
    """Return the directory of the public llama.cpp headers that the package was built with.

    It also has ``llamacffi-build.h``, which defines ``LLAMACFFI_LLAMA_CPP_COMMIT``.
    """
    return _installed("include")


def library_dir() -> Path:
    """Return the directory of the libraries and backends that the compiled module uses.

    They are the package's own, unless ``LLAMACFFI_LIBRARY_DIR`` chose others.
    """
    return Path(_native.library_dir)


def cmake_dir() -> Path:
    """Return the directory of the CMake package, for ``-Dllamacffi_DIR``.

    ``find_package(llamacffi)`` gives the targets ``llamacffi::llama``, ``llamacffi::mtmd``,
    ``llamacffi::ggml`` and ``llamacffi::ggml-base``.
    """
    return _installed("cmake")


def ffi_builder() -> Any:
    """Return a new ``cffi.FFI`` with llama.cpp's types, for other CFFI modules to include.

    After ``builder.include(llamacffi.ffi_builder())``, the declarations of ``builder`` can use
    every type of `llamacffi.ffi`.  They are the same types, so modules can exchange pointers.
    Each call parses all declarations again: call it when building, not at run time.
    """
    from cffi import FFI

    builder = FFI()
    builder.cdef(CDEF.read_text(encoding="utf-8"))
    # Never compiled: CFFI only needs the name of the module that the including one imports.
    builder.set_source("llamacffi._llama", "")
    return builder


def _installed(name: str) -> Path:
    """Return a directory beside the compiled module, which is not beside this file if editable."""
    return Path(_native.module_path).parent / name
