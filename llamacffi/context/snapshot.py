"""What a context remembers of one sequence, kept on its device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._core.unique import Unique
from .._core.values import flag
from .._native import ffi, lib
from ..errors import NativeError, StateError, UnsupportedError
from ..log import drain, with_log
from .snapshot_room import Mark, check_room, check_room_to_restore
from .state_io import PARTIAL, Remembering, ends, replace, state_size

if TYPE_CHECKING:
    from .base import ContextBase


class Snapshot(Unique):
    """What a context remembered of a sequence when `Context.snapshot` was called.

    The numbers are in the memory of the device, and belong to the context.  It keeps one snapshot
    of a sequence: that is valid until the next one of the same sequence.
    """

    _instead = "Context.save_state() returns bytes, which can be"

    __slots__ = ("_mark", "_meta", "_tokens", "end", "partial", "seq_id")

    seq_id: int
    """The sequence that it is of."""
    partial: bool
    """Whether it lacks what a rollback leaves in memory."""
    end: int | None
    """The last position; None if the sequence was empty."""

    def __init__(self, seq_id: int, partial: bool, end: int | None, mark: Mark) -> None:
        """Describe one; made by `Context.snapshot`."""
        self.seq_id, self.partial, self.end = seq_id, partial, end
        self._mark = mark
        self._meta: Any = None
        self._tokens: Any = None

    def __repr__(self) -> str:
        what = "empty" if self.end is None else f"up to position {self.end}"
        return f"<Snapshot of sequence {self.seq_id}, {what}>"


class Snapshots(Remembering):
    """The part of a `Context` that goes back to what it was."""

    __slots__ = ()

    def snapshot(self, seq_id: int = 0, *, partial: bool = False) -> Snapshot:
        """Keep what is in memory of a sequence, to go back to it by `restore`.

        Faster than `save_state`, since nothing leaves the device.  It replaces the snapshot before
        of the same sequence.

        Args:
            seq_id: The sequence.
            partial: Only what cannot be had again by removing tokens: the state of recurrent layers
                and the window of sliding-window attention.  The rest must still be there when it
                is restored.

        Raises:
            ArgumentError: There is no such sequence.
            UnsupportedError: The model has no memory; or the keys or values are of a quantized
                type, which llama.cpp copies wrongly: use `save_state`.
            StateError: llama.cpp cannot keep it, or there is no room for it: then the snapshot
                before is still valid.
            BusyError: Another thread is using the context.

        Source: ``llama_state_seq_get_data_ext`` with ``LLAMA_STATE_SEQ_FLAGS_ON_DEVICE``.
        """
        number, partial = self._sequence(seq_id), flag("partial", partial)
        if number is None:
            raise TypeError("a snapshot is of one sequence: seq_id must be an integer, not None")
        return self._snapshot_of(number, partial)

    def _snapshot_of(self, seq_id: int, partial: bool) -> Snapshot:
        with self._remembering() as ptr:
            drain()
            partial = partial and state_size(ptr, seq_id, PARTIAL) != state_size(ptr, seq_id, 0)
            _check_types(self, ptr, partial)
            end, mark = ends(ptr, seq_id).get(seq_id), Mark()
            if end is not None:
                check_room(ptr, seq_id, _flags(partial), self._snapshots.get(seq_id), mark)
            self._snapshots[seq_id] = mark  # from here on the one before is not valid
            snapshot = Snapshot(seq_id, partial, end, mark)
            snapshot._tokens = self._bookkeeping.tokens.kept(seq_id)
            if snapshot.end is not None:
                snapshot._meta = _keep(ptr, seq_id, _flags(partial))
            return snapshot

    def restore(self, snapshot: Snapshot, *, seq_id: int | None = None) -> None:
        """Make a sequence again what it was; there are no outputs then.

        If it raises, the memory is as before.

        Args:
            snapshot: Of this context.
            seq_id: Another sequence to restore to.

        Raises:
            StateError: The snapshot is of another context, or a later one of its sequence has
                replaced it; or there is no room.
            ArgumentError: There is no such sequence.
            BusyError: Another thread is using the context.

        Source: ``llama_state_seq_set_data_ext`` with ``LLAMA_STATE_SEQ_FLAGS_ON_DEVICE``.
        """
        if not isinstance(snapshot, Snapshot):
            raise TypeError(f"restore takes what snapshot() returned, not {snapshot!r}")
        number = self._sequence(seq_id)
        target = snapshot.seq_id if number is None else number
        with self._remembering(loading=True) as ptr:
            mark = snapshot._mark
            if mark is None or self._snapshots.get(snapshot.seq_id) is not mark:
                raise StateError(
                    f"{snapshot!r} is not valid: a later one has replaced it, or it is of another "
                    "context"
                )
            flags = _flags(snapshot.partial)
            if snapshot.end is not None:
                check_room_to_restore(mark)

            def put() -> None:
                if snapshot.end is None:
                    return
                meta = snapshot._meta
                n = lib.llama_state_seq_set_data_ext(ptr, meta, len(meta), target, flags)
                if n != len(meta):
                    raise StateError(
                        f"llama.cpp cannot restore {snapshot!r}: is there room for it?"
                    )

            there = {} if snapshot.end is None else {target: snapshot.end}
            shared = self.kv_unified and set(ends(ptr, None)) - {target}
            replace(ptr, put, there, target, partial=snapshot.partial, copy_first=bool(shared))
            self._forget_outputs(target, snapshot.end if snapshot.partial else None)
            if not snapshot.partial:
                self._bookkeeping.tokens.restored(target, snapshot._tokens)


def _flags(partial: bool) -> int:
    flags: int = lib.LLAMA_STATE_SEQ_FLAGS_ON_DEVICE
    return flags | PARTIAL if partial else flags


def _keep(ptr: Any, seq_id: int, flags: int) -> Any:
    """Keep a sequence on the device, and return what is left for the host to know."""
    try:
        size = state_size(ptr, seq_id, flags)
        meta = ffi.new("uint8_t[]", size)
        if not size or lib.llama_state_seq_get_data_ext(ptr, meta, size, seq_id, flags) != size:
            raise with_log(StateError(f"llama.cpp cannot keep a snapshot of sequence {seq_id}"))
    except NativeError as error:
        raise with_log(
            StateError(f"llama.cpp cannot keep a snapshot of sequence {seq_id}: {error}")
        ) from error
    return meta


def _check_types(context: ContextBase, ptr: Any, partial: bool) -> None:
    """Check that what is to be copied is of types that llama.cpp copies rightly on a device.

    It counts the blocks of a quantized tensor as numbers, and copies a part of them.
    """
    model = lib.llama_get_model(ptr)
    states_alone = lib.llama_model_is_recurrent(model) or (
        partial and lib.llama_model_is_hybrid(model) and not lib.llama_model_n_swa(model)
    )
    for name in ("type_k", "type_v"):
        if not states_alone and lib.ggml_is_quantized(getattr(context._params, name)):
            raise UnsupportedError(
                f"llama.cpp cannot keep a snapshot where {name} is quantized: use save_state()"
            )
