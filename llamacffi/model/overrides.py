"""What overrides the file of a model: its metadata, and where its tensors go."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any, SupportsFloat

from .._core.values import check_text, flag, integer, mapping
from .._native import ffi, lib
from ..backend import registry as backend
from ..backend.device_types import BufferType, Device
from ..errors import ArgumentError, BackendUnavailableError, NativeError
from .pattern_cost import MAX_WAYS, is_quick

# The weights of the experts of a mixture, as every architecture names them.
EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch)?exps\."

# What a pattern may ask of std::regex, which recurses for each of these and knows no limit itself.
MAX_PATTERN = 1000  # characters
MAX_GROUPS = 100
MAX_REPEATS = 1000  # the product of all counts, as 200 for (a{10}){20}


def kv_overrides(value: Any) -> tuple[Any, object]:
    """Return metadata to override as a ``struct llama_model_kv_override[]``.

    Args:
        value: Bools, ints, floats and strings by key, None, or a cdata.

    Raises:
        TypeError: It is none of these, or a value is of another type.
        ArgumentError: A key or a string is too long for C, or a number out of range.
    """
    if value is None or isinstance(value, ffi.CData):
        return (ffi.NULL if value is None else value), value
    mapping("kv_overrides", value, "keys to values")
    array = ffi.new("struct llama_model_kv_override[]", len(value) + 1)  # the last: an empty key
    for one, (key, new) in zip(array, value.items(), strict=False):
        if not isinstance(key, str) or not key:
            raise TypeError(f"a key of kv_overrides must be a non-empty str, not {key!r}")
        _set_chars(one.key, key, f"the key {key!r} of kv_overrides")
        _set_override(one, key, new.item() if hasattr(new, "item") else new)  # a scalar of numpy
    return array, array


def _set_override(one: Any, key: str, value: Any) -> None:
    """Set the tag and the value of a ``struct llama_model_kv_override``."""
    name = f"kv_overrides[{key!r}]"
    if isinstance(value, bool):  # which is an int too
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


def fit_kv_overrides(struct: Any, gguf: Any) -> None:
    """Give the overrides of ``struct`` the types that the file has: llama.cpp ignores others.

    An int becomes a float where the file has one.  Of keys that it does not have nothing is known.

    Args:
        struct: The ``struct llama_model_params *``.
        gguf: The ``struct gguf_context *`` of the file.

    Raises:
        ArgumentError: A value is of another type, or an array, which cannot be overridden.
    """
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
        integer = one.tag == lib.LLAMA_KV_OVERRIDE_TYPE_INT
        if wanted == lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT and integer:
            one.tag, one.val_f64 = wanted, float(one.val_i64)
        elif wanted != one.tag or type_ == lib.GGUF_TYPE_ARRAY:
            raise ArgumentError(
                f"kv_overrides[{ffi.string(one.key).decode()!r}] is of another type than in the "
                f"file: there it is {ffi.string(lib.gguf_type_name(type_)).decode()}"
            )


def _tags() -> dict[int, int]:
    """Return how the types of GGUF are overridden, but for integers."""
    return {
        lib.GGUF_TYPE_BOOL: lib.LLAMA_KV_OVERRIDE_TYPE_BOOL,
        lib.GGUF_TYPE_STRING: lib.LLAMA_KV_OVERRIDE_TYPE_STR,
        lib.GGUF_TYPE_FLOAT32: lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT,
        lib.GGUF_TYPE_FLOAT64: lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT,
    }


def _set_chars(chars: Any, text: str, name: str) -> None:
    """Copy text into an array of C, with a zero at its end."""
    raw = check_text(name, text, escaped=True)
    if len(raw) >= len(chars):
        raise ArgumentError(
            f"{name} is {len(raw)} bytes of UTF-8 long; llama.cpp takes {len(chars) - 1}"
        )
    ffi.memmove(chars, raw, len(raw))


def tensor_buft_overrides(value: Any) -> tuple[Any, object]:
    """Return where tensors go as a ``struct llama_model_tensor_buft_override[]``.

    Args:
        value: Places by pattern (a mapping, or pairs: the first that matches counts), None, or a
            cdata.  A place is a `Device`, a `BufferType`, the name of one, or a cdata.

    Raises:
        TypeError: It is none of these.
        ArgumentError: A pattern is no regular expression, or there are too many.
        BackendUnavailableError: There is no such place.
    """
    if value is None or isinstance(value, ffi.CData):
        return (ffi.NULL if value is None else value), value
    pairs = override_pairs(value)
    limit = lib.llama_max_tensor_buft_overrides() - 1  # the last: no pattern
    if len(pairs) > limit:
        raise ArgumentError(
            f"tensor_buft_overrides has {len(pairs)} patterns; {limit} is the limit: let one match "
            "more tensors"
        )
    array = ffi.new("struct llama_model_tensor_buft_override[]", len(pairs) + 1)
    keep: list[object] = [array]
    for one, (pattern, place) in zip(array, pairs, strict=False):
        keep.append(chars := ffi.new("char[]", c_pattern(pattern)))
        one.pattern, one.buft = chars, buffer_type(place)
    return array, keep


def override_pairs(value: Any) -> list[tuple[Any, Any]]:
    """Return the pairs of a mapping, or of what has pairs.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(value, Mapping):
        return list(value.items())
    try:
        return [(pattern, place) for pattern, place in value]
    except (TypeError, ValueError):
        raise TypeError(
            f"tensor_buft_overrides must be patterns with places, not {value!r}"
        ) from None


def c_pattern(pattern: Any) -> bytes:
    """Return a regular expression for the names of tensors, as C++ takes it.

    Raises:
        TypeError: It is no str.
        ArgumentError: It is no regular expression for C++ (ECMAScript), or one that could
            overflow the stack or take too long.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"a pattern must be a str, not {pattern!r}")
    if len(pattern) > MAX_PATTERN:
        raise ArgumentError(f"a pattern of {len(pattern)} characters; {MAX_PATTERN} is the limit")
    counts = [int(count) for count in re.findall(r"(?<=[{,])\d+(?=[,}])", pattern)]
    repeats = math.prod(max(1, count) for count in counts)
    if pattern.count("(") > MAX_GROUPS or repeats > MAX_REPEATS:
        raise ArgumentError(
            f"the pattern {pattern!r} has over {MAX_GROUPS} groups, or repeats over {MAX_REPEATS} "
            "times: std::regex could overflow the stack"
        )
    raw = check_text(f"the pattern {pattern!r}", pattern, escaped=True)
    try:
        lib.llamacffi_check_regex(raw)
    except NativeError as error:
        reason = str(error).partition(": ")[2]
        raise ArgumentError(f"the pattern {pattern!r} is no regular expression: {reason}") from None
    try:
        quick = is_quick(pattern)
    except ArgumentError as error:
        raise ArgumentError(f"the pattern {pattern!r} cannot be used: {error}") from None
    if not quick:
        raise ArgumentError(
            f"the pattern {pattern!r} can match a name in over {MAX_WAYS} ways, which llama.cpp "
            "would all try: repeat nothing that repeats something itself, and leave out `.*` at "
            "both ends, since a pattern is searched anywhere in a name"
        )
    return raw


def buffer_type(place: Any) -> Any:
    """Return the ``ggml_backend_buffer_type_t`` of a place.

    Those in which a device keeps weights in a layout of its own are refused: which tensors fit into
    them only llama.cpp knows.

    Raises:
        TypeError: It is neither a `Device`, a `BufferType`, a name nor a cdata.
        BackendUnavailableError: There is no such device or buffer type.
    """
    if isinstance(place, ffi.CData):
        return place
    name = place.name if isinstance(place, (BufferType, Device)) else place
    if not isinstance(name, str):
        raise TypeError(f"a tensor goes to a Device, a BufferType or a name, not to {place!r}")
    known = []
    for device in backend.devices():
        if device.name == name:
            return device.buffer_type.ptr
        for one in (device.buffer_type, device.host_buffer_type):
            if one is not None and one.name == name:
                return one.ptr
            known += [] if one is None else [one.name]
    raise BackendUnavailableError(
        f"there is no device or buffer type {name!r} for any tensor; there are {', '.join(known)}"
    )


def expert_overrides(cpu_moe: Any, n_cpu_moe: Any) -> list[tuple[str, Any]]:
    """Return the overrides that keep the experts, of all layers or of the first, on the processor.

    Raises:
        TypeError: ``cpu_moe`` is no bool, or ``n_cpu_moe`` no integer.
        ArgumentError: ``n_cpu_moe`` is negative or more than llama.cpp takes, or both are given.
    """
    cpu_moe, most = flag("cpu_moe", cpu_moe), lib.llama_max_tensor_buft_overrides()
    n_layer = integer("n_cpu_moe", n_cpu_moe, 0, most, "; cpu_moe=True takes all layers")
    if cpu_moe and n_layer:
        raise ArgumentError(f"cpu_moe=True is for all layers: leave out n_cpu_moe={n_layer}")
    backend.load()
    cpu = lib.ggml_backend_cpu_buffer_type()
    if cpu_moe:
        return [(EXPERTS, cpu)]
    return [(rf"^blk\.{i}{EXPERTS}", cpu) for i in range(n_layer)]
