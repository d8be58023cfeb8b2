"""A ``lib`` for a llama.cpp that lacks part of the API that this package was written for.

The build knows which names are missing, and which functions have other parameters.  The rest of the
package works: features that need one of these names raise when they are used, not at import.
"""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedError
from .library import c_text


class MissingError(UnsupportedError, AttributeError):
    """This llama.cpp does not have a function or constant."""


class _Library:
    """The compiled module's ``lib``, except that a missing name raises with the reason.

    `ffi.addressof` does not accept it, so `llamacffi.lib` stays the compiled one.
    """

    def __init__(self, lib: Any, missing: dict[str, str]) -> None:
        self._lib, self._missing = lib, missing

    def __getattr__(self, name: str) -> Any:
        if name in self._missing:
            raise MissingError(f"{name} cannot be used: {self._missing[name]}")
        value = getattr(self._lib, name)
        setattr(self, name, value)  # from now on found without this method
        return value

    def __dir__(self) -> list[str]:
        return dir(self._lib)


def complete(lib: Any, ffi: Any) -> Any:
    """Wrap ``lib`` so that a missing name raises `UnsupportedError` with the reason."""
    missing: dict[str, str] = {}
    one = ffi.new("struct llamacffi_missing_name *")
    while lib.llamacffi_missing(len(missing), one):
        missing[c_text(ffi, one.name)] = c_text(ffi, one.reason)
    return _Library(lib, missing)
