"""``llamacffi info``: what is installed, and which devices it can use."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any

from .._core.text import c_text
from .terminal import visible

GIB = 2**30
DEVICE_FIELDS = "name", "description", "backend", "kind", "memory_free", "memory_total"


def add_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "info",
        help="print versions, backends, devices and paths",
        description="Print versions, paths, backends, devices with memory, and CPU features.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with memory in bytes")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.json:
        print(json.dumps({name: get() for name, get in SECTIONS.items()}, indent=2))
        return 0
    # Section by section: a broken backend must not hide the versions and paths.
    for name, get in SECTIONS.items():
        print(f"{name.replace('_', ' ')}:")
        for line in _lines(get()):
            print(f"  {visible(line)}")
    return 0


def versions() -> dict[str, str]:
    """Return the versions of this package and of its dependencies."""
    import platform
    from importlib.metadata import version

    from .._native import lib

    def text(chars: Any) -> str:
        return c_text(chars)

    return {
        "llamacffi": version("llamacffi"),
        "llama.cpp": text(lib.llama_version()),
        "commit": text(lib.ggml_commit()),
        "ggml": text(lib.ggml_version()),
        "cffi": version("cffi"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
    }


def build() -> dict[str, str]:
    """Return what the binding was generated from, which may differ from the loaded libraries."""
    from .._native.build_info import build_info

    made_from = build_info()
    return {
        "llama.cpp": made_from.llama_version,
        "commit": made_from.commit,
        "ggml": made_from.ggml_version,
        "layout": made_from.layout,
    }


def paths() -> dict[str, str]:
    """Return the paths of the compiled parts and of the cache."""
    from .. import demo
    from .._native import module_path
    from .._native.interop import library_dir

    return {
        "module": module_path,
        "libraries": str(library_dir()),
        "cache": str(demo.cache_dir()),
    }


def api() -> dict[str, int]:
    """Count the bound names of llama.cpp's public headers."""
    from .._generated.enums import ENUMS
    from .._native import lib

    names = [name for name in dir(lib) if not name.lower().startswith("llamacffi_")]
    functions = sum(is_function(getattr(lib, name)) for name in names)
    return {
        "functions": functions,
        "enums": len(ENUMS),
        "constants": len(names) - functions,
    }


def is_function(value: object) -> bool:
    """Return whether a name is a function; CFFI has variadic ones as cdata, like strings."""
    from .._native import ffi

    if isinstance(value, ffi.CData):
        return ffi.typeof(value).kind == "function"
    return callable(value)


def backends() -> list[str]:
    """Return the loaded backends."""
    from ..backend import registry as backend

    return backend.backends()


def devices() -> list[dict[str, Any]]:
    """Return the devices and their free memory now."""
    from ..backend import registry as backend

    return [{name: getattr(device, name) for name in DEVICE_FIELDS} for device in backend.devices()]


def cpu() -> dict[str, Any]:
    """Return what matters for computing on the CPU."""
    from ..backend import registry as backend

    return {
        "threads": backend.physical_cores(),
        "features": [name for name, has in backend.cpu_features().items() if has],
    }


SECTIONS: Mapping[str, Callable[[], Any]] = {
    "versions": versions,
    "build": build,
    "paths": paths,
    "api": api,
    "backends": backends,
    "devices": devices,
    "cpu": cpu,
}


def _lines(section: Any) -> list[str]:
    """Return the lines of a section as text."""
    if isinstance(section, dict):
        width = max(map(len, section))
        return [f"{name:{width}}  {_text(value)}" for name, value in section.items()]
    return [_text(value) for value in section]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(value)
    if isinstance(value, dict):  # a device
        free, total = value["memory_free"] / GIB, value["memory_total"] / GIB
        return (
            f"{value['name']}  {value['kind']}  {value['description']}  "
            f"{free:.1f} of {total:.1f} GiB free"
        )
    return str(value)
