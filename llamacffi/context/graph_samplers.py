"""Sampling in the graph of a context: on the device, before anything is copied from it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .._core.values import integer
from .._native import ffi, lib
from ..errors import ArgumentError, UnsupportedError
from ..log import with_log
from ..sampling.base import Sampler
from ..sampling.chain import SamplerChain
from ..sampling.chain_base import ChainBase, parts_of
from ..sampling.samplers import Greedy, MinP, Temp, TempExt, TopK, TopP
from ..sampling.token_samplers import LogitBias
from .outputs import Outputs, index
from .pools import Threads

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..vocab.vocab import Vocab


class BackendSampling(Outputs, Threads):
    """The part of a `Context` that samples in its graph."""

    __slots__ = ()

    @property
    def samplers(self) -> Mapping[int, SamplerChain]:
        """The chains that it samples with in its graph, by sequence."""
        self.ptr  # noqa: B018  raises if closed
        return MappingProxyType(dict(self._chains))

    def set_sampler(self, seq_id: int, chain: SamplerChain | None) -> None:
        """Sample a sequence in the graph, from the next batch on, or no longer.

        llama.cpp runs as many samplers there as it can, from the first on; `SamplerChain.names`
        shows them with a ``+``.  `SamplerChain.sample` runs the others, or takes the token that was
        chosen if all were.  The probabilities are the same as without this, but for rounding.

        From the same seed come the same tokens as a rule.  They may be others where the candidates
        are in another order: after `TopK`, which has them in none here, and after `TopP`, or for
        `Greedy` and ``Temp(0)``, where some have the same score.  And they may be others where the
        last bit decides: at the limit of `TopP` and `MinP`, and in `TempExt`, `Penalties` and
        `Dist`, since a device adds and multiplies in an order of its own; a GPU more often than
        the processor.

        Meanwhile the chain is for this sequence of this context alone; closing it takes it back.
        The outputs of the last batch are gone.  A sequence can have ``n_outputs_max_per_seq``
        outputs in a batch.  To create the context with ``samplers`` is faster than to set them
        afterwards.

        Args:
            seq_id: The sequence.
            chain: Its samplers; None for none.

        Raises:
            ArgumentError: The chain is in use like this already, or for another vocabulary.
            UnsupportedError: llama.cpp cannot run even its first sampler in the graph, or the model
                has no memory.

        Source: ``llama_set_sampler``.
        """
        ptr = self.ptr
        integer("seq_id", seq_id, 0, lib.llama_n_seq_max(ptr) - 1)
        if chain is not None and self._chains.get(seq_id) is chain:
            return
        if chain is not None:
            self._check_samples()
            _check_free(chain)
        with self.lock:
            self._settle_outputs(ptr)
            if chain is not None:
                with chain._lock:
                    chain._settle_for(self._vocab)
                    _enter(chain, len(self._vocab))
                    self._replace(ptr, seq_id, None)
                    self._replace(ptr, seq_id, chain)
            else:
                self._replace(ptr, seq_id, None)

    def sampled_token(self, i: int = -1) -> int | None:
        """Return the token that was chosen in the graph; None if the graph does not choose.

        `SamplerChain.sample` returns it too, and has it accepted.

        Args:
            i: Index into the batch decoded last, in tokens; -1 is the last output.

        Raises:
            IndexError: Token ``i`` was added without an output.

        Source: ``llama_get_sampled_token_ith``.
        """
        i = index(i, "i")
        with self.lock:
            ptr = self.ptr
            self.check_output(i)
            token: int = lib.llama_get_sampled_token_ith(ptr, i)
        return None if token == lib.LLAMA_TOKEN_NULL else token

    def sampled_logits(self, i: int = -1) -> npt.NDArray[np.float32] | None:
        """Return the scores that the samplers in the graph have left.

        Returns:
            float32, in the order of `sampled_candidates`, ``-inf`` for what is ruled out; the
            caller's own.  None if the output was not sampled in the graph.

        Source: ``llama_get_sampled_logits_ith``, ``llama_get_sampled_logits_count_ith``.
        """
        return self._sampled(
            i, lib.llama_get_sampled_logits_ith, lib.llama_get_sampled_logits_count_ith, "f4"
        )

    def sampled_probs(self, i: int = -1) -> npt.NDArray[np.float32] | None:
        """Return the probabilities by which the graph has chosen.

        Returns:
            float32, in the order of `sampled_candidates`; the caller's own.  None if the graph has
            not chosen, or not by probability.

        Source: ``llama_get_sampled_probs_ith``, ``llama_get_sampled_probs_count_ith``.
        """
        return self._sampled(
            i, lib.llama_get_sampled_probs_ith, lib.llama_get_sampled_probs_count_ith, "f4"
        )

    def sampled_candidates(self, i: int = -1) -> npt.NDArray[np.int32] | None:
        """Return the tokens that the samplers in the graph have left.

        Returns:
            int32; the caller's own.  None if the output was not sampled in the graph.

        Source: ``llama_get_sampled_candidates_ith``, ``llama_get_sampled_logits_count_ith``.
        """
        # There are as many as scores; where all tokens are left, llama.cpp does not count them.
        logits = self.sampled_logits(i)
        if logits is None:
            return None
        return self._sampled(
            i, lib.llama_get_sampled_candidates_ith, lambda _ptr, _i: len(logits), "i4"
        )

    def close(self) -> None:
        """Free the C object now, after everything made from it.  Idempotent.

        Only a call still running in another thread, or a live zero-copy array, delays the free
        until it is done.
        """
        chains, self._chains = self._chains, {}
        super().close()
        for chain in chains.values():
            chain._attached = _gone

    def _sampled(
        self, i: int, get: Callable[..., Any], count: Callable[..., int], dtype: str
    ) -> npt.NDArray[Any] | None:
        """Return a copy of what a getter points to."""
        import numpy as np

        i = index(i, "i")
        with self.lock:
            ptr = self.ptr
            self.check_output(i)
            if not self._chains or lib.llama_get_sampled_logits_ith(ptr, i) == ffi.NULL:
                return None
            pointer, n = get(ptr, i), count(ptr, i)
            if pointer == ffi.NULL or not n:
                return None
            found: npt.NDArray[Any] = np.frombuffer(ffi.buffer(pointer, n * 4), dtype)
            return np.array(found)

    def _check_samples(self) -> None:
        """Raise where llama.cpp computes by `encode`, and would pass over the samplers."""
        if self._memoryless:
            raise UnsupportedError(
                f"{self.model!r} has no memory, and llama.cpp samples in the graph only with one: "
                "call SamplerChain.sample() after decode()"
            )

    def _settle_outputs(self, ptr: Any) -> None:
        self._exports.check_none()
        if self._outputs is not None:
            # Puts the rows in order while it is known which of them were sampled.
            lib.llama_get_logits(ptr)
        self._outputs = None

    def _replace(self, ptr: Any, seq_id: int, chain: SamplerChain | None) -> None:
        """Set the chain of a sequence; who calls holds the context, and the chain."""
        self._active.planned = False
        if chain is None:
            # In this order: whoever is interrupted leaves what C has kept, and to be removed again.
            lib.llama_set_sampler(ptr, seq_id, ffi.NULL)
            before = self._chains.get(seq_id)
            if before is not None:
                before._attached = _gone
            self._chain_owners.pop(seq_id, None)
            self._chains.pop(seq_id, None)
            self._hold_chains()
            return
        try:
            if not lib.llama_set_sampler(ptr, seq_id, self._attach(seq_id, chain)):
                raise with_log(UnsupportedError("the context does not sample in its graph"))
            check_first(chain)
        except BaseException:  # also if interrupted: C must not keep what nobody keeps alive
            self._replace(ptr, seq_id, None)
            chain._leave_graph()
            raise

    def _attach(self, seq_id: int, chain: SamplerChain) -> Any:
        """Note that C has the chain, or will have it; return what it has."""
        owner = self._chain_owners[seq_id] = chain._held()
        self._chains[seq_id] = chain
        chain._attached = weakref.ref(self)
        self._hold_chains()
        return owner

    def _hold_chains(self) -> None:
        """Let nobody else use the chains while C computes."""
        self._pools.hold([chain._lock for chain in self._chains.values()])

    def _drop(self, chain: ChainBase) -> None:
        """Let go of a chain that is being closed."""
        for seq_id, one in self._chains.items():
            if one is chain:
                self.set_sampler(seq_id, None)
                return


def check_chains(chains: Any, n_seq_max: int) -> dict[int, SamplerChain]:
    """Check the parameter ``samplers`` of a context."""
    if not isinstance(chains, Mapping):
        raise TypeError(f"samplers must be a mapping of sequences to chains, not {chains!r}")
    for seq_id, chain in chains.items():
        integer("samplers: sequence", seq_id, 0, n_seq_max - 1)
        _check_free(chain)
    if len(set(map(id, chains.values()))) < len(chains):
        raise ArgumentError("samplers: a chain is for one sequence, and one of them is for several")
    return dict(chains)


@contextmanager
def given(
    chains: Mapping[int, SamplerChain], vocab: Vocab, struct: Any, owners: dict[int, Any]
) -> Iterator[None]:
    """Give chains to the context that is created in the ``with``; take them back if it fails.

    Args:
        chains: By sequence.
        vocab: That of the model.
        struct: The parameters.
        owners: Where to put what the context points into.
    """
    configs = ffi.new("struct llama_sampler_seq_config[]", len(chains))
    entered: list[SamplerChain] = []
    try:
        for config, (seq_id, chain) in zip(configs, chains.items(), strict=True):
            config.seq_id = seq_id
            config.sampler = owners[seq_id] = _give(chain, vocab, entered)
        struct.samplers, struct.n_samplers = configs, len(chains)
        yield
    except BaseException:  # also if interrupted: the chains are free again
        for chain in entered:
            _take_back(chain)
        raise
    finally:
        struct.samplers, struct.n_samplers = ffi.NULL, 0


# Functions of their own: of a generator that has a lock, `CallLock` cannot tell that it is over.
def _give(chain: SamplerChain, vocab: Vocab, entered: list[SamplerChain]) -> Any:
    """Get a chain ready for a context that is about to be created; return what that gets."""
    with chain._lock:
        chain._settle_for(vocab)
        _enter(chain, len(vocab))
        chain._attached = _gone  # until it is in the context
        entered.append(chain)
        return chain._held()


def _take_back(chain: SamplerChain) -> None:
    with chain._lock:
        chain._leave_graph()


def _check_free(chain: Any) -> None:
    if not isinstance(chain, SamplerChain):
        raise TypeError(f"a sequence is sampled by a SamplerChain, not {chain!r}")
    if chain._attached is not None and chain._attached() is not None:
        raise ArgumentError(
            f"{chain!r} is in use in the graph of a context already: give chain.clone()"
        )


def _enter(chain: SamplerChain, n_vocab: int) -> None:
    """Get a chain ready for a graph; who calls holds it.

    Raises:
        UnsupportedError: Not even its first sampler can run there.
    """
    owner, plan = chain._ready(), chain._plan
    stop = first_wrong(plan, n_vocab)
    first = parts_of(owner)[:1]
    if not first or stop == 0 or first[0].iface.backend_init == ffi.NULL:
        what = repr(plan[0]) if plan else "an empty chain"
        raise UnsupportedError(
            f"llama.cpp cannot run {what} in the graph of a context: sample without set_sampler"
        )
    chain._enter_graph(stop)


def check_first(chain: SamplerChain) -> None:
    """Check that the first sampler runs in the graph, with this model and on its device."""
    owner = chain._held()  # as long as a part of it is looked at
    name = ffi.string(lib.llama_sampler_name(parts_of(owner)[0])).decode()
    if name[0] not in "+?":  # on, or switched off
        what = name.removeprefix("-")
        raise with_log(UnsupportedError(f"the context cannot run {what!r} in its graph"))


def first_wrong(plan: Sequence[Sampler], n_vocab: int) -> int | None:
    """Return the first sampler that llama.cpp would run wrongly in a graph; None if there is none.

    There `Greedy` and `LogitBias` take the place of a candidate for its token, once some were
    removed or ordered; `TopK` asserts that there are so many; and nothing regards ``min_keep``.
    """
    n, in_order = n_vocab, True
    for k, sampler in enumerate(plan):
        reduced = False
        if isinstance(sampler, Greedy | LogitBias):
            wrong = not in_order
        elif isinstance(sampler, TopK) and sampler.k:
            wrong, n, reduced = sampler.k > n, sampler.k, True
        elif isinstance(sampler, TopP) and sampler.p < 1:
            wrong, reduced = sampler.min_keep > 1, True
        elif isinstance(sampler, MinP) and sampler.p > 0:
            wrong = sampler.min_keep > 1
        elif isinstance(sampler, TempExt) and sampler.t > 0 and sampler.delta > 0:
            wrong = n == 1  # it divides by the logarithm of that
        elif isinstance(sampler, Temp | TempExt) and sampler.t == 0:
            wrong, n, reduced = False, 1, True
        else:
            continue
        if wrong:
            return k
        in_order = in_order and not reduced
    return None


def _gone() -> None:
    """Stand for a context that is there no longer, as a weak reference to it does."""
    return None
