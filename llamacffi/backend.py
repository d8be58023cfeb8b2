"""Backends and devices: loaded once, on first use."""

from __future__ import annotations

import os
import platform
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _ffi
from ._ffi import ffi, lib
from .errors import BackendUnavailableError, LoadError
from .log import drain, with_log

_lock = threading.Lock()
_loaded = False


def library_dir() -> Path:
    """Return the directory of the libraries and backends that belong to the compiled module."""
    return Path(_ffi.module_path).parent / "lib"


def load() -> None:
    """Load the backends that came with the package.  Anything that needs one calls this.

    On each call but the first this does nothing.

    Raises:
        BackendUnavailableError: There is no CPU backend for this machine.

    Source: ``ggml_backend_load_all_from_path``, ``llama_backend_init``.
    """
    global _loaded
    if _loaded:
        return
    with _lock:
        if _loaded:
            return
        lib.ggml_backend_load_all_from_path(os.fsencode(library_dir()))
        if lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU) == ffi.NULL:
            raise with_log(
                BackendUnavailableError(
                    f"no CPU backend for this machine in {library_dir()}: reinstall llamacffi, or "
                    "build it here (`pip install --no-binary llamacffi llamacffi`)"
                )
            )
        lib.llama_backend_init()
        _loaded = True
    drain()


def load_library(path: str | os.PathLike[str]) -> str:
    """Load one more backend, from a file.

    Returns:
        The name of the backend.

    Raises:
        LoadError: The file is no backend for this machine and this ggml.

    Source: ``ggml_backend_load``.
    """
    load()
    reg = lib.ggml_backend_load(os.fsencode(path))
    if reg == ffi.NULL:
        raise with_log(LoadError(f"cannot load a backend from {os.fspath(path)!r}"))
    drain()
    return _text(lib.ggml_backend_reg_name(reg))


@dataclass(frozen=True)
class Device:
    """A device that computes: a processor or an accelerator.

    The memory is what was free, and there was in all, at the time of the call, in bytes.
    """

    name: str
    description: str
    backend: str
    kind: str
    """``"cpu"``, ``"gpu"``, ``"igpu"``, ``"accel"``, ``"meta"``: the end of its C name."""
    memory_free: int
    memory_total: int


def devices() -> list[Device]:
    """Return the devices of all loaded backends.

    Source: ``ggml_backend_dev_get`` and its kin.
    """
    load()
    return [_device(lib.ggml_backend_dev_get(i)) for i in range(lib.ggml_backend_dev_count())]


def _device(dev: Any) -> Device:
    from ._generated.enums import GgmlBackendDevType

    free, total = ffi.new("size_t *"), ffi.new("size_t *")
    lib.ggml_backend_dev_memory(dev, free, total)
    return Device(
        name=_text(lib.ggml_backend_dev_name(dev)),
        description=_text(lib.ggml_backend_dev_description(dev)),
        backend=_text(lib.ggml_backend_reg_name(lib.ggml_backend_dev_backend_reg(dev))),
        kind=GgmlBackendDevType(lib.ggml_backend_dev_type(dev)).name.lower(),
        memory_free=free[0],
        memory_total=total[0],
    )


def backends() -> list[str]:
    """Return the names of the loaded backends.

    Source: ``ggml_backend_reg_name``.
    """
    load()
    regs = (lib.ggml_backend_reg_get(i) for i in range(lib.ggml_backend_reg_count()))
    return [_text(lib.ggml_backend_reg_name(reg)) for reg in regs]


def cpu_features() -> dict[str, bool]:
    """Return the instruction sets that the CPU backend was compiled with, by name.

    Source: the ``ggml_cpu_has_*`` functions.
    """
    load()
    prefix = "ggml_cpu_has_"
    names = [name for name in dir(lib) if name.startswith(prefix)]
    return {name.removeprefix(prefix): bool(getattr(lib, name)()) for name in names}


def system_info() -> str:
    """Return llama.cpp's own line about the backends and their features.

    Source: ``llama_print_system_info``.
    """
    load()
    return _text(lib.llama_print_system_info())


def physical_cores() -> int:
    """Count the physical cores that this process may run on; at least 1.

    Two hardware threads of one core share its arithmetic units, so more threads than cores slow
    the computation down.
    """
    if sys.platform == "linux":
        allowed = os.sched_getaffinity(0)
        return max(1, len({_siblings(cpu) for cpu in allowed}))
    # Elsewhere nobody tells: most x86 cores have two hardware threads, others one.
    per_core = 2 if platform.machine().lower() in ("x86_64", "amd64") else 1
    return max(1, (os.cpu_count() or 1) // per_core)


def _siblings(cpu: int) -> str:
    """Return the hardware threads of a CPU's core, as the kernel names them."""
    try:
        path = f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return str(cpu)


def _text(chars: Any) -> str:
    return ffi.string(chars).decode(errors="replace")  # type: ignore[no-any-return]


__all__: Sequence[str] = (
    "Device",
    "backends",
    "cpu_features",
    "devices",
    "library_dir",
    "load",
    "load_library",
    "physical_cores",
    "system_info",
)
