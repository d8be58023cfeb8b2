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
        """Return what is in memory, to be loaded by `load_state`.

        It does not include the outputs of the last batch, nor samplers; its size is that of the
        tokens in memory, not of the whole memory.

        Args:
            seq_id: The sequence; all of them if omitted.
            partial: Leave out what a rollback leaves in memory: save only the state of recurrent
                layers and the window of sliding-window attention.  Much smaller, but it can be
                loaded only where the tokens before are still in memory.  For models with neither,
                it is everything.

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
        """Replace what is in memory by what was saved.

        Another process may have saved it, from a context of the same model with other numbers of
        tokens and threads, and other devices.  Where sequences have a buffer each
        (``kv_unified=False``), ``n_seq_max`` must be the same.  Decode at least one token
        afterwards: there are no outputs.

        If it raises, the memory is as before.  To guarantee that, what it replaces is copied first,
        unless this process has saved the state and it certainly fits.

        Args:
            data: What `save_state` returned: any object with a buffer.
            seq_id: Where to load the state of one sequence; it may be another sequence than before.
                A partial state takes the sequence back: later tokens are forgotten.
            any_adapters: Load it even if it was computed with other `adapters` or another
                `control_vector` than are set now.

        Raises:
            StateError: It is of another model, llama.cpp or kind of memory, or computed with other
                adapters; it does not fit; it is incomplete or damaged.
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
        """Write what is in memory to a file, all of it or nothing.

        Args:
            path: The file; an existing one is replaced.
            tokens: Stored with it, usually those that are in memory; `load_file` returns them.
            seq_id: The sequence; all of them if omitted.
            partial: As for `save_state`.
            plain: Write llama.cpp's own file format, which its programs read; nothing in it says
                which model it belongs to.

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
        """Replace what is in memory by the content of a file; otherwise as `load_state`.

        It also reads llama.cpp's own files.  Those say little about their model and have no
        checksum: one from another model of the same shape, or with damaged numbers, is loaded.

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
        """Keep what is in memory of a sequence, to go back to it by `restore`.

        Faster than `save_state`, since nothing leaves the device.  It replaces the earlier snapshot
        of the same sequence.

        Args:
            seq_id: The sequence.
            partial: Keep only what removing tokens cannot bring back: the state of recurrent layers
                and the window of sliding-window attention.  The rest must still be in memory when
                it is restored.

        Raises:
            ArgumentError: ``seq_id`` is out of range.
            UnsupportedError: The model has no memory; or the keys or values are of a quantized
                type, which llama.cpp copies wrongly: use `save_state`.
            StateError: llama.cpp cannot keep it, or there is not enough memory: then the earlier
                snapshot is still valid.
            BusyError: Another thread is using the context.

        Source: ``llama_state_seq_get_data_ext`` with ``LLAMA_STATE_SEQ_FLAGS_ON_DEVICE``.
        """
        return self._snapshots.take(self.ptr, seq_id, partial)

    def restore(self, snapshot: Snapshot, *, seq_id: int | None = None) -> None:
        """Make a sequence what it was; afterwards there are no outputs.

        If it raises, the memory is as before.

        Args:
            snapshot: Of this context.
            seq_id: Another sequence to restore to.

        Raises:
            StateError: The snapshot is of another context, or a later one of its sequence has
                replaced it; or there is not enough memory.
            ArgumentError: ``seq_id`` is out of range.
            BusyError: Another thread is using the context.

        Source: ``llama_state_seq_set_data_ext`` with ``LLAMA_STATE_SEQ_FLAGS_ON_DEVICE``.
        """
        self._snapshots.restore(self.ptr, snapshot, seq_id)
