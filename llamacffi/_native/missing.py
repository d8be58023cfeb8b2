"""A ``lib`` for a llama.cpp that lacks some of what this package was written for.

The build knows what is missing, and which functions take something else.  The facade goes on with
the rest: what needs one of these raises when it is used, and not at import.
"""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedError


class MissingError(UnsupportedError, AttributeError):
    """This llama.cpp does not have a function or constant."""


class _Library:
    """The compiled module's ``lib``, but that a name which is missing says why.

    `ffi.addressof` does not take it: `llamacffi.lib` stays the compiled one.
    """

    def __init__(self, lib: Any, missing: dict[str, str]) -> None:
        self._lib, self._missing = lib, missing

    def __getattr__(self, name: str) -> Any:
        if name in self._missing:
            raise MissingError(f"{name} cannot be used: {self._missing[name]}")
        value = getattr(self._lib, name)
        setattr(self, name, value)  # found at once from now on
        return value

    def __dir__(self) -> list[str]:
        return dir(self._lib)


def complete(lib: Any, ffi: Any) -> Any:
    """Return ``lib`` such that a missing name raises `UnsupportedError`, with the reason."""
    missing: dict[str, str] = {}
    one = ffi.new("struct llamacffi_missing_name *")
    while lib.llamacffi_missing(len(missing), one):
        missing[ffi.string(one.name).decode()] = ffi.string(one.reason).decode()
    return _Library(lib, missing)
