"""How long computations took, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ContextPerf:
    """The counters of a context since it was created, or since `Context.reset_perf`.

    The fields are those of ``struct llama_perf_context_data``; times are in milliseconds.  A prompt
    is whatever is computed in batches of several tokens.
    """

    t_start_ms: float
    """When counting began, on llama.cpp's clock, ``llama_time_us``."""
    t_load_ms: float
    """From loading the model to the end of the first computation."""
    t_p_eval_ms: float
    """The time for prompts."""
    t_eval_ms: float
    """The time for single tokens."""
    n_p_eval: int
    """How many tokens were in prompts."""
    n_eval: int
    """How many tokens were computed one at a time."""
    n_reused: int
    """How often a compute graph could be used again."""

    @property
    def prompt_tokens_per_second(self) -> float | None:
        """How fast prompts are computed; None if there was none."""
        return self.n_p_eval / self.t_p_eval_ms * 1e3 if self.n_p_eval else None

    @property
    def tokens_per_second(self) -> float | None:
        """How fast single tokens are computed; None if there was none."""
        return self.n_eval / self.t_eval_ms * 1e3 if self.n_eval else None
