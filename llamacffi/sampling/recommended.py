"""The chain of samplers that a model file recommends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .._core.hints import unknown_parameter
from .._core.values import INT32_MAX, INT32_MIN, check_text, integer, number
from ..errors import ArgumentError
from .base import Sampler
from .samplers import XTC, Dist, Greedy, MinP, MirostatV2, Temp, TopK, TopP
from .token_samplers import Infill, LogitBias, Mirostat, Penalties

if TYPE_CHECKING:
    from ..model.model import Model

# upstream: common/common.h common_params_sampling: the defaults of llama.cpp's own programs.  The
# keys are those of the metadata.
DEFAULTS: Mapping[str, int | float | str] = {
    "sequence": "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature",
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "xtc_probability": 0.0,
    "xtc_threshold": 0.1,
    "temp": 0.8,
    "penalty_last_n": 64,
    "penalty_repeat": 1.0,
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
}
# upstream: common/sampling.cpp common_sampler_types_from_names: the other names that a sequence may
# use, without "_" and "-".
ALIASES = {"nucleus": "topp", "temp": "temperature", "typ": "typp"}
# At temperature 0 they change nothing, since they never remove the best token, but one that sorts
# may put another token with an equal logit first.
TRUNCATING = ("topk", "topp", "minp")
# A sequence may name them, but no setting turns them on.
OFF = ("dry", "topnsigma", "typp", "adaptivep")


def chain_of(
    model: Model, settings: Mapping[str, float | str], seed: int | None
) -> Iterator[Sampler]:
    """Yield the samplers that a model recommends; ``settings`` override its own."""
    for name in settings:
        if name not in DEFAULTS:
            raise TypeError(unknown_parameter(name, DEFAULTS))
    values: dict[str, Any] = {**DEFAULTS, **model.recommended_sampling, **settings}
    _check(values)
    suppressed = LogitBias.suppress(model.vocab)
    if suppressed.bias:
        yield suppressed
    temp = max(0.0, values["temp"])
    integer("mirostat", values["mirostat"], 0, 2)
    if values["mirostat"]:
        yield Temp(temp)
        version = (Mirostat, MirostatV2)[values["mirostat"] - 1]
        yield version(tau=values["mirostat_tau"], eta=values["mirostat_eta"], seed=seed)
        return
    plain = [
        name.strip().lower().replace("_", "").replace("-", "")
        for name in values["sequence"].split(";")
    ]
    names = [ALIASES.get(name, name) for name in plain]
    truncates = temp or "infill" in names  # infill must come after top-k
    for name in names:
        if truncates or name not in TRUNCATING:
            yield from _sampler(name, values, temp, seed)
    yield Dist(seed) if temp else Greedy()


def _check(values: Mapping[str, Any]) -> None:
    for name, default in DEFAULTS.items():
        if isinstance(default, str):
            check_text(name, values[name])
        elif isinstance(default, int):
            integer(name, values[name], INT32_MIN, INT32_MAX)
        else:
            number(name, values[name])


def _sampler(
    name: str, values: Mapping[str, Any], temp: float, seed: int | None
) -> Iterator[Sampler]:
    """Yield the sampler with this name, unless it is always off."""
    if name == "penalties":
        yield Penalties(max(0, values["penalty_last_n"]), values["penalty_repeat"])
    elif name == "topk":
        yield TopK(max(0, values["top_k"]))  # llama.cpp too takes negative values as "off"
    elif name == "topp":
        yield TopP(min(1.0, values["top_p"]))
    elif name == "minp":
        yield MinP(max(0.0, values["min_p"]))
    elif name == "xtc":
        yield XTC(values["xtc_probability"], values["xtc_threshold"], seed=seed)
    elif name == "temperature":
        yield Temp(temp)
    elif name == "infill":
        yield Infill()
    elif name not in OFF:
        raise ArgumentError(
            f"the sequence {values['sequence']!r} names an unknown sampler, {name!r}: give "
            "sequence=..., or make the chain yourself"
        )
