"""What the linked libraries export, read from their symbol tables."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .api import Api

# Libraries that the module is linked to; the others are backends, loaded at run time.
CORE = ("llama", "ggml", "ggml-base", "mtmd")


def exported(library: Path, nm: str) -> set[str]:
    """Return the names that a shared library defines."""
    command = [nm, "--dynamic", "--defined-only", "--format=posix", str(library)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return {line.split(" ", 1)[0].split("@", 1)[0] for line in result.stdout.splitlines()}


def late_functions(api: Api, libraries: list[Path], nm: str) -> tuple[list[str], dict[str, str]]:
    """Sort the functions that the core libraries do not export.

    Returns:
        Those that no library exports, and the others with the backend that does.
    """
    core: set[str] = set()
    backends: dict[str, str] = {}
    for library in libraries:
        names = exported(library, nm)
        if library.stem.removeprefix("lib") in CORE:
            core |= names
        else:
            backends |= dict.fromkeys(names, library.stem)
    unexported: list[str] = []
    late: dict[str, str] = {}
    for function in api.functions:
        if function.name in core or function.origin.is_own:
            continue
        if function.name in backends:
            late[function.name] = backends[function.name]
        else:
            unexported.append(function.name)
    return unexported, late
