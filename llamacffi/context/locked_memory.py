"""The memory of a context during one call, with checks that llama.cpp lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._core.values import integer
from .._native import ffi, lib
from ..errors import UnsupportedError
from .bookkeeping import END, Bookkeeping

if TYPE_CHECKING:
    from .k_shift import KShift
    from .traits import ContextTraits


class LockedMemory:
    """The memory of a context for one call; the caller holds the context's lock.

    Ranges of positions are explicit here: an open start is 0, an open end is ``END``.
    """

    __slots__ = ("_context", "_k_shift", "_n_swa", "_traits", "bookkeeping", "n_seq_max", "ptr")

    def __init__(
        self, context: Any, traits: ContextTraits, bookkeeping: Bookkeeping, k_shift: KShift
    ) -> None:
        """Access the memory of a context.

        Args:
            context: The ``struct llama_context *``, which must be kept alive: the pointer to its
                memory does not do that.
            traits: The context's traits.
            bookkeeping: What is known of its sequences.
            k_shift: Tests whether its keys can be rotated.

        Raises:
            UnsupportedError: The model has no memory.
        """
        self._context, self._traits, self._k_shift = context, traits, k_shift
        self.bookkeeping: Bookkeeping = bookkeeping
        self.ptr: Any = lib.llama_get_memory(context)
        if self.ptr == ffi.NULL:
            raise UnsupportedError("this model has no memory: it processes each batch on its own")
        self.n_seq_max: int = traits.n_seq_max
        self._n_swa: int = lib.llama_model_n_swa(traits.model.ptr)

    def why_not_shift(self) -> str | None:
        """Return the reason why positions cannot be moved; None if they can."""
        # upstream: src/llama-memory-hybrid-iswa.cpp get_can_shift: next to a recurrent state,
        # the layers with a window or those without may be missing, but it rotates both kinds.
        if not lib.llama_memory_can_shift(self.ptr) or (self._n_swa and self._traits.keeps_state):
            return (
                "they have several components (M-RoPE), or the model's sliding windows are stored "
                "separately (create the Context with swa_full=True) or next to a recurrent state"
            )
        return self._k_shift.why_not(self._context, self._traits)

    def check_shift(self) -> None:
        """Raise UnsupportedError unless positions can be moved."""
        reason = self.why_not_shift()
        if reason is not None:
            raise UnsupportedError(f"the positions of this context cannot be moved: {reason}")

    def check(self, seq_id: int, name: str = "seq_id") -> int:
        """Return the argument ``name`` as the number of a sequence; raise if it is out of range."""
        last = self.n_seq_max - 1
        return integer(name, seq_id, 0, last, ": create the Context with a larger n_seq_max")

    def pos_min(self, seq_id: int) -> int:
        """Return the first position from which a sequence is complete; -1 if it is empty."""
        pos: int = lib.llama_memory_seq_pos_min(self.ptr, seq_id)
        return pos

    def pos_max(self, seq_id: int) -> int:
        """Return the last position of a sequence; -1 if it is empty."""
        pos: int = lib.llama_memory_seq_pos_max(self.ptr, seq_id)
        return pos

    def has(self, seq_id: int, start: int, end: int) -> bool:
        """Return whether a sequence may have tokens in a range."""
        return start < end and start <= self.pos_max(seq_id)

    def window_holds(self, seq_id: int, end: int) -> bool:
        """Return whether the sliding window of a token at position ``end`` is complete."""
        return not self._n_swa or self.pos_min(seq_id) <= max(0, end - self._n_swa + 1)

    def can_remove(self, seq_id: int, start: int, end: int) -> bool:
        """Return whether tokens can be removed without making the rest wrong."""
        last = self.pos_max(seq_id)
        if not start and end > last:
            return True
        if self._traits.keeps_state:
            return end > last and self.bookkeeping.can_undo(seq_id, last - start + 1)
        return end <= last or self.window_holds(seq_id, start)

    def remove(self, seq_id: int, start: int, end: int) -> bool:
        """Remove tokens and return whether they are gone."""
        last = self.pos_max(seq_id)
        to_end = end > last
        if not lib.llama_memory_seq_rm(self.ptr, seq_id, start, -1 if to_end else end):
            return False
        if to_end:
            # upstream: src/llama-kv-cache.cpp seq_rm, other: a cache that belongs to another
            # context stays as it is, and the call still succeeds; so we check.
            if self.pos_max(seq_id) >= start:
                return False
            self.bookkeeping.removed(seq_id, start)
        else:
            self.bookkeeping.tokens.removed(seq_id, start, end)
        return True

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy the tokens in a range, which must not be empty, to another sequence."""
        last = self.pos_max(source)
        whole = not start and end > last
        if not whole:
            self._check_part(source, min(end, last + 1), last)
        self.check_state(source)
        if not self._traits.kv_unified or self._traits.keeps_state:
            self.remove(target, 0, END)
        p0, p1 = (-1, -1) if whole else (start, end)
        lib.llama_memory_seq_cp(self.ptr, source, target, p0, p1)
        if self._traits.kv_unified or self._traits.keeps_state:
            self.bookkeeping.copied(source, target, min(end, last + 1))
        self.bookkeeping.tokens.copied(source, target, start, end)

    def check_state(self, source: int) -> None:
        """Raise UnsupportedError if the state of a sequence has yet to be rolled back."""
        if self.bookkeeping.is_rolled_back(source):
            raise UnsupportedError(
                f"the end of sequence {source} was removed, but its state is rolled back only with "
                "the next batch: decode a token before you copy it"
            )

    def movable(self, seq_id: int, start: int, end: int) -> tuple[int, int] | None:
        """Return the first and last position in a range; None if it is empty.

        Raises:
            UnsupportedError: They cannot be moved.
        """
        number = self.check(seq_id)
        self.check_shift()
        last = self.pos_max(number)
        least = start if self._hides_tokens() else max(start, self.pos_min(number))
        most = min(end - 1, last)
        if least > most:
            return None
        if self.bookkeeping.shared_until(number) > least:
            raise UnsupportedError(
                f"sequence {number} may share tokens at positions {least} to "
                f"{self.bookkeeping.shared_until(number) - 1} with other sequences, where they "
                "would move too: remove those sequences, or move only later tokens"
            )
        return least, most

    def add(self, seq_id: int, start: int, end: int, delta: int) -> None:
        """Add ``delta`` to the positions of tokens that can be moved."""
        last = self.pos_max(seq_id)
        lib.llama_memory_seq_add(self.ptr, seq_id, start, end, delta)
        # upstream: src/llama-kv-cache.cpp seq_add, other: it does nothing if the cache belongs to
        # another context, and does not report that; so we check.
        if delta and start <= last < end and self.pos_max(seq_id) == last:
            raise UnsupportedError("this memory belongs to ctx_other: move the tokens there")
        self.bookkeeping.moved(seq_id)
        self.bookkeeping.tokens.moved(seq_id, start, end, delta)

    def _hides_tokens(self) -> bool:
        """Return whether a sequence may have tokens before its first position.

        Layers without a window still have the tokens that the windows have dropped.  A recurrent
        state has only the last position, so the first token of the KV cache next to it is unknown.
        """
        traits = self._traits
        return self._n_swa > 0 or (traits.keeps_state and not traits.recurrent)

    def _check_part(self, source: int, end: int, last: int) -> None:
        """Raise UnsupportedError where llama.cpp would abort, copy everything, or leave a gap.

        upstream: src/llama-kv-cache.cpp seq_cp, is_full: it asserts if a part of a sequence is to
        be copied to another buffer.
        """
        if not self._traits.kv_unified:
            raise UnsupportedError(
                "only a whole sequence can be copied between separate buffers: create the "
                "Context with kv_unified=True"
            )
        if self._traits.keeps_state:
            raise UnsupportedError("a sequence of a recurrent model can only be copied as a whole")
        if end <= last and not self.window_holds(source, end):
            raise UnsupportedError(
                f"the model's sliding windows have dropped the tokens before position {end}: "
                "create the Context with swa_full=True, or decode the tokens in the other sequence"
            )
