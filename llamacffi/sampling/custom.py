"""Samplers that users write in Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .._core.values import as_array, check_function, check_object, check_text, flag
from ..errors import ArgumentError, UnsupportedError
from .base import Sampler
from .callbacks import Runner
from .candidates import Candidates

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..vocab.vocab import Vocab


class PythonSampler(Sampler):
    """The description of a sampler that runs in Python."""

    __slots__ = ()

    _sorts: ClassVar[bool] = True  # it may mark the candidates as sorted

    def _runner(self, vocab: Vocab | None) -> Runner:
        """Return the runner that does its work in one chain."""
        raise NotImplementedError


def new_runner(sampler: PythonSampler, vocab: Vocab | None) -> Runner:
    """Return the runner that does a sampler's work in one chain."""
    return sampler._runner(vocab)


@dataclass(frozen=True, slots=True)
class CustomSampler(PythonSampler):
    """A sampler of your own.

    It sees the candidates that the samplers before it left, and the samplers after it see what it
    leaves.  If one of its functions raises, the method of `SamplerChain` that was called raises the
    same exception, and no token is chosen.

    Args:
        apply: Takes `Candidates`, which are valid until it returns.  It may change their logits
            (``candidates.logit``), remove some (``candidates.keep``) or choose one
            (``candidates.selected``).
        accept: Takes each accepted token.
        reset: Called when the chain is reset.
        clone: Returns a `CustomSampler` in the same state, for a clone of the chain.  Without it,
            a chain whose sampler has ``accept`` or ``reset`` cannot be cloned; a sampler with
            neither shares its ``apply`` with the clone.
        name: The name that `SamplerChain.names` shows.
        selects: Whether it chooses a token; it must then come last in its chain.

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
            raise ArgumentError("name is empty: omit it, or give some text")

    def _runner(self, vocab: Vocab | None) -> Runner:
        return _CustomRunner(self)


class _CustomRunner(Runner):
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
            return _CustomRunner(other)
        if sampler.accept is None and sampler.reset is None:
            return _CustomRunner(sampler)
        raise UnsupportedError(
            f"the sampler {self.name!r} has state: give CustomSampler a clone function too"
        )


@dataclass(frozen=True, slots=True)
class LogitsProcessor(PythonSampler):
    """A function of the tokens so far and the logits of the whole vocabulary, as in transformers.

    Args:
        function: Takes the tokens that the chain has accepted (int32, read-only; for the prompt,
            see `SamplerChain.accept_prompt`), and the logits, ``[n_vocab]`` float32, ``-inf`` where
            samplers before it have removed the token.  It returns logits of the same shape, which
            may be the same array, modified.  Removed tokens stay removed.
        name: The name that `SamplerChain.names` shows.
    """

    function: Callable[[npt.NDArray[np.int32], npt.NDArray[np.float32]], npt.ArrayLike]
    name: str = "logits-processor"

    _needs_vocab: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_function("function", self.function)
        flag("selects", self.selects)
        if not check_text("name", self.name):
            raise ArgumentError("name is empty: omit it, or give some text")

    def _runner(self, vocab: Vocab | None) -> Runner:
        assert vocab is not None, "the chain waits until it has one"
        return _ProcessorRunner(self, len(vocab))


class _ProcessorRunner(Runner):
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
        after = as_array(
            "the result of the logits processor", self.sampler.function(tokens, scores)
        )
        if after.shape != (self.n_vocab,) or after.dtype.kind not in "fiu":
            raise TypeError(
                f"the logits processor {self.name!r} must return numbers of shape "
                f"({self.n_vocab},), not {after.dtype} of shape {after.shape}"
            )
        data["logit"] = np.where(before > -np.inf, after[ids], -np.inf)

    def accept(self, token: int) -> None:
        import numpy as np

        if self.n == len(self.tokens):
            # Not in place: the function may have kept the array that it was given.
            self.tokens = np.concatenate([self.tokens, np.empty_like(self.tokens)])
        self.tokens[self.n] = token
        self.n += 1

    def reset(self) -> None:
        import numpy as np

        self.tokens, self.n = np.empty(64, np.int32), 0

    def clone(self) -> Runner:
        other = _ProcessorRunner(self.sampler, self.n_vocab)
        other.tokens, other.n = self.tokens.copy(), self.n
        return other
