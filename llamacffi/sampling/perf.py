"""How long sampling took, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplerPerf:
    """The counters of a sampler chain since it was made, or since `SamplerChain.reset_perf`.

    The fields are those of ``struct llama_perf_sampler_data``.
    """

    t_sample_ms: float | None
    """The time in its samplers, in milliseconds; None if it was not measured."""
    n_sample: int
    """How many tokens were accepted."""
