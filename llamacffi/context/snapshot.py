"""Snapshots: copies of a sequence of a context that stay on its device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._core.unique import Unique
from .._core.values import flag
from .._native import ffi, lib
from ..errors import NativeError, StateError, UnsupportedError
from ..log import drain, with_log
from .snapshot_room import Mark, check_room, check_room_to_restore
from .state_io import PARTIAL, StateAccess, ends, replace, state_size

if TYPE_CHECKING:
    from .bookkeeping import Bookkeeping
    from .traits import ContextTraits


class Snapshot(Unique):
    """The state of a sequence when `Context.snapshot` was called.

    The data are in the memory of the device and belong to the context.  The context keeps one
    snapshot of each sequence, which is valid until the next snapshot of the same sequence.
    """

    _instead = "Context.save_state() returns bytes, which can be"

    __slots__ = ("_mark", "_meta", "_tokens", "end", "partial", "seq_id")

    seq_id: int
    """The sequence that was copied."""
    partial: bool
    """Whether it lacks the data that remain in memory when tokens are removed."""
    end: int | None
    """The last position; None if the sequence was empty."""

    def __init__(self, seq_id: int, partial: bool, end: int | None, mark: Mark) -> None:
        """Describe a snapshot; `Context.snapshot` calls this."""
        self.seq_id, self.partial, self.end = seq_id, partial, end
        self._mark = mark
        self._meta: Any = None
        self._tokens: Any = None

    def __repr__(self) -> str:
        what = "empty" if self.end is None else f"up to position {self.end}"
        return f"<Snapshot of sequence {self.seq_id}, {what}>"


class Snapshots:
    """Takes and restores snapshots of the sequences of a context.

    The first argument of its methods is the ``struct llama_context *``.
    """

    __slots__ = ("_access", "_bookkeeping", "_marks", "_traits")

    def __init__(
        self, traits: ContextTraits, access: StateAccess, bookkeeping: Bookkeeping
    ) -> None:
        self._traits, self._access, self._bookkeeping = traits, access, bookkeeping
        # By sequence: the mark of its valid snapshot.
        self._marks: dict[int, Mark] = {}

    def take(self, ptr: Any, seq_id: int, partial: bool) -> Snapshot:
        """Take a snapshot; see `Context.snapshot`."""
        number, partial = self._access.sequence(seq_id), flag("partial", partial)
        if number is None:
            raise TypeError("a snapshot holds one sequence: seq_id must be an integer, not None")
        with self._access.hold(ptr):
            drain()
            partial = partial and state_size(ptr, number, PARTIAL) != state_size(ptr, number, 0)
            self._check_types(partial)
            end, mark = ends(ptr, number).get(number), Mark()
            if end is not None:
                check_room(ptr, number, _flags(partial), self._marks.get(number), mark)
            self._marks[number] = mark  # this invalidates the earlier snapshot
            snapshot = Snapshot(number, partial, end, mark)
            snapshot._tokens = self._bookkeeping.tokens.kept(number)
            if end is not None:
                snapshot._meta = _copy_on_device(ptr, number, _flags(partial))
            return snapshot

    def restore(self, ptr: Any, snapshot: Snapshot, seq_id: int | None) -> None:
        """Restore a sequence; see `Context.restore`."""
        if not isinstance(snapshot, Snapshot):
            raise TypeError(f"restore() needs what snapshot() returned, not {snapshot!r}")
        number = self._access.sequence(seq_id)
        target = snapshot.seq_id if number is None else number
        with self._access.hold(ptr, loading=True):
            mark = snapshot._mark
            if mark is None or self._marks.get(snapshot.seq_id) is not mark:
                raise StateError(
                    f"{snapshot!r} is invalid: a later snapshot has replaced it, or it belongs to "
                    "another context"
                )
            flags = _flags(snapshot.partial)
            if snapshot.end is not None:
                check_room_to_restore(mark)

            def load() -> None:
                if snapshot.end is None:
                    return
                meta = snapshot._meta
                n = lib.llama_state_seq_set_data_ext(ptr, meta, len(meta), target, flags)
                if n != len(meta):
                    raise StateError(
                        f"llama.cpp cannot restore {snapshot!r}: if it does not fit, remove other "
                        "sequences first"
                    )

            expected = {} if snapshot.end is None else {target: snapshot.end}
            shared = self._traits.kv_unified and set(ends(ptr, None)) - {target}
            replace(ptr, load, expected, target, partial=snapshot.partial, copy_first=bool(shared))
            self._access.loaded(ptr, target, snapshot.end if snapshot.partial else None)
            if not snapshot.partial:
                self._bookkeeping.tokens.restored(target, snapshot._tokens)

    def _check_types(self, partial: bool) -> None:
        """Check that llama.cpp can copy the data of a snapshot on a device.

        upstream: src/llama-context.cpp llama_io_write_device: it takes the number of blocks of a
        quantized tensor for the number of elements, and so copies only a part.
        """
        model, params = self._traits.model.ptr, self._traits.params
        hybrid = self._traits.has_state and not self._traits.recurrent
        states_alone = self._traits.recurrent or (
            partial and hybrid and not lib.llama_model_n_swa(model)
        )
        for name in ("type_k", "type_v"):
            if not states_alone and lib.ggml_is_quantized(getattr(params, name)):
                raise UnsupportedError(
                    f"llama.cpp cannot take a snapshot if {name} is quantized: use save_state()"
                )


def _flags(partial: bool) -> int:
    """Return the flags for C."""
    flags: int = lib.LLAMA_STATE_SEQ_FLAGS_ON_DEVICE
    return flags | PARTIAL if partial else flags


def _copy_on_device(ptr: Any, seq_id: int, flags: int) -> Any:
    """Copy a sequence on the device, and return the part that C stores in main memory."""
    try:
        size = state_size(ptr, seq_id, flags)
        meta = ffi.new("uint8_t[]", size)
        if not size or lib.llama_state_seq_get_data_ext(ptr, meta, size, seq_id, flags) != size:
            raise with_log(StateError(f"llama.cpp cannot take a snapshot of sequence {seq_id}"))
    except NativeError as error:
        raise with_log(
            StateError(f"llama.cpp cannot take a snapshot of sequence {seq_id}: {error}")
        ) from error
    return meta
