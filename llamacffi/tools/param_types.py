"""Type aliases for the parameters of `quantize`, used only by type checkers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from os import PathLike
    from typing import TypeAlias

    import numpy.typing as npt

    from .._generated.enums import GgmlType

    # Values that replace metadata of the file.
    Overrides: TypeAlias = Mapping[str, bool | int | float | str]
    # How much each column of a weight matters, by the name of the weight; or a file with that.
    ImatrixLike: TypeAlias = Mapping[str, npt.ArrayLike] | str | PathLike[str]
    # Indices of layers, from 0.
    Layers: TypeAlias = Iterable[int]
    # Types of tensors, by patterns for their names.
    TensorType: TypeAlias = GgmlType | int | str
    TensorTypes: TypeAlias = Mapping[str, TensorType] | Iterable[tuple[str, TensorType]]
