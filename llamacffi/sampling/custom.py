"""Samplers written in Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .._core.values import as_array, check_function, check_object, check_text, flag
from ..errors import ArgumentError, UnsupportedError
from .base import Sampler
from .candidates import Candidates
from .python import Runner

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..vocab.vocab import Vocab


class PythonSampler(Sampler):
    """The description of a sampler that runs in Python."""

    __slots__ = ()

    _sorts: ClassVar[bool] = True  # it may

    def _runner(self, vocab: Vocab | None) -> Runner:
        """Return what does the work, for one chain."""
        raise NotImplementedError


def new_runner(sampler: PythonSampler, vocab: Vocab | None) -> Runner:
    """Return what does a sampler's work in one chain."""
    return sampler._runner(vocab)


@dataclass(frozen=True, slots=True)
class CustomSampler(PythonSampler):
    """A sampler of your own.

    It sees what the samplers before it have left, and those after it see what it leaves.  What its
    functions raise is raised by the method of `SamplerChain` that was called, and no token is
    chosen then.

    Args:
        apply: Gets `Candidates`, which can be used until it returns.  It may write to their scores
            (``candidates.logit``), remove some (``candidates.keep``) or choose one
            (``candidates.selected``).
        accept: Gets each token that is accepted.
        reset: Called to begin anew.
        clone: Returns a `CustomSampler` in the same state, for a clone of the chain.  If there is
            none, but ``accept`` or ``reset``, the chain cannot be cloned; if there are none of
            them, a clone uses the same ``apply``.
        name: As `SamplerChain.names` shows it.
        selects: Whether it chooses a token; then it must be the last of its chain.

    Source: ``llama_sampler_init``.
    """

    apply: Callable[[Candidates], object]
    accept: Callable[[int], object] | None = None
    reset: Callable[[], object] | None = None
    clone: Callable[[], CustomSampler] | None = None
    name: str = "custom"
    selects: bool = False

    def __post_init__(self) -> None:
        check_function("apply", self.apply)
        for name in ("accept", "reset", "clone"):
            if (function := getattr(self, name)) is not None:
                check_function(name, function)
        flag("selects", self.selects)
        if not check_text("name", self.name):
            raise ArgumentError("name is empty: leave it out, or give a text")

    def _runner(self, vocab: Vocab | None) -> Runner:
        """Return what does the work."""
        return _Custom(self)


class _Custom(Runner):
    """The functions of a `CustomSampler`."""

    sampler: CustomSampler

    def __init__(self, sampler: CustomSampler) -> None:
        self.sampler = sampler
        self.name = sampler.name

    def apply(self, candidates: Candidates) -> None:
        self.sampler.apply(candidates)

    def accept(self, token: int) -> None:
        if self.sampler.accept is not None:
            self.sampler.accept(token)

    def reset(self) -> None:
        if self.sampler.reset is not None:
            self.sampler.reset()

    def clone(self) -> Runner:
        sampler = self.sampler
        if sampler.clone is not None:
            other = sampler.clone()
            check_object("what clone returns", other, "CustomSampler")
            return _Custom(other)
        if sampler.accept is None and sampler.reset is None:
            return _Custom(sampler)
        raise UnsupportedError(f"the sampler {self.name!r} has state, but no clone function")


@dataclass(frozen=True, slots=True)
class LogitsProcessor(PythonSampler):
    """A function of the tokens so far and the scores of the whole vocabulary, as in transformers.

    Args:
        function: Gets the tokens that the chain has accepted (int32, read-only; see
            `SamplerChain.accept_prompt` for those of the prompt), and the scores ``[n_vocab]``
            float32, ``-inf`` for what the samplers before it have removed.  It returns scores of
            the same shape, and may write them into the array that it got.  What was removed stays
            removed.
        name: As `SamplerChain.names` shows it.
    """

    function: Callable[[npt.NDArray[np.int32], npt.NDArray[np.float32]], npt.ArrayLike]
    name: str = "logits-processor"

    _needs_vocab: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_function("function", self.function)
        flag("selects", self.selects)
        if not check_text("name", self.name):
            raise ArgumentError("name is empty: leave it out, or give a text")

    def _runner(self, vocab: Vocab | None) -> Runner:
        """Return what does the work."""
        assert vocab is not None, "the chain sees to it"
        return _Processor(self, len(vocab))


class _Processor(Runner):
    """A `LogitsProcessor`, with the tokens of one chain."""

    sampler: LogitsProcessor

    def __init__(self, sampler: LogitsProcessor, n_vocab: int) -> None:
        import numpy as np

        self.sampler = sampler
        self.name = sampler.name
        self.n_vocab = n_vocab
        self.tokens = np.empty(64, np.int32)
        self.n = 0

    def apply(self, candidates: Candidates) -> None:
        import numpy as np

        data = candidates.data
        ids, before = data["id"], data["logit"]
        scores = np.full(self.n_vocab, -np.inf, np.float32)
        scores[ids] = before
        tokens = self.tokens[: self.n]
        tokens.flags.writeable = False
        after = as_array("what it returns", self.sampler.function(tokens, scores))
        if after.shape != (self.n_vocab,) or after.dtype.kind not in "fiu":
            raise TypeError(
                f"the logits processor {self.name!r} must return numbers of shape "
                f"({self.n_vocab},), not {after.dtype} of shape {after.shape}"
            )
        data["logit"] = np.where(before > -np.inf, after[ids], -np.inf)

    def accept(self, token: int) -> None:
        import numpy as np

        if self.n == len(self.tokens):
            # Not in place: a function may have kept what it got.
            self.tokens = np.concatenate([self.tokens, np.empty_like(self.tokens)])
        self.tokens[self.n] = token
        self.n += 1

    def reset(self) -> None:
        import numpy as np

        self.tokens, self.n = np.empty(64, np.int32), 0

    def clone(self) -> Runner:
        other = _Processor(self.sampler, self.n_vocab)
        other.tokens, other.n = self.tokens.copy(), self.n
        return other
