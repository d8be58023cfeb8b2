"""The types of tensors: their sizes, and conversion between them in C."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .._core.values import as_array
from .._generated.enums import GgmlType
from .._native import ffi, lib
from ..errors import ArgumentError, GgufError, NativeError
from ..log import with_log

if TYPE_CHECKING:
    import numpy.typing as npt

    AnyType: TypeAlias = GgmlType | int | str
    Array: TypeAlias = npt.NDArray[Any]
    Floats: TypeAlias = npt.NDArray[np.float32]

# numpy's types for the plain types.  It has no bfloat16: uint16 holds the bits.
DTYPES: dict[GgmlType, np.dtype[Any]] = {
    GgmlType.F32: np.dtype(np.float32),
    GgmlType.F16: np.dtype(np.float16),
    GgmlType.BF16: np.dtype(np.uint16),
    GgmlType.F64: np.dtype(np.float64),
    GgmlType.I8: np.dtype(np.int8),
    GgmlType.I16: np.dtype(np.int16),
    GgmlType.I32: np.dtype(np.int32),
    GgmlType.I64: np.dtype(np.int64),
}
TYPES = {dtype: type_ for type_, dtype in DTYPES.items() if type_ != GgmlType.BF16}


def ggml_type(type_: AnyType) -> GgmlType:
    """Return the type with this name (``"q8_0"``) or number.

    Raises:
        ArgumentError: The type does not exist, or ggml no longer supports it.
    """
    try:
        found = GgmlType[type_.upper()] if isinstance(type_, str) else GgmlType(type_)
    except (KeyError, ValueError):
        found = GgmlType.COUNT
    if found == GgmlType.COUNT or not lib.ggml_type_size(found):
        names = ", ".join(one.name.lower() for one in GgmlType if one != GgmlType.COUNT)
        raise ArgumentError(f"type must be one of {names}, not {type_!r}") from None
    return found


def row_bytes(type_: GgmlType, n: int) -> int:
    """Return the size of a row of ``n`` elements, in bytes.

    Raises:
        GgufError: The row would end with a partial block.
    """
    block = lib.ggml_blck_size(type_)
    if n % block:
        raise GgufError(
            f"rows of {n} elements cannot be {type_.name}, which needs a multiple of {block}: "
            "choose another type"
        )
    return int(lib.ggml_row_size(type_, n))


def array_of(buffer: Any, type_: GgmlType, shape: tuple[int, ...]) -> Array:
    """Return the bytes of a tensor as an array, without a copy.

    Args:
        buffer: The bytes of the tensor.
        type_: Its type.
        shape: Its shape, with the elements of a row last.

    Returns:
        For plain types an array of ``shape``; for blocks ``[..., bytes of a row]`` uint8.

    Raises:
        GgufError: numpy cannot represent the shape, such as ``[0, 2**62]``.
    """
    dtype = DTYPES.get(type_)
    if dtype is None:
        dtype, shape = np.dtype(np.uint8), (*shape[:-1], row_bytes(type_, shape[-1]))
    try:
        return np.frombuffer(buffer, dtype, math.prod(shape)).reshape(shape)
    except ValueError as error:
        raise GgufError(f"numpy cannot represent the shape {shape}: {error}") from None


def shape_of(array: Array, type_: GgmlType) -> tuple[int, ...]:
    """Return the shape of a tensor from the array that `array_of` makes of it.

    Raises:
        GgufError: A row ends with a partial block.
    """
    if type_ in DTYPES:
        return array.shape
    n_bytes, block_bytes = array.shape[-1], lib.ggml_type_size(type_)
    if n_bytes % block_bytes:
        raise GgufError(
            f"rows of {n_bytes} bytes cannot be {type_.name}, whose blocks have {block_bytes} bytes"
        )
    return (*array.shape[:-1], n_bytes // block_bytes * lib.ggml_blck_size(type_))


def dequantize_array(blocks: Array, type_: AnyType) -> Floats:
    """Convert tensor data of any type to float32.

    Args:
        blocks: Data in the form of `GgufTensor.data`, or some rows of it.
        type_: Its type.

    Returns:
        A new array ``[..., elements of a row]``, float32.

    Raises:
        ArgumentError: The type is unknown, or llama.cpp cannot convert it.
        GgufError: ``blocks`` does not have the dtype of that type, or a row ends with a partial
            block.

    Source: ``ggml_get_type_traits`` (``to_float``).
    """
    type_ = ggml_type(type_)
    expected = DTYPES.get(type_, np.dtype(np.uint8))
    if blocks.dtype != expected or not blocks.ndim:
        raise GgufError(
            f"{type_.name} data must be an array of {expected} with at least one dimension, not "
            f"{blocks.ndim}-dimensional {blocks.dtype}"
        )
    to_float = lib.ggml_get_type_traits(type_).to_float
    if to_float == ffi.NULL:
        if type_ not in TYPES.values():
            raise ArgumentError(f"llama.cpp cannot convert {type_.name} to float32")
        return blocks.astype(np.float32)
    out = np.empty(shape_of(blocks, type_), np.float32)
    if out.size:
        # C reads the blocks as structs, so they must be aligned.
        source = np.require(blocks, requirements=["C", "ALIGNED"])
        if source.ctypes.data % ffi.alignof("int64_t"):
            source = source.copy()
        to_float(ffi.from_buffer(source), ffi.from_buffer("float[]", out), out.size)
    return out


def quantize_array(array: Array, type_: AnyType, *, imatrix: npt.ArrayLike | None = None) -> Array:
    """Convert numbers to the data of a tensor of another type.

    Args:
        array: ``[..., elements of a row]``, any real type.
        type_: The type to convert to.
        imatrix: The importance of each column, ``[elements of a row]``; zeros mean that all are
            equal.  For a mixture of experts, ``[experts, elements of a row]``, and ``array`` has
            three dimensions.

    Returns:
        An array in the form of `GgufTensor.data` for that type.

    Raises:
        ArgumentError: The type needs an ``imatrix``, or the ``imatrix`` does not fit.
        GgufError: A number is not finite or out of range, or a row would end with a partial block.

    Source: ``ggml_quantize_chunk``, ``ggml_quantize_requires_imatrix``.
    """
    type_ = ggml_type(type_)
    if not array.ndim:
        raise GgufError("a tensor has at least one dimension: give an array of shape (1,)")
    if type_ in TYPES.values():
        return _as_plain(array, type_)
    if lib.ggml_get_type_traits(type_).to_float == ffi.NULL:
        raise ArgumentError(
            f"llama.cpp uses {type_.name} only for intermediate results: choose another type"
        )
    if array.dtype.kind not in "fiu":
        raise GgufError(f"an array of {array.dtype} cannot be {type_.name}: give numbers")
    floats = np.ascontiguousarray(array, np.float32)
    n_bytes = row_bytes(type_, array.shape[-1])
    # upstream: ggml/src/ggml-quants.c iq2_find_best_neighbour, iq3_find_best_neighbour: they search
    # a grid for the nearest point, and fail an assertion if there is none, as for NaN.
    if type_ != GgmlType.BF16 and not np.isfinite(floats).all():
        raise GgufError(f"{type_.name} cannot store NaN or infinity, but the array has some")
    weights = _weights(floats, type_, imatrix)
    out = np.empty((*array.shape[:-1], n_bytes), np.uint8)
    if out.size:
        _quantize(floats, type_, weights, out)
        if type_ != GgmlType.BF16 and not lib.ggml_validate_row_data(
            type_, ffi.from_buffer(out), out.nbytes
        ):
            largest = max(floats.max(), -floats.min())
            raise GgufError(f"{type_.name} cannot store numbers as large as {largest:.4g}")
    return out.view(np.uint16) if type_ == GgmlType.BF16 else out


def _as_plain(array: Array, type_: GgmlType) -> Array:
    dtype = DTYPES[type_]
    if dtype.kind == "i" and not np.can_cast(array.dtype, dtype, "safe"):
        raise GgufError(f"an array of {array.dtype} cannot be {type_.name}; convert it first")
    if array.dtype.kind not in "biuf":
        raise GgufError(f"an array of {array.dtype} cannot be {type_.name}: give numbers")
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(array, dtype)
    if (
        dtype.itemsize < array.dtype.itemsize
        and not (np.isfinite(converted) | ~np.isfinite(array)).all()
    ):
        raise GgufError(f"the array has numbers that are too large for {type_.name}")
    return converted


def _weights(floats: Floats, type_: GgmlType, imatrix: Any) -> Floats | None:
    """Return the weights as ``[parts, elements of a row]``; parts have the same number of rows."""
    if imatrix is None:
        if lib.ggml_quantize_requires_imatrix(type_):
            raise ArgumentError(f"{type_.name} needs an importance matrix: give imatrix")
        return None
    weights = np.ascontiguousarray(as_array("imatrix", imatrix, np.float32))
    n = floats.shape[-1]
    fitting = [(n,)] + ([(floats.shape[0], n)] if floats.ndim == 3 else [])
    if weights.shape not in fitting:
        raise ArgumentError(
            f"imatrix has the shape {weights.shape}, but for a tensor of shape {floats.shape} it "
            f"must have {' or '.join(map(str, fitting))}"
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ArgumentError("imatrix has numbers that are negative or not finite")
    return scaled_weights(weights.reshape(-1, n))


def scaled_weights(weights: Floats) -> Floats:
    """Scale an imatrix to numbers up to 1, with rows of zeros replaced by ones.

    upstream: ggml/src/ggml-quants.c quant_weights: only the ratios in a row matter, but C computes
    with powers of the numbers, and its assertions fail where these overflow.
    """
    # Scaling by a power of two is exact, except for numbers that underflow to 0.
    scaled: Floats = np.ldexp(weights, -np.frexp(weights.max(axis=-1, keepdims=True))[1])
    scaled[~scaled.any(axis=-1)] = 1
    return scaled


def _quantize(floats: Floats, type_: GgmlType, weights: Floats | None, out: Array) -> None:
    parts = 1 if weights is None else len(weights)
    n = floats.shape[-1]
    source, target = floats.reshape(parts, -1, n), out.reshape(parts, -1, out.shape[-1])
    for i in range(parts):
        row = ffi.NULL if weights is None else ffi.from_buffer("float[]", weights[i])
        try:
            lib.ggml_quantize_chunk(
                type_,
                ffi.from_buffer("float[]", source[i]),
                ffi.from_buffer(target[i], require_writable=True),
                0,
                source.shape[1],
                n,
                row,
            )
        except NativeError as error:
            raise with_log(GgufError(f"cannot convert to {type_.name}: {error}")) from error
