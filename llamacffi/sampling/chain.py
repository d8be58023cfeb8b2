"""Chains of samplers, which choose the tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from sys import _getframe as here
from typing import TYPE_CHECKING, Any, overload

from .._core.hints import hinting
from .._core.ownership import Pointer
from .._core.values import check_object, elements, flag
from .._native import ffi, lib
from ..errors import ArgumentError
from .base import Sampler
from .candidates import Candidates
from .native_chain import NativeChain, parts_of
from .order import check_order, reseeded
from .outputs import not_a_context
from .perf import SamplerPerf
from .recommended import chain_of
from .samplers import Dist, Greedy, MinP, Temp, TopK, TopP, check_seed, check_temp

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from ..model.model import Model
    from ..vocab.vocab import Vocab
    from .outputs import HasOutputs as Context  # the part that this module uses


class SamplerChain(Pointer):
    """Samplers that run one after another; the last one chooses the token.

    A chain owns its ``struct llama_sampler``, which owns the samplers in C.  It is created in C on
    first use, because some samplers need the vocabulary.  It has state (random numbers, accepted
    tokens, the position in a grammar), so use it for one thread and one sequence at a time.

    `sample` chooses and accepts a token.  If it raises, no token was accepted, and the chain
    remains usable; samplers before the failure may have drawn random numbers.
    """

    _instead = "clone() returns a second one in the same state; its samplers can be pickled"

    __slots__ = ("__weakref__", "_native")

    def __init__(
        self,
        *samplers: Sampler,
        vocab: Vocab | None = None,
        grammar_first: bool = True,
        no_perf: bool = True,
    ) -> None:
        """Describe a chain.

        Args:
            *samplers: The samplers, in the order in which they run.  Any number of each kind, but
                one that chooses a token must be the last.
            vocab: The vocabulary; by default that of the first context to sample from.
            grammar_first: Apply a `Grammar` at its place in the chain, to all candidates there.
                If False, first choose without grammars, and choose again with them only if they
                reject the token.  That is much faster with a large vocabulary, and allows the same
                texts.  The probabilities differ if samplers after the grammar truncate: they then
                keep the candidates that are likely without it.  A rejected choice has drawn random
                numbers too.
            no_perf: Do not measure the time; see `perf`.

        Raises:
            TypeError: One of them is not a `Sampler`.
            ArgumentError: They cannot run in this order.
        """
        check_order(samplers)
        self._native = NativeChain(
            samplers, vocab, flag("grammar_first", grammar_first), flag("no_perf", no_perf)
        )

    @classmethod
    @hinting
    def default(cls, *, temp: float = 0.8, seed: int | None = None) -> Self:
        """Return a chain that suits most models: top-k 40, top-p 0.95, min-p 0.05, temperature.

        Args:
            temp: The temperature; 0 always chooses the most likely token.
            seed: The seed of the random choice; None means a different one each time.
        """
        check_temp(temp, "temp")
        check_seed(seed)
        if temp == 0:
            return cls(Greedy())
        return cls(TopK(40), TopP(0.95), MinP(0.05), Temp(temp), Dist(seed))

    @classmethod
    def from_model(cls, model: Model, *, seed: int | None = None, **settings: float | str) -> Self:
        """Return the chain that the model's file recommends.

        It also rules out the tokens that, according to the file, must never be generated.

        Args:
            model: The model.  Settings that its `Model.recommended_sampling` lacks are llama.cpp's
                defaults.
            seed: The seed of random choices; None means a different one each time.
            **settings: Values that override those of the file: ``sequence``, ``top_k``, ``top_p``,
                ``min_p``, ``xtc_probability``, ``xtc_threshold``, ``temp``, ``penalty_last_n``,
                ``penalty_repeat``, ``mirostat``, ``mirostat_tau``, ``mirostat_eta``.

        Raises:
            TypeError: A setting is unknown.
            ArgumentError: A value is out of range, or the file names an unknown sampler.
        """
        check_object("model", model, "Model")
        return cls(*chain_of(model, settings, seed), vocab=model.vocab)

    @property
    def ptr(self) -> Any:
        """The ``struct llama_sampler *`` of the chain, for `llamacffi.lib`.

        Raises:
            ClosedError: After `close`.
            ArgumentError: A sampler needs the vocabulary, which is not known yet.
        """
        return self._native.ptr

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._native.closed

    def close(self) -> None:
        """Free the chain in C now.  Idempotent.

        A context that runs the chain in its graph stops doing so.
        """
        self._native.close()

    def __enter__(self) -> Self:
        if self.closed:  # an open chain may lack the vocabulary, so do not create it yet
            self.ptr  # noqa: B018  raises
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._native.samplers)

    def __iter__(self) -> Iterator[Sampler]:
        return iter(self._native.samplers)

    @overload
    def __getitem__(self, index: int) -> Sampler: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Sampler, ...]: ...
    def __getitem__(self, index: int | slice) -> Sampler | tuple[Sampler, ...]:
        return self._native.samplers[index]

    def __repr__(self) -> str:
        return repr(self._native)

    @property
    def names(self) -> list[str]:
        """The names of the samplers in C, including those that C needs between the others.

        A sampler that is switched off has the prefix ``?``, and one that runs in the graph of a
        context has the prefix ``+``.

        Source: ``llama_sampler_name``, ``llama_sampler_chain_get``, ``llama_sampler_chain_n``.
        """
        with self._native.lock:
            owner = self._native.ready()  # keeps the samplers alive while their names are read
            return [ffi.string(lib.llama_sampler_name(one)).decode() for one in parts_of(owner)]

    @property
    def seed(self) -> int | None:
        """The seed that the last `Dist` or Mirostat uses, even if None was given; None without one.

        upstream: src/llama-sampler.cpp llama_sampler_get_seed: the seeds of `XTC` and `AdaptiveP`
        cannot be read.

        Source: ``llama_sampler_get_seed``.
        """
        with self._native.lock:
            seed: int = lib.llama_sampler_get_seed(self._native.ready())
        return None if seed == lib.LLAMA_DEFAULT_SEED else seed

    def sample(self, context: Context, i: int = -1) -> int:
        """Choose the token that follows a token of the last batch, and `accept` it.

        Args:
            context: The context that has decoded the batch.
            i: The index of the token in the batch; -1 is the last one with an output.

        Raises:
            IndexError: Token ``i`` has no output.
            ArgumentError: No sampler of the chain chooses, the chain belongs to another vocabulary,
                or the samplers have ruled out all tokens.
            GrammarError: The grammar allows none of the tokens that the samplers before it left.
            ContextError: A logit is NaN or infinite.
            BusyError: Another thread is using the chain or the context.

        Source: ``llamacffi_chain_sample``, as ``llama_sampler_sample``.
        """
        native = self._native
        try:
            outputs = context.__llama_outputs__
            vocab = outputs.vocab
        except AttributeError:
            raise not_a_context(context) from None
        if native.prepared() is not vocab:
            native.prepare(vocab)
        inner, outer = native.lock, outputs.lock
        # The same as `with inner, outer`, without its function calls, which would be noticeable in
        # a loop that samples token by token.
        if inner.holders.setdefault(0, here()) is not here():
            inner.enter(here())
        try:
            if outer.holders.setdefault(0, here()) is not here():
                outer.enter(here())
            try:
                _owner, ptr = native.ready(), context.ptr
                outputs.check_scores(i)
                token: int = lib.llamacffi_chain_sample(native.struct, ptr, i)
            finally:
                outer.leave()
        finally:
            inner.leave()
        if token < 0:
            raise native.failure(token)
        return token

    def apply(self, candidates: Candidates) -> None:
        """Run the samplers on candidates; the token that they choose is not accepted.

        Args:
            candidates: The candidates.  The samplers change `Candidates.size`,
                `Candidates.selected` and the arrays in place.

        Raises:
            ArgumentError: A candidate is not in the vocabulary, or all are ruled out.
            GrammarError: All are ruled out by a chain with a grammar.
            ContextError: A logit is NaN or infinite.

        Source: ``llama_sampler_apply``.
        """
        if not isinstance(candidates, Candidates):
            raise TypeError(f"candidates must be Candidates, not {candidates!r}")
        native = self._native
        with native.lock:
            _owner, array = native.ready(), candidates.ptr
            # The caller may have changed scores since they were sorted.
            array.selected, array.sorted = -1, False
            code: int = lib.llamacffi_chain_apply(native.struct, array)
        if code < 0:
            raise native.failure(code)

    def accept(self, token: int) -> None:
        """Tell the samplers that a token was chosen; `sample` already does this.

        Raises:
            ArgumentError: It is not in the vocabulary.
            GrammarError: The grammar does not allow it.  The state is unchanged.

        Source: ``llamacffi_chain_accept``, as ``llama_sampler_accept``.
        """
        native = self._native
        token = native.check_token(token)
        with native.lock:
            _owner = native.ready()
            code: int = lib.llamacffi_chain_accept(native.struct, token)
        if code < 0:
            raise native.failure(code, token)

    def accept_prompt(self, tokens: Iterable[int]) -> None:
        """Tell the samplers the tokens of the prompt.

        `Penalties`, `DRY` and Python samplers take them into account; `Grammar` and `MinTokens`
        ignore them.

        Raises:
            ArgumentError: A token is not in the vocabulary; in that case none was accepted.

        Source: ``llama_sampler_accept``.
        """
        native = self._native
        ids = [native.check_token(token) for token in elements("tokens", tokens, "integers")]
        array = ffi.new("int32_t[]", ids)
        with native.lock:
            _owner = native.ready()
            lib.llamacffi_chain_accept_prompt(native.struct, array, len(ids))
        native.raise_stored()

    def reset(self) -> None:
        """Forget the accepted tokens, and restart the grammar and the random numbers.

        Source: ``llama_sampler_reset``.
        """
        native = self._native
        with native.lock:
            if not native.is_new():  # nothing to forget before the first use
                lib.llama_sampler_reset(native.ready())
        native.raise_stored()

    def clone(self) -> Self:
        """Return a second chain in the same state.

        Only the random numbers of `AdaptiveP` restart in it.

        Raises:
            UnsupportedError: A Python sampler has state, but no function to clone it.

        Source: ``llama_sampler_clone``.
        """
        native = self._native
        with native.lock:
            other = self._new(native.samplers)
            if not native.is_new() or not native.lacks_vocab():
                other._native.take_clone(native)
        return other

    def copy_from(self, source: SamplerChain) -> None:
        """Copy the state of another chain with the same samplers.

        Raises:
            ArgumentError: The other chain has different samplers.
            UnsupportedError: A Python sampler has state, but no function to clone it.

        Source: ``llama_sampler_copy``.
        """
        if not isinstance(source, SamplerChain):
            raise TypeError(f"source must be a SamplerChain, not {source!r}")
        if source is self:
            return
        native, other = self._native, source._native
        if other.samplers != native.samplers:
            raise ArgumentError(f"the samplers of {source!r} differ from those of {self!r}")
        with native.lock, other.lock:
            native.copy_from(other)

    def with_seed(self, seed: int | None) -> Self:
        """Return a new chain of the same samplers, with another seed for each random choice.

        The new chain starts without the state of this one.
        """
        check_seed(seed)
        return self._new(tuple(reseeded(one, seed) for one in self))

    def perf(self) -> SamplerPerf:
        """Return the number of accepted tokens, and the time that sampling them took.

        The time is measured only if the chain was made with ``no_perf=False``.

        Source: ``llama_perf_sampler``.
        """
        native = self._native
        with native.lock:
            data = lib.llama_perf_sampler(native.ready())
            spent = data.t_sample_ms + native.struct.t_sample_us / 1000
            n = data.n_sample + native.struct.n_sample
        return SamplerPerf(None if native.no_perf else spent, n)

    def reset_perf(self) -> None:
        """Restart the counts at zero.  Source: ``llama_perf_sampler_reset``."""
        native = self._native
        with native.lock:
            lib.llama_perf_sampler_reset(native.ready())
            native.struct.t_sample_us, native.struct.n_sample = 0, 0

    def _new(self, samplers: tuple[Sampler, ...]) -> Self:
        """Return a chain of other samplers with the same settings."""
        native = self._native
        return type(self)(
            *samplers,
            vocab=native.vocab,
            grammar_first=native.grammar_first,
            no_perf=native.no_perf,
        )


def native(chain: SamplerChain) -> NativeChain:
    """Return the C side of a chain, for code that samples with it or attaches it to a graph."""
    return chain._native
