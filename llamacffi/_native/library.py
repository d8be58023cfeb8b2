"""What is known of a library of llama.cpp."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

HEX = re.compile(r"[0-9a-f]{7,40}")


class Library(NamedTuple):
    """A library that is loaded, as ``struct llamacffi_library_info`` describes it."""

    name: str
    path: str
    stamp: str | None
    """The commit that llamacffi built it from; None if it was built by others."""
    ggml_commit: str | None
    ggml_version: str | None
    llama_version: str | None

    @property
    def commit(self) -> str | None:
        """The commit, as far as known: a library of others has that of the ggml it uses."""
        told = self.stamp or self.ggml_commit
        return None if told == "unknown" else told  # ggml's word where there was no git

    def __str__(self) -> str:
        """Return one line about it, for errors."""
        version = self.ggml_version if self.name.startswith("ggml") else self.llama_version
        what = f"commit {self.stamp}" if self.stamp else "not built by llamacffi"
        return f"{self.path or f'lib{self.name}'}: {what}" + (
            f", version {version}" * bool(version)
        )


def described(info: Any, ffi: Any) -> Library:
    """Return what C says of a library."""

    def text(chars: Any) -> str | None:
        return ffi.string(chars).decode(errors="replace") if chars else None

    return Library(
        name=text(info.name) or "",
        path=text(info.path) or "",
        stamp=text(info.commit),
        ggml_commit=text(info.ggml_commit),
        ggml_version=text(info.ggml_version),
        llama_version=text(info.llama_version),
    )


def same_commit(one: str, other: str) -> bool:
    """Tell whether two texts name the same commit; git's short form is the beginning of it."""
    if HEX.fullmatch(one) and HEX.fullmatch(other):
        return one.startswith(other) or other.startswith(one)
    return one == other
