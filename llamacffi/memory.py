"""What a context remembers: the tokens of its sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._ffi import ffi, lib
from .errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    from .context import Context


class Memory:
    """The memory of a `Context`: a KV cache, or the state of a recurrent model.

    It belongs to its context and is usable as long as that is open.  Sequences are numbered 0 to
    ``n_seq_max - 1``; positions count tokens from 0.  A range ``p0`` to ``p1`` is without ``p1``; a
    missing end is open.
    """

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

    def clear(self, *, data: bool = True) -> None:
        """Forget all sequences.

        Args:
            data: Also overwrite the buffers, which takes longer.

        Source: ``llama_memory_clear``.
        """
        with self._context.exclusive:
            self._call(lib.llama_memory_clear, data)

    def remove(self, seq_id: int = -1, p0: int | None = None, p1: int | None = None) -> bool:
        """Forget the tokens of a sequence at positions ``p0`` to ``p1``.

        Args:
            seq_id: The sequence; -1 means every one.
            p0: The first position; None means from the start.
            p1: The position after the last; None means to the end.

        Returns:
            False if nothing was removed because this memory cannot forget a part of a sequence,
            as that of recurrent models.  A whole sequence can always be removed.

        Source: ``llama_memory_seq_rm``.
        """
        if seq_id != -1:
            self._check(seq_id)
        with self._context.exclusive:
            return bool(self._call(lib.llama_memory_seq_rm, seq_id, *_range(p0, p1)))

    def copy(self, source: int, target: int, p0: int | None = None, p1: int | None = None) -> None:
        """Make the tokens of one sequence at positions ``p0`` to ``p1`` belong to another too.

        Raises:
            UnsupportedError: A part was asked for, and only a whole sequence can be copied: the
                sequences have separate buffers (``kv_unified=False``), or the model is recurrent
                and has one state for each.

        Source: ``llama_memory_seq_cp``.
        """
        self._check(source)
        self._check(target)
        if (p0 or p1 is not None) and source != target:
            self._check_divisible()
        with self._context.exclusive:
            self._call(lib.llama_memory_seq_cp, source, target, *_range(p0, p1))

    def pos_min(self, seq_id: int = 0) -> int | None:
        """Return the first position that is present of a sequence; None if it is empty.

        Source: ``llama_memory_seq_pos_min``.
        """
        self._check(seq_id)
        with self._context.exclusive:
            return _position(self._call(lib.llama_memory_seq_pos_min, seq_id))

    def pos_max(self, seq_id: int = 0) -> int | None:
        """Return the last position that is present of a sequence; None if it is empty.

        Source: ``llama_memory_seq_pos_max``.
        """
        self._check(seq_id)
        with self._context.exclusive:
            return _position(self._call(lib.llama_memory_seq_pos_max, seq_id))

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the memory while the context is held."""
        context = self._context.ptr  # noqa: F841  the memory's pointer does not keep it alive
        return function(self.ptr, *args)

    def _check_divisible(self) -> None:
        """Raise UnsupportedError where llama.cpp would assert, or silently copy all."""
        if not self._context.kv_unified:
            raise UnsupportedError(
                "only a whole sequence can be copied between separate buffers: create the "
                "Context with kv_unified=True"
            )
        model = self._context.model.ptr
        if lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model):
            raise UnsupportedError("a recurrent model's sequence can only be copied as a whole")

    def _check(self, seq_id: int) -> None:
        n_seq_max = self._context.n_seq_max
        if not 0 <= seq_id < n_seq_max:
            raise ArgumentError(
                f"seq_id {seq_id} is not in 0 to {n_seq_max - 1}: create the Context with a "
                "larger n_seq_max"
            )


def _range(p0: int | None, p1: int | None) -> tuple[int, int]:
    """Return a range as C has it, where -1 is open."""
    for name, value in (("p0", p0), ("p1", p1)):
        if value is not None and not 0 <= value < 2**31:
            raise ArgumentError(f"{name}={value} is not a position: 0 to {2**31 - 1}, or None")
    return (-1 if p0 is None else p0, -1 if p1 is None else p1)


def _position(position: int) -> int | None:
    return None if position < 0 else position
