"""Names for what the parameters take, used only by type checkers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from io import BytesIO
    from os import PathLike
    from typing import Any, BinaryIO, TypeAlias

    import numpy.typing as npt

    from .._generated.enums import GgmlType
    from .._generated.params import ModelParams
    from .._llama import CData as CData
    from ..backend.device_types import BufferType, Device
    from ..backend.tensor import TensorView
    from ..context.context import Context as Context
    from ..sampling.chain import SamplerChain

    # Told of each node of the compute graph: before it is computed, and after if it asked for that.
    EvalCallback: TypeAlias = Callable[[TensorView, bool], bool | None]

    # With what chain each sequence is sampled in the graph.
    BackendSamplers: TypeAlias = Mapping[int, SamplerChain]

    # What can be read from: an open binary file, a descriptor, or the bytes themselves.
    FileSource: TypeAlias = BinaryIO | BytesIO | int | bytes | bytearray | memoryview

    # The devices of a model besides the processor; "none" for no other.
    Devices: TypeAlias = Sequence[Device | str] | Device | str | CData
    # Where tensors go, by patterns for their names.
    Place: TypeAlias = Device | BufferType | str | CData
    BuftOverrides: TypeAlias = Mapping[str, Place] | Iterable[tuple[str, Place]] | CData
    # The part of the model for each device.
    TensorSplit: TypeAlias = Iterable[float] | CData
    # Metadata to use in place of the file's.
    KvOverrides: TypeAlias = Mapping[str, bool | int | float | str] | CData
    Overrides: TypeAlias = Mapping[str, bool | int | float | str]
    # How much each column of a weight matters, by its name; or a file of that.
    ImatrixLike: TypeAlias = Mapping[str, npt.ArrayLike] | str | PathLike[str]
    # Numbers of layers, from 0.
    Layers: TypeAlias = Iterable[int]
    # Types of tensors, by patterns for their names.
    TensorType: TypeAlias = GgmlType | int | str
    TensorTypes: TypeAlias = Mapping[str, TensorType] | Iterable[tuple[str, TensorType]]
    # Writes the data of the tensor of that name.
    Fill: TypeAlias = Callable[[str, npt.NDArray[Any]], None]

    class LoadParams(ModelParams, total=False):
        """The parameters of a `Model`, however it is loaded."""

        progress: Callable[[float], bool | None] | None
        """Called with the part that is loaded, 0.0 to 1.0; False stops."""
        cpu_moe: bool
        """Keep the experts of a mixture on the processor."""
        n_cpu_moe: int
        """Keep those of the first so many layers there."""
