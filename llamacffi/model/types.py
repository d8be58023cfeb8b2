"""Type aliases for the methods of `Model`, used only by type checkers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    import numpy.typing as npt

    from .._core.types import CData as CData
    from .._core.types import FileSource as FileSource
    from .._generated.model_params import ModelParams

    # Writes the data of the tensor of that name to the array.
    Fill: TypeAlias = Callable[[str, npt.NDArray[Any]], None]

    class LoadParams(ModelParams, total=False):
        """The parameters of a `Model`, however it is loaded."""

        progress: Callable[[float], bool | None] | None
        """Called with the fraction loaded, 0.0 to 1.0; return False to stop."""
        cpu_moe: bool
        """Keep the expert weights of a mixture-of-experts model on the CPU."""
        n_cpu_moe: int
        """Keep the expert weights of the first ``n_cpu_moe`` layers on the CPU."""
