"""Load backends once, on first use, and describe their devices, features and limits."""

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

# upstream: ggml/src/ggml-backend-reg.cpp ggml_backend_registry: its lists of backends and devices
# have no lock
_lock = hold_at_fork(threading.RLock())
_loaded = False
_numa_strategy: int | None = None
_unusable: dict[str, str] = {}  # files of backends that the loader refused, and its reasons


def load() -> None:
    """Load the backends that came with the package.  Everything that needs a backend calls this.

    Only the first call has an effect.  A backend that cannot be loaded, such as one for a GPU
    whose driver is missing, logs a warning.

    Raises:
        BackendUnavailableError: The package has no CPU backend for this machine.
        LoadError: A backend is truncated, or was built from another llama.cpp.

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
    """Load another backend from a file.

    It must be built from this llama.cpp.  That is checked if llamacffi built it, or if it contains
    its own ggml; for others, ggml only checks the version of its backend interface.

    Args:
        path: The file of the backend.

    Returns:
        The name of the backend.

    Raises:
        LibraryNotFoundError: The file does not exist.
        LoadError: The file is truncated, or not a backend for this machine and this llama.cpp, or
            needs a missing library.

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
    """Add a ``ggml_backend_reg_t`` and its devices.

    Source: ``ggml_backend_register``.
    """
    with _lock:
        lib.ggml_backend_register(reg)


def unload(name: str) -> None:
    """Unload a backend and its devices.

    ggml unloads the code even if something still uses it.  So no C object of this package may be
    alive, and the caller must see to objects created through `llamacffi.lib`.

    Args:
        name: One of `backends`.

    Raises:
        BackendUnavailableError: The backend does not exist.
        UnsupportedError: It is the CPU backend, which llama.cpp needs; or it has RPC servers, which
            cannot be removed; or models, contexts or other C objects are alive.

    Source: ``ggml_backend_unload``.
    """
    load()
    with _lock:
        reg = _registry(name)
        if reg == lib.ggml_backend_dev_backend_reg(_cpu()):
            raise UnsupportedError(f"the backend {name!r} cannot be unloaded: llama.cpp needs it")
        add_server = "ggml_backend_rpc_add_server"
        remote = [one for one in _registries() if extension(one, add_server) != ffi.NULL]
        if reg in remote and len(remote) > 1:
            raise UnsupportedError(
                f"the backend {name!r} cannot be unloaded after add_server() added devices to it"
            )
        # upstream: ggml/src/ggml-backend-reg.cpp unload_backend: does so even if it is in use.
        if n := live_objects():
            raise UnsupportedError(
                f"the backend {name!r} cannot be unloaded while {n} C objects are alive: close all "
                "models, contexts and other objects first"
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
    """Return the features that a backend reports it was built with, if any.

    Args:
        name: One of `backends`.

    Returns:
        The value of each feature, by name; empty if the backend reports none.

    Raises:
        BackendUnavailableError: The backend does not exist.

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
    """Return the devices of all loaded backends, including the CPU.

    Source: ``ggml_backend_dev_count``, ``ggml_backend_dev_get``.
    """
    load()
    with _lock:
        return [
            new_device(lib.ggml_backend_dev_get(i)) for i in range(lib.ggml_backend_dev_count())
        ]


def device(name: str) -> Device:
    """Return the device with this name, such as ``"CPU"`` or ``"CUDA0"``.

    Args:
        name: The name.

    Raises:
        BackendUnavailableError: The device does not exist.

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
    """Return all buffer types of the devices, each once.

    Raises:
        BackendUnavailableError: A device on another machine does not respond.
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
    """Return llama.cpp's own summary of the backends and their features, in one line.

    Source: ``llama_print_system_info``.
    """
    load()
    return c_text(lib.llama_print_system_info())


@dataclass(frozen=True)
class Capabilities:
    """What this llama.cpp supports on this machine, and its limits."""

    mmap: bool
    """Whether model files can be mapped into memory.  Source: ``llama_supports_mmap``."""
    mlock: bool
    """Whether memory can be locked against swapping.  Source: ``llama_supports_mlock``."""
    gpu_offload: bool
    """Whether there is a GPU, or `rpc` is true.  Source: ``llama_supports_gpu_offload``."""
    rpc: bool
    """Whether devices of other machines can be used.  Source: ``llama_supports_rpc``."""
    max_devices: int
    """The maximum number of devices for one model.  Source: ``llama_max_devices``."""
    max_parallel_sequences: int
    """The maximum number of sequences in a context.  Source: ``llama_max_parallel_sequences``."""
    max_tensor_buft_overrides: int
    """The maximum number of patterns in ``tensor_buft_overrides``.

    Source: ``llama_max_tensor_buft_overrides``."""
    max_threads: int
    """The maximum number of threads in a pool.  Source: ``GGML_MAX_N_THREADS``."""


def capabilities() -> Capabilities:
    """Return what llama.cpp supports with the backends that are loaded now.

    Source: see each field of `Capabilities`.
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
    """Return the time in microseconds on the clock that llama.cpp uses for its timings.

    Source: ``llama_time_us``.
    """
    return int(lib.llama_time_us())


def numa_init(strategy: GgmlNumaStrategy | int | str) -> None:
    """Choose how threads are placed on a machine with several NUMA nodes.

    Call this once in a process, before loading the first model: loaded models stay where they are.
    It has no effect on a machine with a single node.

    Args:
        strategy: ``"disabled"``, ``"distribute"`` over all nodes, ``"isolate"`` on the current
            node, ``"numactl"`` for the processors that the process was started on, or ``"mirror"``.

    Raises:
        ArgumentError: The strategy is unknown.
        UnsupportedError: Another strategy was chosen already, or C objects are alive.

    Source: ``llama_numa_init``.
    """
    global _numa_strategy
    number = enum_number("GgmlNumaStrategy", "strategy", strategy)
    if number == lib.GGML_NUMA_STRATEGY_COUNT:
        raise ArgumentError(
            f"strategy={strategy!r} is not a strategy, but the number of strategies"
        )
    load()
    with _lock:
        if number == _numa_strategy:
            return
        if _numa_strategy is not None:
            raise UnsupportedError(
                f"strategy={strategy!r} cannot be set: another one was already chosen for this "
                "process"
            )
        if n := live_objects():
            raise UnsupportedError(
                "call numa_init() before loading the first model, or close all objects first: "
                f"{n} C objects are alive"
            )
        lib.llama_numa_init(number)
        _numa_strategy = number
    drain()


def _cpu() -> Any:
    return lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU)


def _registries() -> list[Any]:
    return [lib.ggml_backend_reg_get(i) for i in range(lib.ggml_backend_reg_count())]


def _registry(name: str) -> Any:
    """Return the ``ggml_backend_reg_t`` with this name."""
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
    """Encode a name for C; a name that C cannot represent becomes empty, which matches nothing."""
    try:
        return b"" if "\0" in name else name.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return b""
