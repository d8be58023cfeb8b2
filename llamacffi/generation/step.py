"""One step of a generation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..batch.batch import Batch, arrays_of
from ..context.handle import bookkeeping_of, decoder_of
from ..errors import ContextError
from ..sampling.chain import native

if TYPE_CHECKING:
    from ..context.context import Context
    from ..sampling.chain import SamplerChain


class Step:
    """Decodes a token and samples the next one."""

    def __init__(self, context: Context, chain: SamplerChain, seq_id: int) -> None:
        self._context, self._decoder = context, decoder_of(context)
        self._chain, self._native = chain, native(chain)
        self._seq_id, self._versions = seq_id, bookkeeping_of(context).versions
        self._batch = Batch(1)
        self._arrays = arrays_of(self._batch)
        self._arrays.set_one(0, 0, seq_id)
        self.look()

    def look(self) -> None:
        """Accept the current memory of the sequence as the one to continue."""
        self._version = self._versions[self._seq_id]

    def __call__(self, token: int, pos: int) -> int:
        """Decode a token, and sample the next one.

        Args:
            token: The token.
            pos: Its position.

        Raises:
            ContextError: The memory of the sequence has changed since the last token.
        """
        context, chain, arrays = self._context, self._native, self._arrays
        # What `set_one` does for the same sequence; these values fit.
        arrays.first_token[0], arrays.first_pos[0] = token, pos
        arrays.token_range = token, token
        chosen = self._decoder.decode_and_sample(context.ptr, arrays, chain, self._version)
        if chosen is None:
            if self._versions[self._seq_id] != self._version:
                raise changed(self._seq_id)
            context.decode(self._batch)
            return self._chain.sample(context)
        if chosen < 0:
            raise chain.failure(chosen)
        return chosen


def changed(seq_id: int) -> ContextError:
    """Return the error for a sequence that no longer ends where its generation left it."""
    return ContextError(
        f"the memory of sequence {seq_id} has changed since this Generation computed its last "
        "token, so it cannot continue: call generate() again, or give each generation a sequence "
        "of its own"
    )
