"""Control vectors: directions that are added to what the layers of a model compute."""

from __future__ import annotations

import hashlib
import math
import os
import re
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np

from .._core.values import FLOAT_MAX, INT32_MAX, as_array, integer
from ..errors import AdapterError, ArgumentError, GgufError
from ..gguf.sources import gguf_of, opened
from ..model.file_kind import VECTOR, kind_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    from typing_extensions import Self

    from .._core import types as types
    from ..gguf.gguf import Gguf

# What a small file could otherwise make us reserve.
MOST_LAYERS = 4096
DIRECTION = re.compile(r"direction\.([0-9]{1,6})")


class ControlVector:
    """A direction for each of some layers, which pushes a model towards a manner or a topic.

    It does not change: several are combined by arithmetic, which gives a new one, as in
    ``0.8 * happy - 0.2 * formal``.  The first layer of a model is 0, and cannot have a direction;
    that of layer 1 is added to what this layer returns.

    `Context.control_vector` puts one to use.
    """

    __slots__ = ("_array", "_layers")

    # Else numpy would multiply each row on its own.
    __array_ufunc__ = None

    def __init__(self, array: npt.ArrayLike, *, first_layer: int = 1) -> None:
        """Make one from numbers; see `from_array`."""
        given = as_array("array", array)
        if given.dtype.kind not in "biuf":
            raise TypeError(
                f"array: a control vector is made of numbers, not of {given.dtype}: {array!r:.80}"
            )
        if given.ndim != 2 or not given.size:
            raise ArgumentError(
                f"a control vector has a row of n_embd numbers for each layer, not shape "
                f"{given.shape}"
            )
        start = integer("first_layer", first_layer, 1, INT32_MAX - len(given))
        if not (np.abs(given.astype(np.float64)) <= FLOAT_MAX).all():  # not for nan either
            raise ArgumentError("a control vector has a number that is not a finite 32-bit number")
        self._array = given.astype(np.float32, order="C")  # a copy
        self._array.flags.writeable = False
        self._layers = range(start, start + len(given))

    @classmethod
    def from_array(cls, array: npt.ArrayLike, *, first_layer: int = 1) -> Self:
        """Make one from numbers.

        Args:
            array: ``[n_layers, n_embd]``, copied.  A row of zeros leaves its layer alone.
            first_layer: The layer of the first row, from 1 on.

        Raises:
            ArgumentError: The shape is another, or a number is not finite.
            TypeError: They are no numbers.
        """
        return cls(array, first_layer=first_layer)

    @classmethod
    def from_file(cls, source: str | os.PathLike[str] | types.FileSource) -> Self:
        """Read a GGUF with tensors ``direction.1``, ``direction.2``, ...

        Args:
            source: A path; or an open binary file, whose contents begin at its position, a
                descriptor, or bytes.

        Raises:
            ModelNotFoundError: There is no such file.
            LoadError: It cannot be read.
            AdapterError: It is no control vector, or damaged.
        """
        with opened(source) as file:
            try:
                with gguf_of(file) as gguf:
                    directions = _directions(gguf, file.name)
            except GgufError as error:
                raise AdapterError(f"{file.name!r} is no control vector: {error}") from error
            first, last = min(directions), max(directions)
            if last > MOST_LAYERS:
                raise AdapterError(
                    f"{file.name!r} is no control vector: it has a direction for layer {last}, and "
                    f"no model has over {MOST_LAYERS}"
                )
            rows = np.zeros((last - first + 1, len(directions[first])))
            for layer, direction in directions.items():
                rows[layer - first] = direction
            try:
                return cls.from_array(rows, first_layer=first)
            except ArgumentError as error:
                raise AdapterError(f"{file.name!r} is no control vector: {error}") from None

    @property
    def array(self) -> npt.NDArray[np.float32]:
        """Its rows, ``[n_layers, n_embd]`` float32, read-only; not copied."""
        return self._array

    @property
    def layers(self) -> range:
        """The layer of each row."""
        return self._layers

    @property
    def n_embd(self) -> int:
        """The width of the model that it is for."""
        return int(self._array.shape[1])

    def __repr__(self) -> str:
        return (
            f"<ControlVector for layers {self._layers[0]} to {self._layers[-1]}, "
            f"n_embd={self.n_embd}>"
        )

    def within(self, layers: range) -> Self:
        """Return it for some of its layers only.

        Args:
            layers: Consecutive ones, such as ``range(10, 20)``; those that it has not got are
                passed over.

        Raises:
            ArgumentError: It has none of them.
        """
        if not isinstance(layers, range):
            raise TypeError(f"layers must be a range, not {layers!r}")
        if layers.step != 1:
            raise ArgumentError(f"{layers} are not consecutive layers")
        start, stop = max(layers.start, self._layers.start), min(layers.stop, self._layers.stop)
        if start >= stop:
            raise ArgumentError(f"{self!r} has no direction for {layers}")
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
            raise ArgumentError(f"a control vector cannot be multiplied with {number}")
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
        """Add another row by row; a layer that only one has keeps what that has."""
        if not isinstance(other, ControlVector):
            return NotImplemented
        if other.n_embd != self.n_embd:
            raise ArgumentError(
                f"control vectors of n_embd={self.n_embd} and {other.n_embd} are for different "
                "models"
            )
        start = min(self._layers.start, other._layers.start)
        stop = max(self._layers.stop, other._layers.stop)
        rows = np.zeros((stop - start, self.n_embd), np.float64)
        for one, factor in ((self, 1), (other, sign)):
            begin = one._layers.start - start
            rows[begin : begin + len(one._layers)] += factor * one._array.astype(np.float64)
        return type(self)(rows, first_layer=start)

    def for_model(self, n_layer: int, n_embd: int) -> npt.NDArray[np.float32]:
        """Return a row for each layer of a model from 1 on, as llama.cpp takes them.

        Raises:
            AdapterError: It has another width, or layers that the model has not got.
        """
        if self.n_embd != n_embd or self._layers.stop > n_layer:
            raise AdapterError(
                f"{self!r} does not fit the model, which has n_embd={n_embd} and, for control "
                f"vectors, layers 1 to {n_layer - 1}"
            )
        rows = np.zeros((n_layer - 1, n_embd), np.float32)
        rows[self._layers.start - 1 : self._layers.stop - 1] = self._array
        return rows

    @property
    def _digest(self) -> str:
        """What tells it from others."""
        digest = hashlib.blake2b(f"{self._layers} {self._array.shape}".encode(), digest_size=8)
        digest.update(self._array.tobytes())
        return digest.hexdigest()


def _directions(gguf: Gguf, name: str) -> Mapping[int, npt.NDArray[Any]]:
    """Return the rows of a file by their layers."""
    kind = kind_of(gguf.ptr)
    if kind not in ("", VECTOR):
        raise AdapterError(f"{name!r} is no control vector: it is {kind}")
    directions: dict[int, npt.NDArray[Any]] = {}
    for tensor in gguf.tensors.values():
        match = DIRECTION.fullmatch(tensor.name)
        if match is None or int(match[1]) == 0:
            raise AdapterError(f"{name!r} is no control vector: it has a tensor {tensor.name!r}")
        row = tensor.data
        if row.dtype.kind != "f" or row.ndim != 1:
            raise AdapterError(
                f"{name!r} is no control vector: {tensor.name!r} is {tensor.type.name} of shape "
                f"{tensor.shape}"
            )
        directions[int(match[1])] = row
    widths = {len(row) for row in directions.values()}
    if len(widths) != 1:
        found = f"directions of {sorted(widths)} numbers" if widths else "no directions"
        raise AdapterError(f"{name!r} is no control vector: it has {found}")
    return directions
