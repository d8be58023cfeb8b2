"""Backends: loaded once, on first use; what they have, and what this llama.cpp can."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import _native
from .._core.ownership import live_objects
from .._core.params import enum_number
from .._core.shutdown import hold_at_fork
from .._core.text import c_text, path_text
from .._native import ffi, lib
from ..errors import (
    ArgumentError,
    BackendUnavailableError,
    LibraryNotFoundError,
    LoadError,
    UnsupportedError,
)
from ..log import drain, logger, with_log
from . import files
from .cores import physical_cores as physical_cores
from .device_types import BufferType as BufferType
from .device_types import Device as Device
from .device_types import DeviceMemory as DeviceMemory
from .device_types import extension, new_device

if TYPE_CHECKING:
    from .._generated.enums import GgmlNumaStrategy

# ggml's lists of backends and devices have no lock of their own.
_lock = hold_at_fork(threading.RLock())
_loaded = False
_numa_strategy: int | None = None
_unusable: dict[str, str] = {}  # files of backends, and why the loader does not load them


def load() -> None:
    """Load the backends that came with the package.  Anything that needs one calls this.

    On each call but the first this does nothing.  A backend that cannot be loaded, as that of a GPU
    on a machine without its driver, is a warning in the log.

    Raises:
        BackendUnavailableError: There is no CPU backend for this machine.
        LoadError: A backend was built from another llama.cpp.

    Source: ``ggml_backend_load_all_from_path``, ``llama_backend_init``.
    """
    global _loaded
    if _loaded:
        return
    with _lock:
        if _loaded:
            return
        with files.opened(files.files()) as unusable:
            lib.ggml_backend_load_all_from_path(os.fsencode(_native.library_dir))
        _unusable.update(unusable)
        for path, reason in unusable.items():
            logger.warning("the backend %s was not loaded: %s", path, reason)
        if _cpu() == ffi.NULL:
            raise with_log(
                BackendUnavailableError(
                    f"no CPU backend for this machine in {_native.library_dir}{_reasons()}: "
                    "reinstall llamacffi, or build it here (`pip install --no-binary llamacffi "
                    "llamacffi`)"
                )
            )
        lib.llama_backend_init()
        _loaded = True
    drain()


def load_library(path: str | os.PathLike[str]) -> str:
    """Load one more backend, from a file.

    It must be of this llama.cpp.  That is checked if llamacffi has built it, or if it has a ggml of
    its own; of others only the version of ggml's interface is known.

    Returns:
        The name of the backend.

    Raises:
        LibraryNotFoundError: There is no such file.
        LoadError: The file is no backend for this machine and this llama.cpp, or lacks a library.

    Source: ``ggml_backend_load``.
    """
    load()
    name = path_text(path)
    if not os.path.isfile(name):
        raise LibraryNotFoundError(errno.ENOENT, "there is no such file", name)
    path = os.path.abspath(name)  # the loader searches for a bare name elsewhere
    with _lock, files.opened([path]) as unusable:
        if path in unusable:
            raise LoadError(f"cannot load a backend from {name!r}: {unusable[path]}")
        reg = lib.ggml_backend_load(os.fsencode(path))
    if reg == ffi.NULL:
        raise with_log(LoadError(f"cannot load a backend from {name!r}"))
    drain()
    return c_text(lib.ggml_backend_reg_name(reg))


def register(reg: Any) -> None:
    """Make a ``ggml_backend_reg_t`` and its devices known.

    Source: ``ggml_backend_register``.
    """
    with _lock:
        lib.ggml_backend_register(reg)


def unload(name: str) -> None:
    """Unload a backend.  Its devices are gone then.

    ggml unloads its code without asking who uses it.  So nothing may be alive that was made in C by
    this package, and what was made by `llamacffi.lib` is up to the caller.

    Args:
        name: One of `backends`.

    Raises:
        BackendUnavailableError: There is no such backend.
        UnsupportedError: It is the CPU's, which llama.cpp needs, or it has servers, which cannot
            be forgotten; or models, contexts or other C objects are alive.

    Source: ``ggml_backend_unload``.
    """
    load()
    with _lock:
        reg = _registry(name)
        if reg == lib.ggml_backend_dev_backend_reg(_cpu()):
            raise UnsupportedError(f"the backend {name!r} cannot be unloaded: all need it")
        add_server = "ggml_backend_rpc_add_server"
        remote = [one for one in _registries() if extension(one, add_server) != ffi.NULL]
        if reg in remote and len(remote) > 1:
            raise UnsupportedError(f"the backend {name!r} cannot be unloaded: it has servers")
        if n := live_objects():
            raise UnsupportedError(
                f"the backend {name!r} cannot be unloaded while {n} C objects are alive: close all "
                "models, contexts and what else was made"
            )
        lib.ggml_backend_unload(reg)
    drain()


def backends() -> list[str]:
    """Return the names of the loaded backends.

    Source: ``ggml_backend_reg_name``.
    """
    load()
    with _lock:
        return [c_text(lib.ggml_backend_reg_name(reg)) for reg in _registries()]


def features(name: str = "CPU") -> dict[str, str]:
    """Return what a backend was built with, as it tells itself; empty if it tells nothing.

    Args:
        name: One of `backends`.

    Raises:
        BackendUnavailableError: There is no such backend.

    Source: ``ggml_backend_get_features``.
    """
    load()
    with _lock:
        reg, function = _registry(name), "ggml_backend_get_features"
        get = ffi.cast(f"{function}_t", extension(reg, function))
        array = ffi.NULL if get == ffi.NULL else get(reg)
    found: dict[str, str] = {}
    while array != ffi.NULL and array[len(found)].name != ffi.NULL:
        feature = array[len(found)]
        found[c_text(feature.name)] = c_text(feature.value)
    return found


def devices() -> list[Device]:
    """Return the devices of all loaded backends, the CPU among them.

    Source: ``ggml_backend_dev_get`` and its kin.
    """
    load()
    with _lock:
        return [
            new_device(lib.ggml_backend_dev_get(i)) for i in range(lib.ggml_backend_dev_count())
        ]


def device(name: str) -> Device:
    """Return the device of this name, such as ``"CPU"`` or ``"CUDA0"``.

    Raises:
        BackendUnavailableError: There is no such device.

    Source: ``ggml_backend_dev_by_name``.
    """
    load()
    if not isinstance(name, str):
        raise TypeError(f"the name of a device must be a str, not {name!r}")
    with _lock:
        dev = lib.ggml_backend_dev_by_name(_name(name))
        if dev == ffi.NULL:
            known = ", ".join(one.name for one in devices())
            raise BackendUnavailableError(
                f"there is no device {name!r}; available: {known}{_reasons()}"
            )
        return new_device(dev)


def buffer_types() -> list[BufferType]:
    """Return all kinds of memory that the devices have, each once.

    Raises:
        BackendUnavailableError: A device of another machine does not answer.
    """
    found = {}
    for one in devices():
        for kind in (one.buffer_type, one.host_buffer_type, *one.extra_buffer_types):
            if kind is not None:
                found[kind.ptr] = kind
    return list(found.values())


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
    return c_text(lib.llama_print_system_info())


@dataclass(frozen=True)
class Capabilities:
    """What this llama.cpp can on this machine, and the most it can of each."""

    mmap: bool
    """Model files can be mapped into memory.  Source: ``llama_supports_mmap``."""
    mlock: bool
    """Memory can be kept from being swapped out.  Source: ``llama_supports_mlock``."""
    gpu_offload: bool
    """A GPU is there, or `rpc`.  Source: ``llama_supports_gpu_offload``."""
    rpc: bool
    """Devices of other machines can be used.  Source: ``llama_supports_rpc``."""
    max_devices: int
    """Devices for one model.  Source: ``llama_max_devices``."""
    max_parallel_sequences: int
    """Sequences in one context.  Source: ``llama_max_parallel_sequences``."""
    max_tensor_buft_overrides: int
    """Patterns in ``tensor_buft_overrides``.  Source: ``llama_max_tensor_buft_overrides``."""
    max_threads: int
    """Threads in one pool.  Source: ``GGML_MAX_N_THREADS``."""


def capabilities() -> Capabilities:
    """Return what this llama.cpp can with the backends that are loaded now.

    Source: as for each field of `Capabilities`.
    """
    load()
    return Capabilities(
        mmap=lib.llama_supports_mmap(),
        mlock=lib.llama_supports_mlock(),
        gpu_offload=lib.llama_supports_gpu_offload(),
        rpc=lib.llama_supports_rpc(),
        max_devices=lib.llama_max_devices(),
        max_parallel_sequences=lib.llama_max_parallel_sequences(),
        max_tensor_buft_overrides=lib.llama_max_tensor_buft_overrides(),
        max_threads=lib.GGML_MAX_N_THREADS,
    )


def time_us() -> int:
    """Return llama.cpp's clock, in microseconds: the one of its timings and logs.

    Source: ``llama_time_us``.
    """
    return int(lib.llama_time_us())


def numa_init(strategy: GgmlNumaStrategy | int | str) -> None:
    """Choose how threads are placed on a machine whose memory is in several nodes.

    Once for the process, before the first model is loaded: what is loaded stays where it is.  On a
    machine with one node it changes nothing.

    Args:
        strategy: ``"disabled"``, ``"distribute"`` over all nodes, ``"isolate"`` on this one,
            ``"numactl"`` for the processors that the process was started on, or ``"mirror"``.

    Raises:
        ArgumentError: There is no such strategy.
        UnsupportedError: Another one was chosen already, or there are models.

    Source: ``llama_numa_init``.
    """
    global _numa_strategy
    number = enum_number("GgmlNumaStrategy", "strategy", strategy)
    if number == lib.GGML_NUMA_STRATEGY_COUNT:
        raise ArgumentError(f"strategy={strategy!r} is none: it counts the others")
    load()
    with _lock:
        if number == _numa_strategy:
            return
        if _numa_strategy is not None:
            raise UnsupportedError(
                f"strategy={strategy!r}: another one was chosen already, and holds for the process"
            )
        if n := live_objects():
            raise UnsupportedError(
                f"NUMA must be set up before the first model is loaded; {n} C objects are alive"
            )
        lib.llama_numa_init(number)
        _numa_strategy = number
    drain()


def _cpu() -> Any:
    return lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU)


def _registries() -> list[Any]:
    return [lib.ggml_backend_reg_get(i) for i in range(lib.ggml_backend_reg_count())]


def _registry(name: str) -> Any:
    """Return the ``ggml_backend_reg_t`` of a name."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a backend must be a str, not {name!r}")
    reg = lib.ggml_backend_reg_by_name(_name(name))
    if reg == ffi.NULL:
        raise BackendUnavailableError(
            f"there is no backend {name!r}; available: {', '.join(backends())}{_reasons()}"
        )
    return reg


def _reasons() -> str:
    """Return why backends were not loaded, to be added to an error message."""
    return "".join(f"; {path} was not loaded: {reason}" for path, reason in _unusable.items())


def _name(name: str) -> bytes:
    """Return a name for C; one that C would cut short is none."""
    try:
        return b"" if "\0" in name else name.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return b""
