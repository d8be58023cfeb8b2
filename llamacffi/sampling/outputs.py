"""The outputs of a context, as sampling sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .._core.locks import CallLock
    from ..vocab.vocab import Vocab


class OutputSource(Protocol):
    """The outputs of the last batch of a context: its attribute ``__llama_outputs__``."""

    @property
    def vocab(self) -> Vocab:
        """The vocabulary of the logits."""

    @property
    def lock(self) -> CallLock:
        """Held while C reads or moves the outputs."""

    def check_scores(self, i: int) -> None:
        """Raise unless the last batch has logits at index ``i``."""


class HasOutputs(Protocol):
    """The part of a `Context` that sampling uses."""

    @property
    def __llama_outputs__(self) -> OutputSource:
        """The outputs of the last batch."""

    @property
    def ptr(self) -> Any:
        """The ``struct llama_context *``."""


def outputs_of(context: Any) -> OutputSource:
    """Return the outputs of a context.

    Raises:
        TypeError: It is not a context.
    """
    try:
        outputs: OutputSource = context.__llama_outputs__
        outputs.vocab  # noqa: B018  on the class Context, __llama_outputs__ is a descriptor
    except AttributeError:
        raise not_a_context(context) from None
    return outputs


def not_a_context(value: object) -> TypeError:
    """Return the error for a value that has no outputs."""
    return TypeError(f"context must be a Context, not {value!r}")
