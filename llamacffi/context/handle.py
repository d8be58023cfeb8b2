"""The owner of a ``struct llama_context``, and access to its parts for the whole package."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

from .._core.ownership import Handle
from .locked_memory import LockedMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._core.locks import CallLock
    from .adapters import ActiveAdapters
    from .bookkeeping import Bookkeeping
    from .decoding import Decoder
    from .graph_samplers import GraphSamplers
    from .k_shift import KShift
    from .last_batch import LastBatch
    from .outputs import Outputs
    from .perf import PerfCounters
    from .pools import Computing
    from .snapshot import Snapshots
    from .state import States
    from .traits import ContextTraits


class ContextHandle(Handle):
    """Owns a context in C, and the objects that `Context` consists of; `Context` makes them."""

    _instead = (
        "create another Context; save_state() and load_state() transfer the contents of its memory"
    )

    __slots__ = (
        *("__llama_outputs__", "_abort", "_adapters", "_bookkeeping", "_computing", "_counters"),
        *("_decoder", "_graph_samplers", "_k_shift", "_last", "_lock", "_snapshots", "_states"),
        "_traits",
    )

    __llama_outputs__: Outputs
    """Reads the outputs of the last batch; `SamplerChain.sample` samples from them."""
    _abort: Any
    """The ``struct llamacffi_abort_flag *`` that C polls."""
    _adapters: ActiveAdapters
    _bookkeeping: Bookkeeping
    _computing: Computing
    _counters: PerfCounters
    _decoder: Decoder
    _graph_samplers: GraphSamplers
    _k_shift: KShift
    _last: LastBatch
    _lock: CallLock
    _snapshots: Snapshots
    _states: States
    _traits: ContextTraits


# For the rest of the package: each takes a context, and returns one of its parts.
lock_of: Callable[[ContextHandle], CallLock] = attrgetter("_lock")
traits_of: Callable[[ContextHandle], ContextTraits] = attrgetter("_traits")
bookkeeping_of: Callable[[ContextHandle], Bookkeeping] = attrgetter("_bookkeeping")
decoder_of: Callable[[ContextHandle], Decoder] = attrgetter("_decoder")
computing_of: Callable[[ContextHandle], Computing] = attrgetter("_computing")
params_of: Callable[[ContextHandle], Any] = attrgetter("_traits.params")


def locked_memory(context: ContextHandle) -> LockedMemory:
    """Return the memory of a context whose lock the caller holds.

    Raises:
        UnsupportedError: The model has no memory.
    """
    return LockedMemory(context.ptr, context._traits, context._bookkeeping, context._k_shift)
