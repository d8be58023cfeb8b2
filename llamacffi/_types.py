"""Names for what the parameters take, used only by type checkers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from io import BytesIO
    from typing import Any, BinaryIO, TypeAlias

    import numpy.typing as npt

    from ._devices import BufferType, Device
    from ._generated.params import ModelParams
    from ._llama import CData as CData
    from .context import Context as Context
    from .tensor import TensorView

    # Told of each node of the compute graph: before it is computed, and after if it asked for that.
    EvalCallback: TypeAlias = Callable[[TensorView, bool], bool | None]

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
