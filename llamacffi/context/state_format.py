"""The format of saved states: a header and a description, followed by llama.cpp's data.

llama.cpp can hardly check its own data: it would load those of another model of the same shape, or
damaged ones, and compute garbage.  So the header has a checksum of everything, and the identity, in
JSON, says what the state depends on.
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
MAGIC = b"llcffi\x1a\n"  # the end reveals a transfer in text mode
VERSION = 2
# Magic, version, checksum of everything after it, and the sizes of the three parts: bytes of the
# identity, number of tokens, bytes of llama.cpp's data.
HEADER = struct.Struct("<8sIIIIQ")
CHECKED_FROM = 16
# The header of llama.cpp's own files: magic, version, number of tokens.
PLAIN_HEADER = struct.Struct("<III")
SEQUENCE, WHOLE = lib.LLAMA_STATE_SEQ_MAGIC, lib.LLAMA_SESSION_MAGIC
PLAIN_VERSIONS = {SEQUENCE: lib.LLAMA_STATE_SEQ_VERSION, WHOLE: lib.LLAMA_SESSION_VERSION}

# The keys of the identity and their types; see `fingerprint` in fingerprint.py.
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


# Checksums and sizes of the last states that this process saved, which llama.cpp can surely read.
N_OWN = 4096
_own: dict[tuple[int, int], None] = {}


@dataclass(frozen=True)
class StateInfo:
    """The description of a saved state, from `state_info`.

    Fields are None for a file in llama.cpp's own format, which does not have them.
    """

    tokens: list[int]
    """The tokens that were saved with the state."""
    n_bytes: int
    """The size of llama.cpp's data."""
    of_one_sequence: bool
    """Whether it holds one sequence; otherwise it holds all."""
    partial: bool = False
    """Whether it lacks the data that remain in memory when tokens are removed."""
    ends: Mapping[int, int] | None = None
    """The last position of each sequence that has tokens."""
    model: str | None = None
    """The `Model.desc` of its model."""
    llama_cpp: str | None = None
    """The commit of llama.cpp that saved it."""
    params: Mapping[str, Any] | None = None
    """The parameters that a context must have in common with its context to load it."""


@dataclass(frozen=True)
class SavedState:
    """A parsed state: its identity, its tokens, and a view of llama.cpp's data."""

    identity: Mapping[str, Any]
    tokens: list[int]
    data: memoryview
    is_own: bool = False
    """Whether this process saved it."""

    @property
    def seq_id(self) -> int | None:
        """The sequence that was saved; None means all."""
        seq_id: int | None = self.identity["seq_id"]
        return seq_id

    @property
    def partial(self) -> bool:
        """Whether it lacks the data that remain in memory when tokens are removed."""
        return bool(self.identity["partial"])

    @property
    def ends(self) -> dict[int, int]:
        """The last position of each sequence that has tokens."""
        return {int(seq_id): end for seq_id, end in self.identity["ends"].items()}

    @property
    def end(self) -> int | None:
        """The last position of the sequence that was saved; None if it has no tokens."""
        return next(iter(self.ends.values()), None)


class StateWriter:
    """Builds a state in bytes of exactly its size, which C fills."""

    def __init__(self, identity: Mapping[str, Any], tokens: bytes, n_bytes: int) -> None:
        """Write the identity and tokens, and leave ``n_bytes`` for llama.cpp's data."""
        head = json.dumps(identity, separators=(",", ":")).encode()
        self._sizes = len(head), len(tokens) // 4, n_bytes
        # Nothing else refers to these bytes yet, so we may write into them: a copy would double the
        # memory, and take most of the time.
        self._bytes = bytes(HEADER.size + len(head) + len(tokens) + n_bytes)
        self._buffer = ffi.from_buffer("uint8_t[]", self._bytes)
        ffi.memmove(self._buffer + HEADER.size, head, len(head))
        ffi.memmove(self._buffer + HEADER.size + len(head), tokens, len(tokens))
        self.data: Any = self._buffer + (len(self._bytes) - n_bytes)
        """Where C writes its data, ``uint8_t *``."""

    def finish(self) -> bytes:
        """Add the header, after C has written its data, and return the state."""
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
    """Parse a state that `StateWriter` built.

    Args:
        data: Any object with a buffer.
        name: What messages call it.

    Raises:
        StateError: It is not a state, has another version, or is incomplete or damaged.
    """
    view = byte_view(data)
    checksum, n_identity, n_tokens = check_size(bytes(view[: HEADER.size]), len(view), name)
    start = HEADER.size + n_identity
    if zlib.crc32(view[CHECKED_FROM:]) != checksum:
        raise StateError(f"{name} is damaged: its checksum does not match")
    identity = _parse_identity(bytes(view[HEADER.size : start]), name)
    tokens = view[start : start + 4 * n_tokens].cast("i").tolist()
    is_own = (checksum, len(view)) in _own
    return SavedState(identity, tokens, view[start + 4 * n_tokens :], is_own)


def _parse_identity(text: bytes, name: str) -> dict[str, Any]:
    """Parse the identity of a state.

    Raises:
        StateError: It is not valid.
    """
    try:
        identity: dict[str, Any] = json.loads(text)
        known = all(isinstance(identity[key], kind) for key, kind in KINDS.items())
        known = known and _is_sound(identity)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        known = False
    if not known:
        raise StateError(f"{name} is damaged: its description is not valid")
    return identity


def _is_sound(identity: dict[str, Any]) -> bool:
    """Return whether the values of an identity are possible; their types were checked."""
    ends = [*map(int, identity["ends"]), *identity["ends"].values()]
    applied = [*identity["adapters"], *identity["control vector"]]
    return (
        all(type(n) is int and 0 <= n < 2**31 for n in ends)
        and all(isinstance(digest, str) and float(scale) == scale for digest, scale in applied)
        and (identity["seq_id"] is not None or not identity["partial"])
        and (identity["seq_id"] is None or len(identity["ends"]) <= 1)
    )


def describe(read: Callable[[int, int], bytes], size: int, name: str) -> StateInfo:
    """Read everything of a state except llama.cpp's data.

    Args:
        read: Takes an offset and a number of bytes, and returns them; fewer at the end.
        size: The size of the state in bytes.
        name: What messages call it.

    Raises:
        StateError: It is not a saved state, or it is incomplete or damaged.
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
        StateError: It is not a state, has another version, or is incomplete.
    """
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise StateError(f"{name} {FOREIGN}: it begins with {head[:8]!r}")
    _magic, version, checksum, n_identity, n_tokens, n_bytes = HEADER.unpack(head)
    if version != VERSION:
        raise StateError(
            f"{name} has version {version} of the format, but this llamacffi reads version "
            f"{VERSION}: save the state again with this llamacffi"
        )
    expected = HEADER.size + n_identity + 4 * n_tokens + n_bytes
    if size != expected:
        raise StateError(
            f"{name} is damaged or incomplete: it has {size} bytes instead of {expected}"
        )
    return checksum, n_identity, n_tokens


def parse_plain(head: bytes, size: int, name: str) -> tuple[int, int]:
    """Parse the header of a file in llama.cpp's own format.

    Returns:
        Its magic number, and its number of tokens.

    Raises:
        StateError: It is not such a file, or is incomplete.
    """
    if len(head) < PLAIN_HEADER.size:
        raise StateError(f"{name} {FOREIGN}: it has only {len(head)} bytes")
    magic, version, n_tokens = PLAIN_HEADER.unpack_from(head)
    if magic not in PLAIN_VERSIONS:
        raise StateError(f"{name} {FOREIGN}: it begins with {head[:8]!r}")
    if version != PLAIN_VERSIONS[magic]:
        raise StateError(
            f"{name} has version {version} of llama.cpp's format, but this llama.cpp reads version "
            f"{PLAIN_VERSIONS[magic]}: save the state again with this llama.cpp"
        )
    if PLAIN_HEADER.size + 4 * n_tokens > size:
        raise StateError(f"{name} is incomplete: {size} bytes cannot hold its {n_tokens} tokens")
    return magic, n_tokens


def byte_view(data: Any) -> memoryview:
    """Return a view of the bytes of a buffer.

    Raises:
        TypeError: ``data`` has no buffer, or its buffer is not contiguous.
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
    """Yield the reasons why a state does not fit a context.

    Args:
        saved: The identity of the state.
        present: The identity of the context.
        adapters: Whether the adapters and the control vector must match.
    """
    if saved["llama.cpp"] != present["llama.cpp"]:
        yield (
            f"it was saved by llama.cpp {saved['llama.cpp']}, but this is {present['llama.cpp']}"
        )
    model = saved["model"]
    if not same_weights(model, present["model"]):
        yield (
            f"it belongs to another model, {model.get('desc')!r}, but this is "
            f"{present['model']['desc']!r}"
        )
    else:
        params, now = saved["params"], present["params"]
        for key in sorted(now.keys() | params.keys()):
            if params.get(key) == now.get(key):
                continue
            if key == "n_buffers":
                yield (
                    f"it was saved with {_buffers(params.get(key))}, but this context has "
                    f"{_buffers(now.get(key))}: create both with kv_unified=True, or both with the "
                    "same n_seq_max"
                )
            else:
                was, has = _shown(params.get(key)), _shown(now.get(key))
                yield f"it was saved with {_shown(key)}={was}, but this context has {has}"
    for key in ("adapters", "control vector") if adapters else ():
        if saved[key] != present[key]:
            yield (
                f"it was computed with {_named(key, saved[key])}, but this context has "
                f"{_named(key, present[key])}: set the same ones first, or pass any_adapters=True"
            )


def _shown(value: Any) -> str:
    """Return a value from a state for a message; it can be any text, so quote unusual ones."""
    plain = isinstance(value, str) and value.replace("_", "").isalnum()
    return value if plain else repr(value)


def _buffers(n: Any) -> str:
    """Describe how the sequences of a context are stored."""
    return "one buffer for all sequences" if n == 1 else f"a buffer for each of {n!r} sequences"


def _named(key: str, applied: Any) -> str:
    """Describe the adapters or the control vector in use."""
    if not applied:
        return f"no {key}"
    names = [f"{scale:g} x {digest[:8]}" for digest, scale in applied]
    return f"the {key} {', '.join(names)}"
