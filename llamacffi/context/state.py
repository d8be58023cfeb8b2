"""What a context remembers, as bytes and as files."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from .._core.atomic import replacing
from .._core.text import path_text
from .._core.values import flag
from ..errors import ArgumentError, StateError
from ..gguf.open_files import opened
from . import state_format as format
from .fingerprint import identity
from .state_format import SavedState
from .state_format import StateInfo as StateInfo
from .state_io import Remembering, fits_surely, load, load_plain, save, save_plain

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ..batch.input import Tokens

# At least as many as the name of an architecture has, and its length.
ARCHITECTURE_BYTES = 256


def state_info(source: str | os.PathLike[str] | Buffer) -> StateInfo:
    """Return what a saved state says of itself; nothing is loaded, nor is its checksum checked.

    Args:
        source: The path of a file, llama.cpp's own too; or what `Context.save_state` returned.

    Raises:
        ModelNotFoundError: There is no such file.
        LoadError: It cannot be read.
        ArgumentError: It is no regular file.
        StateError: It is no saved state, incomplete or damaged.
    """
    if isinstance(source, (str, os.PathLike)):
        with opened(source) as file:
            return format.describe(
                lambda start, size: os.pread(file.descriptor, size, start),
                file.size,
                repr(os.fspath(source)),
            )
    view = format.byte_view(source)
    return format.describe(
        lambda start, size: bytes(view[start : start + size]), len(view), "the state"
    )


class States(Remembering):
    """The part of a `Context` that saves and loads what it remembers."""

    __slots__ = ()

    def save_state(self, *, seq_id: int | None = None, partial: bool = False) -> bytes:
        """Return what is in memory, to be loaded by `load_state`.

        The outputs of the last batch are not part of it, nor are samplers; its size is that of the
        tokens which are there, not of the whole memory.

        Args:
            seq_id: The sequence; all of them if omitted.
            partial: Without what a rollback leaves in memory: only the state of recurrent layers
                and the window of sliding-window attention.  Much smaller, but it can be loaded only
                where the tokens before are still in memory.  For models with neither, it is all.

        Raises:
            ArgumentError: There is no such sequence.
            UnsupportedError: The model has no memory.
            StateError: llama.cpp cannot save it.
            BusyError: Another thread is using the context.

        Source: ``llama_state_get_data``, ``llama_state_seq_get_data_ext``.
        """
        seq_id, partial = self._sequence(seq_id), flag("partial", partial)
        with self._remembering() as ptr:
            return save(ptr, identity(self), b"", seq_id, partial)

    def load_state(
        self, data: Buffer, *, seq_id: int | None = None, any_adapters: bool = False
    ) -> None:
        """Replace what is in memory by what was saved.

        It may have been saved in another process, by a context of the same model with other numbers
        of tokens and threads, and other devices.  Where sequences have a buffer each
        (``kv_unified=False``), ``n_seq_max`` must be the same.  Decode at least one token
        afterwards: there are no outputs.

        If it raises, the memory is as before.  To be sure of that, what it replaces is copied
        first, unless this process has saved the state and it is certain that it fits.

        Args:
            data: What `save_state` returned: any object with a buffer.
            seq_id: Where to load the state of one sequence; it need not be the same.  A partial one
                takes the sequence back: later tokens are forgotten.
            any_adapters: Take it also if it was computed with other `adapters` or another
                `control_vector` than are set now.

        Raises:
            StateError: It is of another model, llama.cpp or kind of memory, or computed with other
                adapters; it does not fit; it is incomplete or damaged.
            ArgumentError: ``seq_id`` is missing, or too much, or there is no such sequence.
            BusyError: Another thread is using the context.

        Source: ``llama_state_set_data``, ``llama_state_seq_set_data_ext``.
        """
        any_adapters = flag("any_adapters", any_adapters)
        self._load(format.parse(data), self._sequence(seq_id), any_adapters)

    def save_file(
        self,
        path: str | os.PathLike[str],
        tokens: Tokens = (),
        *,
        seq_id: int | None = None,
        partial: bool = False,
        plain: bool = False,
    ) -> None:
        """Write what is in memory to a file, at once or not at all.

        Args:
            path: The file; one that is there is replaced.
            tokens: Kept with it, usually those that are in memory; `load_file` returns them.
            seq_id: The sequence; all of them if omitted.
            partial: As for `save_state`.
            plain: Write a file of llama.cpp's own, which its programs read; nothing in it says what
                it is of.

        Raises:
            OSError: It cannot be written.
            ArgumentError: There is no such sequence, or it cannot be both ``plain`` and
                ``partial``.
            UnsupportedError: The model has no memory.
            StateError: llama.cpp cannot save it.
            BusyError: Another thread is using the context.

        Source: ``llama_state_save_file``, ``llama_state_seq_save_file``.
        """
        from ..batch.input import token_array  # takes numpy, which the rest need not

        seq_id, partial = self._sequence(seq_id), flag("partial", partial)
        if flag("plain", plain) and partial:
            raise ArgumentError(
                "a file with plain=True has no place for partial=True: leave out one of them"
            )
        array = token_array(tokens).astype("int32")
        with self._remembering() as ptr:
            if plain:
                save_plain(ptr, path, array.tobytes(), seq_id)
                return
            content = save(ptr, identity(self), array.tobytes(), seq_id, partial)
        with replacing(path) as file:
            file.write(content)

    def load_file(
        self,
        path: str | os.PathLike[str],
        *,
        seq_id: int | None = None,
        any_adapters: bool = False,
    ) -> list[int]:
        """Replace what is in memory by what a file has; otherwise as `load_state`.

        Files of llama.cpp's own are read too.  They say little of what they are of, and have no
        checksum: one of another model of the same shape, or damaged in its numbers, is not found
        out.

        Returns:
            The tokens that were saved with it.

        Raises:
            ModelNotFoundError: There is no such file.
            LoadError: It cannot be read.
            StateError: As for `load_state`.
            ArgumentError: As for `load_state`, or it is no regular file.
            BusyError: Another thread is using the context.

        Source: ``llama_state_load_file``, ``llama_state_seq_load_file``.
        """
        name = repr(path_text(path))
        seq_id, any_adapters = self._sequence(seq_id), flag("any_adapters", any_adapters)
        with opened(path) as file:
            head = file.read(format.HEADER.size)
            if not head.startswith(format.MAGIC):
                magic, n_tokens = format.parse_plain(head, file.size, name)
                if magic == format.WHOLE:
                    start = format.PLAIN_HEADER.size + 4 * n_tokens
                    head = os.pread(file.descriptor, ARCHITECTURE_BYTES, start)
                    self._check_architecture(head, name)
                _check_kind(magic == format.SEQUENCE, seq_id, name)
                return self._load_plain(path, seq_id, n_tokens)
            format.check_size(head, file.size, name)
            content = bytearray(file.size)
            with open(file.descriptor, "rb", closefd=False) as stream:
                stream.seek(0)
                n_bytes = stream.readinto(content)
            saved = format.parse(memoryview(content)[:n_bytes], name)
        self._load(saved, seq_id, any_adapters, name)
        return saved.tokens

    def _load(
        self, saved: SavedState, seq_id: int | None, any_adapters: bool, name: str = "the state"
    ) -> None:
        """Load a state that is complete and not damaged."""
        _check_kind(saved.seq_id is not None, seq_id, name)
        with self._remembering(loading=True) as ptr:
            present = identity(self)
            found = format.differences(saved.identity, present, adapters=not any_adapters)
            reasons = "; ".join(found)
            if reasons:
                raise StateError(f"{name} does not fit this context: {reasons}")
            if seq_id is None:
                self._check_architecture(bytes(saved.data[:ARCHITECTURE_BYTES]), name)
            shared = seq_id is not None and self._bookkeeping.shared_until(seq_id) > 0
            copy_first = not fits_surely(ptr, saved, seq_id)
            # A position that there is not may be one that no removal of a sequence finds.
            copy_all = shared or not saved.is_own
            try:
                load(ptr, saved, seq_id, copy_first=copy_first, copy_all=copy_all)
            except StateError:
                self._bookkeeping.put_back()
                raise
            self._forget_outputs(seq_id, saved.end if saved.partial else None, saved.tokens)

    def _load_plain(
        self, path: str | os.PathLike[str], seq_id: int | None, n_tokens: int
    ) -> list[int]:
        """Load one of llama.cpp's own files, and return its tokens."""
        with self._remembering(loading=True) as ptr:
            tokens = load_plain(ptr, path, seq_id, n_tokens)
            self._forget_outputs(seq_id, None, tokens)
            return tokens

    def _check_architecture(self, start: bytes, name: str) -> None:
        """Check the name that llama.cpp's data of all sequences begin with.

        C would believe any length of it, and reserve as much memory.
        """
        wanted = self.model.metadata["general.architecture"].encode()
        if not start.startswith(len(wanted).to_bytes(4, sys.byteorder) + wanted):
            raise StateError(f"{name} is of another model: its architecture is not {wanted!r}")


def _check_kind(of_one: bool, seq_id: int | None, name: str) -> None:
    """Check that a state of one sequence goes into one, and one of all into all."""
    if of_one and seq_id is None:
        raise ArgumentError(f"{name} is of one sequence: say with seq_id= where to load it")
    if not of_one and seq_id is not None:
        raise ArgumentError(f"{name} is of all sequences; save one alone with seq_id={seq_id}")
