"""Samplers that use only the logits; `token_samplers` has those that also know the tokens."""

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

# upstream: include/llama.h LLAMA_DEFAULT_SEED: the number after MAX_SEED asks for a random one.
MAX_SEED = 2**32 - 2
# upstream: src/llama-sampler.cpp llama_sampler_temp_impl: divides logits by the temperature; a
# smaller one could make them infinite.
MIN_TEMP = 1e-6
# upstream: src/llama-sampler.cpp llama_sampler_typical_apply: it multiplies each probability by its
# logarithm, so that a probability of 0 gives NaN; we remove those candidates first.
MIN_PROBABILITY = 1e-37


@dataclass(frozen=True, slots=True)
class Greedy(Selecting, Sampler):
    """Choose the candidate with the highest logit; if several are equal, the first.

    Source: ``llama_sampler_init_greedy``.
    """

    def _make(self, vocab: Vocab | None) -> Any:
        return lib.llama_sampler_init_greedy()


@dataclass(frozen=True, slots=True)
class Dist(Selecting, Sampler):
    """Choose at random, in proportion to the probabilities.

    Args:
        seed: The same seed gives the same choices; None picks a random seed.

    Source: ``llama_sampler_init_dist``.
    """

    seed: int | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def _make(self, vocab: Vocab | None) -> Any:
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
        return lib.llama_sampler_init_top_k(self.k)


@dataclass(frozen=True, slots=True)
class TopP(Sampler):
    """Keep the most likely candidates whose probabilities add up to ``p``.

    Args:
        p: 0 to 1; 1 keeps all.
        min_keep: Keep at least this many candidates.

    Source: ``llama_sampler_init_top_p``.
    """

    p: float
    min_keep: int = 1

    _sorts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_share(self.p, self.min_keep)

    def _make(self, vocab: Vocab | None) -> Any:
        return lib.llama_sampler_init_top_p(self.p, self.min_keep)


@dataclass(frozen=True, slots=True)
class MinP(Sampler):
    """Keep the candidates whose probability is at least ``p`` times that of the best.

    Args:
        p: 0 to 1; 0 keeps all.
        min_keep: Keep at least this many candidates.

    Source: ``llama_sampler_init_min_p``.
    """

    p: float
    min_keep: int = 1

    _sorts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_share(self.p, self.min_keep)

    def _make(self, vocab: Vocab | None) -> Any:
        return lib.llama_sampler_init_min_p(self.p, self.min_keep)


@dataclass(frozen=True, slots=True)
class Typical(Sampler):
    """Keep the candidates whose surprise (negative log-probability) is close to the entropy.

    The closest come first, until their probabilities add up to more than ``p``.

    Args:
        p: 0 to 1; 1 keeps all.
        min_keep: Keep at least this many candidates.

    Source: ``llama_sampler_init_typical``.
    """

    p: float
    min_keep: int = 1

    def __post_init__(self) -> None:
        _check_share(self.p, self.min_keep)

    def _make(self, vocab: Vocab | None) -> Any:
        return lib.llama_sampler_init_typical(self.p, self.min_keep)

    def _parts(self) -> Sequence[Sampler]:
        """Return it, behind a sampler that removes candidates with a probability of 0."""
        return (self,) if self.p >= 1 else (MinP(MIN_PROBABILITY), self)


@dataclass(frozen=True, slots=True)
class TopNSigma(Sampler):
    """Rule out candidates whose logit is more than ``n`` standard deviations below the best.

    Args:
        n: 0 keeps all.

    Source: ``llama_sampler_init_top_n_sigma``.
    """

    n: float

    def __post_init__(self) -> None:
        number("n", self.n, 0)

    def _make(self, vocab: Vocab | None) -> Any:
        return lib.llama_sampler_init_top_n_sigma(self.n)


@dataclass(frozen=True, slots=True)
class XTC(Sampler):
    """With some probability, remove the top choices: all above a threshold except the least likely.

    Args:
        probability: How often to do so, 0 to 1; 0 is never.
        threshold: The probability that counts as a top choice, 0 to 1; above 0.5 turns XTC off.
        min_keep: Remove nothing if fewer candidates would remain.
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
        return lib.llama_sampler_init_xtc(
            self.probability, self.threshold, self.min_keep, c_seed(self.seed)
        )


@dataclass(frozen=True, slots=True)
class Temp(Sampler):
    """Divide the logits by ``t``: above 1 more random, below 1 more deterministic.

    Args:
        t: 1 changes nothing; 0 rules out all but the best; otherwise at least 1e-6.

    Source: ``llama_sampler_init_temp``.
    """

    t: float

    def __post_init__(self) -> None:
        check_temp(self.t)

    def _make(self, vocab: Vocab | None) -> Any:
        return lib.llama_sampler_init_temp(self.t)


@dataclass(frozen=True, slots=True)
class TempExt(Sampler):
    """Divide the logits by a temperature that depends on the entropy of the candidates.

    The temperature is ``t - delta`` (at least 0) where one candidate is certain, and ``t + delta``
    where all candidates are equally likely.

    Args:
        t: As for `Temp`.
        delta: How far the temperature may differ from ``t``; 0 gives a `Temp`.
        exponent: Power to which the normalized entropy is raised; above 1 the temperature stays
            low over a wider range.

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
        return lib.llama_sampler_init_temp_ext(self.t, self.delta, self.exponent)


@dataclass(frozen=True, slots=True)
class MirostatV2(Selecting, Sampler):
    """Choose at random, truncating the candidates so that the average surprise approaches ``tau``.

    Args:
        tau: The target surprise, in bits.
        eta: The learning rate, 0 to 1.
        seed: As for `Dist`.

    Source: ``llama_sampler_init_mirostat_v2``.
    """

    tau: float = 5.0
    eta: float = 0.1
    seed: int | None = None

    def __post_init__(self) -> None:
        check_mirostat(self.tau, self.eta, self.seed)

    def _make(self, vocab: Vocab | None) -> Any:
        return lib.llama_sampler_init_mirostat_v2(c_seed(self.seed), self.tau, self.eta)


# upstream: src/llama-sampler.cpp llama_sampler_adaptive_p_clone: it does not copy random numbers.
@dataclass(frozen=True, slots=True)
class AdaptiveP(Selecting, Sampler):
    """Choose at random, so that the average probability of the chosen tokens approaches ``target``.

    It needs most candidates to work with: put only a mild `MinP` before it.  A clone restarts its
    random numbers, because llama.cpp does not copy them.

    Args:
        target: The target probability, 0 to 1; a negative value gives a `Dist`.
        decay: How slowly the average forgets, 0 to 0.99: it spans about ``1 / (1 - decay)`` tokens.
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
        return lib.llama_sampler_init_adaptive_p(self.target, self.decay, c_seed(self.seed))


@dataclass(frozen=True, slots=True)
class Unsorted(Sampler):
    """Mark the candidates as unsorted, after a sampler that leaves that mark stale.

    A `SamplerChain` adds it where needed.  Source: ``llamacffi_sampler_init_unsorted``.
    """

    def _make(self, vocab: Vocab | None) -> Any:
        return lib.llamacffi_sampler_init_unsorted()


def check_seed(seed: int | None) -> None:
    """Check a seed."""
    if seed is not None:
        integer("seed", seed, 0, MAX_SEED, "; None picks a random one")


def c_seed(seed: int | None) -> int:
    """Return a seed as C expects it."""
    return lib.LLAMA_DEFAULT_SEED if seed is None else seed


def check_temp(t: float, name: str = "t") -> None:
    """Check a temperature."""
    number(name, t, 0)
    if 0 < t < MIN_TEMP:
        raise ArgumentError(f"{name} must be 0 (take the best) or at least {MIN_TEMP:g}, not {t}")


def check_mirostat(tau: float, eta: float, seed: int | None) -> None:
    """Check the arguments that both versions of Mirostat share."""
    number("tau", tau, 0, 100)
    number("eta", eta, 0, 1)
    check_seed(seed)


def _check_share(p: float, min_keep: int) -> None:
    number("p", p, 0, 1)
    integer("min_keep", min_keep, 0, INT32_MAX)
