"""What this build of the package was made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _native
from . import ffi, lib
from .library import described


@dataclass(frozen=True)
class BuildInfo:
    """What the package was built from, and the libraries that it uses."""

    version: str
    """Of llamacffi."""
    commit: str
    """Of the llama.cpp whose headers the binding was generated from."""
    llama_version: str
    """That llama.cpp's own version; empty if it has none."""
    ggml_version: str
    """The version of its ggml."""
    layout: str
    """A hash of its API: of functions, offsets and values.  Equal for equal APIs."""
    library_dir: Path
    """Where the libraries and backends are."""
    library_commit: str | None
    """Theirs; another only if ``LLAMACFFI_LIBRARY_DIR`` has chosen them.  None if unknown."""


def build_info() -> BuildInfo:
    """Return what the package was built from.

    Source: ``ggml_commit`` for what is loaded; the rest was noted by the build.
    """
    return BuildInfo(
        version=_native.__version__,
        commit=_text(lib.llamacffi_built_commit()),
        llama_version=_text(lib.llamacffi_built_llama_version()),
        ggml_version=_text(lib.llamacffi_built_ggml_version()),
        layout=_text(lib.llamacffi_built_layout()),
        library_dir=Path(_native.library_dir),
        library_commit=described(_native.libraries()[0], ffi).commit,
    )


def _text(chars: Any) -> str:
    return str(ffi.string(chars), "utf-8")
