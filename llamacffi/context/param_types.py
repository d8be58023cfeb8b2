"""Type aliases for the parameters of a context, used only by type checkers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from ..backend.tensor import TensorView
    from ..sampling.chain import SamplerChain
    from .handle import ContextHandle

    # A context whose memory or weights another one uses.
    Context: TypeAlias = ContextHandle
    # Called for each node of the compute graph: before it is computed, and afterwards if that call
    # returned True.
    EvalCallback: TypeAlias = Callable[[TensorView, bool], bool | None]
    # The chain that samples each sequence in the graph.
    BackendSamplers: TypeAlias = Mapping[int, SamplerChain]
