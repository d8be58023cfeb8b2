"""Control vectors: directions that are added to the outputs of a model's layers."""

from __future__ import annotations

import hashlib
import math
import os
import re
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np

from .._core.values import FLOAT_MAX, INT32_MAX, as_array, integer
from ..errors import AdapterError, ArgumentError, GgufError
from ..gguf.open_files import gguf_of, opened
from ..model.file_kind import VECTOR, kind_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    from typing_extensions import Self

    from .._core import types as types
    from ..gguf.gguf import Gguf

# The highest layer that a file may name, so that a small file cannot make us allocate much memory.
MOST_LAYERS = 4096
# upstream: common/common.cpp common_control_vector_load_one: finds the layer of a tensor like this.
DIRECTION = re.compile(r"direction\.([0-9]{1,6})")


class ControlVector:
    """A direction for each of several layers that steers a model towards a style or topic.

    Control vectors are immutable; arithmetic combines them into new ones, as in
    ``0.8 * happy - 0.2 * formal``.  Layers count from 0.  Layer 0 cannot have a direction; the
    direction of any other layer is added to the output of that layer.

    Assign one to `Context.control_vector` to use it.
    """

    __slots__ = ("_array", "_layers")

    # Without this, `numpy_scalar * vector` would multiply element by element.
    __array_ufunc__ = None

    def __init__(self, array: npt.ArrayLike, *, first_layer: int = 1) -> None:
        """Create a control vector from numbers; see `from_array`."""
        given = as_array("array", array)
        if given.dtype.kind not in "biuf":
            raise TypeError(f"array must hold numbers, not {given.dtype}: {array!r:.80}")
        if given.ndim != 2 or not given.size:
            raise ArgumentError(
                f"array must have the shape (n_layers, n_embd), one row for each layer, not "
                f"{given.shape}"
            )
        start = integer("first_layer", first_layer, 1, INT32_MAX - len(given))
        if not (np.abs(given.astype(np.float64)) <= FLOAT_MAX).all():  # also False for NaN
            raise ArgumentError("array has a number that is not a finite 32-bit number")
        self._array = given.astype(np.float32, order="C")  # a copy
        self._array.flags.writeable = False
        self._layers = range(start, start + len(given))

    @classmethod
    def from_array(cls, array: npt.ArrayLike, *, first_layer: int = 1) -> Self:
        """Create a control vector from numbers.

        Args:
            array: ``[n_layers, n_embd]``, copied.  A row of zeros does not change its layer.
            first_layer: The layer of the first row, at least 1.

        Raises:
            ArgumentError: The shape is wrong, or a number is not finite.
            TypeError: ``array`` does not hold numbers.
        """
        return cls(array, first_layer=first_layer)

    @classmethod
    def from_file(cls, source: str | os.PathLike[str] | types.FileSource) -> Self:
        """Read a GGUF with tensors ``direction.1``, ``direction.2``, ...

        Args:
            source: A path, an open binary file (read from its current position), a descriptor, or
                bytes.

        Raises:
            ModelNotFoundError: The file does not exist.
            LoadError: The file cannot be read.
            AdapterError: The file is not a control vector or is damaged.
        """
        with opened(source) as file:
            try:
                with gguf_of(file) as gguf:
                    directions = _directions(gguf, file.name)
            except GgufError as error:
                raise AdapterError(f"{file.name!r} is not a control vector: {error}") from error
            first, last = min(directions), max(directions)
            if last > MOST_LAYERS:
                raise AdapterError(
                    f"{file.name!r} is not a control vector: it has a direction for layer {last}, "
                    f"but no model has more than {MOST_LAYERS} layers"
                )
            rows = np.zeros((last - first + 1, len(directions[first])))
            for layer, direction in directions.items():
                rows[layer - first] = direction
            try:
                return cls.from_array(rows, first_layer=first)
            except ArgumentError as error:
                raise AdapterError(f"{file.name!r} is not a control vector: {error}") from None

    @property
    def array(self) -> npt.NDArray[np.float32]:
        """The rows, ``[n_layers, n_embd]`` float32, read-only; not a copy."""
        return self._array

    @property
    def layers(self) -> range:
        """The layer of each row."""
        return self._layers

    @property
    def n_embd(self) -> int:
        """The width of the models that it fits."""
        return int(self._array.shape[1])

    def __repr__(self) -> str:
        return (
            f"<ControlVector for layers {self._layers[0]} to {self._layers[-1]}, "
            f"n_embd={self.n_embd}>"
        )

    def within(self, layers: range) -> Self:
        """Return a control vector with only some of the layers.

        Args:
            layers: Consecutive layers, such as ``range(10, 20)``; layers without a direction are
                ignored.

        Raises:
            ArgumentError: None of these layers has a direction.
        """
        if not isinstance(layers, range):
            raise TypeError(f"layers must be a range, not {layers!r}")
        if layers.step != 1:
            raise ArgumentError(f"layers must be consecutive, not {layers}")
        start, stop = max(layers.start, self._layers.start), min(layers.stop, self._layers.stop)
        if start >= stop:
            raise ArgumentError(f"{self!r} has no direction for any layer of {layers}")
        begin = self._layers.start
        return type(self)(self._array[start - begin : stop - begin], first_layer=start)

    def __add__(self, other: ControlVector) -> Self:
        return self._combined(other, 1)

    def __sub__(self, other: ControlVector) -> Self:
        return self._combined(other, -1)

    def __neg__(self) -> Self:
        return self * -1

    def __mul__(self, scale: SupportsFloat) -> Self:
        if not isinstance(scale, SupportsFloat) or isinstance(scale, ControlVector):
            return NotImplemented
        number = float(scale)
        if not math.isfinite(number):
            raise ArgumentError(f"a control vector cannot be multiplied by {number}")
        rows = self._array.astype(np.float64) * number
        return type(self)(rows, first_layer=self._layers.start)

    __rmul__ = __mul__

    def __truediv__(self, divisor: SupportsFloat) -> Self:
        if not isinstance(divisor, SupportsFloat):
            return NotImplemented
        number = float(divisor)
        if number == 0:
            raise ArgumentError("a control vector cannot be divided by 0")
        return self * (1 / number)

    def _combined(self, other: ControlVector, sign: int) -> Self:
        """Add or subtract another one row by row; a missing row counts as zeros."""
        if not isinstance(other, ControlVector):
            return NotImplemented
        if other.n_embd != self.n_embd:
            raise ArgumentError(
                f"control vectors with n_embd={self.n_embd} and {other.n_embd} cannot be combined: "
                "they are for different models"
            )
        start = min(self._layers.start, other._layers.start)
        stop = max(self._layers.stop, other._layers.stop)
        rows = np.zeros((stop - start, self.n_embd), np.float64)
        for one, factor in ((self, 1), (other, sign)):
            begin = one._layers.start - start
            rows[begin : begin + len(one._layers)] += factor * one._array.astype(np.float64)
        return type(self)(rows, first_layer=start)


def rows_for_model(vector: ControlVector, n_layer: int, n_embd: int) -> npt.NDArray[np.float32]:
    """Return a row for each layer of a model from layer 1, as llama.cpp takes them.

    Raises:
        AdapterError: The width differs from the model's, or the model has fewer layers.
    """
    if vector.n_embd != n_embd or vector.layers.stop > n_layer:
        raise AdapterError(
            f"{vector!r} does not fit the model, which has n_embd={n_embd} and takes directions "
            f"for layers 1 to {n_layer - 1}"
        )
    rows = np.zeros((n_layer - 1, n_embd), np.float32)
    rows[vector.layers.start - 1 : vector.layers.stop - 1] = vector.array
    return rows


def digest_of(vector: ControlVector) -> str:
    """Return a hash of the layers of a control vector and their directions."""
    digest = hashlib.blake2b(f"{vector.layers} {vector.array.shape}".encode(), digest_size=8)
    digest.update(vector.array.tobytes())
    return digest.hexdigest()


def _directions(gguf: Gguf, name: str) -> Mapping[int, npt.NDArray[Any]]:
    """Return the rows of a file by layer."""
    kind = kind_of(gguf.ptr)
    if kind not in ("", VECTOR):
        raise AdapterError(f"{name!r} is not a control vector: it is {kind}")
    directions: dict[int, npt.NDArray[Any]] = {}
    for tensor in gguf.tensors.values():
        match = DIRECTION.fullmatch(tensor.name)
        if match is None or int(match[1]) == 0:
            raise AdapterError(f"{name!r} is not a control vector: it has a tensor {tensor.name!r}")
        row = tensor.data
        if row.dtype.kind != "f" or row.ndim != 1:
            raise AdapterError(
                f"{name!r} is not a control vector: {tensor.name!r} is {tensor.type.name} of shape "
                f"{tensor.shape}"
            )
        directions[int(match[1])] = row
    widths = {len(row) for row in directions.values()}
    if len(widths) != 1:
        found = f"directions of {sorted(widths)} numbers" if widths else "no directions"
        raise AdapterError(f"{name!r} is not a control vector: it has {found}")
    return directions
