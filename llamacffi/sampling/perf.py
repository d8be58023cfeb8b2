"""The performance counters of a sampler chain."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplerPerf:
    """Counters of a sampler chain since its creation or the last `SamplerChain.reset_perf`.

    The fields are those of ``struct llama_perf_sampler_data``.
    """

    t_sample_ms: float | None
    """Time spent in its samplers, in milliseconds; None if it was not measured."""
    n_sample: int
    """Number of tokens accepted."""
