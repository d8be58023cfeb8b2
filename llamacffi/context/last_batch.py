"""The outputs that the last batch of a context left."""

from __future__ import annotations

from typing import Any

from .._core.views import Exports
from .._native import lib


class LastBatch:
    """The outputs that the last batch of a context left."""

    __slots__ = ("embeddings", "encoded", "exports", "flags", "logits")

    flags: bytes | None
    """Which of its tokens have an output, a byte each; None without a batch, or if it failed."""
    logits: bool
    """Whether the outputs have logits."""
    embeddings: bool
    """Whether they have embeddings."""
    encoded: frozenset[int] | None
    """The sequences of the encoder's output that the decoder reads; None without one."""
    exports: Exports
    """The views of the outputs that are alive."""

    def __init__(self) -> None:
        self.flags = self.encoded = None
        self.logits = self.embeddings = False
        self.exports = Exports()

    def set(self, flags: bytes, logits: bool, embeddings: bool) -> None:
        """Record the outputs of a batch."""
        self.flags, self.logits, self.embeddings = flags, logits, embeddings

    def discard(self, ptr: Any) -> None:
        """Discard the outputs, before samplers enter or leave the graph.

        Raises:
            BufferError: A view of them is alive.
        """
        self.exports.check_none()
        if self.flags is not None:
            # upstream: src/llama-context.cpp output_reorder: the first getter puts the rows in
            # order, depending on which were sampled; so call it before that changes.
            lib.llama_get_logits(ptr)
        self.flags = None
