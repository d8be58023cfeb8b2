"""Samplers that know the tokens themselves, and so must be made for a vocabulary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from .._core.values import INT32_MAX, check_object, check_text, elements, integer, mapping, number
from .._native import ffi, lib
from ..errors import ArgumentError, UnsupportedError
from .base import Sampler, Selecting
from .samplers import c_seed, check_mirostat

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..vocab.vocab import Vocab

# llama.cpp makes room for so many at once.
MAX_LAST_N = 2**24
# Further from zero, sorting by score would no longer be exact.
MAX_BIAS = 1e6
# llama.cpp cuts longer ones, also within a character.
MAX_BREAKER_BYTES = 40


class TokenSampler(Sampler):
    """The description of a sampler that is made for a vocabulary."""

    __slots__ = ()

    _needs_vocab: ClassVar[bool] = True

    def _make(self, vocab: Vocab | None) -> Any:
        """Make it in C."""
        assert vocab is not None, "the chain sees to it"
        return self._make_for(vocab)

    def _make_for(self, vocab: Vocab) -> Any:
        """Make it in C for a vocabulary."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Penalties(TokenSampler):
    """Make tokens that were accepted lately less likely.

    Args:
        last_n: How many of the last tokens count, up to 2^24; 0 switches it off.
        repeat: Divide positive scores of those by it, and multiply negative ones; 1.0 is off.
        freq: Subtract it for each time that the token was accepted; 0.0 is off.
        present: Subtract it if the token was accepted at all; 0.0 is off.

    Source: ``llama_sampler_init_penalties``.
    """

    last_n: int = 64
    repeat: float = 1.0
    freq: float = 0.0
    present: float = 0.0

    def __post_init__(self) -> None:
        _check_last_n(self.last_n)
        number("repeat", self.repeat, 1e-6, 1e6, "; 1.0 changes nothing")
        number("freq", self.freq)
        number("present", self.present)

    def _make_for(self, vocab: Vocab) -> Any:
        """Make it in C."""
        return lib.llama_sampler_init_penalties(
            len(vocab), self.last_n, self.repeat, self.freq, self.present
        )


@dataclass(frozen=True, slots=True)
class DRY(TokenSampler):
    """Don't repeat yourself: make tokens less likely that would continue a repetition.

    A token that would make a repeated sequence longer than ``allowed_length`` loses
    ``multiplier * base ** (length - allowed_length)``.

    Args:
        multiplier: 0.0 switches it off.
        base: At least 1.
        allowed_length: Repetitions up to this length are free.
        last_n: How many of the last tokens are searched, up to 2^24; 0 switches it off.
        seq_breakers: Texts that end a sequence, of 1 to 40 bytes.  To find the tokens that have
            them takes a moment for each, when the chain is made.

    Source: ``llama_sampler_init_dry``.
    """

    multiplier: float
    base: float = 1.75
    allowed_length: int = 2
    last_n: int = 64
    seq_breakers: Sequence[str] = ("\n", ":", '"', "*")

    def __post_init__(self) -> None:
        number("multiplier", self.multiplier, 0)
        number("base", self.base, 1)
        integer("allowed_length", self.allowed_length, 0, INT32_MAX)
        _check_last_n(self.last_n)
        object.__setattr__(self, "seq_breakers", check_texts("seq_breakers", self.seq_breakers))
        for breaker in self.seq_breakers:
            n = len(check_text("seq_breakers", breaker))
            if not 1 <= n <= MAX_BREAKER_BYTES:
                raise ArgumentError(
                    f"the sequence breaker {breaker!r} has {n} bytes, not 1 to {MAX_BREAKER_BYTES}"
                )

    def _make_for(self, vocab: Vocab) -> Any:
        """Make it in C."""
        if not lib.llama_vocab_type(vocab.ptr) and self.seq_breakers:
            raise UnsupportedError("the model has no vocabulary to find sequence breakers in")
        breakers, _kept = c_strings(self.seq_breakers)
        return lib.llama_sampler_init_dry(
            *(vocab.ptr, self.multiplier, self.base, self.allowed_length, self.last_n),
            *(breakers, len(self.seq_breakers)),
        )


@dataclass(frozen=True, slots=True)
class Mirostat(Selecting, TokenSampler):
    """Choose at random, so that the surprise comes near ``tau``; the algorithm's first version.

    `MirostatV2` is simpler and better behaved: where the model is certain for long, this one ends
    up with always taking the best.

    Args:
        tau: The surprise to aim at, in bits.
        eta: How fast it adapts, 0 to 1.
        m: How many candidates it estimates from, at least 2.
        seed: As for `Dist`.

    Source: ``llama_sampler_init_mirostat``.
    """

    tau: float = 5.0
    eta: float = 0.1
    m: int = 100
    seed: int | None = None

    def __post_init__(self) -> None:
        check_mirostat(self.tau, self.eta, self.seed)
        integer("m", self.m, 2, INT32_MAX)

    def _make_for(self, vocab: Vocab) -> Any:
        """Make it in C."""
        return lib.llama_sampler_init_mirostat(
            len(vocab), c_seed(self.seed), self.tau, self.eta, self.m
        )


@dataclass(frozen=True, slots=True)
class LogitBias(TokenSampler):
    """Add to the scores of some tokens.

    Args:
        bias: What to add for each token: -1e6 to 1e6, or ``-math.inf`` to rule it out.

    Source: ``llama_sampler_init_logit_bias``.
    """

    bias: Mapping[int, float]

    _disorders: ClassVar[bool] = True

    def __post_init__(self) -> None:
        own: dict[int, float] = {}
        for token, bias in mapping("bias", self.bias, "tokens to numbers").items():
            token = integer("token", token, 0, INT32_MAX)
            if bias != -math.inf:
                bias = number(f"bias[{token}]", bias, -MAX_BIAS, MAX_BIAS, "; or give -math.inf")
            own[token] = float(bias)
        object.__setattr__(self, "bias", MappingProxyType(own))

    def __hash__(self) -> int:
        return hash(frozenset(self.bias.items()))

    def __repr__(self) -> str:
        return f"LogitBias({dict(self.bias)})"

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (dict(self.bias),)

    @classmethod
    def eog(cls, vocab: Vocab) -> Self:
        """Return one that rules out the tokens that end a generation."""
        check_object("vocab", vocab, "Vocab")
        return cls(dict.fromkeys(vocab.eog_tokens, -math.inf))

    @classmethod
    def suppress(cls, vocab: Vocab) -> Self:
        """Return one that rules out what the model's metadata wants never to be generated."""
        check_object("vocab", vocab, "Vocab")
        return cls(dict.fromkeys(vocab.suppress_tokens, -math.inf))

    def _make_for(self, vocab: Vocab) -> Any:
        """Make it in C."""
        for token in self.bias:
            vocab.check_one(token)
        array = ffi.new("llama_logit_bias[]", list(self.bias.items()))
        return lib.llama_sampler_init_logit_bias(len(vocab), len(array), array)


@dataclass(frozen=True, slots=True)
class MinTokens(TokenSampler):
    """Rule out the tokens that end a generation, until so many tokens were accepted.

    Args:
        n: How many; 0 switches it off.

    Source: ``llamacffi_sampler_init_min_tokens``.
    """

    n: int

    def __post_init__(self) -> None:
        integer("n", self.n, 0, INT32_MAX)

    def _make_for(self, vocab: Vocab) -> Any:
        """Make it in C."""
        ends = vocab.eog_tokens
        array = ffi.new("llama_token[]", ends)
        return lib.llamacffi_sampler_init_min_tokens(array, len(ends), self.n)


@dataclass(frozen=True, slots=True)
class Infill(TokenSampler):
    """For fill-in-the-middle: end early, and count tokens that begin alike as one.

    It compares every candidate with every other, so a chain must have `TopK` before it.  Put `TopP`
    there too.

    Source: ``llama_sampler_init_infill``.
    """

    _sorts: ClassVar[bool] = True

    def _make_for(self, vocab: Vocab) -> Any:
        """Make it in C."""
        if vocab.eot is None and vocab.eos is None:
            raise UnsupportedError("Infill() needs a vocabulary with a token that ends a text")
        return lib.llama_sampler_init_infill(vocab.ptr)


def c_strings(texts: Sequence[str]) -> tuple[Any, object]:
    """Return a ``const char *[]``, and what must be kept as long as C reads it."""
    strings = [ffi.new("char[]", text.encode()) for text in texts]
    return ffi.new("const char *[]", strings), strings


def check_texts(name: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Return texts as a tuple; one text is not a sequence of them."""
    if isinstance(texts, str | bytes):
        raise TypeError(f"{name} must be a sequence of texts, not one: [{texts!r}]")
    return tuple(elements(name, texts, "texts"))


def _check_last_n(last_n: int) -> None:
    integer("last_n", last_n, 0, MAX_LAST_N, "; for the whole context give its n_ctx")
