"""Samplers: how a token is chosen from the scores of all.

A sampler is a frozen description, such as ``TopK(40)``, until a `SamplerChain` makes it in C.  So
no Python object ever owns what C has taken.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, overload

from ._ffi import ffi, lib
from ._handle import Exclusive, Handle, own
from .errors import ArgumentError, LlamaError
from .log import with_log

if TYPE_CHECKING:
    from .context import Context
    from .vocab import Vocab

UINT32_MAX = 2**32 - 1


class Sampler:
    """The description of a sampler."""

    __slots__ = ()

    selects: ClassVar[bool] = False
    """Whether it chooses a token; others only change or remove candidates."""
    needs_vocab: ClassVar[bool] = False
    """Whether it can be made only for a certain vocabulary."""

    def make(self, vocab: Vocab | None) -> Any:
        """Make it in C and return the pointer that nobody owns yet."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Greedy(Sampler):
    """Choose the token with the highest score.  Source: ``llama_sampler_init_greedy``."""

    selects: ClassVar[bool] = True

    def make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        return lib.llama_sampler_init_greedy()


@dataclass(frozen=True, slots=True)
class Dist(Sampler):
    """Choose at random, by probability.  Source: ``llama_sampler_init_dist``.

    Args:
        seed: The same seed gives the same choices; None is another one each time.
    """

    seed: int | None = None

    selects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        # The largest number is llama.cpp's way to say "random".
        if self.seed is not None and not 0 <= operator.index(self.seed) < UINT32_MAX:
            raise ArgumentError(f"seed={self.seed} is not in 0 to {UINT32_MAX - 1}, nor None")

    def make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        return lib.llama_sampler_init_dist(
            lib.LLAMA_DEFAULT_SEED if self.seed is None else self.seed
        )


@dataclass(frozen=True, slots=True)
class TopK(Sampler):
    """Keep the ``k`` best candidates; all if ``k`` is 0.  Source: ``llama_sampler_init_top_k``."""

    k: int

    def __post_init__(self) -> None:
        if not 0 <= operator.index(self.k) < 2**31:
            raise ArgumentError(f"k={self.k} is not in 0 to {2**31 - 1}")

    def make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        return lib.llama_sampler_init_top_k(self.k)


@dataclass(frozen=True, slots=True)
class TopP(Sampler):
    """Keep the best candidates that together have probability ``p``.

    Args:
        p: 0 to 1; 1 keeps all.
        min_keep: Keep at least so many.

    Source: ``llama_sampler_init_top_p``.
    """

    p: float
    min_keep: int = 1

    def __post_init__(self) -> None:
        _check_probability(self.p, self.min_keep)

    def make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        return lib.llama_sampler_init_top_p(self.p, self.min_keep)


@dataclass(frozen=True, slots=True)
class MinP(Sampler):
    """Keep the candidates with at least ``p`` times the probability of the best.

    Args:
        p: 0 to 1; 0 keeps all.
        min_keep: Keep at least so many.

    Source: ``llama_sampler_init_min_p``.
    """

    p: float
    min_keep: int = 1

    def __post_init__(self) -> None:
        _check_probability(self.p, self.min_keep)

    def make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        return lib.llama_sampler_init_min_p(self.p, self.min_keep)


@dataclass(frozen=True, slots=True)
class Temp(Sampler):
    """Divide the scores by ``t``: above 1 livelier, below 1 safer, 0 keeps only the best.

    Source: ``llama_sampler_init_temp``.
    """

    t: float

    def __post_init__(self) -> None:
        if not 0 <= self.t < math.inf:
            raise ArgumentError(f"t={self.t} is not a number of at least 0")

    def make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        return lib.llama_sampler_init_temp(self.t)


@dataclass(frozen=True, slots=True)
class Penalties(Sampler):
    """Make tokens that were chosen lately less likely.

    Args:
        last_n: How many of the last tokens count; 0 switches it off.
        repeat: Divide positive scores of those by it, and multiply negative ones; 1.0 is off.
        freq: Subtract it for each time that the token was chosen; 0.0 is off.
        present: Subtract it if the token was chosen at all; 0.0 is off.

    Source: ``llama_sampler_init_penalties``.
    """

    last_n: int = 64
    repeat: float = 1.0
    freq: float = 0.0
    present: float = 0.0

    needs_vocab: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= operator.index(self.last_n) < 2**31:
            raise ArgumentError(f"last_n={self.last_n} is not in 0 to {2**31 - 1}")
        if not 0 < self.repeat < math.inf:
            raise ArgumentError(f"repeat={self.repeat} is not a number above 0")
        if not (math.isfinite(self.freq) and math.isfinite(self.present)):
            raise ArgumentError(f"freq={self.freq} and present={self.present} must be finite")

    def make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        assert vocab is not None, "the chain sees to it"
        return lib.llama_sampler_init_penalties(
            len(vocab), self.last_n, self.repeat, self.freq, self.present
        )


class SamplerChain(Handle):
    """Samplers that work one after the other; the last one chooses.

    It owns the ``struct llama_sampler`` of the chain, which owns its parts.  It is made in C on
    first use, because some samplers must know the vocabulary.  It has state (random numbers, the
    tokens chosen) and is for one thread, and one sequence, at a time.
    """

    __slots__ = ("_closed", "_exclusive", "_samplers", "_vocab")

    def __init__(self, *samplers: Sampler, vocab: Vocab | None = None) -> None:
        """Describe a chain.

        Args:
            *samplers: In the order in which they work.
            vocab: For what vocabulary; if omitted, that of the first context it samples for.

        Raises:
            TypeError: One of them is no `Sampler`.
        """
        for sampler in samplers:
            if not isinstance(sampler, Sampler):
                raise TypeError(f"not a sampler: {sampler!r}")
        super().__init__(None)
        self._closed = False
        self._samplers = samplers
        self._vocab = vocab
        self._exclusive = Exclusive("SamplerChain")

    @classmethod
    def default(cls, *, temp: float = 0.8, seed: int | None = None) -> SamplerChain:
        """Return a chain that suits most models: top-k 40, top-p 0.95, min-p 0.05, temperature.

        Args:
            temp: The temperature; 0 always takes the best token.
            seed: For the random choice; None is another one each time.
        """
        if temp == 0:
            return cls(Greedy())
        return cls(TopK(40), TopP(0.95), MinP(0.05), Temp(temp), Dist(seed))

    @property
    def ptr(self) -> Any:
        """The ``struct llama_sampler *`` of the chain, for `llamacffi.lib`.

        Raises:
            ClosedError: After `close`.
            ArgumentError: A sampler must know the vocabulary, and none is known yet.
        """
        if self._owner is None and not self._closed:
            self._make()
        return super().ptr

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closed

    def close(self) -> None:
        """Free the chain in C now.  Idempotent."""
        self._closed = True
        super().close()

    def __len__(self) -> int:
        return len(self._samplers)

    def __iter__(self) -> Iterator[Sampler]:
        return iter(self._samplers)

    @overload
    def __getitem__(self, index: int) -> Sampler: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Sampler, ...]: ...
    def __getitem__(self, index: int | slice) -> Sampler | tuple[Sampler, ...]:
        return self._samplers[index]

    def __repr__(self) -> str:
        return f"SamplerChain({', '.join(map(repr, self._samplers))})"

    def sample(self, context: Context, i: int = -1) -> int:
        """Choose the token to come after one token of the last batch, and `accept` it.

        Args:
            context: What has decoded the batch.
            i: Index into the batch, in tokens; -1 is the last output.

        Raises:
            IndexError: Token ``i`` was added without an output.
            ArgumentError: No sampler of the chain chooses, or it was made for another vocabulary.
            BusyError: Another thread is using the chain or the context.

        Source: ``llama_sampler_sample``.
        """
        self._check_vocab(context)
        if not any(sampler.selects for sampler in self._samplers):
            raise ArgumentError(f"{self!r} chooses no token: end it with Greedy() or Dist()")
        with self._exclusive, context.exclusive:
            chain, ptr = self.ptr, context.ptr
            context.check_output(i)
            return int(lib.llama_sampler_sample(chain, ptr, i))

    def accept(self, token: int) -> None:
        """Tell the samplers that a token was chosen; `sample` does so itself.

        Source: ``llama_sampler_accept``.
        """
        if self._vocab is not None:
            self._vocab.check_one(token)
        elif not 0 <= token < 2**31:
            raise ArgumentError(f"{token} is not a token")
        with self._exclusive:
            lib.llama_sampler_accept(self.ptr, token)

    def reset(self) -> None:
        """Forget the tokens chosen, and begin the random numbers anew.

        Source: ``llama_sampler_reset``.
        """
        with self._exclusive:
            if self._owner is not None or self._closed:  # nothing to forget before the first use
                lib.llama_sampler_reset(self.ptr)

    def clone(self) -> SamplerChain:
        """Return a second chain in the same state.

        Source: ``llama_sampler_clone``.
        """
        other = SamplerChain(*self._samplers, vocab=self._vocab)
        with self._exclusive:
            if self._owner is not None or self._closed or not self._lacks_vocab():
                other._owner = other._own(lib.llama_sampler_clone(self.ptr))
        return other

    @property
    def seed(self) -> int | None:
        """The seed of the random choice in use, also if it was None; None if none is random.

        Source: ``llama_sampler_get_seed``.
        """
        seed: int = lib.llama_sampler_get_seed(self.ptr)
        return None if seed == lib.LLAMA_DEFAULT_SEED else seed

    def _check_vocab(self, context: Context) -> None:
        """Take the vocabulary on first use, where it matters; afterwards insist on it."""
        if self._lacks_vocab():
            self._vocab = context.model.vocab
        elif self._needy() and self._vocab is not context.model.vocab:
            raise ArgumentError("this chain was made for the vocabulary of another model")

    def _needy(self) -> list[Sampler]:
        """Return the samplers that must know the vocabulary."""
        return [one for one in self._samplers if one.needs_vocab]

    def _lacks_vocab(self) -> bool:
        return self._vocab is None and bool(self._needy())

    def _make(self) -> None:
        """Make the chain and its samplers in C."""
        if self._lacks_vocab():
            raise ArgumentError(
                f"{self._needy()[0]!r} must know the vocabulary: give vocab=model.vocab to "
                "SamplerChain"
            )
        params = lib.llama_sampler_chain_default_params()
        chain = self._own(lib.llama_sampler_chain_init(params))
        for sampler in self._samplers:
            made = sampler.make(self._vocab)
            if made == ffi.NULL:
                raise with_log(LlamaError(f"llama.cpp cannot make {sampler!r}"))
            lib.llama_sampler_chain_add(chain, made)  # which owns it from here on
        self._owner = chain  # not before it is whole

    def _own(self, ptr: Any) -> Any:
        if ptr == ffi.NULL:
            raise with_log(LlamaError("llama.cpp cannot make a sampler chain"))
        keep: tuple[Any, ...] = ()
        if self._vocab is not None and self._needy():
            # They may point into the vocabulary, which is the model's: it closes them first.
            keep = (self._vocab.model.ptr,)
            self._vocab.model._adopt(self)
        return own(ptr, self._exclusive.ending(lib.llama_sampler_free), *keep)


def _check_probability(p: float, min_keep: int) -> None:
    if not 0 <= p <= 1:
        raise ArgumentError(f"p={p} is not in 0 to 1")
    if not 0 <= operator.index(min_keep) < 2**31:
        raise ArgumentError(f"min_keep={min_keep} is not in 0 to {2**31 - 1}")
