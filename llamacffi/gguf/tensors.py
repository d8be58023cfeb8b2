"""Tensors of a GGUF: where their bytes are, and what they look like to numpy."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core.text import c_text
from .._core.unique import Unique
from .._core.values import as_array, check_text, warn
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


class Source:
    """The bytes of a GGUF that was read: a mapped file, or an object of the caller's."""

    __slots__ = ("buffer", "dropped", "name", "path", "start")

    def __init__(
        self, buffer: memoryview | None, start: int, name: str, path: str | None = None
    ) -> None:
        self.buffer = buffer
        """All of it, or None when it is closed."""
        self.start: int = start
        """Where the tensors begin."""
        self.name: str = name
        """For messages."""
        self.path: str | None = path
        """Of the file, if it has one."""
        self.dropped: bool = False

    def close(self) -> None:
        """Let go of the bytes; arrays over them keep them."""
        self.buffer = None

    def drop(self) -> None:
        """Let go of the bytes, since only the metadata were wanted."""
        self.buffer, self.dropped = None, True

    def data(self, tensor: GgufTensor) -> memoryview:
        """Return the bytes of a tensor.

        Raises:
            ClosedError: After `close`.
            GgufError: After `drop`.
        """
        buffer = self.buffer
        if buffer is None and self.dropped:
            raise GgufError(f"{self.name} was opened with metadata_only=True: open it without")
        if buffer is None:
            raise ClosedError(f"the Gguf of the tensor {tensor.name!r} is closed")
        begin = self.start + (tensor.offset or 0)
        return buffer[begin : begin + tensor.nbytes]

    def check(self, tensor: GgufTensor) -> None:
        """Raise GgufError unless all of a tensor is there."""
        assert self.buffer is not None
        end, there = self.start + (tensor.offset or 0) + tensor.nbytes, len(self.buffer)
        if end > there:
            raise GgufError(
                f"{self.name} is cut off: the tensor {tensor.name!r} ends at byte {end}, "
                f"the data at {there}"
            )


class GgufTensor(Unique):
    """One tensor of a `Gguf`: what it is, and its data.  It does not change."""

    _why = "its data are in a file that is open, or in an array of others"
    _instead = "data.copy() copies the data, and Gguf.add_tensor() takes the tensor as it is"

    __slots__ = ("_array", "_source", "name", "offset", "shape", "type")

    name: str
    """Its name."""
    type: GgmlType
    """The type of its data."""
    shape: tuple[int, ...]
    """Its shape in numpy's order: rows are last.  ggml's is the reverse."""
    offset: int | None
    """Where its data begin in the file it was read from, after `Gguf.data_offset`, in bytes.

    None if it was added."""

    def __init__(
        self,
        name: str,
        type_: GgmlType,
        shape: tuple[int, ...],
        data: Array | Source,
        offset: int | None = None,
    ) -> None:
        """Describe a tensor; made by `Gguf`."""
        self.name, self.type, self.shape, self.offset = name, type_, shape, offset
        self._array = None if isinstance(data, Source) else data
        self._source = data if isinstance(data, Source) else None

    def __copy__(self) -> GgufTensor:
        return self.renamed(self.name)  # over the same data

    def __repr__(self) -> str:
        return f"<GgufTensor {self.name!r} {self.type.name} {self.shape}>"

    @property
    def n_elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size of its data in bytes, without padding."""
        return math.prod(self.shape[:-1]) * row_bytes(self.type, self.shape[-1])

    @property
    def data(self) -> Array:
        """Its data, without a copy and read-only.

        An array of `shape` for plain types; bfloat16, which numpy has not got, are their bits as
        uint16.  For quantized types ``[..., bytes of a row]`` uint8.  It stays valid when the
        `Gguf` is closed, since it keeps the file mapped.

        Raises:
            ClosedError: The `Gguf` that it was read with is closed.
            GgufError: That was opened with ``metadata_only``.
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
        """Return its numbers as float32, in `shape`; the caller's own.

        Raises:
            ArgumentError: llama.cpp cannot convert its type.

        Source: ``ggml_get_type_traits`` (``to_float``).
        """
        return dequantize_array(self.data, self.type)

    def hash(self, algorithm: str = "sha256") -> str:
        """Return a hash of its data, as hexadecimal digits; of an algorithm of `hashlib`.

        Raises:
            ArgumentError: There is no such algorithm.
        """
        digest = new_hash(algorithm)
        digest.update(self.raw)
        return digest.hexdigest()

    @property
    def raw(self) -> memoryview:
        """The bytes of `data`, as they are in a file."""
        return np.ascontiguousarray(self.data).reshape(-1).view(np.uint8).data

    def renamed(self, name: str) -> GgufTensor:
        """Return the same tensor under another name.

        Raises:
            TypeError: The name is not a str.
            ArgumentError: It has a NUL character or a lone surrogate.
        """
        check_text("name", name, escaped=True)
        data = self._source if self._source is not None else self._array
        assert data is not None
        return GgufTensor(name, self.type, self.shape, data, self.offset)


def new_hash(algorithm: str) -> hashlib._Hash:
    """Return a hash of `hashlib` whose size is known.

    Raises:
        TypeError: ``algorithm`` is no text.
        ArgumentError: There is no such algorithm.
    """
    if not isinstance(algorithm, str):
        raise TypeError(f"algorithm must be a name of hashlib, not {algorithm!r:.80}")
    try:
        digest = hashlib.new(algorithm, usedforsecurity=False)
    except (TypeError, ValueError):  # a lone surrogate is no text to it
        digest = None
    if digest is None or not digest.digest_size:
        known = ", ".join(sorted(hashlib.algorithms_guaranteed))
        raise ArgumentError(f"algorithm={algorithm!r:.80} is none of one size: {known}")
    return digest


class Computed(Source):
    """Data that are made each time they are used, for a tensor that is too large to keep."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], Array]) -> None:
        super().__init__(None, 0, "")
        self._make = make

    def data(self, tensor: GgufTensor) -> memoryview:
        """Make the data."""
        made = np.ascontiguousarray(self._make()).reshape(-1).view(np.uint8).data
        assert len(made) == tensor.nbytes
        return made


def computed_tensor(
    name: str, type_: GgmlType, shape: tuple[int, ...], make: Callable[[], Array]
) -> GgufTensor:
    """Return a tensor whose data ``make`` returns, as `GgufTensor.data` does, when it is used."""
    return GgufTensor(name, type_, shape, Computed(make))


def read_tensor(ptr: Any, i: int, source: Source) -> GgufTensor:
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
    """Return a shape as GGUF keeps it: without ones at the front."""
    ones = next((i for i, n in enumerate(shape[:-1]) if n != 1), len(shape) - 1)
    return shape[ones:]


def add_tensors(ptr: Any, tensors: list[GgufTensor]) -> None:
    """Describe tensors to C, after those it knows.

    Source: ``ggml_new_tensor``, ``gguf_add_tensor``, which copies the description.
    """
    params = ffi.new("struct ggml_init_params *", {"no_alloc": True})
    params.mem_size = (len(tensors) + 1) * (lib.ggml_tensor_overhead() + lib.GGML_MEM_ALIGN)
    context = lib.ggml_init(params[0])
    if context == ffi.NULL:
        raise MemoryError("no memory to describe tensors")
    try:
        for tensor in tensors:
            ne = tensor.shape[::-1]
            described = lib.ggml_new_tensor(context, tensor.type, len(ne), ne)
            lib.ggml_set_name(described, tensor.name.encode("utf-8", "surrogateescape"))
            lib.gguf_add_tensor(ptr, described)
    finally:
        lib.ggml_free(context)


def make_tensor(
    name: str, data: Any, type_: AnyType | None, imatrix: npt.ArrayLike | None
) -> GgufTensor:
    """Return a tensor over ``data``, converted if it must be."""
    if isinstance(data, GgufTensor):
        if type_ is None or ggml_type(type_) == data.type:
            return data.renamed(name)
        data = data.dequantize()
    array: Array = as_array(repr(name), data)
    if type_ is None:
        type_ = TYPES.get(array.dtype.newbyteorder("="))
        if type_ is None:
            raise GgufError(
                f"{name!r} is an array of {array.dtype}; tensors are of "
                f"{', '.join(str(one) for one in TYPES)}, or say type="
            )
        if type_ == GgmlType.F64:
            warn(
                f"{name!r} is an array of float64 and is stored as F64, which no model computes "
                "with: give type='f32', or type='f64' if it is meant"
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
            f"{name!r} has {array.ndim} dimensions; a tensor has at most {lib.GGML_MAX_DIMS}"
        )
    if not array.size:
        raise GgufError(f"{name!r} has no elements: llama.cpp cannot store its shape")
    shape = stored_shape(shape_of(array, type_))
    return GgufTensor(name, type_, shape, array.reshape(*shape[:-1], array.shape[-1]))
