"""Tensors of a GGUF: where their data is, and how it looks as a numpy array."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core.text import c_text
from .._core.unique import Unique
from .._core.values import as_array, warn
from .._generated.enums import GgmlType
from .._native import ffi, lib
from ..errors import ArgumentError, ClosedError, GgufError
from .types import (
    DTYPES,
    TYPES,
    array_of,
    dequantize_array,
    ggml_type,
    quantize_array,
    row_bytes,
    shape_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from .types import AnyType, Array, Floats


class GgufBuffer:
    """The bytes of a GGUF that was read: a mapped file, or the caller's object."""

    __slots__ = ("buffer", "dropped", "name", "path", "start")

    def __init__(
        self, buffer: memoryview | None, start: int, name: str, path: str | None = None
    ) -> None:
        self.buffer = buffer
        """All bytes; None after `close` or `drop`."""
        self.start: int = start
        """The offset of the tensor data."""
        self.name: str = name
        """What messages call it."""
        self.path: str | None = path
        """The path of the file, if it has one."""
        self.dropped: bool = False

    def close(self) -> None:
        """Release the bytes; arrays over them keep them alive."""
        self.buffer = None

    def drop(self) -> None:
        """Release the bytes, since only the metadata was requested."""
        self.buffer, self.dropped = None, True

    def data(self, tensor: GgufTensor) -> memoryview:
        """Return the bytes of a tensor.

        Raises:
            ClosedError: After `close`.
            GgufError: After `drop`.
        """
        buffer = self.buffer
        if buffer is None and self.dropped:
            raise GgufError(
                f"{self.name} was opened with metadata_only=True: open it without that to read data"
            )
        if buffer is None:
            raise ClosedError(f"the Gguf of the tensor {tensor.name!r} is closed")
        begin = self.start + (tensor.offset or 0)
        return buffer[begin : begin + tensor.nbytes]

    def check(self, tensor: GgufTensor) -> None:
        """Raise GgufError if the bytes end before a tensor does."""
        assert self.buffer is not None
        end, size = self.start + (tensor.offset or 0) + tensor.nbytes, len(self.buffer)
        if end > size:
            raise GgufError(
                f"{self.name} is truncated: the tensor {tensor.name!r} ends at byte {end}, but "
                f"there are only {size} bytes"
            )


class GgufTensor(Unique):
    """One tensor of a `Gguf`: its description and its data.  It does not change."""

    _why = "its data is in an open file, or in an array of the caller"
    _instead = "data.copy() copies the data, and Gguf.add_tensor() accepts the tensor as it is"

    __slots__ = ("_array", "_source", "name", "offset", "shape", "type")

    name: str
    """Its name."""
    type: GgmlType
    """The type of its data."""
    shape: tuple[int, ...]
    """Its shape in numpy's order, with the elements of a row last; ggml's order is the reverse."""
    offset: int | None
    """The offset of its data after `Gguf.data_offset`, in bytes; None if it was not in the file."""

    def __init__(
        self,
        name: str,
        type_: GgmlType,
        shape: tuple[int, ...],
        data: Array | GgufBuffer,
        offset: int | None = None,
    ) -> None:
        """Describe a tensor; called by `Gguf`."""
        self.name, self.type, self.shape, self.offset = name, type_, shape, offset
        self._array = None if isinstance(data, GgufBuffer) else data
        self._source = data if isinstance(data, GgufBuffer) else None

    def __copy__(self) -> GgufTensor:
        return renamed(self, self.name)  # over the same data

    def __repr__(self) -> str:
        return f"<GgufTensor {self.name!r} {self.type.name} {self.shape}>"

    @property
    def n_elements(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size of its data in bytes, without padding."""
        return math.prod(self.shape[:-1]) * row_bytes(self.type, self.shape[-1])

    @property
    def data(self) -> Array:
        """Its data: a read-only array, not a copy.

        For plain types, an array of `shape`; bfloat16, which numpy does not have, appears as its
        bits in uint16.  For quantized types, ``[..., bytes of a row]`` uint8.  The array stays
        valid after the `Gguf` is closed, because it keeps the file mapped.

        Raises:
            ClosedError: The `Gguf` that the tensor was read with is closed.
            GgufError: It was opened with ``metadata_only``.
        """
        source = self._source
        if source is None:
            assert self._array is not None
            view: Array = self._array.view()
        else:
            view = array_of(source.data(self), self.type, self.shape)
        view.flags.writeable = False
        return view

    def dequantize(self) -> Floats:
        """Convert its data to float32.

        Returns:
            A new array of `shape`, float32.

        Raises:
            ArgumentError: llama.cpp cannot convert this type.

        Source: ``ggml_get_type_traits`` (``to_float``).
        """
        return dequantize_array(self.data, self.type)

    def hash(self, algorithm: str = "sha256") -> str:
        """Return a hash of its data.

        Args:
            algorithm: An algorithm of `hashlib`.

        Returns:
            The hash in hexadecimal digits.

        Raises:
            ArgumentError: `hashlib` does not have this algorithm.
        """
        digest = new_hash(algorithm)
        digest.update(self.raw)
        return digest.hexdigest()

    @property
    def raw(self) -> memoryview:
        """The bytes of `data`, as in a file."""
        return np.ascontiguousarray(self.data).reshape(-1).view(np.uint8).data


def renamed(tensor: GgufTensor, name: str) -> GgufTensor:
    """Return a tensor with another name over the same data."""
    data = tensor._source if tensor._source is not None else tensor._array
    assert data is not None
    return GgufTensor(name, tensor.type, tensor.shape, data, tensor.offset)


def new_hash(algorithm: str) -> hashlib._Hash:
    """Return a new hash of `hashlib` that has a fixed digest size.

    Raises:
        TypeError: ``algorithm`` is not a str.
        ArgumentError: The algorithm is unknown, or its digests have no fixed size.
    """
    if not isinstance(algorithm, str):
        raise TypeError(f"algorithm must be the name of a hashlib algorithm, not {algorithm!r:.80}")
    try:
        digest = hashlib.new(algorithm, usedforsecurity=False)
    except (TypeError, ValueError):  # TypeError: the name has a lone surrogate
        digest = None
    if digest is None or not digest.digest_size:
        known = ", ".join(
            name
            for name in sorted(hashlib.algorithms_guaranteed)
            if hashlib.new(name, usedforsecurity=False).digest_size
        )
        raise ArgumentError(f"algorithm must be one of {known}, not {algorithm!r:.80}")
    return digest


class ComputedBuffer(GgufBuffer):
    """Data that is computed each time it is used, for tensors that are too large to keep."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], Array]) -> None:
        super().__init__(None, 0, "")
        self._make = make

    def data(self, tensor: GgufTensor) -> memoryview:
        """Compute the data."""
        made = np.ascontiguousarray(self._make()).reshape(-1).view(np.uint8).data
        assert len(made) == tensor.nbytes
        return made


def computed_tensor(
    name: str, type_: GgmlType, shape: tuple[int, ...], make: Callable[[], Array]
) -> GgufTensor:
    """Return a tensor whose data ``make`` computes when used, in the form of `GgufTensor.data`."""
    return GgufTensor(name, type_, shape, ComputedBuffer(make))


def read_tensor(ptr: Any, i: int, source: GgufBuffer) -> GgufTensor:
    """Return the tensor at an index of a GGUF that was read.

    Source: ``gguf_get_tensor_name``, ``gguf_get_tensor_type``, ``gguf_get_tensor_ne``,
    ``gguf_get_tensor_offset``.
    """
    name = c_text(lib.gguf_get_tensor_name(ptr, i), "surrogateescape")
    ne = ffi.unpack(lib.gguf_get_tensor_ne(ptr, i), lib.GGML_MAX_DIMS)
    type_ = GgmlType(lib.gguf_get_tensor_type(ptr, i))
    offset = lib.gguf_get_tensor_offset(ptr, i)
    return GgufTensor(name, type_, stored_shape(tuple(reversed(ne))), source, offset)


def stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape as GGUF stores it: without ones at the front."""
    ones = next((i for i, n in enumerate(shape[:-1]) if n != 1), len(shape) - 1)
    return shape[ones:]


def add_tensors(ptr: Any, tensors: list[GgufTensor]) -> None:
    """Add descriptions of tensors in C, after those it has.

    Source: ``ggml_new_tensor``, ``gguf_add_tensor``, which copies the description.
    """
    params = ffi.new("struct ggml_init_params *", {"no_alloc": True})
    params.mem_size = (len(tensors) + 1) * (lib.ggml_tensor_overhead() + lib.GGML_MEM_ALIGN)
    context = lib.ggml_init(params[0])
    if context == ffi.NULL:
        raise MemoryError("ggml cannot allocate the descriptions of tensors")
    try:
        for tensor in tensors:
            ne = tensor.shape[::-1]
            description = lib.ggml_new_tensor(context, tensor.type, len(ne), ne)
            lib.ggml_set_name(description, tensor.name.encode("utf-8", "surrogateescape"))
            lib.gguf_add_tensor(ptr, description)
    finally:
        lib.ggml_free(context)


def make_tensor(
    name: str, data: Any, type_: AnyType | None, imatrix: npt.ArrayLike | None
) -> GgufTensor:
    """Return a tensor over ``data``, converted to ``type_`` if necessary."""
    if isinstance(data, GgufTensor):
        if type_ is None or ggml_type(type_) == data.type:
            return renamed(data, name)
        data = data.dequantize()
    array: Array = as_array(repr(name), data)
    if type_ is None:
        type_ = TYPES.get(array.dtype.newbyteorder("="))
        if type_ is None:
            raise GgufError(
                f"{name!r} is an array of {array.dtype}, but a tensor must have one of "
                f"{', '.join(str(one) for one in TYPES)}: convert the array, or give type="
            )
        if type_ == GgmlType.F64:
            warn(
                f"{name!r} is an array of float64 and will be stored as F64, which no model "
                "computes with: give type='f32', or type='f64' if you mean it"
            )
    type_ = ggml_type(type_)
    blocks = array.ndim and array.dtype == np.uint8 and type_ not in DTYPES
    bits = array.dtype == np.uint16 and DTYPES.get(type_) == np.uint16
    if blocks or bits:
        array = np.ascontiguousarray(array)
    else:
        array = quantize_array(array, type_, imatrix=imatrix)
    if array.ndim > lib.GGML_MAX_DIMS:
        raise GgufError(
            f"{name!r} has {array.ndim} dimensions, but a tensor has at most {lib.GGML_MAX_DIMS}"
        )
    if not array.size:
        raise GgufError(f"{name!r} has no elements: llama.cpp cannot store its shape")
    shape = stored_shape(shape_of(array, type_))
    return GgufTensor(name, type_, shape, array.reshape(*shape[:-1], array.shape[-1]))
