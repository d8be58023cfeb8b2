"""The methods of `Context` that save and restore its state."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ..batch.input import Tokens
    from .snapshot import Snapshot, Snapshots
    from .state import States


class StateMethods:
    """Saves and loads the state, and takes snapshots of sequences."""

    __slots__ = ()

    _snapshots: Snapshots
    _states: States
    if TYPE_CHECKING:

        @property
        def ptr(self) -> Any:
            """Of `ContextHandle`."""

    def save_state(self, *, seq_id: int | None = None, partial: bool = False) -> bytes:
        """Return the contents of memory, for `load_state`.

        It does not include the outputs of the last batch or the samplers.  Its size depends on the
        number of tokens in memory, not on ``n_ctx``.

        Args:
            seq_id: The sequence; all of them if omitted.
            partial: Save only what removing tokens cannot restore: the state of recurrent layers
                and the window of sliding-window attention.  It is much smaller, but can be loaded
                only while the earlier tokens are still in memory.  For models without such layers,
                everything is saved.

        Raises:
            ArgumentError: ``seq_id`` is out of range.
            UnsupportedError: The model has no memory.
            StateError: llama.cpp cannot save it.
            BusyError: Another thread is using the context.

        Source: ``llama_state_get_data``, ``llama_state_seq_get_data_ext``.
        """
        return self._states.save(self.ptr, seq_id, partial)

    def load_state(
        self, data: Buffer, *, seq_id: int | None = None, any_adapters: bool = False
    ) -> None:
        """Replace the contents of memory with a saved state.

        Another process may have saved it, from a context of the same model with other sizes,
        threads and devices.  If each sequence has its own buffer (``kv_unified=False``),
        ``n_seq_max`` must be the same.  There are no outputs until the next batch is decoded.

        If it raises, the memory is unchanged.  To guarantee that, the old contents are copied
        first, unless this process saved the state and it certainly fits.

        Args:
            data: What `save_state` returned: any object with a buffer.
            seq_id: The sequence to load the state of one sequence into, which may be another one
                than was saved.  A partial state removes later tokens of the sequence.
            any_adapters: Load it even if it was computed with other `adapters` or another
                `control_vector` than the current ones.

        Raises:
            StateError: It belongs to another model, llama.cpp or kind of memory, or was computed
                with other adapters; it does not fit; it is incomplete or damaged.
            ArgumentError: ``seq_id`` is missing, superfluous or out of range.
            BusyError: Another thread is using the context.

        Source: ``llama_state_set_data``, ``llama_state_seq_set_data_ext``.
        """
        self._states.load(self.ptr, data, seq_id, any_adapters)

    def save_file(
        self,
        path: str | os.PathLike[str],
        tokens: Tokens = (),
        *,
        seq_id: int | None = None,
        partial: bool = False,
        plain: bool = False,
    ) -> None:
        """Write the contents of memory to a file, completely or not at all.

        Args:
            path: The file; an existing one is replaced.
            tokens: Tokens to store with it, usually those in memory; `load_file` returns them.
            seq_id: The sequence; all of them if omitted.
            partial: As for `save_state`.
            plain: Write llama.cpp's own file format, which its programs can read.  It does not
                record which model it belongs to.

        Raises:
            OSError: It cannot be written.
            ArgumentError: ``seq_id`` is out of range, or both ``plain`` and ``partial`` are given.
            UnsupportedError: The model has no memory.
            StateError: llama.cpp cannot save it.
            BusyError: Another thread is using the context.

        Source: ``llama_state_save_file``, ``llama_state_seq_save_file``.
        """
        self._states.save_file(self.ptr, path, tokens, seq_id, partial, plain)

    def load_file(
        self,
        path: str | os.PathLike[str],
        *,
        seq_id: int | None = None,
        any_adapters: bool = False,
    ) -> list[int]:
        """Replace the contents of memory with those of a file, as `load_state` does.

        It also reads files in llama.cpp's own format.  These say little about their model and have
        no checksum, so a file of another model of the same shape, or with damaged data, is loaded.

        Returns:
            The tokens that were saved with it.

        Raises:
            ModelNotFoundError: The file does not exist.
            LoadError: It cannot be read.
            StateError: As for `load_state`.
            ArgumentError: As for `load_state`, or it is not a regular file.
            BusyError: Another thread is using the context.

        Source: ``llama_state_load_file``, ``llama_state_seq_load_file``.
        """
        return self._states.load_file(self.ptr, path, seq_id, any_adapters)

    def snapshot(self, seq_id: int = 0, *, partial: bool = False) -> Snapshot:
        """Take a snapshot of a sequence, for `restore`.

        This is faster than `save_state`, because the data stay on the device.  It replaces the
        earlier snapshot of the same sequence.

        Args:
            seq_id: The sequence.
            partial: Copy only what removing tokens cannot restore: the state of recurrent layers
                and the window of sliding-window attention.  The rest must still be in memory when
                the snapshot is restored.

        Raises:
            ArgumentError: ``seq_id`` is out of range.
            UnsupportedError: The model has no memory; or the keys or values are of a quantized
                type, which llama.cpp copies wrongly: use `save_state`.
            StateError: llama.cpp cannot take it, or there is not enough memory.  If memory is
                short, the earlier snapshot stays valid.
            BusyError: Another thread is using the context.

        Source: ``llama_state_seq_get_data_ext`` with ``LLAMA_STATE_SEQ_FLAGS_ON_DEVICE``.
        """
        return self._snapshots.take(self.ptr, seq_id, partial)

    def restore(self, snapshot: Snapshot, *, seq_id: int | None = None) -> None:
        """Restore a sequence from a snapshot.

        There are no outputs until the next batch is decoded.  If it raises, the memory is
        unchanged.

        Args:
            snapshot: A snapshot of this context.
            seq_id: The sequence to restore, if it is not the one that was copied.

        Raises:
            StateError: The snapshot belongs to another context, a later one of its sequence has
                replaced it, or there is not enough memory.
            ArgumentError: ``seq_id`` is out of range.
            BusyError: Another thread is using the context.

        Source: ``llama_state_seq_set_data_ext`` with ``LLAMA_STATE_SEQ_FLAGS_ON_DEVICE``.
        """
        self._snapshots.restore(self.ptr, snapshot, seq_id)
