"""Sampling in the compute graph of a context: on the device, before outputs are copied."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .._core.values import integer
from .._native import ffi, lib
from ..errors import ArgumentError, UnsupportedError
from ..log import with_log
from ..sampling.chain import SamplerChain, native
from ..sampling.native_chain import NativeChain
from .graph_entry import GONE, check_first, check_free, give, prepare, take_back

if TYPE_CHECKING:
    from .._core.locks import CallLock
    from .._core.ownership import Handle
    from ..model.model import Model
    from .adapters import ActiveAdapters
    from .last_batch import LastBatch
    from .pools import Computing


class InGraph:
    """The attachment of a chain in a graph; it does not keep the context alive."""

    __slots__ = ("_samplers",)

    def __init__(self, samplers: GraphSamplers) -> None:
        self._samplers = weakref.ref(samplers)

    def gone(self) -> bool:
        """Return whether the context no longer exists."""
        return self._samplers() is None

    def release(self, chain: NativeChain) -> None:
        """Take a chain out of the graph."""
        samplers = self._samplers()
        if samplers is not None:
            samplers.drop(chain)


class GraphSamplers:
    """The chains that a context samples with in its graph, by sequence.

    The first argument of most methods is the ``struct llama_context *``.
    """

    __slots__ = (
        *("__weakref__", "_adapters", "_computing", "_context", "_last", "_lock", "_model"),
        *("chains", "owners"),
    )

    chains: dict[int, SamplerChain]
    """By sequence."""
    owners: dict[int, Any]
    """By sequence: keeps what C has of the chain alive."""

    def __init__(
        self,
        model: Model,
        lock: CallLock,
        last: LastBatch,
        adapters: ActiveAdapters,
        computing: Computing,
    ) -> None:
        """Start with a graph without samplers.

        Args:
            model: Its model.
            lock: Its lock.
            last: Its outputs, which a change of samplers invalidates.
            adapters: Told to reserve memory again after a change of samplers.
            computing: Holds the chains while C computes.
        """
        self._model, self._lock, self._last = model, lock, last
        self._adapters, self._computing = adapters, computing
        self._context: Callable[[], Handle | None] = _no_context
        self.chains, self.owners = {}, {}

    @contextmanager
    def given(self, chains: Mapping[int, SamplerChain], struct: Any) -> Iterator[None]:
        """Put chains into the parameters of a context; take them back if creating it fails.

        Args:
            chains: By sequence.
            struct: The parameters of the context that is created in the ``with`` block.
        """
        configs = ffi.new("struct llama_sampler_seq_config[]", len(chains))
        entered: list[NativeChain] = []
        try:
            for config, (seq_id, chain) in zip(configs, chains.items(), strict=True):
                config.seq_id = seq_id
                config.sampler = self.owners[seq_id] = give(
                    native(chain), self._model.vocab, entered
                )
            struct.samplers, struct.n_samplers = configs, len(chains)
            yield
        except BaseException:  # also KeyboardInterrupt: the chains must be usable again
            for one in entered:
                take_back(one)
            raise
        finally:
            struct.samplers, struct.n_samplers = ffi.NULL, 0

    def attach(self, context: Handle, chains: Mapping[int, SamplerChain]) -> None:
        """Record the chains that a context was created with."""
        self._context = weakref.ref(context)
        for seq_id, chain in chains.items():
            self._attach(seq_id, chain)
            check_first(native(chain))
        if chains:
            self._check_memory(context.ptr)

    def set(self, ptr: Any, seq_id: int, chain: SamplerChain | None) -> None:
        """Set or remove the chain of a sequence; see `Context.set_sampler`."""
        integer("seq_id", seq_id, 0, lib.llama_n_seq_max(ptr) - 1)
        if chain is not None:
            if self.chains.get(seq_id) is chain:
                return
            self._check_memory(ptr)
            check_free(chain)
        with self._lock:
            self._last.discard(ptr)
            if chain is None:
                self._remove(ptr, seq_id)
                return
            one = native(chain)
            with one.lock:
                one.settle_for(self._model.vocab)
                prepare(one, len(self._model.vocab))
                self._remove(ptr, seq_id)
                self._put(ptr, seq_id, chain)

    def drop(self, chain: NativeChain) -> None:
        """Remove a chain that is being closed."""
        context = self._context()
        for seq_id, one in self.chains.items():
            if context is not None and native(one) is chain:
                self.set(context.ptr, seq_id, None)
                return

    def take_all(self) -> list[SamplerChain]:
        """Return the chains and drop them here, because the context is being closed."""
        chains, self.chains = self.chains, {}
        return list(chains.values())

    def _check_memory(self, ptr: Any) -> None:
        """Raise if the model has no memory: llama.cpp then only encodes, and ignores samplers."""
        if lib.llama_get_memory(ptr) == ffi.NULL:
            raise UnsupportedError(
                f"llama.cpp cannot sample in the graph of {self._model!r}, which has no memory: "
                "call SamplerChain.sample() after decode() instead"
            )

    def _remove(self, ptr: Any, seq_id: int) -> None:
        """Take the chain of a sequence out of the graph; the caller holds the context."""
        self._adapters.reserved = False
        # In this order, an interrupt leaves the objects that C still uses alive and registered.
        lib.llama_set_sampler(ptr, seq_id, ffi.NULL)
        before = self.chains.get(seq_id)
        if before is not None:
            native(before).attachment = GONE
        self.owners.pop(seq_id, None)
        self.chains.pop(seq_id, None)
        self._hold_chains()

    def _put(self, ptr: Any, seq_id: int, chain: SamplerChain) -> None:
        """Put a chain into the graph; the caller holds the context and the chain."""
        self._adapters.reserved = False
        try:
            if not lib.llama_set_sampler(ptr, seq_id, self._attach(seq_id, chain)):
                raise with_log(UnsupportedError("llama.cpp cannot run this chain in the graph"))
            check_first(native(chain))
        except BaseException:  # also KeyboardInterrupt: C must not keep a pointer to a freed chain
            self._remove(ptr, seq_id)
            native(chain).leave_graph()
            raise

    def _attach(self, seq_id: int, chain: SamplerChain) -> Any:
        """Record that C has a chain, or is about to get it; return its pointer for C."""
        one = native(chain)
        owner = self.owners[seq_id] = one.held()
        self.chains[seq_id] = chain
        one.attachment = InGraph(self)
        self._hold_chains()
        return owner

    def _hold_chains(self) -> None:
        """Let the context hold the chains' locks while C computes."""
        locks = [native(chain).lock for chain in self.chains.values()]
        self._computing.pools.hold(locks)


def forget(chains: list[SamplerChain]) -> None:
    """Detach chains from a context that was closed."""
    for chain in chains:
        native(chain).attachment = GONE


def check_chains(chains: Any, n_seq_max: int) -> dict[int, SamplerChain]:
    """Check the parameter ``samplers`` of a context, and return it as a dict."""
    if not isinstance(chains, Mapping):
        raise TypeError(f"samplers must map sequence numbers to chains, not {chains!r}")
    for seq_id, chain in chains.items():
        integer("samplers: sequence", seq_id, 0, n_seq_max - 1)
        check_free(chain)
    if len(set(map(id, chains.values()))) < len(chains):
        raise ArgumentError("samplers: give each sequence its own chain, for example chain.clone()")
    return dict(chains)


def _no_context() -> None:
    return None
