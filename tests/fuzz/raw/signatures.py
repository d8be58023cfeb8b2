"""The functions of the raw layer: types from the compiled module, names from the facts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamacffi import ffi, lib

LOCK = Path(__file__).parents[3] / "headers" / "api.lock"

# What is not called, with the reason; everything else is.
LEFT_OUT = {
    "ggml_backend_rpc_start_server": "serves until the process ends",
}
OWN = "llamacffi_"  # the package's own functions, which are no part of llama.cpp
VARIADIC = "is variadic"

_FUNCTION = re.compile(r"^function (?P<head>.*?\W)(?P<name>\w+)\((?P<parameters>.*)\);")
_QUALIFIERS = {"const", "struct", "enum", "unsigned"}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a function.

    Attributes:
        name: Its name, or ``argN`` if the header gives none.
        declared: Its type as the header has it, with typedefs and ``const``.
        type: Its type to CFFI.
    """

    name: str
    declared: str
    type: Any

    @property
    def is_pointer(self) -> bool:
        """Whether it may be NULL."""
        return self.type.kind in ("pointer", "function")


@dataclass(frozen=True)
class Function:
    """One function."""

    name: str
    parameters: tuple[Parameter, ...]
    result: Any

    @property
    def area(self) -> str:
        """The first part of its name: llama, mtmd, gguf or ggml."""
        return self.name.split("_")[0]


def functions() -> dict[str, Function]:
    """Return all functions that are called, by name, in the order of the headers."""
    return {one.name: one for one in _all() if why_not(one) is None}


def not_called() -> dict[str, str]:
    """Return the functions that are not called, with the reasons."""
    return {one.name: reason for one in _all() if (reason := why_not(one))}


def why_not(function: Function) -> str | None:
    """Return why a function is not called, or None."""
    if ffi.typeof(getattr(lib, function.name)).ellipsis:
        return VARIADIC
    return LEFT_OUT.get(function.name)


def _all() -> Iterator[Function]:
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        match = _FUNCTION.match(line)
        if match and not match["name"].startswith(OWN) and hasattr(lib, match["name"]):
            type_ = ffi.typeof(getattr(lib, match["name"]))
            declared = [one for one in _split(match["parameters"]) if one not in ("void", "...")]
            parameters = (
                _parameter(i, *pair)
                for i, pair in enumerate(zip(declared, type_.args, strict=True))
            )
            yield Function(match["name"], tuple(parameters), type_.result)


def _split(text: str) -> list[str]:
    """Split a parameter list at its commas; callbacks are typedefs, so none is nested."""
    return [one.strip() for one in text.split(",")] if text else []


def _parameter(index: int, declared: str, type_: Any) -> Parameter:
    words = [word for word in re.findall(r"\w+", declared) if word not in _QUALIFIERS]
    if len(words) < 2 or declared.endswith("*"):
        return Parameter(f"arg{index}", declared, type_)
    name = words[-1]
    return Parameter(name, re.sub(rf"\b{name}\b(\[\w*\])?$", "", declared).strip(), type_)


def defined_structs() -> set[str]:
    """Return the structs whose fields are public: CFFI must not be asked for those of others."""
    found = re.findall(r"^struct (\w+) size", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    return {f"struct {name}" for name in found} | set(found)
