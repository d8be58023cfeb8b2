"""The parameters of a model in Python's terms, checked and made into what C takes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from .._core.params import Converter, fill
from .._core.values import check_function, elements, integer, number, warn
from .._native import ffi, lib
from ..backend import registry as backend
from ..backend.device_types import Device, text
from ..errors import ArgumentError, BackendUnavailableError
from . import load_mode
from .info import Metadata
from .overrides import expert_overrides, kv_overrides, override_pairs, tensor_buft_overrides

# Fields of llama_model_params that `Model` fills itself.
OWNED = {
    "progress_callback": "use progress=, a Python function",
    "progress_callback_user_data": "use progress=, a Python function",
}


def model_params(params: Mapping[str, Any], *, warning: bool = True) -> tuple[Any, list[object]]:
    """Return a ``struct llama_model_params *`` with ``params``, and what must outlive the model.

    Args:
        params: Fields of the struct in Python's terms; ``cpu_moe``, ``n_cpu_moe``, ``progress``.
        warning: Warn of what has no effect.

    Raises:
        TypeError: A parameter is unknown, or its value is of another type.
        ArgumentError: A value is out of range, or two do not go together.
        BackendUnavailableError: A device is not there.
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
    """Warn if experts are to stay on the processor, and the model that was loaded has none."""
    asked = next((name for name in ("cpu_moe", "n_cpu_moe") if params.get(name)), None)
    if not asked or not used_devices(struct):
        return
    metadata = Metadata(ptr)
    if metadata.get(f"{metadata['general.architecture']}.expert_count", "0") == "0":
        warn(
            f"{asked}={params[asked]!r} has no effect: the model is no mixture, and has no experts "
            "to keep on the processor"
        )


def _check_weights(struct: Any, fields: Mapping[str, Any]) -> None:
    """Raise for ways to load the weights that exclude each other."""
    for name in ("vocab_only", "no_alloc"):
        if getattr(struct, name) and struct.check_tensors:
            raise ArgumentError(
                f"check_tensors=True reads the weights, which {name}=True leaves out: give one of "
                "them"
            )
    if struct.no_alloc:
        # llama.cpp has an assertion against mapping then, also where it chooses the mode itself.
        if load_mode.is_auto(struct):
            load_mode.read(struct)
        elif not load_mode.is_read(struct):
            raise ArgumentError(
                f"no_alloc=True maps and locks nothing: load_mode={fields.get('load_mode')!r} is "
                "not possible, 'none' is"
            )


def _check_devices(struct: Any, devices: list[Any], fields: Mapping[str, Any]) -> None:
    """Raise for devices and splits that do not fit together."""
    single = struct.split_mode == lib.LLAMA_SPLIT_MODE_NONE
    if struct.split_mode == lib.LLAMA_SPLIT_MODE_TENSOR and not devices:
        raise BackendUnavailableError("split_mode='tensor' needs a GPU or a list of devices")
    if single and devices:
        most = len(devices) - 1
        integer("main_gpu", struct.main_gpu, None, most, ": it is an index into devices")
    if not single and struct.main_gpu != lib.llama_model_default_params().main_gpu:
        raise ArgumentError(f"main_gpu={struct.main_gpu} is for split_mode='none' alone")
    if struct.devices != ffi.NULL:
        _check_places(struct, devices)
        split = fields.get("tensor_split")
        if split is not None and not isinstance(split, ffi.CData) and len(split) > len(devices):
            raise ArgumentError(f"tensor_split is for {len(split)} devices, not {len(devices)}")


def _warn_without_gpu(struct: Any, params: Mapping[str, Any]) -> None:
    """Warn of what asks for a GPU that is not there: llama.cpp ignores it."""
    asks = {name: params.get(name, 0) > 0 for name in ("n_gpu_layers", "main_gpu", "n_cpu_moe")}
    asks |= {name: bool(params.get(name)) for name in ("no_host", "cpu_moe")}
    asks["tensor_split"] = params.get("tensor_split") is not None
    asks["split_mode"] = "split_mode" in params and struct.split_mode != lib.LLAMA_SPLIT_MODE_NONE
    for name in [name for name in params if asks.get(name)]:
        warn(
            f"{name}={params[name]!r} has no effect: llama.cpp has no GPU here, so the model runs "
            "on the processor (llamacffi.devices() lists what there is)"
        )


def used_devices(struct: Any) -> list[Any]:
    """Return the devices that the model may use besides the processor."""
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
    """Raise if a tensor is to go to a device that the model does not use.

    It could not be computed with: the context would fail on an assertion.
    """
    overrides = struct.tensor_buft_overrides
    for i in itertools.count():
        if overrides == ffi.NULL or overrides[i].pattern == ffi.NULL:
            return
        dev = lib.ggml_backend_buft_get_device(overrides[i].buft)
        if dev != ffi.NULL and not _is_cpu(dev) and dev not in devices:
            raise ArgumentError(
                f"the tensors {text(overrides[i].pattern)!r} go to "
                f"{text(lib.ggml_backend_dev_name(dev))}, which is not among the devices"
            )


def _is_cpu(dev: Any) -> bool:
    return bool(lib.ggml_backend_dev_type(dev) == lib.GGML_BACKEND_DEVICE_TYPE_CPU)


def devices(value: Any) -> tuple[Any, object]:
    """Return devices as a ``ggml_backend_dev_t[]`` that ends with NULL.

    The processor alone is the same as no device: llama.cpp always has it, and keeps weights in
    its best layout only if it is not a device among others.

    Args:
        value: Devices or their names, one of them, ``"none"`` for the processor alone, None for
            llama.cpp's choice, or a cdata.

    Raises:
        TypeError: It is none of these.
        ArgumentError: A device is there twice, or there are too many.
        BackendUnavailableError: There is no such device.
    """
    if value is None or isinstance(value, ffi.CData):
        return (ffi.NULL if value is None else value), value
    if isinstance(value, (str, Device)):
        value = [] if value == "none" else [value]
    found = [_device(one) for one in elements("devices", value, "devices or their names")]
    if len(set(found)) < len(found):
        raise ArgumentError(f"devices={value!r} has one of them twice")
    if len(found) > lib.llama_max_devices():
        raise ArgumentError(f"devices has {len(found)}; {lib.llama_max_devices()} are the limit")
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
    """Return the parts of the model for each device as a ``float[]``, zeros at its end.

    Raises:
        TypeError: It is not a sequence of numbers.
        ArgumentError: There are too many, or one is negative or no number, or all are zero.
    """
    if value is None or isinstance(value, ffi.CData):
        return (ffi.NULL if value is None else value), value
    parts = [number("tensor_split", part, 0) for part in elements("tensor_split", value, "numbers")]
    limit = lib.llama_max_devices()
    if len(parts) > limit:
        raise ArgumentError(f"tensor_split has {len(parts)} parts; {limit} devices are the limit")
    if not any(parts):
        raise ArgumentError(f"tensor_split={value!r}: at least one part must be above 0")
    array = ffi.new("float[]", limit)  # llama.cpp reads them all
    array[0 : len(parts)] = parts
    return array, array


MODEL_CONVERTERS: Mapping[str, Converter] = {
    "devices": devices,
    "kv_overrides": kv_overrides,
    "tensor_buft_overrides": tensor_buft_overrides,
    "tensor_split": tensor_split,
}
