"""What all samplers have in common, and what a chain asks of each.

A sampler is a frozen description, such as ``TopK(40)``, until a `SamplerChain` makes it in C.  So
no Python object ever owns what C has taken, and one description can be in many chains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from ..vocab.vocab import Vocab


class Sampler:
    """The description of a sampler."""

    __slots__ = ()

    # Whether it can be made only for a particular vocabulary.
    _needs_vocab: ClassVar[bool] = False
    # Whether it leaves the candidates sorted by logit, and marks them as sorted.
    _sorts: ClassVar[bool] = False
    # Whether it changes logits, but leaves candidates marked as sorted that no longer are.
    _disorders: ClassVar[bool] = False

    @property
    def selects(self) -> bool:
        """Whether it chooses a token; others only change or remove candidates."""
        return isinstance(self, Selecting)

    def _make(self, vocab: Vocab | None) -> Any:
        """Make it in C and return the pointer, which has no owner yet."""
        raise NotImplementedError

    def _parts(self) -> Sequence[Sampler]:
        """Return what the chain makes for it, in order: usually only itself."""
        return (self,)


class Selecting:
    """Marks the samplers that choose a token."""

    __slots__ = ()


def make_in_c(sampler: Sampler, vocab: Vocab | None) -> Any:
    """Make a sampler in C and return the pointer, which has no owner yet."""
    return sampler._make(vocab)


def parts(sampler: Sampler) -> Sequence[Sampler]:
    """Return what a chain makes for a sampler, in order: usually only the sampler itself."""
    return sampler._parts()


def needs_vocab(sampler: Sampler) -> bool:
    """Return whether a sampler can be made only for a particular vocabulary."""
    return sampler._needs_vocab


def sorts(sampler: Sampler) -> bool:
    """Return whether a sampler leaves the candidates sorted by logit, and marks them as sorted."""
    return sampler._sorts


def disorders(sampler: Sampler) -> bool:
    """Return whether a sampler leaves candidates marked as sorted that no longer are."""
    return sampler._disorders
