"""Where logits to sample from come from: the outputs of a context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .._core.locks import CallLock
    from ..vocab.vocab import Vocab


class OutputSource(Protocol):
    """The outputs of the last batch of a context, which has this as ``__llama_outputs__``."""

    @property
    def vocab(self) -> Vocab:
        """The vocabulary of the logits."""

    @property
    def lock(self) -> CallLock:
        """Held while C reads or moves the outputs."""

    def check_scores(self, i: int) -> None:
        """Raise an error unless the last batch has logits for an output at index ``i``."""


class HasOutputs(Protocol):
    """What sampling uses of a `Context`."""

    @property
    def __llama_outputs__(self) -> OutputSource:
        """Its outputs."""

    @property
    def ptr(self) -> Any:
        """The ``struct llama_context *``."""


def outputs_of(context: Any) -> OutputSource:
    """Return the outputs of a context.

    Raises:
        TypeError: It is something else.
    """
    try:
        outputs: OutputSource = context.__llama_outputs__
        outputs.vocab  # noqa: B018  the class Context has the attribute too, but a descriptor
    except AttributeError:
        raise not_a_context(context) from None
    return outputs


def not_a_context(value: object) -> TypeError:
    """Return the error for a value that has no outputs."""
    return TypeError(f"context must be a Context, not {value!r}")
