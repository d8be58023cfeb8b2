"""What a context remembers: the tokens of its sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._core.ownership import Pointer
from .._core.values import flag, integer
from .._native import ffi, lib
from ..errors import ArgumentError, UnsupportedError
from .bookkeeping import END
from .handle import lock_of, locked_memory

if TYPE_CHECKING:
    from .handle import ContextHandle as Context  # the part of it that this module uses


class Memory(Pointer):
    """The memory of a `Context`: a KV cache, or the state of a recurrent model, or both.

    It belongs to its context and is usable as long as that is open.  Sequences are numbered 0 to
    ``n_seq_max - 1``; positions count tokens from 0.  A range ``p0`` to ``p1`` is without ``p1``; a
    missing end is open.  Nothing happens where a sequence is empty.
    """

    _why = "it is a part of its Context"
    _instead = (
        "Context.memory gives it again; save_state() and load_state() of the Context carry what it "
        "remembers to another"
    )

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def ptr(self) -> Any:
        """The ``llama_memory_t``, valid while the context is open.

        Raises:
            ClosedError: The context is closed.
            UnsupportedError: The model has no memory, as pure encoders.
        """
        ptr = lib.llama_get_memory(self._context.ptr)
        if ptr == ffi.NULL:
            raise UnsupportedError("this model has no memory: it sees one batch at a time")
        return ptr

    @property
    def can_shift(self) -> bool:
        """Whether positions can be changed, by `shift` and `divide`.

        They cannot

        * with M-RoPE, nor with a sliding window that is stored apart (``swa_full=False``) or beside
          a recurrent state;
        * where the device that holds the keys cannot turn those of ``type_k``: the processor has no
          code for ``"bf16"``, nor for a quantized type if the model turns only a part of each head;
        * with YaRN or an attention factor, where each turn would also scale the keys;
        * with learned positions, as those of GPT-2: keys depend on where they were computed;
        * where llama.cpp would turn keys that the model does not, as in layers without positions,
          or in another way than the model.

        Where keys are turned, it is tried on a few of them at the first use, which takes less than
        a millisecond on a processor.

        Source: ``llama_memory_can_shift``, ``llamacffi_try_turning``.
        """
        with lock_of(self._context):
            return locked_memory(self._context).why_not_shift() is None

    def clear(self, *, data: bool = True) -> None:
        """Forget all sequences.

        Args:
            data: Also overwrite the buffers, which takes longer.

        Source: ``llama_memory_clear``.
        """
        overwrite = flag("data", data)
        with lock_of(self._context):
            memory = locked_memory(self._context)
            lib.llama_memory_clear(memory.ptr, overwrite)
            memory.bookkeeping.cleared()

    def remove(self, seq_id: int = -1, p0: int | None = None, p1: int | None = None) -> bool:
        """Forget the tokens of a sequence at positions ``p0`` to ``p1``.

        A whole sequence can always be removed.  A part of one cannot

        * if the model is recurrent, or partly so, since it has no more than a state; but the last
          tokens of its last batch can, up to ``n_rs_seq`` of them;
        * if it is the end, and the model has sliding windows (with ``swa_full=False``) that have
          lost what came before: the tokens to come would look into a hole.

        Then remove the whole sequence and decode again what is to stay.

        Args:
            seq_id: The sequence; -1 means every one.
            p0: The first position; None means from the start.
            p1: The position after the last; None means to the end.

        Returns:
            Whether no such token is left.  If False, nothing was removed.

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
        """Forget all sequences but one.

        Source: ``llama_memory_seq_keep``.
        """
        with lock_of(self._context):
            memory = locked_memory(self._context)
            memory.check(seq_id)
            lib.llama_memory_seq_keep(memory.ptr, seq_id)
            for other in range(memory.n_seq_max):  # those with buffers of their own are still there
                if other != seq_id:
                    memory.remove(other, 0, END)

    def copy(self, source: int, target: int, p0: int | None = None, p1: int | None = None) -> None:
        """Make the tokens of one sequence at positions ``p0`` to ``p1`` belong to another too.

        The target keeps what it had, if the sequences share one buffer; else, and with recurrent
        models, it is replaced.  See `fork` for a target that is the same as the source.

        Raises:
            UnsupportedError: A part was asked for, and only a whole sequence can be copied: the
                sequences have separate buffers (``kv_unified=False``), the model is recurrent
                and has one state for each, or its sliding windows have lost what precedes the end
                of the part.  Or the source is recurrent and its end was just removed.

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
        """Make a sequence the same as another: what it had is forgotten.

        From there on each goes its own way.  Where the sequences share one buffer
        (``kv_unified=True``) it costs no room, as long as neither is moved by `shift`.

        Raises:
            UnsupportedError: The source is recurrent and its end was just removed: decode a token
                first.

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

        The keys in the cache are turned to their new positions before the next batch.  The state of
        a recurrent model knows no positions: it only counts on from another.

        Raises:
            ArgumentError: A position would be below 0, or not fit 32 bits.
            UnsupportedError: Not `can_shift`; or tokens of the range may belong to other sequences,
                after `copy` or `fork`, and would move in those too.

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
                    f"positions {least} to {most} cannot be moved by {delta}: they would not be in "
                    f"0 to {END - 1}; remove such tokens first, or give p0 and p1"
                )
            memory.add(seq_id, least, most + 1, delta)

    def cut(self, seq_id: int, p0: int, p1: int) -> None:
        """Forget the tokens of a sequence at positions ``p0`` to ``p1``, and close the gap.

        It is `remove`, and `shift` of all that comes after; if it raises, nothing has changed.

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
                    "this model cannot forget a part of a sequence: remove all of it, or take a "
                    "snapshot() before what is to be forgotten, and restore() it"
                )
            if found is not None:
                memory.add(seq_id, end, END, start - end)

    def divide(self, seq_id: int, d: int, p0: int | None = None, p1: int | None = None) -> None:
        """Divide the positions ``p0`` to ``p1`` of a sequence by ``d``, rounding down.

        With `shift` it makes room for positions that the model was not trained for: several tokens
        then have the same one (self-extend, or grouped attention).

        Raises:
            ArgumentError: ``d`` is not positive, or the range has more positions than n_ctx.
            UnsupportedError: As for `shift`.

        Source: ``llama_memory_seq_add`` for each position.  llama.cpp's own
            ``llama_memory_seq_div`` turns the keys the wrong way: it tells the rotation the way
            back.
        """
        d = integer("d", d, 1)
        with lock_of(self._context):
            memory = locked_memory(self._context)
            found = memory.movable(seq_id, *_range(p0, p1))
            if found is None or d == 1:
                return
            least, most = found
            if most - least >= lib.llama_n_ctx(self._context.ptr):
                raise ArgumentError(
                    f"positions {least} to {most} are more than n_ctx, so most are empty: divide "
                    "the parts that are not"
                )
            # From below: what has moved is below all that will.
            for pos in range(least, most + 1):
                memory.add(seq_id, pos, pos + 1, pos // d - pos)

    def pos_min(self, seq_id: int = 0) -> int | None:
        """Return the first position of a sequence from which all is there; None if it is empty.

        With sliding windows it is the first that they still hold; of a recurrent model, the last,
        whose state it is.

        Source: ``llama_memory_seq_pos_min``.
        """
        with lock_of(self._context):
            memory = locked_memory(self._context)
            return _position(memory.pos_min(memory.check(seq_id)))

    def pos_max(self, seq_id: int = 0) -> int | None:
        """Return the last position that is present of a sequence; None if it is empty.

        Source: ``llama_memory_seq_pos_max``.
        """
        with lock_of(self._context):
            memory = locked_memory(self._context)
            return _position(memory.pos_max(memory.check(seq_id)))

    def next_pos(self, seq_id: int = 0) -> int:
        """Return the position of the next token of a sequence: that after `pos_max`, or 0."""
        with lock_of(self._context):
            memory = locked_memory(self._context)
            return memory.pos_max(memory.check(seq_id)) + 1


def _range(p0: int | None, p1: int | None) -> tuple[int, int]:
    """Return a range with both ends."""
    start = 0 if p0 is None else integer("p0", p0, 0, END, ", or None")
    end = END if p1 is None else integer("p1", p1, 0, END, ", or None")
    return start, end


def _position(position: int) -> int | None:
    return None if position < 0 else position
