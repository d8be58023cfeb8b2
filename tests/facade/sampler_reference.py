"""The formulas of the samplers, in numpy with double precision."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from llamacffi import (
    DRY,
    XTC,
    Greedy,
    LogitBias,
    MinP,
    MinTokens,
    Penalties,
    Sampler,
    Temp,
    TempExt,
    TopK,
    TopNSigma,
    TopP,
    Typical,
)

Floats = npt.NDArray[np.float64]


class UnclearError(Exception):
    """Rounding decides what a sampler keeps, so the results cannot be compared."""


class Reference:
    """Candidates, and the tokens that were accepted."""

    def __init__(self, logits: npt.ArrayLike, accepted: list[int] | None = None) -> None:
        self.logits = np.array(logits, np.float64)
        self.ids = np.arange(len(self.logits))
        self.accepted = accepted or []

    def run(self, *samplers: Sampler) -> Reference:
        """Let samplers work on the candidates, one after the other."""
        for sampler in samplers:
            FORMULAS[type(sampler)](self, sampler)
        return self

    def keep(self, which: Any) -> None:
        self.logits, self.ids = self.logits[which], self.ids[which]

    def scores(self) -> dict[int, float]:
        """Return the logits of the candidates that are not ruled out."""
        pairs = zip(self.ids.tolist(), self.logits.tolist(), strict=True)
        return {token: logit for token, logit in pairs if logit > -math.inf}

    @property
    def p(self) -> Floats:
        return softmax(self.logits)

    @property
    def order(self) -> npt.NDArray[np.intp]:
        """The best first."""
        return np.argsort(-self.logits, kind="stable")


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max())
    result: Floats = powers / powers.sum()
    return result


def clear(values: npt.ArrayLike, limit: float, tolerance: float = 1e-4) -> None:
    """Raise `UnclearError` if a value is so close to its limit that rounding decides."""
    values = np.asarray(values)
    if (np.abs(values[np.isfinite(values)] - limit) < tolerance).any():
        raise UnclearError


def distinct(values: Floats) -> None:
    finite = np.sort(values[np.isfinite(values)])
    if finite.size > 1 and np.diff(finite).min() < 1e-4:
        raise UnclearError


def top_k(one: Reference, sampler: TopK) -> None:
    if sampler.k:
        distinct(one.logits)
        one.keep(one.order[: sampler.k])


def top_p(one: Reference, sampler: TopP) -> None:
    if sampler.p < 1:
        distinct(one.logits)
        total = np.cumsum(one.p[one.order])
        clear(total, sampler.p)
        n = int(np.searchsorted(total, sampler.p)) + 1
        one.keep(one.order[: max(n, sampler.min_keep)])


def min_p(one: Reference, sampler: MinP) -> None:
    if sampler.p > 0:
        distinct(one.logits)
        best = one.logits.max()
        limit = best + math.log(sampler.p)
        clear(one.logits[one.logits < best], limit)
        n = int((one.logits >= limit).sum())
        one.keep(one.order[: max(n, sampler.min_keep)])


def typical(one: Reference, sampler: Typical) -> None:
    if sampler.p < 1:
        clear(one.logits, one.logits.max() + math.log(1e-37), 1)
        one.keep(one.p > 1e-37)
        p = one.p
        surprise = -np.log(p)
        distance = np.abs(surprise - (p * surprise).sum())
        distinct(distance)
        order = np.argsort(distance)
        total = np.cumsum(p[order])
        clear(total, sampler.p)
        n = int(np.searchsorted(total, sampler.p, side="right")) + 1
        one.keep(order[: max(n, sampler.min_keep)])


def top_n_sigma(one: Reference, sampler: TopNSigma) -> None:
    if sampler.n > 0 and one.ids.size > 1:
        finite = one.logits[one.logits > -np.inf]
        limit = finite.max() - sampler.n * finite.std()
        clear(one.logits, limit, 1e-3)
        one.logits = np.where(one.logits < limit, -np.inf, one.logits)


def xtc(one: Reference, sampler: XTC) -> None:
    assert sampler.probability in (0, 1), "no case for a comparison"
    if sampler.probability and sampler.threshold <= 0.5 and one.ids.size > 1:
        distinct(one.logits)
        clear(one.p, sampler.threshold)
        last = int((one.p >= sampler.threshold).sum()) - 1
        if last > 0 and one.ids.size - last >= sampler.min_keep:
            one.keep(one.order[last:])


def temp(one: Reference, sampler: Temp) -> None:
    divide(one, sampler.t)


def divide(one: Reference, t: float) -> None:
    if t:
        one.logits = one.logits / t
        return
    distinct(one.logits)
    one.logits = np.where(one.logits < one.logits.max(), -np.inf, one.logits)


def temp_ext(one: Reference, sampler: TempExt) -> None:
    if not sampler.delta:
        divide(one, sampler.t)
    elif one.ids.size > 1:
        low, high = max(0, sampler.t - sampler.delta), sampler.t + sampler.delta
        p = one.p[one.p > 0]
        entropy = -(p * np.log(p)).sum() / math.log(one.ids.size)
        divide(one, low + (high - low) * entropy**sampler.exponent)


def logit_bias(one: Reference, sampler: LogitBias) -> None:
    for token, bias in sampler.bias.items():
        one.logits = np.where(one.ids == token, one.logits + bias, one.logits)


def min_tokens(one: Reference, sampler: MinTokens) -> None:
    if len(one.accepted) < sampler.n:  # 2 is the end of the built-in model
        one.logits = np.where(one.ids == 2, -np.inf, one.logits)


def penalties(one: Reference, sampler: Penalties) -> None:
    counts = Counter(one.accepted[-sampler.last_n :] if sampler.last_n else [])
    for token, n in counts.items():
        low = one.logits <= 0
        divided = np.where(low, one.logits * sampler.repeat, one.logits / sampler.repeat)
        changed = divided - n * sampler.freq - sampler.present
        one.logits = np.where(one.ids == token, changed, one.logits)


def dry(one: Reference, sampler: DRY) -> None:
    """For each earlier occurrence of the last tokens, the token that followed."""
    assert not sampler.seq_breakers, "no case for a comparison"
    seen = one.accepted[-sampler.last_n :] if sampler.last_n else []
    if not sampler.multiplier or len(seen) <= sampler.allowed_length:
        return
    longest: dict[int, int] = {}
    for i in range(1, len(seen)):
        n = 0
        while n < i and seen[i - 1 - n] == seen[len(seen) - 1 - n]:
            n += 1
        if n >= sampler.allowed_length:
            longest[seen[i]] = max(longest.get(seen[i], 0), n)
    for token, n in longest.items():
        penalty = sampler.multiplier * sampler.base ** (n - sampler.allowed_length)
        one.logits = np.where(one.ids == token, one.logits - penalty, one.logits)


def greedy(one: Reference, sampler: Greedy) -> None:
    distinct(one.logits)


FORMULAS: dict[type[Sampler], Callable[..., None]] = {
    DRY: dry,
    Greedy: greedy,
    LogitBias: logit_bias,
    MinP: min_p,
    MinTokens: min_tokens,
    Penalties: penalties,
    Temp: temp,
    TempExt: temp_ext,
    TopK: top_k,
    TopNSigma: top_n_sigma,
    TopP: top_p,
    Typical: typical,
    XTC: xtc,
}
