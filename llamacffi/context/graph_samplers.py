"""Sampling in the graph of a context: on the device, before anything is copied from it."""

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
from .graph_entry import GONE, check_first, check_free, enter, give, take_back

if TYPE_CHECKING:
    from .._core.locks import CallLock
    from .._core.ownership import Handle
    from ..model.model import Model
    from .adapters import ActiveAdapters
    from .last_batch import LastBatch
    from .pools import Computing


class InGraph:
    """The attachment of a chain that is in a graph; it does not keep the context alive."""

    __slots__ = ("_samplers",)

    def __init__(self, samplers: GraphSamplers) -> None:
        self._samplers = weakref.ref(samplers)

    def gone(self) -> bool:
        """Return whether the context is gone."""
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
    """What C has of them, as long as it has it."""

    def __init__(
        self,
        model: Model,
        lock: CallLock,
        last: LastBatch,
        adapters: ActiveAdapters,
        computing: Computing,
    ) -> None:
        """Describe the graph of a context that has no samplers yet.

        Args:
            model: Its model.
            lock: Its lock.
            last: Its outputs, which a change of samplers makes invalid.
            adapters: A change of samplers makes the context reserve memory anew.
            computing: Also holds the chains while C computes.
        """
        self._model, self._lock, self._last = model, lock, last
        self._adapters, self._computing = adapters, computing
        self._context: Callable[[], Handle | None] = _nobody
        self.chains, self.owners = {}, {}

    @contextmanager
    def given(self, chains: Mapping[int, SamplerChain], struct: Any) -> Iterator[None]:
        """Give chains to the context that is created in the ``with``; take them back if it fails.

        Args:
            chains: By sequence.
            struct: The parameters of the context.
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
        except BaseException:  # also if interrupted: the chains are free again
            for one in entered:
                take_back(one)
            raise
        finally:
            struct.samplers, struct.n_samplers = ffi.NULL, 0

    def attach(self, context: Handle, chains: Mapping[int, SamplerChain]) -> None:
        """Note the chains that a context was created with."""
        self._context = weakref.ref(context)
        for seq_id, chain in chains.items():
            self._attach(seq_id, chain)
            check_first(native(chain))
        if chains:
            self._check_memory(context.ptr)

    def set(self, ptr: Any, seq_id: int, chain: SamplerChain | None) -> None:
        """Sample a sequence in the graph, or no longer; see `Context.set_sampler`."""
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
                enter(one, len(self._model.vocab))
                self._remove(ptr, seq_id)
                self._put(ptr, seq_id, chain)

    def drop(self, chain: NativeChain) -> None:
        """Let go of a chain that is being closed."""
        context = self._context()
        for seq_id, one in self.chains.items():
            if context is not None and native(one) is chain:
                self.set(context.ptr, seq_id, None)
                return

    def take_all(self) -> list[SamplerChain]:
        """Return the chains, which are no longer known here: the context is being closed."""
        chains, self.chains = self.chains, {}
        return list(chains.values())

    def _check_memory(self, ptr: Any) -> None:
        """Raise where llama.cpp computes by `encode`, and would ignore the samplers."""
        if lib.llama_get_memory(ptr) == ffi.NULL:
            raise UnsupportedError(
                f"{self._model!r} has no memory, and llama.cpp samples in the graph only with one: "
                "call SamplerChain.sample() after decode()"
            )

    def _remove(self, ptr: Any, seq_id: int) -> None:
        """Take the chain of a sequence out of the graph; the caller holds the context."""
        self._adapters.reserved = False
        # In this order: an interrupt leaves what C has alive, and to be removed again.
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
                raise with_log(UnsupportedError("the context does not sample in its graph"))
            check_first(native(chain))
        except BaseException:  # also if interrupted: C must not keep what nothing keeps alive
            self._remove(ptr, seq_id)
            native(chain).leave_graph()
            raise

    def _attach(self, seq_id: int, chain: SamplerChain) -> Any:
        """Note that C has the chain, or will have it; return what it has."""
        one = native(chain)
        owner = self.owners[seq_id] = one.held()
        self.chains[seq_id] = chain
        one.attachment = InGraph(self)
        self._hold_chains()
        return owner

    def _hold_chains(self) -> None:
        """Let nothing else use the chains while C computes."""
        locks = [native(chain).lock for chain in self.chains.values()]
        self._computing.pools.hold(locks)


def forget(chains: list[SamplerChain]) -> None:
    """Tell chains that their context is closed."""
    for chain in chains:
        native(chain).attachment = GONE


def check_chains(chains: Any, n_seq_max: int) -> dict[int, SamplerChain]:
    """Return the parameter ``samplers`` of a context, checked."""
    if not isinstance(chains, Mapping):
        raise TypeError(f"samplers must be a mapping of sequences to chains, not {chains!r}")
    for seq_id, chain in chains.items():
        integer("samplers: sequence", seq_id, 0, n_seq_max - 1)
        check_free(chain)
    if len(set(map(id, chains.values()))) < len(chains):
        raise ArgumentError("samplers: give each sequence its own chain, such as chain.clone()")
    return dict(chains)


def _nobody() -> None:
    return None
