"""Overrides for a model file: its metadata, and where its tensors are placed."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any, SupportsFloat

from .._core.text import c_text
from .._core.values import check_text, flag, integer, mapping
from .._native import ffi, lib
from ..backend import registry as backend
from ..backend.device_types import BufferType, Device
from ..errors import ArgumentError, BackendUnavailableError, NativeError
from .pattern_cost import MAX_WAYS, is_quick

# upstream: common/common.h LLM_FFN_EXPS_REGEX: the names of expert weights in all architectures.
EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch)?exps\."

# Limits for patterns.  std::regex recurses for each of these without a limit of its own.
MAX_PATTERN = 1000  # characters
MAX_GROUPS = 100
MAX_REPEATS = 1000  # the product of all counts: 200 for (a{10}){20}


def kv_overrides(value: Any) -> tuple[Any, object]:
    """Convert metadata overrides to a ``struct llama_model_kv_override[]``.

    Args:
        value: Bools, ints, floats and strings by key; None; or a cdata.

    Raises:
        TypeError: ``value`` or one of its values has another type.
        ArgumentError: A key or a string is too long for C, or a number is out of range.
    """
    if value is None or isinstance(value, ffi.CData):
        return (ffi.NULL if value is None else value), value
    mapping("kv_overrides", value, "keys to values")
    array = ffi.new("struct llama_model_kv_override[]", len(value) + 1)  # ends with an empty key
    for one, (key, new) in zip(array, value.items(), strict=False):
        if not isinstance(key, str) or not key:
            raise TypeError(f"a key of kv_overrides must be a non-empty str, not {key!r}")
        _set_chars(one.key, key, f"the key {key!r} of kv_overrides")
        _set_override(one, key, new.item() if hasattr(new, "item") else new)  # a numpy scalar
    return array, array


def _set_override(one: Any, key: str, value: Any) -> None:
    """Set the tag and the value of a ``struct llama_model_kv_override``."""
    name = f"kv_overrides[{key!r}]"
    if isinstance(value, bool):  # bool is a subclass of int
        one.tag, one.val_bool = lib.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
    elif isinstance(value, str):
        one.tag = lib.LLAMA_KV_OVERRIDE_TYPE_STR
        _set_chars(one.val_str, value, name)
    elif isinstance(value, int) or hasattr(value, "__index__"):
        one.tag = lib.LLAMA_KV_OVERRIDE_TYPE_INT
        one.val_i64 = integer(name, value, -(2**63), 2**63 - 1)
    elif isinstance(value, SupportsFloat):
        one.tag, one.val_f64 = lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT, float(value)
        if not math.isfinite(one.val_f64):
            raise ArgumentError(f"{name}={value!r} is not a finite number")
    else:
        raise TypeError(f"{name} must be a bool, an int, a float or a str, not {value!r}")


def read_kv_overrides(struct: Any) -> dict[str, bool | int | float | str]:
    """Return the values of a ``struct llama_model_params *`` that replace metadata, by key."""
    found: dict[str, bool | int | float | str] = {}
    for i in itertools.count():
        if struct.kv_overrides == ffi.NULL or struct.kv_overrides[i].key[0] == b"\0":
            break
        one = struct.kv_overrides[i]
        key = c_text(one.key)
        if one.tag == lib.LLAMA_KV_OVERRIDE_TYPE_STR:
            found[key] = c_text(one.val_str, "surrogateescape")
        elif one.tag == lib.LLAMA_KV_OVERRIDE_TYPE_BOOL:
            found[key] = bool(one.val_bool)
        elif one.tag == lib.LLAMA_KV_OVERRIDE_TYPE_INT:
            found[key] = int(one.val_i64)
        else:
            found[key] = float(one.val_f64)
    return found


def fit_kv_overrides(struct: Any, gguf: Any) -> None:
    """Convert the overrides of ``struct`` to the types that the file has.

    An int becomes a float where the file has a float.  Keys that the file lacks are not checked.

    Args:
        struct: The ``struct llama_model_params *``.
        gguf: The ``struct gguf_context *`` of the file.

    Raises:
        ArgumentError: The file has a value of another type, or an array, which cannot be
            overridden.
    """
    # upstream: src/llama-model-loader.cpp validate_override: only warns of an override of another
    # type and ignores it, and so we raise.
    tags = _tags()
    for i in itertools.count():
        if struct.kv_overrides == ffi.NULL or struct.kv_overrides[i].key[0] == b"\0":
            return
        one = struct.kv_overrides[i]
        at = lib.gguf_find_key(gguf, one.key)
        if at < 0:
            continue
        type_ = lib.gguf_get_kv_type(gguf, at)
        wanted = tags.get(type_, lib.LLAMA_KV_OVERRIDE_TYPE_INT)
        is_int = one.tag == lib.LLAMA_KV_OVERRIDE_TYPE_INT
        if wanted == lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT and is_int:
            one.tag, one.val_f64 = wanted, float(one.val_i64)
        elif wanted != one.tag or type_ == lib.GGUF_TYPE_ARRAY:
            raise ArgumentError(
                f"kv_overrides[{c_text(one.key)!r}] has the wrong type: in the file "
                f"it is {c_text(lib.gguf_type_name(type_))}"
            )


def _tags() -> dict[int, int]:
    """Return the override tag of each GGUF type that is not an integer."""
    return {
        lib.GGUF_TYPE_BOOL: lib.LLAMA_KV_OVERRIDE_TYPE_BOOL,
        lib.GGUF_TYPE_STRING: lib.LLAMA_KV_OVERRIDE_TYPE_STR,
        lib.GGUF_TYPE_FLOAT32: lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT,
        lib.GGUF_TYPE_FLOAT64: lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT,
    }


def _set_chars(chars: Any, text: str, name: str) -> None:
    """Copy text into a C array, with a NUL at its end."""
    raw = check_text(name, text, escaped=True)
    if len(raw) >= len(chars):
        raise ArgumentError(
            f"{name} is {len(raw)} bytes long in UTF-8, but llama.cpp takes at most "
            f"{len(chars) - 1}"
        )
    ffi.memmove(chars, raw, len(raw))


def tensor_buft_overrides(value: Any) -> tuple[Any, object]:
    """Convert placements of tensors to a ``struct llama_model_tensor_buft_override[]``.

    Args:
        value: Places by pattern (a mapping or pairs; the first match applies), None, or a cdata.  A
            place is a `Device`, a `BufferType`, the name of one, or a cdata.

    Raises:
        TypeError: ``value`` has another type.
        ArgumentError: A pattern is not a regular expression, or there are too many patterns.
        BackendUnavailableError: A device or buffer type does not exist.
    """
    if value is None or isinstance(value, ffi.CData):
        return (ffi.NULL if value is None else value), value
    pairs = override_pairs(value)
    limit = lib.llama_max_tensor_buft_overrides() - 1  # ends with a NULL pattern
    if len(pairs) > limit:
        raise ArgumentError(
            f"tensor_buft_overrides has {len(pairs)} patterns, but llama.cpp takes at most "
            f"{limit}: use patterns that match more tensors"
        )
    array = ffi.new("struct llama_model_tensor_buft_override[]", len(pairs) + 1)
    keep: list[object] = [array]
    for one, (pattern, place) in zip(array, pairs, strict=False):
        keep.append(chars := ffi.new("char[]", c_pattern(pattern)))
        one.pattern, one.buft = chars, buffer_type(place)
    return array, keep


def override_pairs(value: Any) -> list[tuple[Any, Any]]:
    """Return the pairs of a mapping or of an iterable of pairs.

    Raises:
        TypeError: ``value`` is neither.
    """
    if isinstance(value, Mapping):
        return list(value.items())
    try:
        return [(pattern, place) for pattern, place in value]
    except (TypeError, ValueError):
        raise TypeError(
            f"tensor_buft_overrides must map patterns to places, not {value!r}"
        ) from None


def c_pattern(pattern: Any) -> bytes:
    """Return a regular expression for names of tensors as bytes for C++.

    Raises:
        TypeError: The pattern is not a str.
        ArgumentError: It is not a regular expression in C++ (ECMAScript), or it could overflow the
            stack or take too long.
    """
    # upstream: src/llama-model-loader.cpp "std::regex_search(tensor_name, pattern)": a bad pattern
    # overflows the stack or runs forever there, and so we check patterns first.
    if not isinstance(pattern, str):
        raise TypeError(f"a pattern must be a str, not {pattern!r}")
    if len(pattern) > MAX_PATTERN:
        raise ArgumentError(f"a pattern has {len(pattern)} characters; the limit is {MAX_PATTERN}")
    counts = [int(count) for count in re.findall(r"(?<=[{,])\d+(?=[,}])", pattern)]
    repeats = math.prod(max(1, count) for count in counts)
    if pattern.count("(") > MAX_GROUPS or repeats > MAX_REPEATS:
        raise ArgumentError(
            f"the pattern {pattern!r} has more than {MAX_GROUPS} groups or repeats more than "
            f"{MAX_REPEATS} times: std::regex could overflow the stack"
        )
    raw = check_text(f"the pattern {pattern!r}", pattern, escaped=True)
    try:
        lib.llamacffi_check_regex(raw)
    except NativeError as error:
        reason = str(error).partition(": ")[2]
        raise ArgumentError(
            f"the pattern {pattern!r} is not a regular expression: {reason}"
        ) from None
    try:
        quick = is_quick(pattern)
    except ArgumentError as error:
        raise ArgumentError(f"the pattern {pattern!r} cannot be used: {error}") from None
    if not quick:
        raise ArgumentError(
            f"the pattern {pattern!r} can match a name in more than {MAX_WAYS} ways, and "
            "std::regex would try them all: avoid nested repetitions, and leave out `.*` at both "
            "ends, since the pattern is searched for anywhere in a name"
        )
    return raw


def buffer_type(place: Any) -> Any:
    """Return the ``ggml_backend_buffer_type_t`` of a place.

    Buffer types with a device-specific layout are refused: only llama.cpp knows which tensors fit
    into them.

    Raises:
        TypeError: ``place`` is not a `Device`, a `BufferType`, a name or a cdata.
        BackendUnavailableError: The device or buffer type does not exist.
    """
    if isinstance(place, ffi.CData):
        return place
    name = place.name if isinstance(place, (BufferType, Device)) else place
    if not isinstance(name, str):
        raise TypeError(f"a place must be a Device, a BufferType or the name of one, not {place!r}")
    known = []
    for device in backend.devices():
        if device.name == name:
            return device.buffer_type.ptr
        for one in (device.buffer_type, device.host_buffer_type):
            if one is not None and one.name == name:
                return one.ptr
            known += [] if one is None else [one.name]
    raise BackendUnavailableError(
        f"no device or buffer type {name!r} can hold any tensor; choose from {', '.join(known)}"
    )


def expert_overrides(cpu_moe: Any, n_cpu_moe: Any) -> list[tuple[str, Any]]:
    """Return the overrides that keep the experts of all layers, or the first ones, on the CPU.

    Raises:
        TypeError: ``cpu_moe`` is not a bool, or ``n_cpu_moe`` is not an integer.
        ArgumentError: ``n_cpu_moe`` is negative or more than llama.cpp takes, or both are given.
    """
    cpu_moe, most = flag("cpu_moe", cpu_moe), lib.llama_max_tensor_buft_overrides()
    n_layer = integer("n_cpu_moe", n_cpu_moe, 0, most, "; for all layers use cpu_moe=True")
    if cpu_moe and n_layer:
        raise ArgumentError(f"cpu_moe=True covers all layers: leave out n_cpu_moe={n_layer}")
    backend.load()
    cpu = lib.ggml_backend_cpu_buffer_type()
    if cpu_moe:
        return [(EXPERTS, cpu)]
    return [(rf"^blk\.{i}{EXPERTS}", cpu) for i in range(n_layer)]
