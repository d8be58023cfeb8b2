"""Backends: load them once, and list their devices and features."""

from .cores import physical_cores
from .device_types import BufferType, Device, DeviceMemory
from .registry import (
    Capabilities,
    backends,
    buffer_types,
    capabilities,
    cpu_features,
    device,
    devices,
    features,
    load,
    load_library,
    numa_init,
    system_info,
    time_us,
    unload,
)

__all__ = [
    "BufferType",
    "Capabilities",
    "Device",
    "DeviceMemory",
    "backends",
    "buffer_types",
    "capabilities",
    "cpu_features",
    "device",
    "devices",
    "features",
    "load",
    "load_library",
    "numa_init",
    "physical_cores",
    "system_info",
    "time_us",
    "unload",
]
