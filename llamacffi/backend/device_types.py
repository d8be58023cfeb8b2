"""Devices, which compute, and buffer types, which hold tensors, of the loaded backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .._core.ownership import Pointer
from .._core.text import c_text
from .._core.unique import Unique
from .._native import ffi, lib
from ..errors import BackendUnavailableError, NativeError
from ..log import with_log


class DeviceMemory(NamedTuple):
    """The memory of a device at one moment, in bytes."""

    free: int
    total: int


@dataclass(frozen=True)
class Device(Pointer):
    """A device that computes: a CPU or an accelerator.

    This is only a description; nothing is initialized until a model uses the device.  Properties
    that can change, or that an RPC server must answer, are queried each time.
    """

    _instead = "call devices() in each process"

    name: str
    description: str
    backend: str
    kind: str
    """``"cpu"``, ``"gpu"``, ``"igpu"``, ``"accel"`` or ``"meta"``, as in ggml's enum."""
    _ptr: Any = field(repr=False)

    @property
    def ptr(self) -> Any:
        """The ``ggml_backend_dev_t``, for `llamacffi.lib`.

        Raises:
            BackendUnavailableError: Its backend was unloaded.
        """
        n_devices = lib.ggml_backend_dev_count()
        if not any(lib.ggml_backend_dev_get(i) == self._ptr for i in range(n_devices)):
            raise BackendUnavailableError(f"the backend of {self.name} was unloaded")
        return self._ptr

    def memory(self) -> DeviceMemory:
        """Return the memory that the device has now.

        Raises:
            BackendUnavailableError: The device does not respond, or its backend was unloaded.

        Source: ``ggml_backend_dev_memory``.
        """
        sizes = ffi.new("size_t[2]")
        self._ask(lambda dev: lib.ggml_backend_dev_memory(dev, sizes, sizes + 1))
        return DeviceMemory(*sizes)

    @property
    def memory_free(self) -> int:
        """The number of bytes that are free now.  See `memory`."""
        return self.memory().free

    @property
    def memory_total(self) -> int:
        """The total number of bytes.  See `memory`."""
        return self.memory().total

    @property
    def device_id(self) -> str | None:
        """An identifier of the hardware, such as the address of a PCI device; None if unknown.

        It is the same in every backend that drives this hardware.

        Source: ``ggml_backend_dev_get_props``.
        """
        device_id = self._props().device_id
        return None if device_id == ffi.NULL else c_text(device_id)

    @property
    def caps(self) -> dict[str, bool]:
        """Its capabilities, by their names in ``struct ggml_backend_dev_caps``.

        Source: ``ggml_backend_dev_get_props``.
        """
        caps = self._props().caps
        kind: Any = ffi.typeof(caps)
        return {name: bool(getattr(caps, name)) for name, _ in kind.fields}

    @property
    def buffer_type(self) -> BufferType:
        """The memory that it keeps tensors in by default.

        Source: ``ggml_backend_dev_buffer_type``.
        """
        return _buffer_type(self._ask(lib.ggml_backend_dev_buffer_type))

    @property
    def host_buffer_type(self) -> BufferType | None:
        """Main memory that the device accesses quickly, such as pinned memory; None if it has none.

        Source: ``ggml_backend_dev_host_buffer_type``.
        """
        found = self._ask(lib.ggml_backend_dev_host_buffer_type)
        return None if found == ffi.NULL else _buffer_type(found)

    @property
    def extra_buffer_types(self) -> list[BufferType]:
        """Memory in which it can keep weights in a special layout, best first.

        Source: ``ggml_backend_dev_get_extra_bufts``.
        """
        reg = lib.ggml_backend_dev_backend_reg(self.ptr)
        buffer_types: list[BufferType] = []
        name = "ggml_backend_dev_get_extra_bufts"
        function = ffi.cast(f"{name}_t", extension(reg, name))
        if function != ffi.NULL:
            array = function(self.ptr)
            while array != ffi.NULL and array[len(buffer_types)] != ffi.NULL:
                buffer_types.append(_buffer_type(array[len(buffer_types)]))
        return buffer_types

    def _props(self) -> Any:
        props = ffi.new("struct ggml_backend_dev_props *")
        self._ask(lambda dev: lib.ggml_backend_dev_get_props(dev, props))
        return props

    def _ask(self, function: Callable[[Any], Any]) -> Any:
        """Call a C function on the device, which can fail for a device on another machine."""
        try:
            return function(self.ptr)
        except NativeError as error:
            raise with_log(
                BackendUnavailableError(
                    f"the device {self.name} does not respond: {str(error).strip()}"
                )
            ) from error


@dataclass(frozen=True)
class BufferType(Unique):
    """A kind of memory for tensors."""

    _instead = "call backend.buffer_types() in each process"

    name: str
    alignment: int
    """The alignment of tensors, in bytes."""
    max_size: int | None
    """The maximum size of one buffer in bytes; None if only the memory limits it."""
    is_host: bool
    """Whether the CPU can read and write it."""
    device: str | None
    """The name of the device that it belongs to, if any."""
    ptr: Any = field(repr=False)
    """The ``ggml_backend_buffer_type_t``, for `llamacffi.lib`."""


def new_device(dev: Any) -> Device:
    """Describe a ``ggml_backend_dev_t``."""
    from .._generated.enums import GgmlBackendDevType

    return Device(
        name=c_text(lib.ggml_backend_dev_name(dev)),
        description=c_text(lib.ggml_backend_dev_description(dev)),
        backend=c_text(lib.ggml_backend_reg_name(lib.ggml_backend_dev_backend_reg(dev))),
        kind=GgmlBackendDevType(lib.ggml_backend_dev_type(dev)).name.lower(),
        _ptr=dev,
    )


def _buffer_type(buft: Any) -> BufferType:
    dev, max_size = lib.ggml_backend_buft_get_device(buft), lib.ggml_backend_buft_get_max_size(buft)
    unlimited = int(ffi.cast("size_t", -1))
    return BufferType(
        name=c_text(lib.ggml_backend_buft_name(buft)),
        alignment=lib.ggml_backend_buft_get_alignment(buft),
        max_size=None if max_size == unlimited else max_size,
        is_host=lib.ggml_backend_buft_is_host(buft),
        device=None if dev == ffi.NULL else c_text(lib.ggml_backend_dev_name(dev)),
        ptr=buft,
    )


def extension(reg: Any, name: str) -> Any:
    """Return the address of a function that only some backends have; NULL if this one does not.

    Source: ``ggml_backend_reg_get_proc_address``.
    """
    return lib.ggml_backend_reg_get_proc_address(reg, name.encode())
