"""Saving and loading the state of a context, as bytes or files."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from .._core.atomic import replacing
from .._core.text import path_text
from .._core.values import flag
from ..errors import ArgumentError, StateError
from ..gguf.open_files import opened
from . import state_format as format
from .fingerprint import fingerprint
from .state_format import SavedState
from .state_format import StateInfo as StateInfo
from .state_io import StateAccess, fits_surely, load, load_plain, save, save_plain

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ..batch.input import Tokens
    from .adapters import ActiveAdapters
    from .bookkeeping import Bookkeeping
    from .traits import ContextTraits

# More than enough for the length and the name of an architecture.
ARCHITECTURE_BYTES = 256


def state_info(source: str | os.PathLike[str] | Buffer) -> StateInfo:
    """Return the description of a saved state, without loading it or verifying its checksum.

    Args:
        source: The path of a file, which may be in llama.cpp's own format; or the bytes that
            `Context.save_state` returned.

    Raises:
        ModelNotFoundError: The file does not exist.
        LoadError: The file cannot be read.
        ArgumentError: It is not a regular file.
        StateError: It is not a saved state, or it is incomplete or damaged.
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


class States:
    """Saves and loads the state of a context.

    The first argument of its methods is the ``struct llama_context *``.
    """

    __slots__ = ("_access", "_adapters", "_bookkeeping", "_traits")

    def __init__(
        self,
        traits: ContextTraits,
        access: StateAccess,
        bookkeeping: Bookkeeping,
        adapters: ActiveAdapters,
    ) -> None:
        self._traits, self._access = traits, access
        self._bookkeeping, self._adapters = bookkeeping, adapters

    def save(self, ptr: Any, seq_id: int | None, partial: bool) -> bytes:
        """Return the state; see `Context.save_state`."""
        seq_id, partial = self._access.sequence(seq_id), flag("partial", partial)
        with self._access.hold(ptr):
            return save(ptr, self._fingerprint(ptr), b"", seq_id, partial)

    def load(self, ptr: Any, data: Buffer, seq_id: int | None, any_adapters: bool) -> None:
        """Replace the state; see `Context.load_state`."""
        any_adapters = flag("any_adapters", any_adapters)
        saved, seq_id = format.parse(data), self._access.sequence(seq_id)
        self._load(ptr, saved, seq_id, any_adapters)

    def save_file(
        self,
        ptr: Any,
        path: str | os.PathLike[str],
        tokens: Tokens,
        seq_id: int | None,
        partial: bool,
        plain: bool,
    ) -> None:
        """Write the state to a file; see `Context.save_file`."""
        from ..batch.input import token_array  # needs numpy

        seq_id, partial = self._access.sequence(seq_id), flag("partial", partial)
        if flag("plain", plain) and partial:
            raise ArgumentError(
                "a file with plain=True cannot hold a partial state: leave out plain or partial"
            )
        array = token_array(tokens).astype("int32")
        with self._access.hold(ptr):
            if plain:
                save_plain(ptr, path, array.tobytes(), seq_id)
                return
            content = save(ptr, self._fingerprint(ptr), array.tobytes(), seq_id, partial)
        with replacing(path) as file:
            file.write(content)

    def load_file(
        self, ptr: Any, path: str | os.PathLike[str], seq_id: int | None, any_adapters: bool
    ) -> list[int]:
        """Replace the state with that of a file; see `Context.load_file`."""
        name = repr(path_text(path))
        seq_id, any_adapters = self._access.sequence(seq_id), flag("any_adapters", any_adapters)
        with opened(path) as file:
            head = file.read(format.HEADER.size)
            if not head.startswith(format.MAGIC):
                magic, n_tokens = format.parse_plain(head, file.size, name)
                if magic == format.WHOLE:
                    start = format.PLAIN_HEADER.size + 4 * n_tokens
                    head = os.pread(file.descriptor, ARCHITECTURE_BYTES, start)
                    self._check_architecture(head, name)
                _check_kind(magic == format.SEQUENCE, seq_id, name)
                return self._load_plain(ptr, path, seq_id, n_tokens)
            format.check_size(head, file.size, name)
            content = bytearray(file.size)
            with open(file.descriptor, "rb", closefd=False) as stream:
                stream.seek(0)
                n_bytes = stream.readinto(content)
            saved = format.parse(memoryview(content)[:n_bytes], name)
        self._load(ptr, saved, seq_id, any_adapters, name)
        return saved.tokens

    def _fingerprint(self, ptr: Any) -> dict[str, Any]:
        return fingerprint(ptr, self._traits, self._adapters)

    def _load(
        self,
        ptr: Any,
        saved: SavedState,
        seq_id: int | None,
        any_adapters: bool,
        name: str = "the state",
    ) -> None:
        """Load a state that was found to be complete and undamaged."""
        _check_kind(saved.seq_id is not None, seq_id, name)
        with self._access.hold(ptr, loading=True):
            present = self._fingerprint(ptr)
            reasons = "; ".join(
                format.differences(saved.identity, present, adapters=not any_adapters)
            )
            if reasons:
                raise StateError(f"{name} does not fit this context: {reasons}")
            if seq_id is None:
                self._check_architecture(bytes(saved.data[:ARCHITECTURE_BYTES]), name)
            shared = seq_id is not None and self._bookkeeping.shared_until(seq_id) > 0
            copy_first = not fits_surely(ptr, saved, seq_id)
            # Removing a sequence may not remove tokens at invalid positions: so copy everything.
            copy_all = shared or not saved.is_own
            try:
                load(ptr, saved, seq_id, copy_first=copy_first, copy_all=copy_all)
            except StateError:
                self._bookkeeping.put_back()
                raise
            self._access.loaded(ptr, seq_id, saved.end if saved.partial else None, saved.tokens)

    def _load_plain(
        self, ptr: Any, path: str | os.PathLike[str], seq_id: int | None, n_tokens: int
    ) -> list[int]:
        """Load a file in llama.cpp's own format, and return its tokens."""
        with self._access.hold(ptr, loading=True):
            tokens = load_plain(ptr, path, seq_id, n_tokens)
            self._access.loaded(ptr, seq_id, None, tokens)
            return tokens

    def _check_architecture(self, start: bytes, name: str) -> None:
        """Check the name of the architecture, with which llama.cpp's data of all sequences start.

        upstream: src/llama-context.cpp state_read_data, read_string: it trusts the length of the
        name, and allocates that much memory.
        """
        architecture = self._traits.model.architecture
        wanted = architecture.encode()
        if not start.startswith(len(wanted).to_bytes(4, sys.byteorder) + wanted):
            raise StateError(
                f"{name} belongs to another model: its architecture is not {architecture!r}"
            )


def _check_kind(of_one: bool, seq_id: int | None, name: str) -> None:
    """Check that ``seq_id`` is given for the state of one sequence, and only then."""
    if of_one and seq_id is None:
        raise ArgumentError(f"{name} holds one sequence: give seq_id, the sequence to load it into")
    if not of_one and seq_id is not None:
        raise ArgumentError(
            f"{name} holds all sequences: leave out seq_id={seq_id}, or save one sequence"
        )
