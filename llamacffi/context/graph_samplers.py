"""The sampler chains in the graph of a context."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from .._core.values import integer
from .._native import ffi, lib
from ..errors import ArgumentError, ClosedError, UnsupportedError
from ..log import with_log
from ..sampling.chain import SamplerChain, native
from .graph_entry import GONE, check_first, check_free, enter, give, take_back
from .reserve import ActiveAdapters

if TYPE_CHECKING:
    import numpy.typing as npt

    from .._core.locks import CallLock
    from ..sampling.native_chain import NativeChain
    from ..vocab.vocab import Vocab
    from .pools import Pools

    Array = npt.NDArray[Any]


class HasSamplers(Protocol):
    """A context, as the chains in its graph know it."""

    @property
    def samplers(self) -> Mapping[int, SamplerChain]:
        """The chains in its graph, by sequence."""

    def set_sampler(self, seq_id: int, chain: SamplerChain | None) -> None:
        """Sample a sequence in the graph, or no longer."""


class InGraph:
    """What has attached a chain to the graph of a context; it does not keep the context alive."""

    __slots__ = ("_context",)

    def __init__(self, context: HasSamplers) -> None:
        self._context = weakref.ref(context)

    def gone(self) -> bool:
        """Return whether the context exists no more."""
        return self._context() is None

    def release(self, chain: NativeChain) -> None:
        """Take a chain, which is being closed, out of the graph."""
        context = self._context()
        if context is None:
            return
        for seq_id, one in context.samplers.items():
            if native(one) is chain:
                context.set_sampler(seq_id, None)
                return


class GraphSamplers:
    """The chains in the graph of a context, and what C has of them.

    The first argument of some methods is the ``struct llama_context *``.
    """

    __slots__ = ("_active", "_lock", "_pools", "_vocab", "chains", "owners")

    chains: dict[int, SamplerChain]
    """By sequence."""
    owners: dict[int, Any]
    """What C points to, by sequence; it must live until the context is freed."""

    def __init__(self, vocab: Vocab, lock: CallLock, pools: Pools, active: ActiveAdapters) -> None:
        """Describe the chains of a context that is about to be created.

        Args:
            vocab: That of its model.
            lock: The context's.
            pools: Hold the locks of the chains while C computes.
            active: Reserves memory anew after a change.
        """
        self._vocab, self._lock, self._active = vocab, lock, active
        self._pools: Pools | None = pools
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
                config.sampler = self.owners[seq_id] = give(native(chain), self._vocab, entered)
            struct.samplers, struct.n_samplers = configs, len(chains)
            yield
        except BaseException:  # also if interrupted: the chains are free again
            for one in entered:
                take_back(one)
            raise
        finally:
            struct.samplers, struct.n_samplers = ffi.NULL, 0

    def created(self, context: HasSamplers, chains: Mapping[int, SamplerChain]) -> None:
        """Note that a context was created with chains, and check that it can run them."""
        for seq_id, chain in chains.items():
            self._attach(context, seq_id, chain)
            check_first(native(chain))

    def check_memory(self, ptr: Any) -> None:
        """Raise where llama.cpp computes by `encode`, and would pass over the samplers."""
        if lib.llama_get_memory(ptr) == ffi.NULL:
            raise UnsupportedError(
                f"{self._vocab.model!r} has no memory, and llama.cpp samples in the graph only "
                "with one: call SamplerChain.sample() after decode()"
            )

    def set(
        self,
        context: HasSamplers,
        ptr: Any,
        seq_id: int,
        chain: SamplerChain | None,
        discard_outputs: Callable[[Any], object],
    ) -> None:
        """Set the chain of a sequence; see `Context.set_sampler`.

        Args:
            context: The context, which is kept weakly.
            ptr: The same in C.
            seq_id: The sequence.
            chain: Its chain; None for none.
            discard_outputs: Called with ``ptr`` before the graph changes.
        """
        integer("seq_id", seq_id, 0, lib.llama_n_seq_max(ptr) - 1)
        if chain is not None and self.chains.get(seq_id) is chain:
            return
        if chain is not None:
            self.check_memory(ptr)
            check_free(chain)
        with self._lock:
            discard_outputs(ptr)
            if chain is None:
                self._remove(ptr, seq_id)
                return
            one = native(chain)
            with one.lock:
                one.settle_for(self._vocab)
                enter(one, len(self._vocab))
                self._remove(ptr, seq_id)
                self._put(context, ptr, seq_id, chain)

    def token(self, ptr: Any, i: int) -> int | None:
        """Return the token that the graph has chosen; None if it does not choose."""
        token: int = lib.llama_get_sampled_token_ith(ptr, i)
        return None if token == lib.LLAMA_TOKEN_NULL else token

    def logits(self, ptr: Any, i: int) -> Array | None:
        """Return a copy of the logits that the graph has left; None if it did not sample."""
        n = lib.llama_get_sampled_logits_count_ith
        return self._copy(ptr, i, lib.llama_get_sampled_logits_ith, n, "f4")

    def probs(self, ptr: Any, i: int) -> Array | None:
        """Return a copy of the probabilities that the graph has computed; None if it did not."""
        n = lib.llama_get_sampled_probs_count_ith
        return self._copy(ptr, i, lib.llama_get_sampled_probs_ith, n, "f4")

    def candidates(self, ptr: Any, i: int) -> Array | None:
        """Return a copy of the tokens that the graph has left; None if it did not sample."""
        # As many as logits: where all tokens are left, llama.cpp does not count the candidates.
        n = lib.llama_get_sampled_logits_count_ith
        return self._copy(ptr, i, lib.llama_get_sampled_candidates_ith, n, "i4")

    def close(self) -> list[NativeChain]:
        """Forget the chains of a context that is about to be closed.

        Returns:
            The chains, for `free` when it is closed.
        """
        chains, self.chains, self._pools = self.chains, {}, None
        self._active = ActiveAdapters()  # the others go with the context, though this may stay
        return [native(chain) for chain in chains.values()]

    def _copy(
        self, ptr: Any, i: int, get: Callable[..., Any], count: Callable[..., int], dtype: str
    ) -> Array | None:
        """Return a copy of what a getter points to."""
        import numpy as np

        if not self.chains or lib.llama_get_sampled_logits_ith(ptr, i) == ffi.NULL:
            return None
        pointer, n = get(ptr, i), count(ptr, i)
        if pointer == ffi.NULL or not n:
            return None
        found: Array = np.frombuffer(ffi.buffer(pointer, n * 4), dtype)
        return np.array(found)

    def _put(self, context: HasSamplers, ptr: Any, seq_id: int, chain: SamplerChain) -> None:
        """Set the chain of a sequence that has none; the caller holds both, and the context."""
        self._active.planned = False
        try:
            if not lib.llama_set_sampler(ptr, seq_id, self._attach(context, seq_id, chain)):
                raise with_log(UnsupportedError("the context does not sample in its graph"))
            check_first(native(chain))
        except BaseException:  # also if interrupted: C must not keep a chain that may be freed
            self._remove(ptr, seq_id)
            native(chain).leave_graph()
            raise

    def _remove(self, ptr: Any, seq_id: int) -> None:
        """Take away the chain of a sequence, if it has one; the caller holds the context."""
        self._active.planned = False
        # In this order: after an interrupt, what C has is kept alive, and can be removed again.
        lib.llama_set_sampler(ptr, seq_id, ffi.NULL)
        before = self.chains.get(seq_id)
        if before is not None:
            native(before).attachment = GONE
        self.owners.pop(seq_id, None)
        self.chains.pop(seq_id, None)
        self._hold_chains()

    def _attach(self, context: HasSamplers, seq_id: int, chain: SamplerChain) -> Any:
        """Note that C has the chain, or will have it; return what it has."""
        one = native(chain)
        owner = self.owners[seq_id] = one.held()
        self.chains[seq_id] = chain
        one.attachment = InGraph(context)
        self._hold_chains()
        return owner

    def _hold_chains(self) -> None:
        """Lock the chains while C computes."""
        if self._pools is None:
            raise ClosedError("the Context is closed")
        self._pools.hold([native(chain).lock for chain in self.chains.values()])


def free(chains: Sequence[NativeChain]) -> None:
    """Let chains be used on, after the context that had them in its graph is closed."""
    for chain in chains:
        chain.attachment = GONE


def check_chains(chains: Any, n_seq_max: int) -> dict[int, SamplerChain]:
    """Check the parameter ``samplers`` of a context."""
    if not isinstance(chains, Mapping):
        raise TypeError(f"samplers must be a mapping of sequences to chains, not {chains!r}")
    for seq_id, chain in chains.items():
        integer("samplers: sequence", seq_id, 0, n_seq_max - 1)
        check_free(chain)
    if len(set(map(id, chains.values()))) < len(chains):
        raise ArgumentError("samplers: a chain is for one sequence, and one of them is for several")
    return dict(chains)
