"""The order of the samplers in a chain: what is forbidden, and what C needs between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

from ..errors import ArgumentError
from .base import Sampler, disorders, parts, sorts
from .samplers import TopK, Unsorted
from .token_samplers import Infill


def check_order(samplers: Sequence[Sampler]) -> None:
    """Reject an order of samplers that llama.cpp would get wrong."""
    reduced = False
    for i, sampler in enumerate(samplers):
        if not isinstance(sampler, Sampler):
            raise TypeError(f"a SamplerChain takes samplers, not {sampler!r:.80}")
        if sampler.selects and i + 1 < len(samplers):
            raise ArgumentError(
                f"{sampler!r:.80} chooses the token, so it must come last: move "
                f"{samplers[i + 1]!r:.80} before it"
            )
        # upstream: src/llama-sampler.cpp llama_sampler_infill_apply: quadratic in the candidates.
        reduced = reduced or (isinstance(sampler, TopK) and sampler.k > 0)
        if isinstance(sampler, Infill) and not reduced:
            raise ArgumentError("Infill() compares every pair of candidates: put TopK before it")


def plan_of(samplers: Sequence[Sampler]) -> tuple[Sampler, ...]:
    """Return the samplers to make in C for a chain, in order."""
    plan: list[Sampler] = []
    in_order = False
    for sampler in samplers:
        plan += parts(sampler)
        if disorders(sampler) and in_order:
            plan.append(Unsorted())
        in_order = in_order or sorts(sampler)
    return tuple(plan)


def reseeded(sampler: Sampler, seed: int | None) -> Sampler:
    """Return a sampler with another seed, if it takes one."""
    if "seed" in {field.name for field in fields(sampler)}:  # type: ignore[arg-type]  # all are
        return replace(sampler, seed=seed)  # type: ignore[type-var]  # all samplers are dataclasses
    return sampler
