"""Reading and replacing the state in the memory of a context; a failure changes nothing."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._core.atomic import explain_failure, replacing_path
from .._core.text import c_path, new_uncleared
from .._core.values import integer
from .._native import ffi, lib
from ..errors import NativeError, StateError, UnsupportedError
from ..log import drain, with_log
from .state_format import PLAIN_HEADER, SavedState, StateWriter

if TYPE_CHECKING:
    from pathlib import Path

    from .adapters import ActiveAdapters
    from .bookkeeping import Bookkeeping
    from .last_batch import LastBatch
    from .pools import Computing, Pools
    from .traits import ContextTraits

PARTIAL = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
# upstream: src/llama-context.cpp state_seq_get_data, io_magic: before the state of a sequence it
# writes a magic number and the id, which state_seq_save_file does not.
SEQUENCE_PREFIX = 8
# The state is copied with the threads for batches of several tokens.
SEVERAL = 2


class StateAccess:
    """Holds a context while its state is read or replaced.

    The first argument of its methods is the ``struct llama_context *``.
    """

    __slots__ = ("_abort", "_adapters", "_bookkeeping", "_computing", "_last", "_traits")

    def __init__(
        self,
        traits: ContextTraits,
        computing: Computing,
        last: LastBatch,
        bookkeeping: Bookkeeping,
        adapters: ActiveAdapters,
        abort: Any,
    ) -> None:
        self._traits, self._computing, self._last = traits, computing, last
        self._bookkeeping, self._adapters, self._abort = bookkeeping, adapters, abort

    def sequence(self, seq_id: int | None) -> int | None:
        """Check the number of a sequence, and return it; None means all.

        Raises:
            ArgumentError: It is out of range.
            TypeError: It is not an integer.
        """
        if seq_id is None:
            return None
        last = self._traits.n_seq_max - 1
        return integer("seq_id", seq_id, 0, last, ": create the Context with a larger n_seq_max")

    def hold(self, ptr: Any, *, loading: bool = False) -> HeldState:
        """Hold the context in a ``with`` block, after applying pending changes to its memory.

        Args:
            ptr: The context.
            loading: Whether the contents will be replaced: then a failure does not matter.

        Raises:
            UnsupportedError: The model has no memory.
        """
        if self._traits.memoryless:
            raise UnsupportedError("this model has no memory: it processes each batch on its own")
        return HeldState(self, self._computing, ptr, loading)

    def update(self, ptr: Any, loading: bool) -> None:
        """Apply pending changes to the memory; the caller holds the context.

        Raises:
            StateError: That failed, and no state is about to be loaded.
        """
        # upstream: src/llama-kv-cache.cpp init_update: llama.cpp shifts and copies just before the
        # next batch; without this, it would save the state as it was before.
        try:
            if not self._adapters.reserved:
                self._adapters.reserve(ptr)
            lib.llamacffi_memory_update(ptr, self._abort)
        except NativeError as error:
            self._adapters.reserve_anew(ptr)
            if not loading:
                raise StateError(
                    f"llama.cpp cannot apply the changes to its memory: {error}"
                ) from error

    def loaded(
        self, ptr: Any, seq_id: int | None, end: int | None, tokens: Sequence[int] = ()
    ) -> None:
        """Record that a state was loaded.

        Args:
            ptr: The context.
            seq_id: The sequence that it was loaded into; None means all.
            end: The last position, if the state was partial; otherwise None.
            tokens: The tokens that were saved with it.
        """
        self._last.flags = None  # the outputs do not belong to the new state
        if seq_id is not None and end is not None:
            self._bookkeeping.removed(seq_id, end + 1)
            return
        self._bookkeeping.loaded(seq_id)
        there = ends(ptr, seq_id)
        if len(there) == 1:  # otherwise we do not know which sequence the tokens belong to
            number, last = there.popitem()
            if last < len(tokens) and all(0 <= one < self._traits.n_vocab for one in tokens):
                self._bookkeeping.tokens.put(number, tokens[: last + 1])


class HeldState:
    """Holds a context during a ``with`` block: see `StateAccess.hold`."""

    def __init__(self, access: StateAccess, computing: Computing, ptr: Any, loading: bool) -> None:
        self._access, self._computing = access, computing
        self._ptr, self._loading = ptr, loading
        self._pools: Pools | None = None

    def __enter__(self) -> None:
        frame = sys._getframe(1)
        self._pools = pools = self._computing.enter(frame, SEVERAL)
        try:
            self._access.update(self._ptr, self._loading)
        except BaseException:  # also KeyboardInterrupt: Python does not call `__exit__` then
            self._computing.leave(frame, pools)
            raise

    def __exit__(self, *exc_info: object) -> None:
        assert self._pools is not None
        self._computing.leave(sys._getframe(1), self._pools)
        drain()


def save(
    ptr: Any, identity: Mapping[str, Any], tokens: bytes, seq_id: int | None, partial: bool
) -> bytes:
    """Return the state of a sequence, or of all.

    Raises:
        StateError: llama.cpp cannot save it.
    """
    drain()
    try:
        size = state_size(ptr, seq_id, PARTIAL if partial else 0)
        # A partial state that lacks nothing is complete, and can be loaded anywhere.
        partial = partial and size != state_size(ptr, seq_id, 0)
        kind = {"seq_id": seq_id, "partial": partial, "ends": ends(ptr, seq_id)}
        writer = StateWriter({**identity, **kind}, tokens, size)
        n_bytes = _save_to(ptr, writer.data, size, seq_id, PARTIAL if partial else 0)
    except NativeError as error:
        raise with_log(StateError(f"llama.cpp cannot save the state: {error}")) from error
    if not size or n_bytes != size:
        raise with_log(StateError(f"llama.cpp saved only {n_bytes} of {size} bytes of the state"))
    return writer.finish()


def save_plain(ptr: Any, path: str | os.PathLike[str], tokens: bytes, seq_id: int | None) -> None:
    """Write a file in llama.cpp's own format, completely or not at all.

    Raises:
        OSError: It cannot be written.
        StateError: llama.cpp cannot save it.
    """
    drain()
    n_tokens = len(tokens) // 4
    size = state_size(ptr, seq_id, 0)
    with replacing_path(path) as part:
        try:
            _write_plain(ptr, part, tokens, seq_id)
        except StateError:
            explain_failure(part, path)
            raise
        expected = PLAIN_HEADER.size + 4 * n_tokens + size
        written = part.stat().st_size + (0 if seq_id is None else SEQUENCE_PREFIX)
        if not size or written != expected:  # C ignores a failure to flush the last bytes
            explain_failure(part, path)
            reason = f"only {written} of {expected} bytes were written"
            raise OSError(errno.EIO, reason, os.fspath(path))


def _write_plain(ptr: Any, part: Path, tokens: bytes, seq_id: int | None) -> None:
    c_tokens, n_tokens = ffi.from_buffer("llama_token[]", tokens), len(tokens) // 4
    name = c_path(part)
    try:
        if seq_id is None:
            written = int(lib.llama_state_save_file(ptr, name, c_tokens, n_tokens))
        else:
            written = lib.llama_state_seq_save_file(ptr, name, seq_id, c_tokens, n_tokens)
    except NativeError as error:
        raise with_log(StateError(f"llama.cpp cannot save the state: {error}")) from error
    if not written:
        raise with_log(StateError("llama.cpp cannot save the state"))


def load(
    ptr: Any, saved: SavedState, seq_id: int | None, *, copy_first: bool, copy_all: bool = False
) -> None:
    """Load a state that fits the context.

    Args:
        ptr: The ``struct llama_context *``.
        saved: The state.
        seq_id: The sequence to load it into; None means all.
        copy_first: Back up the old state first, to restore it if llama.cpp cannot load this one.
        copy_all: Back up all sequences, because others share tokens with this one.

    Raises:
        StateError: llama.cpp cannot load it.
    """
    flags = PARTIAL if saved.partial else 0

    def put() -> None:
        # Release it at once: in a reference cycle, such as that of an exception, CPython would free
        # the view first.
        with ffi.from_buffer("uint8_t[]", saved.data) as source:
            n_bytes = _load_from(ptr, source, len(saved.data), seq_id, flags)
        if n_bytes != len(saved.data):
            raise StateError(
                f"llama.cpp cannot load the state: it read {n_bytes} of {len(saved.data)} bytes; "
                "if it does not fit, raise n_ctx or remove other sequences first"
            )
        # Saved again, the state has the same size if llama.cpp has understood all cells.
        if saved.data and (size := state_size(ptr, seq_id, flags)) != len(saved.data):
            raise StateError(
                f"the state is damaged: llama.cpp understood {size} of its {len(saved.data)} bytes"
            )
        check_positions(ptr)

    options = {"partial": saved.partial, "copy_first": copy_first, "copy_all": copy_all}
    replace(ptr, put, saved.ends, seq_id, **options)


def load_plain(
    ptr: Any, path: str | os.PathLike[str], seq_id: int | None, n_tokens: int
) -> list[int]:
    """Load a file in llama.cpp's own format, and return its tokens.

    Raises:
        StateError: llama.cpp cannot load it, or it is damaged.
    """
    tokens, count = ffi.new("llama_token[]", max(n_tokens, 1)), ffi.new("size_t *")
    name = c_path(path)

    def put() -> None:
        if seq_id is None:
            loaded = int(lib.llama_state_load_file(ptr, name, tokens, n_tokens, count))
        else:
            loaded = lib.llama_state_seq_load_file(ptr, name, seq_id, tokens, n_tokens, count)
        if not loaded or count[0] != n_tokens:
            raise StateError(f"llama.cpp cannot load {os.fspath(path)!r}")
        check_positions(ptr)

    # Back up everything: removing a sequence may not remove tokens at invalid positions.
    replace(ptr, put, None, seq_id, partial=False, copy_first=True, copy_all=True)
    found: list[int] = ffi.unpack(tokens, n_tokens)
    return found


def check_positions(ptr: Any) -> None:
    """Raise StateError if a sequence has invalid positions."""
    memory = lib.llama_get_memory(ptr)
    for i in range(lib.llama_n_seq_max(ptr)):
        first = lib.llama_memory_seq_pos_min(memory, i)
        last = lib.llama_memory_seq_pos_max(memory, i)
        if not (first == last == -1 or 0 <= first <= last < 2**31 - 1):
            raise StateError(f"the state is damaged: it has positions {first} to {last}")


def replace(
    ptr: Any,
    put: Callable[[], None],
    expected: Mapping[int, int] | None,
    seq_id: int | None,
    *,
    partial: bool,
    copy_first: bool,
    copy_all: bool = False,
) -> None:
    """Replace the contents of memory; if that fails, restore them.

    Args:
        ptr: The ``struct llama_context *``.
        put: Loads the new contents, or raises.
        expected: The last position of each sequence afterwards; None if it is not known.
        seq_id: The sequence to replace; None means all.
        partial: Whether the new state continues tokens that are in memory.
        copy_first: Whether to back up the contents, without which they cannot be restored.
        copy_all: Whether to back up all sequences.

    Raises:
        StateError: It failed.
    """
    memory = lib.llama_get_memory(ptr)
    end = max(expected.values()) if expected and partial else None
    if end is not None:
        assert seq_id is not None
        _check_continued(memory, end, seq_id)
    kept = None if copy_all else seq_id
    before = ends(ptr, kept)
    copy = _back_up(ptr, kept) if before and copy_first else None
    try:
        drain()
        if end is None and seq_id is not None:
            _remove(memory, seq_id)  # C keeps the old tokens if the saved sequence was empty
        put()
        if end is not None and seq_id is not None:
            lib.llama_memory_seq_rm(memory, seq_id, end + 1, -1)
        _check_ends(ptr, expected, seq_id)
    except (NativeError, StateError) as error:
        _remove(memory, kept)
        back = copy is not None and _load_from(ptr, copy, len(copy), kept, 0) == len(copy)
        lost = "; the tokens that it should have replaced are lost" if before and not back else ""
        cause = error if isinstance(error, NativeError) else None
        raise with_log(StateError(f"{error}{lost}")) from cause


def fits_surely(ptr: Any, saved: SavedState, seq_id: int | None) -> bool:
    """Return whether it is certain that llama.cpp can load a state.

    That is never certain of a state that another process saved: it may have been modified and given
    a new checksum.
    """
    was = saved.identity
    if not saved.is_own:
        return False
    if was["n_ctx_seq"] > lib.llama_n_ctx_seq(ptr):
        return False
    if seq_id is None:
        n_swa = lib.llama_model_n_swa(lib.llama_get_model(ptr))
        return bool(was["n_seq_max"] <= lib.llama_n_seq_max(ptr) and not n_swa)
    return was["params"].get("n_buffers") != 1 or set(ends(ptr, None)) <= {seq_id}


def ends(ptr: Any, seq_id: int | None) -> dict[int, int]:
    """Return the last position of a sequence, or of all (None); empty ones are omitted."""
    memory = lib.llama_get_memory(ptr)
    seq_ids = range(lib.llama_n_seq_max(ptr)) if seq_id is None else [seq_id]
    found = {i: lib.llama_memory_seq_pos_max(memory, i) for i in seq_ids}
    return {i: end for i, end in found.items() if end >= 0}


def state_size(ptr: Any, seq_id: int | None, flags: int) -> int:
    """Return the size of a state in bytes; 0 if llama.cpp cannot save it."""
    if seq_id is None:
        return int(lib.llama_state_get_size(ptr))
    return int(lib.llama_state_seq_get_size_ext(ptr, seq_id, flags))


def _save_to(ptr: Any, target: Any, size: int, seq_id: int | None, flags: int) -> int:
    if seq_id is None:
        return int(lib.llama_state_get_data(ptr, target, size))
    return int(lib.llama_state_seq_get_data_ext(ptr, target, size, seq_id, flags))


def _load_from(ptr: Any, source: Any, size: int, seq_id: int | None, flags: int) -> int:
    if seq_id is None:
        return int(lib.llama_state_set_data(ptr, source, size))
    return int(lib.llama_state_seq_set_data_ext(ptr, source, size, seq_id, flags))


def _back_up(ptr: Any, seq_id: int | None) -> Any:
    """Return a complete copy of the state, because llama.cpp clears what it fails to load."""
    size = state_size(ptr, seq_id, 0)
    copy = new_uncleared("uint8_t[]", size)
    if not size or _save_to(ptr, copy, size, seq_id, 0) != size:
        raise with_log(StateError("llama.cpp cannot save what the state would replace"))
    return copy


def _remove(memory: Any, seq_id: int | None) -> None:
    if seq_id is None:
        lib.llama_memory_clear(memory, True)
    else:
        lib.llama_memory_seq_rm(memory, seq_id, -1, -1)


def _check_continued(memory: Any, end: int, seq_id: int) -> None:
    """Check that the tokens that a partial state continues are still in memory."""
    there = lib.llama_memory_seq_pos_max(memory, seq_id)
    if there < end:
        raise StateError(
            f"a partial state continues the tokens up to position {end}, but sequence {seq_id} "
            + (f"ends at {there}" if there >= 0 else "is empty")
        )


def _check_ends(ptr: Any, expected: Mapping[int, int] | None, seq_id: int | None) -> None:
    """Check that the sequences end where those of the saved state do."""
    if expected is None:
        return
    wanted = dict(expected)
    if seq_id is not None and wanted:
        wanted = {seq_id: max(wanted.values())}
    found = ends(ptr, seq_id)
    if found != wanted:
        raise StateError(
            f"llama.cpp loaded the state wrongly: sequences end at {found} instead of {wanted}"
        )
