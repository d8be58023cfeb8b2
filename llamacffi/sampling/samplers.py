"""Samplers that work on the scores alone; `token_samplers` has those that know the tokens too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .._core.values import INT32_MAX, integer, number
from .._native import lib
from ..errors import ArgumentError
from .base import Sampler, Selecting

if TYPE_CHECKING:
    from ..vocab.vocab import Vocab

# The largest number is llama.cpp's way to say "random".
MAX_SEED = 2**32 - 2
# Below it, scores divided by it would no longer be numbers.
MIN_TEMP = 1e-6
# What llama.cpp's logarithm of a probability can take.
MIN_PROBABILITY = 1e-37


@dataclass(frozen=True, slots=True)
class Greedy(Selecting, Sampler):
    """Choose the candidate with the highest score, of several the first.

    Source: ``llama_sampler_init_greedy``.
    """

    def _make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        return lib.llama_sampler_init_greedy()


@dataclass(frozen=True, slots=True)
class Dist(Selecting, Sampler):
    """Choose at random, by probability.

    Args:
        seed: The same seed gives the same choices; None is another one each time.

    Source: ``llama_sampler_init_dist``.
    """

    seed: int | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def _make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        return lib.llama_sampler_init_dist(c_seed(self.seed))


@dataclass(frozen=True, slots=True)
class TopK(Sampler):
    """Keep the ``k`` best candidates.

    Args:
        k: 0 keeps all.

    Source: ``llama_sampler_init_top_k``.
    """

    k: int

    _sorts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        integer("k", self.k, 0, INT32_MAX)

    def _make(self, vocab: Vocab | None) -> Any:
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

    _sorts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_share(self.p, self.min_keep)

    def _make(self, vocab: Vocab | None) -> Any:
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

    _sorts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_share(self.p, self.min_keep)

    def _make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        return lib.llama_sampler_init_min_p(self.p, self.min_keep)


@dataclass(frozen=True, slots=True)
class Typical(Sampler):
    """Keep the candidates that are about as surprising as can be expected.

    They are taken in the order of how far their surprise is from the entropy, until together they
    have more than probability ``p``.

    Args:
        p: 0 to 1; 1 keeps all.
        min_keep: Keep at least so many.

    Source: ``llama_sampler_init_typical``.
    """

    p: float
    min_keep: int = 1

    def __post_init__(self) -> None:
        _check_share(self.p, self.min_keep)

    def _make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        return lib.llama_sampler_init_typical(self.p, self.min_keep)

    def _parts(self) -> Sequence[Sampler]:
        """Return it, after what removes candidates that have no probability.

        llama.cpp multiplies 0 by the logarithm of 0 there, and then keeps any.
        """
        return (self,) if self.p >= 1 else (MinP(MIN_PROBABILITY), self)


@dataclass(frozen=True, slots=True)
class TopNSigma(Sampler):
    """Rule out candidates whose score is more than ``n`` standard deviations below the best.

    Args:
        n: 0 keeps all.

    Source: ``llama_sampler_init_top_n_sigma``.
    """

    n: float

    def __post_init__(self) -> None:
        number("n", self.n, 0)

    def _make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        return lib.llama_sampler_init_top_n_sigma(self.n)


@dataclass(frozen=True, slots=True)
class XTC(Sampler):
    """Now and then, exclude the top choices: all that are likely enough, but for the last of them.

    Args:
        probability: How often, 0 to 1; 0 is never.
        threshold: What is likely enough, 0 to 1; above 0.5 switches it off.
        min_keep: Remove nothing if fewer candidates would be left.
        seed: As for `Dist`.

    Source: ``llama_sampler_init_xtc``.
    """

    probability: float
    threshold: float = 0.1
    min_keep: int = 1
    seed: int | None = None

    _sorts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number("probability", self.probability, 0, 1)
        number("threshold", self.threshold, 0, 1)
        integer("min_keep", self.min_keep, 0, INT32_MAX)
        check_seed(self.seed)

    def _make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        return lib.llama_sampler_init_xtc(
            self.probability, self.threshold, self.min_keep, c_seed(self.seed)
        )


@dataclass(frozen=True, slots=True)
class Temp(Sampler):
    """Divide the scores by ``t``: above 1 livelier, below 1 safer.

    Args:
        t: 1 changes nothing, 0 rules out all but the best; otherwise at least 1e-6.

    Source: ``llama_sampler_init_temp``.
    """

    t: float

    def __post_init__(self) -> None:
        check_temp(self.t)

    def _make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        return lib.llama_sampler_init_temp(self.t)


@dataclass(frozen=True, slots=True)
class TempExt(Sampler):
    """Divide the scores by a temperature that depends on how certain the model is.

    It is ``t - delta``, but not negative, where the model is certain, and ``t + delta`` where all
    candidates are equally likely.

    Args:
        t: As for `Temp`.
        delta: How far it may be from ``t``; 0 makes it a `Temp`.
        exponent: Of the entropy, divided by the highest possible one; above 1 the temperature stays
            low for longer.

    Source: ``llama_sampler_init_temp_ext``.
    """

    t: float
    delta: float = 0.0
    exponent: float = 1.0

    _sorts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_temp(self.t)
        number("delta", self.delta, 0)
        number("exponent", self.exponent, 0)

    def _make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        return lib.llama_sampler_init_temp_ext(self.t, self.delta, self.exponent)


@dataclass(frozen=True, slots=True)
class MirostatV2(Selecting, Sampler):
    """Choose at random, from so many candidates that the surprise comes near ``tau``.

    Args:
        tau: The surprise to aim at, in bits.
        eta: How fast it adapts, 0 to 1.
        seed: As for `Dist`.

    Source: ``llama_sampler_init_mirostat_v2``.
    """

    tau: float = 5.0
    eta: float = 0.1
    seed: int | None = None

    def __post_init__(self) -> None:
        check_mirostat(self.tau, self.eta, self.seed)

    def _make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        return lib.llama_sampler_init_mirostat_v2(c_seed(self.seed), self.tau, self.eta)


@dataclass(frozen=True, slots=True)
class AdaptiveP(Selecting, Sampler):
    """Choose at random, near a probability that makes the choices come near ``target``.

    It needs most candidates to work with: put only a mild `MinP` in front of it.  A clone of it
    begins its random numbers anew, since llama.cpp does not copy those.

    Args:
        target: The probability to aim at, 0 to 1; a negative one makes it a `Dist`.
        decay: How long it remembers, 0 to 0.99: about ``1 / (1 - decay)`` tokens.
        seed: As for `Dist`.

    Source: ``llama_sampler_init_adaptive_p``.
    """

    target: float
    decay: float = 0.9
    seed: int | None = None

    def __post_init__(self) -> None:
        number("target", self.target, -1, 1)
        number("decay", self.decay, 0, 0.99)
        check_seed(self.seed)

    def _make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        return lib.llama_sampler_init_adaptive_p(self.target, self.decay, c_seed(self.seed))


@dataclass(frozen=True, slots=True)
class Unsorted(Sampler):
    """Say that the candidates are in no order, after a sampler that does not say so itself.

    A `SamplerChain` adds it where it is needed.  Source: ``llamacffi_sampler_init_unsorted``.
    """

    def _make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        return lib.llamacffi_sampler_init_unsorted()


def check_seed(seed: int | None) -> None:
    """Check the seed of a random choice."""
    if seed is not None:
        integer("seed", seed, 0, MAX_SEED, "; None is a random one")


def c_seed(seed: int | None) -> int:
    """Return a seed as C takes it."""
    return lib.LLAMA_DEFAULT_SEED if seed is None else seed


def check_temp(t: float, name: str = "t") -> None:
    """Check a temperature."""
    number(name, t, 0)
    if 0 < t < MIN_TEMP:
        raise ArgumentError(f"{name} must be 0 (take the best) or at least {MIN_TEMP:g}, not {t}")


def check_mirostat(tau: float, eta: float, seed: int | None) -> None:
    """Check what the two versions of Mirostat have in common."""
    number("tau", tau, 0, 100)
    number("eta", eta, 0, 1)
    check_seed(seed)


def _check_share(p: float, min_keep: int) -> None:
    number("p", p, 0, 1)
    integer("min_keep", min_keep, 0, INT32_MAX)
