"""Samplers that look at the tokens themselves, and so are made for one vocabulary."""

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

# upstream: src/llama-sampler.cpp ring_buffer: it allocates room for all of them at once.
MAX_LAST_N = 2**24
# upstream: src/llama-sampler.cpp llama_token_data_array_partial_sort: it sorts a logit into a
# bucket
# whose number is an int, which overflows far from zero.
MAX_BIAS = 1e6
# upstream: common/common.h common_params_sampling: the defaults of Penalties, DRY and Mirostat.
# upstream: src/llama-sampler.cpp MAX_CHAR_LEN: it cuts longer ones, even inside a character.
MAX_BREAKER_BYTES = 40


class TokenSampler(Sampler):
    """The description of a sampler that is made for one vocabulary."""

    __slots__ = ()

    _needs_vocab: ClassVar[bool] = True

    def _make(self, vocab: Vocab | None) -> Any:
        assert vocab is not None, "the chain waits until it has one"
        return self._make_for(vocab)

    def _make_for(self, vocab: Vocab) -> Any:
        """Make it in C for a vocabulary; return the pointer, which has no owner yet."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Penalties(TokenSampler):
    """Make recently accepted tokens less likely.

    Args:
        last_n: Number of recent tokens to consider, up to 2^24; 0 turns the penalties off.
        repeat: Divide their positive logits and multiply their negative logits by this; 1.0 is off.
        freq: Subtract this once for each occurrence of the token; 0.0 is off.
        present: Subtract this once if the token occurs at all; 0.0 is off.

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
        return lib.llama_sampler_init_penalties(
            len(vocab), self.last_n, self.repeat, self.freq, self.present
        )


@dataclass(frozen=True, slots=True)
class DRY(TokenSampler):
    """Don't repeat yourself: penalize tokens that would continue a repetition.

    A token that would make a repeated sequence longer than ``allowed_length`` loses
    ``multiplier * base ** (length - allowed_length)``.

    Args:
        multiplier: Strength of the penalty; 0.0 turns it off.
        base: How fast the penalty grows with the length of the repetition; at least 1.
        allowed_length: Longest repetition without a penalty.
        last_n: Number of recent tokens to search, up to 2^24; 0 turns the penalty off.
        seq_breakers: Texts of 1 to 40 bytes that end a sequence.  Each adds a moment to making the
            chain, which looks for the tokens that contain it.

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
                    f"a sequence breaker must have 1 to {MAX_BREAKER_BYTES} bytes, but {breaker!r} "
                    f"has {n}"
                )

    def _make_for(self, vocab: Vocab) -> Any:
        if not lib.llama_vocab_type(vocab.ptr) and self.seq_breakers:
            raise UnsupportedError(
                "DRY() needs a vocabulary to find sequence breakers, and this model has none: give "
                "seq_breakers=()"
            )
        breakers, _kept = c_strings(self.seq_breakers)
        return lib.llama_sampler_init_dry(
            *(vocab.ptr, self.multiplier, self.base, self.allowed_length, self.last_n),
            *(breakers, len(self.seq_breakers)),
        )


@dataclass(frozen=True, slots=True)
class Mirostat(Selecting, TokenSampler):
    """Choose at random, so that the average surprise approaches ``tau``; the first version.

    `MirostatV2` is simpler and more robust: where the model is certain for a long stretch, this
    version ends up always taking the best token.

    Args:
        tau: The target surprise, in bits.
        eta: The learning rate, 0 to 1.
        m: Number of candidates to estimate from, at least 2.
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
        return lib.llama_sampler_init_mirostat(
            len(vocab), c_seed(self.seed), self.tau, self.eta, self.m
        )


@dataclass(frozen=True, slots=True)
class LogitBias(TokenSampler):
    """Add a bias to the logits of some tokens.

    Args:
        bias: What to add to the logit of each token: -1e6 to 1e6, or ``-math.inf`` to rule it out.

    Source: ``llama_sampler_init_logit_bias``.
    """

    bias: Mapping[int, float]

    # upstream: src/llama-sampler.cpp llama_sampler_logit_bias_apply: it does not reset ``sorted``.
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
        """Return a bias that rules out the tokens that end a generation."""
        check_object("vocab", vocab, "Vocab")
        return cls(dict.fromkeys(vocab.eog_tokens, -math.inf))

    @classmethod
    def suppress(cls, vocab: Vocab) -> Self:
        """Return a bias that rules out the tokens that the model's metadata says to suppress."""
        check_object("vocab", vocab, "Vocab")
        return cls(dict.fromkeys(vocab.suppress_tokens, -math.inf))

    def _make_for(self, vocab: Vocab) -> Any:
        for token in self.bias:
            vocab.check_one(token)
        array = ffi.new("llama_logit_bias[]", list(self.bias.items()))
        return lib.llama_sampler_init_logit_bias(len(vocab), len(array), array)


@dataclass(frozen=True, slots=True)
class MinTokens(TokenSampler):
    """Rule out the tokens that end a generation until ``n`` tokens have been accepted.

    Args:
        n: Minimum number of tokens; 0 turns it off.

    Source: ``llamacffi_sampler_init_min_tokens``.
    """

    n: int

    def __post_init__(self) -> None:
        integer("n", self.n, 0, INT32_MAX)

    def _make_for(self, vocab: Vocab) -> Any:
        ends = vocab.eog_tokens
        array = ffi.new("llama_token[]", ends)
        return lib.llamacffi_sampler_init_min_tokens(array, len(ends), self.n)


@dataclass(frozen=True, slots=True)
class Infill(TokenSampler):
    """For fill-in-the-middle: end early, and merge candidates where one is a prefix of another.

    It compares every pair of candidates, so a chain must have `TopK` before it.  Put `TopP` there
    too.

    Source: ``llama_sampler_init_infill``.
    """

    _sorts: ClassVar[bool] = True

    def _make_for(self, vocab: Vocab) -> Any:
        if vocab.eot is None and vocab.eos is None:
            raise UnsupportedError(
                "Infill() needs an EOT or EOS token, and the vocabulary has neither"
            )
        return lib.llama_sampler_init_infill(vocab.ptr)


def c_strings(texts: Sequence[str]) -> tuple[Any, object]:
    """Return a ``const char *[]``, and what must stay alive while C reads it."""
    strings = [ffi.new("char[]", text.encode()) for text in texts]
    return ffi.new("const char *[]", strings), strings


def check_texts(name: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Return texts as a tuple; reject a single text."""
    if isinstance(texts, str | bytes):
        raise TypeError(f"{name} must be a sequence of texts, not a single one: give [{texts!r}]")
    return tuple(elements(name, texts, "texts"))


def _check_last_n(last_n: int) -> None:
    integer("last_n", last_n, 0, MAX_LAST_N, "; give n_ctx to cover the whole context")
