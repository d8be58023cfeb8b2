"""Explain why the compiled module cannot be used.  Only imported when it cannot."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .dynamic_section import read_dynamic_section
from .library import Library, describe_library

# glibc, musl, macOS
MISSING = re.compile(
    r"([^\s:]+): cannot open shared object file|Error loading shared library ([^\s:]+):|"
    r"Library not loaded: (\S+)"
)
LACKING = re.compile(
    r"undefined symbol: (\S+)|[Ss]ymbol not found: (\S+)|Error relocating .*: (\S+): "
)
LLAMA_CPP = re.compile(r"lib(?:llama|ggml|mtmd)[^/]*\.(?:so|dylib)[^/]*$")


def explain(error: ImportError, chosen: str | None) -> str:
    """Return the message for a compiled module that cannot be loaded.

    Args:
        error: What the import raised.
        chosen: The directory of the libraries, if it is not the package's own.
    """
    spec = find_spec("llamacffi._llama")
    if spec is None or spec.origin is None:
        package = Path(__file__).parent.parent
        return (
            f"{package} has no compiled module for this Python ({sys.implementation.cache_tag} on "
            f"{sys.platform}), only {_listing(package, '_llama*')}; reinstall llamacffi"
        )
    module = Path(spec.origin)
    directory = Path(chosen) if chosen else module.parent / "lib"
    lines = [
        f"the compiled module of llamacffi, {module}, cannot be loaded:",
        f"  {error}",
        *missing(str(error), [module, *_libraries(directory)]),
        *_lacking(str(error), directory),
        f"  {directory} contains {_listing(directory, '*')}",
        f"LLAMACFFI_LIBRARY_DIR={chosen} chose this directory" if chosen else "reinstall llamacffi",
    ]
    return "\n".join(lines)


def mismatch(directory: str, built: str, loaded: Sequence[Any], ffi: Any) -> str:
    """Return the message for libraries other than those that the module was compiled for."""
    wrong = [one for one in (describe_library(info, ffi) for info in loaded) if one.stamp != built]
    lines = [
        f"llamacffi was compiled for llama.cpp commit {built}, but other libraries were loaded:",
        *(f"  {one}" for one in wrong),
        *dict.fromkeys(_remedy(one, Path(directory)) for one in wrong),
    ]
    return "\n".join(lines)


def missing(reason: str, files: Sequence[Path]) -> Iterator[str]:
    """Name the files that need the library that the loader did not find, as it does not."""
    if found := MISSING.search(reason):
        name = os.path.basename(next(filter(None, found.groups())))
        for path in files:
            section = read_dynamic_section(str(path))
            if section and name in section.needed:
                yield f"  {name} is needed by {path}, but was not found"


def _lacking(reason: str, directory: Path) -> Iterator[str]:
    """If a symbol is missing, name the other llama.cpp libraries that are loaded."""
    if not LACKING.search(reason):
        return
    yield "  so a library of another llama.cpp was loaded instead of the right one"
    for path in _in_process():
        if path.parent != directory:
            yield f"  {path} is loaded; {_origin(path)}"


def _remedy(library: Library, directory: Path) -> str:
    path = Path(library.path)
    if path.parent == directory:
        return (
            f"{directory} has libraries from different builds, as after an interrupted upgrade: "
            "reinstall llamacffi"
        )
    return (
        f"{path.name} should come from {directory}, but {_origin(path)}.  To use this one, set "
        "LLAMACFFI_LIBRARY_DIR to its directory"
    )


def _origin(path: Path) -> str:
    """Say how another library came into the process, and what to do about it."""
    for variable in ("LD_PRELOAD", "DYLD_INSERT_LIBRARIES", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"):
        entries = re.split("[: ]", os.environ.get(variable, ""))
        if {str(path), str(path.parent)} & {os.path.abspath(one) for one in entries if one}:
            return f"{variable} brought it in: remove it from there"
    return (
        "something else loaded it into this process earlier, such as another package with its own "
        "llama.cpp: use the two in separate processes"
    )


def _in_process() -> list[Path]:
    """Return the files of the llama.cpp libraries that are loaded."""
    try:
        maps = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:  # only Linux has it
        return []
    paths = {line[line.index("/") :] for line in maps.splitlines() if "/" in line}
    return sorted(Path(path) for path in paths if LLAMA_CPP.search(path))


def _libraries(directory: Path) -> list[Path]:
    return sorted(directory.glob("lib*")) if directory.is_dir() else []


def _listing(directory: Path, pattern: str) -> str:
    names = sorted(path.name for path in directory.glob(pattern)) if directory.is_dir() else []
    return ", ".join(names) or "nothing"
