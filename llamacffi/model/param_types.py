"""Type aliases for the parameters of a model, used only by type checkers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import TypeAlias

    from .._llama import CData
    from ..backend.device_types import BufferType, Device

    # The devices of a model besides the CPU; "none" for no other.
    Devices: TypeAlias = Sequence[Device | str] | Device | str | CData
    # Where to put tensors, by patterns for their names.
    Place: TypeAlias = Device | BufferType | str | CData
    BuftOverrides: TypeAlias = Mapping[str, Place] | Iterable[tuple[str, Place]] | CData
    # The proportion of the model for each device.
    TensorSplit: TypeAlias = Iterable[float] | CData
    # Values that replace metadata of the file.
    KvOverrides: TypeAlias = Mapping[str, bool | int | float | str] | CData
