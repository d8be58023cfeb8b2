"""From one token to the next, with as little Python as can be.

With a model so small that a token takes 0.3 ms, one sees what Python adds: the weights that stream
through the processor's cache throw the interpreter out of it each time, so that every Python
function takes a microsecond, and `Context.decode` and `SamplerChain.sample` are twenty-five.
"""

from __future__ import annotations

from sys import _getframe as here
from typing import TYPE_CHECKING, Any

from .._native import lib
from ..batch.batch import Batch
from ..context.recovery import roll_back
from ..errors import ContextError, NativeError
from ..log import drain
from ..sampling.chain import native

if TYPE_CHECKING:
    from ..context.context import Context
    from ..sampling.chain import SamplerChain


class Step:
    """Decodes a token and chooses the next, as `Context.decode` and `SamplerChain.sample` do.

    It takes a short way while context and chain are ordinary ones, for which those functions check
    nothing more; that is looked at each time.  Else, and where something fails, it takes the long
    one.
    """

    def __init__(self, context: Context, chain: SamplerChain, seq_id: int) -> None:
        self._context = context
        self._chain, self._native = chain, native(chain)
        self._seq_id = seq_id
        self._batch = Batch(1)
        self._batch.set_one(0, 0, seq_id)
        self.look()

    def look(self) -> None:
        """Take the memory of the sequence for what the next token continues."""
        self._version = self._context._bookkeeping.versions[self._seq_id]

    def __call__(self, token: int, pos: int) -> int:
        """Decode a token that the chain has chosen, and choose the next.

        Args:
            token: The token.
            pos: Its position.

        Raises:
            ContextError: The memory of the sequence was changed since the last token.
        """
        context, chain, batch = self._context, self._native, self._batch
        # What `Batch.set_one` does after the first time; that the values fit is known here.
        batch._first_token[0], batch._first_pos[0] = token, pos
        batch._token_range = token, token
        ptr, outer, inner = context.ptr, context.lock, chain.lock
        # As `CallLock.enter` does, but here.
        if outer.holders.setdefault(0, here()) is not here():
            outer.enter(here())
        try:
            if inner.holders.setdefault(0, here()) is not here():
                inner.enter(here())
            try:
                chosen = self._short_way(ptr)
            finally:
                inner.leave()
        finally:
            outer.leave()
        if chosen is None:
            if context._bookkeeping.versions[self._seq_id] != self._version:
                raise changed(self._seq_id)
            context.decode(batch)
            return self._chain.sample(context)
        context._bookkeeping.tokens.one(self._seq_id, pos, token)
        drain()
        if chosen < 0:
            raise chain.failure(chosen)
        return chosen

    def _short_way(self, ptr: Any) -> int | None:
        """Decode and sample, if there is nothing to it; both are held.

        Returns:
            What `llamacffi_chain_sample` does; None if the long way has to be taken.
        """
        context, chain = self._context, self._native
        computing, bookkeeping = context._computing, context._bookkeeping
        owner = chain.owner  # and keeps it alive
        if (
            computing is None
            or not computing[0].pools.alone
            or context._special
            or context._memoryless
            or not context._has_logits
            or context._observer is not None
            or context._other_context is not None
            or context._graph_samplers.chains
            or context._exports.live
            or context._abort.requested
            or not context._active.planned
            or bookkeeping.watches
            or bookkeeping.turning
            or bookkeeping.versions[self._seq_id] != self._version
            or owner is None
            or chain.attachment is not None
            or chain.prepared() is not context._vocab
        ):
            return None
        context._outputs = None
        try:
            code = lib.llama_decode(ptr, self._batch._value)
        except NativeError:
            roll_back(ptr, self._batch, bookkeeping)
            raise
        if code:
            context._fail(ptr, self._batch, code, None, False)
        context._outputs, context._has = b"\1", (True, False)
        chosen: int = lib.llamacffi_chain_sample(chain.struct, ptr, -1)
        return chosen


def changed(seq_id: int) -> ContextError:
    """Return the error for a sequence that does not end where its generation has left it."""
    return ContextError(
        f"the memory of sequence {seq_id} was changed while this Generation was going on, which "
        "cannot continue it: call generate() again, or give each generation a sequence of its own"
    )
