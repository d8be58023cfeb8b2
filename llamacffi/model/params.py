"""Check the parameters of a model and convert them to C structs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from .._core.params import Converter, fill
from .._core.text import c_text
from .._core.values import check_function, elements, integer, number, warn
from .._native import ffi, lib
from ..backend import registry as backend
from ..backend.device_types import Device
from ..errors import ArgumentError, BackendUnavailableError
from . import load_mode
from .file_kind import architecture_of
from .metadata import Metadata
from .overrides import expert_overrides, kv_overrides, override_pairs, tensor_buft_overrides

# Fields of llama_model_params that `Model` fills itself.
OWNED = {
    "progress_callback": "use progress=, a Python function",
    "progress_callback_user_data": "use progress=, a Python function",
}


def model_params(params: Mapping[str, Any], *, warning: bool = True) -> tuple[Any, list[object]]:
    """Return a ``struct llama_model_params *`` and the objects that must outlive the model.

    Args:
        params: Fields of the struct as Python values, ``cpu_moe``, ``n_cpu_moe`` and ``progress``.
        warning: Whether to warn about parameters that have no effect.

    Raises:
        TypeError: A parameter is unknown, or its value has the wrong type.
        ArgumentError: A value is out of range, or two contradict each other.
        BackendUnavailableError: A device does not exist.
    """
    fields = dict(params)
    progress = fields.pop("progress", None)
    if progress is not None:
        check_function("progress", progress)
    experts = expert_overrides(fields.pop("cpu_moe", False), fields.pop("n_cpu_moe", 0))
    struct = ffi.new("struct llama_model_params *")
    struct[0] = lib.llama_model_default_params()
    keep = fill(struct, "llama_model_params", fields, OWNED, MODEL_CONVERTERS)
    _check_weights(struct, fields)
    devices = used_devices(struct)
    if experts and devices:
        given = override_pairs(fields.get("tensor_buft_overrides") or [])
        struct.tensor_buft_overrides, kept = tensor_buft_overrides([*given, *experts])
        keep.append(kept)
    _check_devices(struct, devices, fields)
    if warning and not devices:
        _warn_without_gpu(struct, params)
    return struct, keep


def warn_without_experts(struct: Any, params: Mapping[str, Any], ptr: Any) -> None:
    """Warn if ``cpu_moe`` or ``n_cpu_moe`` is given and the loaded model has no experts."""
    given = next((name for name in ("cpu_moe", "n_cpu_moe") if params.get(name)), None)
    if not given or not used_devices(struct):
        return
    metadata = Metadata(ptr)
    if metadata.get(f"{architecture_of(metadata)}.expert_count", "0") == "0":
        warn(
            f"{given}={params[given]!r} has no effect: the model has no experts to keep on the CPU"
        )


def _check_weights(struct: Any, fields: Mapping[str, Any]) -> None:
    """Raise ArgumentError for parameters of loading that exclude each other."""
    for name in ("vocab_only", "no_alloc"):
        if getattr(struct, name) and struct.check_tensors:
            raise ArgumentError(
                f"check_tensors=True reads the weights, but {name}=True does not load them: leave "
                "out one of them"
            )
    if struct.no_alloc:
        # upstream: src/llama-model.cpp "GGML_ASSERT(!ml.no_alloc)": fails if the file is mapped,
        # even where llama.cpp chooses to map it, and so we choose "none".
        if load_mode.is_auto(struct):
            load_mode.use_read(struct)
        elif not load_mode.is_read(struct):
            raise ArgumentError(
                f"load_mode={fields.get('load_mode')!r} is not possible with no_alloc=True: use "
                "load_mode='none'"
            )


def _check_devices(struct: Any, devices: list[Any], fields: Mapping[str, Any]) -> None:
    """Raise for devices and split parameters that contradict each other."""
    single = struct.split_mode == lib.LLAMA_SPLIT_MODE_NONE
    if struct.split_mode == lib.LLAMA_SPLIT_MODE_TENSOR and not devices:
        raise BackendUnavailableError("split_mode='tensor' needs a GPU or a list of devices")
    if single and devices:
        most = len(devices) - 1
        integer("main_gpu", struct.main_gpu, None, most, ": it is an index into devices")
    if not single and struct.main_gpu != lib.llama_model_default_params().main_gpu:
        raise ArgumentError(f"main_gpu={struct.main_gpu} works only with split_mode='none'")
    if struct.devices != ffi.NULL:
        _check_places(struct, devices)
        split = fields.get("tensor_split")
        if split is not None and not isinstance(split, ffi.CData) and len(split) > len(devices):
            raise ArgumentError(
                f"tensor_split has {len(split)} parts, but there are {len(devices)} devices"
            )


def _warn_without_gpu(struct: Any, params: Mapping[str, Any]) -> None:
    """Warn about parameters for a GPU on a machine without one: llama.cpp ignores them."""
    asks_for_gpu = {
        name: params.get(name, 0) > 0 for name in ("n_gpu_layers", "main_gpu", "n_cpu_moe")
    }
    asks_for_gpu |= {name: bool(params.get(name)) for name in ("no_host", "cpu_moe")}
    asks_for_gpu["tensor_split"] = params.get("tensor_split") is not None
    is_split = "split_mode" in params and struct.split_mode != lib.LLAMA_SPLIT_MODE_NONE
    asks_for_gpu["split_mode"] = is_split
    for name in [name for name in params if asks_for_gpu.get(name)]:
        warn(
            f"{name}={params[name]!r} has no effect: llama.cpp found no GPU, so the model runs on "
            "the CPU; llamacffi.devices() lists the devices"
        )


def used_devices(struct: Any) -> list[Any]:
    """Return the devices that the model may use besides the CPU."""
    # upstream: src/llama.cpp ggml_backend_meta_device, GGML_BACKEND_DEVICE_TYPE_IGPU: how llama.cpp
    # chooses devices by default, and so we choose the same, or more, to check parameters.
    if struct.devices != ffi.NULL:
        return list(ffi.unpack(struct.devices, _length(struct.devices)))
    backend.load()
    found = [lib.ggml_backend_dev_get(i) for i in range(lib.ggml_backend_dev_count())]
    if struct.split_mode == lib.LLAMA_SPLIT_MODE_TENSOR:
        cpu = lib.ggml_backend_cpu_buffer_type()
        return [dev for dev in found if lib.ggml_backend_dev_buffer_type(dev) != cpu]
    kinds = (lib.GGML_BACKEND_DEVICE_TYPE_GPU, lib.GGML_BACKEND_DEVICE_TYPE_IGPU)
    return [dev for dev in found if lib.ggml_backend_dev_type(dev) in kinds]


def _length(array: Any) -> int:
    """Return the number of pointers before NULL."""
    return next(i for i in itertools.count() if array[i] == ffi.NULL)


def _check_places(struct: Any, devices: list[Any]) -> None:
    """Raise if a tensor would be placed on a device that the model does not use."""
    # upstream: ggml/src/ggml-backend.cpp "pre-allocated tensor (%s) in a buffer (%s)": aborts when
    # a context is created, and so we refuse it.
    overrides = struct.tensor_buft_overrides
    for i in itertools.count():
        if overrides == ffi.NULL or overrides[i].pattern == ffi.NULL:
            return
        dev = lib.ggml_backend_buft_get_device(overrides[i].buft)
        if dev != ffi.NULL and not _is_cpu(dev) and dev not in devices:
            raise ArgumentError(
                f"tensor_buft_overrides puts {c_text(overrides[i].pattern)!r} on "
                f"{c_text(lib.ggml_backend_dev_name(dev))}, which is not one of the model's "
                "devices: add it to devices="
            )


def _is_cpu(dev: Any) -> bool:
    return bool(lib.ggml_backend_dev_type(dev) == lib.GGML_BACKEND_DEVICE_TYPE_CPU)


def devices(value: Any) -> tuple[Any, object]:
    """Convert devices to a ``ggml_backend_dev_t[]`` that ends with NULL.

    The CPU alone becomes an empty list: llama.cpp always uses the CPU, and repacks weights for it
    only if it is not listed as a device.

    Args:
        value: Devices or their names, a single one, ``"none"`` for the CPU alone, None for
            llama.cpp's choice, or a cdata.

    Raises:
        TypeError: ``value`` has another type.
        ArgumentError: A device is listed twice, or there are too many devices.
        BackendUnavailableError: A device does not exist.
    """
    if value is None or isinstance(value, ffi.CData):
        return (ffi.NULL if value is None else value), value
    if isinstance(value, (str, Device)):
        value = [] if value == "none" else [value]
    found = [_device(one) for one in elements("devices", value, "devices or their names")]
    if len(set(found)) < len(found):
        raise ArgumentError(f"devices={value!r} lists a device twice")
    if len(found) > (limit := lib.llama_max_devices()):
        raise ArgumentError(
            f"devices lists {len(found)} devices, but llama.cpp takes at most {limit}"
        )
    # upstream: src/llama-model.cpp make_cpu_buft_list, make_gpu_buft_list: a CPU that is listed as
    # a device gets no buffers for repacked weights.
    if len(found) == 1 and _is_cpu(found[0]):
        found = []
    array = ffi.new("ggml_backend_dev_t[]", [*found, ffi.NULL])
    return array, array


def _device(value: Any) -> Any:
    """Return the ``ggml_backend_dev_t`` of a device or its name."""
    if isinstance(value, ffi.CData):
        return value
    return value.ptr if isinstance(value, Device) else backend.device(value).ptr


def tensor_split(value: Any) -> tuple[Any, object]:
    """Convert the proportion for each device to a ``float[]``, padded with zeros.

    Raises:
        TypeError: ``value`` is not a sequence of numbers.
        ArgumentError: There are too many numbers, one is negative or not finite, or all are zero.
    """
    if value is None or isinstance(value, ffi.CData):
        return (ffi.NULL if value is None else value), value
    parts = [number("tensor_split", part, 0) for part in elements("tensor_split", value, "numbers")]
    limit = lib.llama_max_devices()
    if len(parts) > limit:
        raise ArgumentError(
            f"tensor_split has {len(parts)} parts, but llama.cpp takes at most {limit} devices"
        )
    if not any(parts):
        raise ArgumentError(f"tensor_split={value!r}: at least one part must be above 0")
    # upstream: src/llama-model.cpp tensor_split_owned: copies llama_max_devices() values.
    array = ffi.new("float[]", limit)
    array[0 : len(parts)] = parts
    return array, array


MODEL_CONVERTERS: Mapping[str, Converter] = {
    "devices": devices,
    "kv_overrides": kv_overrides,
    "tensor_buft_overrides": tensor_buft_overrides,
    "tensor_split": tensor_split,
}
