"""The format of saved states: llama.cpp's data, behind a header that says where they fit.

llama.cpp's data begin with little that it could check: it would take those of another model of the
same shape, or damaged ones, and compute nonsense.  The header has a checksum of everything, and
what the state depends on, as JSON.
"""

from __future__ import annotations

import array
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .._native import ffi, lib
from ..errors import StateError
from ..model.weights import same_weights

FOREIGN = "was not saved by llamacffi or llama.cpp"
MAGIC = b"llcffi\x1a\n"  # the end shows what a transfer as text has done to it
VERSION = 2
# Magic, version, checksum of all that follows it, and the sizes of the three parts: the identity in
# bytes, the tokens in number, llama.cpp's data in bytes.
HEADER = struct.Struct("<8sIIIIQ")
CHECKED_FROM = 16
# Of llama.cpp's own files: magic, version, number of tokens.
PLAIN_HEADER = struct.Struct("<III")
SEQUENCE, WHOLE = lib.LLAMA_STATE_SEQ_MAGIC, lib.LLAMA_SESSION_MAGIC
PLAIN_VERSIONS = {SEQUENCE: lib.LLAMA_STATE_SEQ_VERSION, WHOLE: lib.LLAMA_SESSION_VERSION}

# What the identity must have; see `identity` in _identity.py.
KINDS: Mapping[str, Any] = {
    "llama.cpp": str,
    "model": dict,
    "params": dict,
    "adapters": list,
    "control vector": list,
    "n_ctx_seq": int,
    "n_seq_max": int,
    "seq_id": (int, type(None)),
    "partial": bool,
    "ends": dict,
}


# The checksums and sizes of what this process has saved last: llama.cpp can read that.
N_OWN = 4096
_own: dict[tuple[int, int], None] = {}


@dataclass(frozen=True)
class StateInfo:
    """What `state_info` found; None is what a file of llama.cpp's own does not say."""

    tokens: list[int]
    """The tokens that were saved with it."""
    n_bytes: int
    """The size of llama.cpp's data."""
    of_one_sequence: bool
    """Whether it is of one sequence, or of all."""
    partial: bool = False
    """Whether it lacks what a rollback leaves in memory."""
    ends: Mapping[int, int] | None = None
    """The last position of each sequence that had tokens."""
    model: str | None = None
    """What kind of model it is of: its `Model.desc`."""
    llama_cpp: str | None = None
    """The commit of the llama.cpp that has saved it."""
    params: Mapping[str, Any] | None = None
    """The parameters of its context that another must share to load it."""


@dataclass(frozen=True)
class SavedState:
    """A state that was saved: what it is of, and llama.cpp's data, which are not copied."""

    identity: Mapping[str, Any]
    tokens: list[int]
    data: memoryview
    is_own: bool = False
    """Whether this process has saved it."""

    @property
    def seq_id(self) -> int | None:
        """The sequence that it is of; None if it is of all."""
        seq_id: int | None = self.identity["seq_id"]
        return seq_id

    @property
    def partial(self) -> bool:
        """Whether it lacks what a rollback leaves in memory."""
        return bool(self.identity["partial"])

    @property
    def ends(self) -> dict[int, int]:
        """The last position of each sequence that has tokens."""
        return {int(seq_id): end for seq_id, end in self.identity["ends"].items()}

    @property
    def end(self) -> int | None:
        """The last position of the sequence that it is of; None if it has no tokens."""
        return next(iter(self.ends.values()), None)


class StateWriter:
    """A state in the making: bytes of exactly its size, which C fills."""

    def __init__(self, identity: Mapping[str, Any], tokens: bytes, n_bytes: int) -> None:
        """Reserve room for ``n_bytes`` of llama.cpp's data."""
        head = json.dumps(identity, separators=(",", ":")).encode()
        self._sizes = len(head), len(tokens) // 4, n_bytes
        # Nobody has seen these bytes yet, so they may still change: a copy would take as much
        # memory again, and most of the time.
        self._bytes = bytes(HEADER.size + len(head) + len(tokens) + n_bytes)
        self._buffer = ffi.from_buffer("uint8_t[]", self._bytes)
        ffi.memmove(self._buffer + HEADER.size, head, len(head))
        ffi.memmove(self._buffer + HEADER.size + len(head), tokens, len(tokens))
        self.data: Any = self._buffer + (len(self._bytes) - n_bytes)
        """Where the data go, ``uint8_t *``."""

    def finish(self) -> bytes:
        """Return the whole, when the data are there."""
        header = bytearray(HEADER.pack(MAGIC, VERSION, 0, *self._sizes))
        checksum = zlib.crc32(memoryview(header)[CHECKED_FROM:])
        checksum = zlib.crc32(memoryview(self._bytes)[HEADER.size :], checksum)
        HEADER.pack_into(header, 0, MAGIC, VERSION, checksum, *self._sizes)
        ffi.memmove(self._buffer, header, HEADER.size)
        _own[checksum, len(self._bytes)] = None
        while len(_own) > N_OWN:
            _own.pop(next(iter(_own)), None)
        return self._bytes


def parse(data: Any, name: str = "the state") -> SavedState:
    """Read what `StateWriter` wrote.

    Args:
        data: Any object with a buffer.
        name: For messages.

    Raises:
        StateError: It is something else, of another version, incomplete or damaged.
    """
    view = byte_view(data)
    checksum, n_identity, n_tokens = check_size(bytes(view[: HEADER.size]), len(view), name)
    start = HEADER.size + n_identity
    if zlib.crc32(view[CHECKED_FROM:]) != checksum:
        raise StateError(f"{name} is damaged: its checksum is wrong")
    identity = _parse_identity(bytes(view[HEADER.size : start]), name)
    tokens = view[start : start + 4 * n_tokens].cast("i").tolist()
    is_own = (checksum, len(view)) in _own
    return SavedState(identity, tokens, view[start + 4 * n_tokens :], is_own)


def _parse_identity(text: bytes, name: str) -> dict[str, Any]:
    """Read what a state is of.

    Raises:
        StateError: It does not say so.
    """
    try:
        identity: dict[str, Any] = json.loads(text)
        known = all(isinstance(identity[key], kind) for key, kind in KINDS.items())
        known = known and _is_sound(identity)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        known = False
    if not known:
        raise StateError(f"{name} is damaged: it does not say what it is of")
    return identity


def _is_sound(identity: dict[str, Any]) -> bool:
    """Return whether what a state says of itself can be, beyond its types."""
    ends = [*map(int, identity["ends"]), *identity["ends"].values()]
    applied = [*identity["adapters"], *identity["control vector"]]
    return (
        all(type(n) is int and 0 <= n < 2**31 for n in ends)
        and all(isinstance(digest, str) and float(scale) == scale for digest, scale in applied)
        and (identity["seq_id"] is not None or not identity["partial"])
        and (identity["seq_id"] is None or len(identity["ends"]) <= 1)
    )


def describe(read: Callable[[int, int], bytes], size: int, name: str) -> StateInfo:
    """Read all of a state but llama.cpp's data.

    Args:
        read: Returns the bytes from a position on, and how many; fewer at the end.
        size: Of the whole, in bytes.
        name: For messages.

    Raises:
        StateError: It is no saved state, incomplete or damaged.
    """
    head = read(0, HEADER.size)
    if not head.startswith(MAGIC):
        magic, n_tokens = parse_plain(head, size, name)
        tokens = array.array("i", read(PLAIN_HEADER.size, 4 * n_tokens)).tolist()
        n_bytes = size - PLAIN_HEADER.size - 4 * n_tokens
        return StateInfo(tokens, n_bytes, of_one_sequence=magic == SEQUENCE)
    _checksum, n_identity, n_tokens = check_size(head, size, name)
    identity = _parse_identity(read(HEADER.size, n_identity), name)
    start = HEADER.size + n_identity
    saved = SavedState(identity, [], memoryview(b""))
    return StateInfo(
        tokens=array.array("i", read(start, 4 * n_tokens)).tolist(),
        n_bytes=size - start - 4 * n_tokens,
        of_one_sequence=saved.seq_id is not None,
        partial=saved.partial,
        ends=saved.ends,
        model=identity["model"].get("desc"),
        llama_cpp=identity["llama.cpp"],
        params=identity["params"],
    )


def check_size(head: bytes, size: int, name: str) -> tuple[int, int, int]:
    """Check the header of a state of ``size`` bytes.

    Returns:
        The checksum, the size of the identity, and the number of tokens.

    Raises:
        StateError: It is something else, of another version, or incomplete.
    """
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise StateError(f"{name} {FOREIGN}: it begins with {head[:8]!r}")
    _magic, version, checksum, n_identity, n_tokens, n_bytes = HEADER.unpack(head)
    if version != VERSION:
        raise StateError(
            f"{name} has version {version} of the format, and this llamacffi reads version "
            f"{VERSION}: save the state anew with it"
        )
    expected = HEADER.size + n_identity + 4 * n_tokens + n_bytes
    if size != expected:
        raise StateError(f"{name} is incomplete: {size} bytes, and not {expected}")
    return checksum, n_identity, n_tokens


def parse_plain(head: bytes, size: int, name: str) -> tuple[int, int]:
    """Read the beginning of one of llama.cpp's own files.

    Returns:
        Its magic number, and how many tokens it has.

    Raises:
        StateError: It is none, or cannot be complete.
    """
    if len(head) < PLAIN_HEADER.size:
        raise StateError(f"{name} {FOREIGN}: it has {len(head)} bytes")
    magic, version, n_tokens = PLAIN_HEADER.unpack_from(head)
    if magic not in PLAIN_VERSIONS:
        raise StateError(f"{name} {FOREIGN}: it begins with {head[:8]!r}")
    if version != PLAIN_VERSIONS[magic]:
        raise StateError(
            f"{name} has version {version} of llama.cpp's format, and this llama.cpp reads version "
            f"{PLAIN_VERSIONS[magic]}: save the state anew with it"
        )
    if PLAIN_HEADER.size + 4 * n_tokens > size:
        raise StateError(f"{name} is incomplete: {n_tokens} tokens do not fit {size} bytes")
    return magic, n_tokens


def byte_view(data: Any) -> memoryview:
    """Return the bytes of a buffer, not copied.

    Raises:
        TypeError: ``data`` has no buffer, or one that is in pieces.
    """
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"data must be the bytes of a state, not {data!r:.80}") from None
    if not view.c_contiguous:
        raise TypeError("the bytes of a state must be contiguous: give bytes(view)")
    return view.cast("B") if view.nbytes else memoryview(b"")


def differences(
    saved: Mapping[str, Any], present: Mapping[str, Any], *, adapters: bool
) -> Iterator[str]:
    """Yield in words what keeps a state from being that of a context.

    Args:
        saved: The identity of the state.
        present: That of the context.
        adapters: Whether the adapters and the control vector must be the same.
    """
    if saved["llama.cpp"] != present["llama.cpp"]:
        yield (
            f"it was saved by llama.cpp {saved['llama.cpp']}, and this is {present['llama.cpp']}"
        )
    model = saved["model"]
    if not same_weights(model, present["model"]):
        yield (
            f"it is of another model, {model.get('desc')!r}; this is {present['model']['desc']!r}"
        )
    else:
        params, now = saved["params"], present["params"]
        for key in sorted(now.keys() | params.keys()):
            if params.get(key) == now.get(key):
                continue
            if key == "n_buffers":
                yield (
                    f"it was saved with {_buffers(params.get(key))}, and this context has "
                    f"{_buffers(now.get(key))}: create both with kv_unified=True, or both with the "
                    "same n_seq_max"
                )
            else:
                was, has = _shown(params.get(key)), _shown(now.get(key))
                yield f"it was saved with {_shown(key)}={was}, and this has {has}"
    for key in ("adapters", "control vector") if adapters else ():
        if saved[key] != present[key]:
            yield (
                f"it was computed with {_named(key, saved[key])}, and this context has "
                f"{_named(key, present[key])}: set the same first, or give any_adapters=True"
            )


def _shown(value: Any) -> str:
    """Return what a state says, which can be any text."""
    plain = isinstance(value, str) and value.replace("_", "").isalnum()
    return value if plain else repr(value)


def _buffers(n: Any) -> str:
    """Return in words how the sequences of a context are stored."""
    return "one buffer for all sequences" if n == 1 else f"a buffer for each of {n!r} sequences"


def _named(key: str, applied: Any) -> str:
    """Return what adapters or control vector there are, in words."""
    if not applied:
        return f"no {key}"
    names = [f"{scale:g} x {digest[:8]}" for digest, scale in applied]
    return f"the {key} {', '.join(names)}"
