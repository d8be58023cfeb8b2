"""How a sampler chain enters the compute graph of a context, and which chains cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._core.text import c_text
from .._native import ffi, lib
from ..errors import ArgumentError, UnsupportedError
from ..log import with_log
from ..sampling.base import Sampler
from ..sampling.chain import SamplerChain, native
from ..sampling.native_chain import NativeChain, parts_of
from ..sampling.samplers import Greedy, MinP, Temp, TempExt, TopK, TopP
from ..sampling.token_samplers import LogitBias

if TYPE_CHECKING:
    from ..vocab.vocab import Vocab


class Gone:
    """The attachment of a chain whose graph no longer exists, or does not exist yet."""

    def gone(self) -> bool:
        """Return whether the graph no longer exists."""
        return True

    def release(self, chain: NativeChain) -> None:
        """Do nothing: the graph has no chains."""


GONE = Gone()


# Functions, because a generator must not hold a lock: `CallLock` would not notice that it is over.
def give(chain: NativeChain, vocab: Vocab, entered: list[NativeChain]) -> Any:
    """Prepare a chain for a context that is about to be created; return its pointer for C."""
    with chain.lock:
        chain.settle_for(vocab)
        prepare(chain, len(vocab))
        chain.attachment = GONE  # until it is in the context
        entered.append(chain)
        return chain.held()


def take_back(chain: NativeChain) -> None:
    """Take a chain back from a context that could not be created."""
    with chain.lock:
        chain.leave_graph()


def check_free(chain: Any) -> None:
    """Check that a value is a chain, and not in a graph."""
    if not isinstance(chain, SamplerChain):
        raise TypeError(f"the sampler of a sequence must be a SamplerChain, not {chain!r}")
    attachment = native(chain).attachment
    if attachment is not None and not attachment.gone():
        raise ArgumentError(f"{chain!r} is already in the graph of a context: give chain.clone()")


def prepare(chain: NativeChain, n_vocab: int) -> None:
    """Prepare a chain for a graph; the caller holds the chain.

    Raises:
        UnsupportedError: llama.cpp cannot run its first sampler there.
    """
    owner, plan = chain.ready(), chain.plan
    stop = first_wrong(plan, n_vocab)
    first = parts_of(owner)[:1]
    if not first or stop == 0 or first[0].iface.backend_init == ffi.NULL:
        what = repr(plan[0]) if plan else "an empty chain"
        raise UnsupportedError(
            f"llama.cpp cannot run {what} in the graph of a context: call "
            "SamplerChain.sample() after decode() instead"
        )
    chain.enter_graph(stop)


def check_first(chain: NativeChain) -> None:
    """Check that the first sampler runs in the graph, with this model on its device."""
    owner = chain.held()  # keeps the chain alive while its first sampler is read
    name = c_text(lib.llama_sampler_name(parts_of(owner)[0]))
    if name[0] not in "+?":  # in the graph, or disabled
        what = name.removeprefix("-")
        raise with_log(UnsupportedError(f"the context cannot run {what!r} in its graph"))


def first_wrong(plan: Sequence[Sampler], n_vocab: int) -> int | None:
    """Return the index of the first sampler that llama.cpp would run incorrectly in a graph.

    upstream: src/llama-sampler.cpp llama_sampler_greedy_backend_apply,
    llama_sampler_logit_bias_backend_apply, llama_sampler_top_k_backend_apply,
    llama_sampler_top_p_backend_apply: the first two take the index of a candidate for a token, even
    if candidates were removed or sorted; top-k asserts that k are left; ``min_keep`` is ignored.

    Returns:
        The index in the plan; None if all run correctly.
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
            wrong = n == 1  # it divides by log(n)
        elif isinstance(sampler, Temp | TempExt) and sampler.t == 0:
            wrong, n, reduced = False, 1, True
        else:
            continue
        if wrong:
            return k
        in_order = in_order and not reduced
    return None
