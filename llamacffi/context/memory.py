"""The memory of a context: the KV cache or recurrent state of its sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._core.ownership import Pointer
from .._core.values import flag, integer
from .._native import ffi, lib
from ..errors import ArgumentError, UnsupportedError
from .bookkeeping import END
from .handle import lock_of, locked_memory

if TYPE_CHECKING:
    from .handle import ContextHandle as Context  # all that this module needs


class Memory(Pointer):
    """The memory of a `Context`: a KV cache, a recurrent state, or both.

    It belongs to its context and can be used until the context is closed.  Sequences are numbered 0
    to ``n_seq_max - 1``; positions start at 0.  A range includes ``p0`` and excludes ``p1``; None
    leaves that end open.  Operations on an empty sequence have no effect.
    """

    _why = "it is a part of its Context"
    _instead = (
        "Context.memory returns it again; save_state() and load_state() of the Context transfer "
        "its contents to another context"
    )

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def ptr(self) -> Any:
        """The ``llama_memory_t``, valid while the context is open.

        Raises:
            ClosedError: The context is closed.
            UnsupportedError: The model has no memory; encoders, for example, have none.
        """
        ptr = lib.llama_get_memory(self._context.ptr)
        if ptr == ffi.NULL:
            raise UnsupportedError("this model has no memory: it processes each batch on its own")
        return ptr

    @property
    def can_shift(self) -> bool:
        """Whether `shift` and `divide` can change positions.

        They cannot

        * with M-RoPE, or with a sliding window that is stored separately (``swa_full=False``) or
          next to a recurrent state;
        * if the device that holds the keys cannot rotate keys of ``type_k``: the CPU cannot rotate
          ``"bf16"``, or a quantized type if the model rotates only a part of each head;
        * with YaRN or an attention factor, because each rotation would also scale the keys;
        * with learned positions, such as those of GPT-2: the keys depend on where they were
          computed;
        * if llama.cpp would rotate keys that the model does not rotate, such as those of layers
          without positions, or would rotate them differently from the model.

        The first use rotates a few keys as a test, which takes less than a millisecond on a CPU.

        Source: ``llama_memory_can_shift``, ``llamacffi_try_k_shift``.
        """
        with lock_of(self._context):
            return locked_memory(self._context).why_not_shift() is None

    def clear(self, *, data: bool = True) -> None:
        """Remove all sequences.

        Args:
            data: Whether to overwrite the buffers with zeros too, which takes longer.

        Source: ``llama_memory_clear``.
        """
        overwrite = flag("data", data)
        with lock_of(self._context):
            memory = locked_memory(self._context)
            lib.llama_memory_clear(memory.ptr, overwrite)
            memory.bookkeeping.cleared()

    def remove(self, seq_id: int = -1, p0: int | None = None, p1: int | None = None) -> bool:
        """Remove the tokens of a sequence at positions ``p0`` to ``p1``.

        A whole sequence can always be removed.  A part of one cannot be removed

        * if the model is fully or partly recurrent, because it stores a single state; only the last
          tokens of the last batch can be removed, up to ``n_rs_seq`` of them;
        * if the part is the end of the sequence and the model's sliding windows (with
          ``swa_full=False``) have dropped the tokens before it: the next tokens would attend to a
          gap.

        In these cases, remove the whole sequence and decode the tokens to keep again.

        Args:
            seq_id: The sequence; -1 means all sequences.
            p0: The first position; None means from the start.
            p1: The position after the last; None means to the end.

        Returns:
            True if the range has no tokens now.  False if nothing was removed.

        Source: ``llama_memory_seq_rm``.
        """
        every = integer("seq_id", seq_id) == -1
        with lock_of(self._context):
            memory = locked_memory(self._context)
            start, end = _range(p0, p1)
            seq_ids = range(memory.n_seq_max) if every else [memory.check(seq_id)]
            found = [one for one in seq_ids if memory.has(one, start, end)]
            if not all(memory.can_remove(one, start, end) for one in found):
                return False
            return all([memory.remove(one, start, end) for one in found])

    def keep(self, seq_id: int) -> None:
        """Remove all sequences except one.

        Source: ``llama_memory_seq_keep``.
        """
        with lock_of(self._context):
            memory = locked_memory(self._context)
            memory.check(seq_id)
            lib.llama_memory_seq_keep(memory.ptr, seq_id)
            for other in range(memory.n_seq_max):  # C keeps those in separate buffers
                if other != seq_id:
                    memory.remove(other, 0, END)

    def copy(self, source: int, target: int, p0: int | None = None, p1: int | None = None) -> None:
        """Add the tokens of one sequence at positions ``p0`` to ``p1`` to another sequence.

        If the sequences share one buffer, the target keeps its own tokens.  With separate buffers,
        or a recurrent model, the target is replaced.  To make the target equal to the source, use
        `fork`.

        Raises:
            UnsupportedError: Only the whole sequence can be copied, because the sequences have
                separate buffers (``kv_unified=False``), the model is recurrent and stores one state
                for each sequence, or its sliding windows have dropped the tokens before ``p1``.  Or
                the model is recurrent and the end of the source was just removed.

        Source: ``llama_memory_seq_cp``.
        """
        with lock_of(self._context):
            memory = locked_memory(self._context)
            start, end = _range(p0, p1)
            memory.check(source, "source")
            memory.check(target, "target")
            if source != target and memory.has(source, start, end):
                memory.copy(source, target, start, end)

    def fork(self, source: int, target: int) -> None:
        """Replace a sequence with a copy of another.

        The two can then continue independently.  If the sequences share one buffer
        (``kv_unified=True``), the copy takes no additional memory.

        Raises:
            UnsupportedError: The model is recurrent and the end of the source was just removed:
                decode a token first.

        Source: ``llama_memory_seq_rm``, ``llama_memory_seq_cp``.
        """
        with lock_of(self._context):
            memory = locked_memory(self._context)
            memory.check(source, "source")
            memory.check(target, "target")
            if source == target:
                return
            memory.check_state(source)
            memory.remove(target, 0, END)
            if memory.pos_max(source) >= 0:
                memory.copy(source, target, 0, END)

    def shift(self, seq_id: int, delta: int, p0: int | None = None, p1: int | None = None) -> None:
        """Add ``delta`` to the positions ``p0`` to ``p1`` of a sequence.

        The keys in the cache are rotated to their new positions before the next batch.  A recurrent
        state does not depend on positions, so only its counter changes.

        Raises:
            ArgumentError: A position would be negative, or too large for 32 bits.
            UnsupportedError: `can_shift` is False; or tokens in the range may also belong to other
                sequences, after `copy` or `fork`, and would move in those too.

        Source: ``llama_memory_seq_add``.
        """
        delta = integer("delta", delta)
        with lock_of(self._context):
            memory = locked_memory(self._context)
            found = memory.movable(seq_id, *_range(p0, p1))
            if found is None or not delta:
                return
            least, most = found
            if least + delta < 0 or most + delta >= END:
                raise ArgumentError(
                    f"positions {least} to {most} cannot be moved by {delta}: the result must be "
                    f"between 0 and {END - 1}; remove some tokens first, or limit the range with "
                    "p0 and p1"
                )
            memory.add(seq_id, least, most + 1, delta)

    def cut(self, seq_id: int, p0: int, p1: int) -> None:
        """Remove the tokens of a sequence at positions ``p0`` to ``p1``, and close the gap.

        This combines `remove` with a `shift` of all later tokens.  If it raises, nothing has
        changed.

        Raises:
            UnsupportedError: As for `shift`, or the tokens cannot be removed.
        """
        with lock_of(self._context):
            memory = locked_memory(self._context)
            start, end = _range(p0, p1)
            found = memory.movable(seq_id, end, END)
            if not memory.has(seq_id, start, end):
                return
            if not (memory.can_remove(seq_id, start, end) and memory.remove(seq_id, start, end)):
                raise UnsupportedError(
                    "this model cannot remove a part of a sequence: remove the whole sequence, or "
                    "take a snapshot() before the tokens to remove, and restore() it"
                )
            if found is not None:
                memory.add(seq_id, end, END, start - end)

    def divide(self, seq_id: int, d: int, p0: int | None = None, p1: int | None = None) -> None:
        """Divide the positions ``p0`` to ``p1`` of a sequence by ``d``, rounding down.

        Together with `shift` this extends the context window beyond the one that the model was
        trained with, by giving several tokens the same position (self-extend, or grouped
        attention).

        Raises:
            ArgumentError: ``d`` is not positive, or the range has more positions than n_ctx.
            UnsupportedError: As for `shift`.

        Source: ``llama_memory_seq_add`` for each position, because llama.cpp's
            ``llama_memory_seq_div`` rotates the keys in the wrong direction.
        """
        # upstream: src/llama-kv-cells.h pos_div: it adds the old position minus the new to the
        # shift, which rotates the keys the wrong way; so we add to each position instead.
        d = integer("d", d, 1)
        with lock_of(self._context):
            memory = locked_memory(self._context)
            found = memory.movable(seq_id, *_range(p0, p1))
            if found is None or d == 1:
                return
            least, most = found
            if most - least >= lib.llama_n_ctx(self._context.ptr):
                raise ArgumentError(
                    f"positions {least} to {most} are more than n_ctx, so most of them are empty: "
                    "divide the parts that have tokens"
                )
            # In ascending order: a moved token is then always below those still to move.
            for pos in range(least, most + 1):
                memory.add(seq_id, pos, pos + 1, pos // d - pos)

    def pos_min(self, seq_id: int = 0) -> int | None:
        """Return the first position from which a sequence is complete; None if it is empty.

        With sliding windows this is the first position still in the window.  For a recurrent model
        it is the last position, because only its state is stored.

        Source: ``llama_memory_seq_pos_min``.
        """
        with lock_of(self._context):
            memory = locked_memory(self._context)
            return _position(memory.pos_min(memory.check(seq_id)))

    def pos_max(self, seq_id: int = 0) -> int | None:
        """Return the last position of a sequence; None if it is empty.

        Source: ``llama_memory_seq_pos_max``.
        """
        with lock_of(self._context):
            memory = locked_memory(self._context)
            return _position(memory.pos_max(memory.check(seq_id)))

    def next_pos(self, seq_id: int = 0) -> int:
        """Return the position of the next token of a sequence: `pos_max` + 1, or 0."""
        with lock_of(self._context):
            memory = locked_memory(self._context)
            return memory.pos_max(memory.check(seq_id)) + 1


def _range(p0: int | None, p1: int | None) -> tuple[int, int]:
    """Check a range, and replace each None by the limit it stands for."""
    start = 0 if p0 is None else integer("p0", p0, 0, END, ", or None")
    end = END if p1 is None else integer("p1", p1, 0, END, ", or None")
    return start, end


def _position(position: int) -> int | None:
    """Return a position from C, where -1 means that the sequence is empty."""
    return None if position < 0 else position
