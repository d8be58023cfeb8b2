"""For other libraries: where the headers and the libraries are, and the types for their modules.

Extensions in C and C++ find what they need by `include_dir` and `library_dir`, or by `cmake_dir`;
modules of CFFI include `ffi_builder`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import _native

# What the compiled module was made from; beside the Python that was generated with it.
CDEF = Path(__file__).parent.parent / "_generated" / "cdef.h"


def include_dir() -> Path:
    """Return the directory of llama.cpp's public headers, those that the package was built with.

    ``llamacffi-build.h`` is there too: it defines ``LLAMACFFI_LLAMA_CPP_COMMIT``.
    """
    return _installed("include")


def library_dir() -> Path:
    """Return the directory of the libraries and backends that the compiled module uses.

    They came with it, unless ``LLAMACFFI_LIBRARY_DIR`` has chosen others.
    """
    return Path(_native.library_dir)


def cmake_dir() -> Path:
    """Return the directory of the CMake package, for ``-Dllamacffi_DIR``.

    ``find_package(llamacffi)`` gives the targets ``llamacffi::llama``, ``llamacffi::mtmd``,
    ``llamacffi::ggml`` and ``llamacffi::ggml-base``.
    """
    return _installed("cmake")


def ffi_builder() -> Any:
    """Return what a module of CFFI's includes to have llama.cpp's types: a new ``cffi.FFI``.

    After ``builder.include(llamacffi.ffi_builder())`` the declarations of ``builder`` can name all
    that `llamacffi.ffi` has.  The types are the same ones, so that pointers go from one module to
    the other.  Each call parses all declarations anew: it is for building, not for running.
    """
    from cffi import FFI

    builder = FFI()
    builder.cdef(CDEF.read_text(encoding="utf-8"))
    # Not to compile it: the module that includes it imports that one.
    builder.set_source("llamacffi._llama", "")
    return builder


def _installed(name: str) -> Path:
    """Return a directory beside the compiled module: elsewhere than this file if it is editable."""
    return Path(_native.module_path).parent / name
