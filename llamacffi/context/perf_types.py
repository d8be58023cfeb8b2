"""The performance counters of a context."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ContextPerf:
    """The counters of a context since it was created, or since `Context.reset_perf`.

    The fields are those of ``struct llama_perf_context_data``; times are in milliseconds.  Every
    batch of several tokens counts as a prompt.
    """

    t_start_ms: float
    """When counting began, on llama.cpp's clock (``llama_time_us``)."""
    t_load_ms: float
    """The time from loading the model to the end of the first computation."""
    t_p_eval_ms: float
    """The time spent on prompts."""
    t_eval_ms: float
    """The time spent on single tokens."""
    n_p_eval: int
    """The number of prompt tokens."""
    n_eval: int
    """The number of tokens that were computed one at a time."""
    n_reused: int
    """How often a compute graph was reused."""

    @property
    def prompt_tokens_per_second(self) -> float | None:
        """The speed of prompt processing; None if no prompt was computed."""
        return self.n_p_eval / self.t_p_eval_ms * 1e3 if self.n_p_eval else None

    @property
    def tokens_per_second(self) -> float | None:
        """The speed of computing single tokens; None if none was computed."""
        return self.n_eval / self.t_eval_ms * 1e3 if self.n_eval else None
