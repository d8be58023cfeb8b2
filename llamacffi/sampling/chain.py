"""Chains of samplers: what chooses the tokens."""

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
    from .outputs import HasOutputs as Context  # the part of it that this module uses


class SamplerChain(Pointer):
    """Samplers that work one after the other; the last one chooses.

    It owns the ``struct llama_sampler`` of the chain, which owns its parts.  It is made in C on
    first use, because some samplers must know the vocabulary.  It has state (random numbers, the
    tokens accepted, where a grammar is) and is for one thread, and one sequence, at a time.

    `sample` chooses and accepts a token.  If it raises, no token was accepted, and the chain can be
    used on; samplers before the failure may have drawn random numbers.
    """

    _instead = "clone() makes a second one in the same state; its samplers can be pickled"

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
            *samplers: In the order in which they work.  Any number of each kind, but one that
                chooses a token must be the last.
            vocab: For what vocabulary; if omitted, that of the first context it samples for.
            grammar_first: Apply a `Grammar` at its place in the chain, to all candidates there.
                If False, first choose without grammars, and take the token if they allow it; only
                if not, choose again with them.  That is much faster over a large vocabulary, and
                allows the same texts.  The probabilities differ where the samplers after the
                grammar truncate: they cut what is likely without it.  A choice that was not
                allowed has drawn random numbers all the same.
            no_perf: Do not measure the time; see `perf`.

        Raises:
            TypeError: One of them is no `Sampler`.
            ArgumentError: They cannot work in this order.
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
            temp: The temperature; 0 always takes the best token.
            seed: For the random choice; None is another one each time.
        """
        check_temp(temp, "temp")
        check_seed(seed)
        if temp == 0:
            return cls(Greedy())
        return cls(TopK(40), TopP(0.95), MinP(0.05), Temp(temp), Dist(seed))

    @classmethod
    def from_model(cls, model: Model, *, seed: int | None = None, **settings: float | str) -> Self:
        """Return the chain that the model's file recommends, as far as it does.

        It rules out the tokens that the file wants never to be generated.

        Args:
            model: Its `Model.recommended_sampling`, and llama.cpp's defaults for the rest.
            seed: For random choices; None is another one each time.
            **settings: What to take instead, by the same names: ``sequence``, ``top_k``, ``top_p``,
                ``min_p``, ``xtc_probability``, ``xtc_threshold``, ``temp``, ``penalty_last_n``,
                ``penalty_repeat``, ``mirostat``, ``mirostat_tau``, ``mirostat_eta``.

        Raises:
            TypeError: There is no setting of that name.
            ArgumentError: A value is out of range, or the file names a sampler that is unknown.
        """
        check_object("model", model, "Model")
        return cls(*chain_of(model, settings, seed), vocab=model.vocab)

    @property
    def ptr(self) -> Any:
        """The ``struct llama_sampler *`` of the chain, for `llamacffi.lib`.

        Raises:
            ClosedError: After `close`.
            ArgumentError: A sampler must know the vocabulary, and none is known yet.
        """
        return self._native.ptr

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._native.closed

    def close(self) -> None:
        """Free the chain in C now.  Idempotent.

        A context that samples with it in its graph no longer does so.
        """
        self._native.close()

    def __enter__(self) -> Self:
        if self.closed:  # else it may lack the vocabulary, and need not be made yet
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
        """What C calls the samplers of the chain, those included that it needs in between.

        One that is switched off has a ``?`` in front; of a chain that a context samples with, those
        that run in its graph have a ``+``.

        Source: ``llama_sampler_name``, ``llama_sampler_chain_get``, ``llama_sampler_chain_n``.
        """
        with self._native.lock:
            owner = self._native.ready()  # held as long as its parts are looked at
            return [ffi.string(lib.llama_sampler_name(one)).decode() for one in parts_of(owner)]

    @property
    def seed(self) -> int | None:
        """The seed in use of the last `Dist` or Mirostat, also if it was None; None without one.

        llama.cpp does not tell those of `XTC` and `AdaptiveP`.

        Source: ``llama_sampler_get_seed``.
        """
        with self._native.lock:
            seed: int = lib.llama_sampler_get_seed(self._native.ready())
        return None if seed == lib.LLAMA_DEFAULT_SEED else seed

    def sample(self, context: Context, i: int = -1) -> int:
        """Choose the token to come after one token of the last batch, and `accept` it.

        Args:
            context: What has decoded the batch.
            i: Index into the batch, in tokens; -1 is the last output.

        Raises:
            IndexError: Token ``i`` was added without an output.
            ArgumentError: No sampler of the chain chooses, or it was made for another vocabulary,
                or the samplers have ruled out all tokens.
            GrammarError: The grammar allows none of the tokens that the samplers before it left.
            ContextError: The scores are not numbers.
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
        # As `with inner, outer`, without the function calls of that: a loop that samples token by
        # token notices each of them.
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
        """Let the samplers work on candidates; the token that they choose is not accepted.

        Args:
            candidates: `Candidates.size`, `Candidates.selected` and all arrays are afterwards as
                the samplers left them.

        Raises:
            ArgumentError: A candidate is not in the vocabulary, or all are ruled out.
            GrammarError: All are ruled out, and there is a grammar.
            ContextError: A score is not a number.

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
        """Tell the samplers that a token was chosen; `sample` does so itself.

        Raises:
            ArgumentError: It is not in the vocabulary.
            GrammarError: The grammar does not allow it.  Nothing has changed.

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
        """Tell the samplers of the tokens before the first that is chosen.

        `Penalties`, `DRY` and samplers in Python count them; a `Grammar` does not begin with them,
        and `MinTokens` does not count them.

        Raises:
            ArgumentError: One is not in the vocabulary; none was accepted.

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
        """Forget the tokens accepted, begin the grammar and the random numbers anew.

        Source: ``llama_sampler_reset``.
        """
        native = self._native
        with native.lock:
            if not native.is_new():  # nothing to forget before the first use
                lib.llama_sampler_reset(native.ready())
        native.raise_stored()

    def clone(self) -> Self:
        """Return a second chain in the same state.

        The random numbers of an `AdaptiveP` begin anew in it.

        Raises:
            UnsupportedError: A sampler in Python has state, but no function to clone it.

        Source: ``llama_sampler_clone``.
        """
        native = self._native
        with native.lock:
            other = self._new(native.samplers)
            if not native.is_new() or not native.lacks_vocab():
                other._native.take_clone(native)
        return other

    def copy_from(self, source: SamplerChain) -> None:
        """Take over the state of another chain of the same samplers.

        Raises:
            ArgumentError: Its samplers are others.
            UnsupportedError: A sampler in Python has state, but no function to clone it.

        Source: ``llama_sampler_copy``.
        """
        if not isinstance(source, SamplerChain):
            raise TypeError(f"source must be a SamplerChain, not {source!r}")
        if source is self:
            return
        native, other = self._native, source._native
        if other.samplers != native.samplers:
            raise ArgumentError(f"{source!r} has other samplers than {self!r}")
        with native.lock, other.lock:
            native.copy_from(other)

    def with_seed(self, seed: int | None) -> Self:
        """Return a new chain of the same samplers, with another seed for each random choice.

        It does not take over the state.
        """
        check_seed(seed)
        return self._new(tuple(reseeded(one, seed) for one in self))

    def perf(self) -> SamplerPerf:
        """Return how many tokens were accepted, and how long that took.

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
        """Count from zero.  Source: ``llama_perf_sampler_reset``."""
        native = self._native
        with native.lock:
            lib.llama_perf_sampler_reset(native.ready())
            native.struct.t_sample_us, native.struct.n_sample = 0, 0

    def _new(self, samplers: tuple[Sampler, ...]) -> Self:
        """Return a chain of other samplers that is otherwise alike."""
        native = self._native
        return type(self)(
            *samplers,
            vocab=native.vocab,
            grammar_first=native.grammar_first,
            no_perf=native.no_perf,
        )


def native(chain: SamplerChain) -> NativeChain:
    """Return the C side of a chain, for what attaches it to a graph or samples with it."""
    return chain._native
