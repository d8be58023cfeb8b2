"""Facts about this build of the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import _native
from . import ffi, lib
from .library import c_text, describe_library


@dataclass(frozen=True)
class BuildInfo:
    """What the package was built from, and the libraries that it uses."""

    version: str
    """The version of llamacffi."""
    commit: str
    """The commit of the llama.cpp whose headers the binding was generated from."""
    llama_version: str
    """The version of that llama.cpp; empty if it has none."""
    ggml_version: str
    """The version of its ggml."""
    layout: str
    """A hash of its API: functions, offsets and values.  Equal APIs have equal hashes."""
    library_dir: Path
    """The directory of the libraries and backends."""
    library_commit: str | None
    """The commit of these libraries; None if unknown.

    It differs from `commit` only if ``LLAMACFFI_LIBRARY_DIR`` chose them."""


def build_info() -> BuildInfo:
    """Return what the package was built from.

    Source: ``ggml_commit`` for the loaded libraries; the build recorded the rest.
    """
    return BuildInfo(
        version=_native.__version__,
        commit=c_text(ffi, lib.llamacffi_built_commit()),
        llama_version=c_text(ffi, lib.llamacffi_built_llama_version()),
        ggml_version=c_text(ffi, lib.llamacffi_built_ggml_version()),
        layout=c_text(ffi, lib.llamacffi_built_layout()),
        library_dir=Path(_native.library_dir),
        library_commit=describe_library(_native.libraries()[0], ffi).commit,
    )
