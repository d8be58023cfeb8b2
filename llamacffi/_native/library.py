"""Description of a loaded llama.cpp library."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

HEX = re.compile(r"[0-9a-f]{7,40}")


class Library(NamedTuple):
    """A library that is loaded, as ``struct llamacffi_library_info`` describes it."""

    name: str
    path: str
    stamp: str | None
    """The commit that llamacffi built it from; None if something else built it."""
    ggml_commit: str | None
    ggml_version: str | None
    llama_version: str | None

    @property
    def commit(self) -> str | None:
        """The commit, if known; if something else built the library, that of the ggml it uses."""
        commit = self.stamp or self.ggml_commit
        # upstream: ggml/CMakeLists.txt "unknown": the commit of a ggml that was built without git
        return None if commit == "unknown" else commit

    def __str__(self) -> str:
        """Return one line for error messages."""
        version = self.ggml_version if self.name.startswith("ggml") else self.llama_version
        what = f"commit {self.stamp}" if self.stamp else "not built by llamacffi"
        return f"{self.path or f'lib{self.name}'}: {what}" + (
            f", version {version}" * bool(version)
        )


def c_text(ffi: Any, chars: Any) -> str:
    """Return a C string as text, here where `llamacffi._core` cannot be imported yet."""
    return str(ffi.string(chars), "utf-8", "replace")


def describe_library(info: Any, ffi: Any) -> Library:
    """Convert a ``struct llamacffi_library_info *``."""

    def text(chars: Any) -> str | None:
        return c_text(ffi, chars) if chars else None

    return Library(
        name=text(info.name) or "",
        path=text(info.path) or "",
        stamp=text(info.commit),
        ggml_commit=text(info.ggml_commit),
        ggml_version=text(info.ggml_version),
        llama_version=text(info.llama_version),
    )


def same_commit(one: str, other: str) -> bool:
    """Return whether two texts name the same commit, either of which may be abbreviated."""
    if HEX.fullmatch(one) and HEX.fullmatch(other):
        return one.startswith(other) or other.startswith(one)
    return one == other
