"""Text between Python and C: strings from buffers, and streams that never split a character."""

from __future__ import annotations

import codecs
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from .._native import ffi
from ..errors import ArgumentError, TokenizeError
from .values import is_text

Text: TypeAlias = str | bytes | bytearray | memoryview

MEBIBYTE = 2**20

# For buffers that C fills: clearing them first would be wasted work.
new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)


def c_text(chars: Any, errors: str = "replace") -> str:
    """Return a C string as text.

    Args:
        chars: Not NULL.
        errors: How to decode bytes that are not UTF-8: ``"replace"`` for text to read,
            ``"surrogateescape"`` for a name that goes back to C.
    """
    return str(ffi.string(chars), "utf-8", errors)


def read_bytes(write: Callable[[Any, int], int], size: int = 256) -> bytes:
    """Call a C function that writes text into a buffer; call it again if the buffer is too small.

    Args:
        write: Gets the buffer and its size; returns the length of the text without the final NUL.
        size: The size of the first buffer.
    """
    buffer = new_uncleared("char[]", size)
    length = write(buffer, size)
    if length >= size:
        buffer = new_uncleared("char[]", length + 1)
        length = write(buffer, length + 1)
    return bytes(ffi.buffer(buffer, max(length, 0)))


def read_metadata(
    ptr: Any,
    count: Callable[[Any], int],
    key: Callable[..., int],
    value: Callable[..., int],
) -> dict[str, str]:
    """Return the scalar metadata of a C object, read by three C functions."""

    def text(function: Callable[..., int], i: int) -> str:
        raw = read_bytes(lambda buffer, size: function(ptr, i, buffer, size))
        return raw.decode(errors="replace")

    return {text(key, i): text(value, i) for i in range(count(ptr))}


def path_text(path: str | bytes | os.PathLike[str], argument: str = "path") -> str:
    """Return a path as text.

    Raises:
        TypeError: It is not a path; the message names ``argument``.
    """
    if isinstance(path, (str, bytes, os.PathLike)):
        return os.fsdecode(path)
    raise TypeError(f"{argument} must be a path (str or os.PathLike), not {path!r:.80}")


def checked_path(path: str | os.PathLike[str], argument: str = "path") -> str:
    """Return a path as text, if it is one that a file can have.

    Raises:
        TypeError: It is not a path; the message names ``argument``.
        ArgumentError: It has a NUL character, where C would end it, or one that cannot be encoded.
    """
    name = path_text(path, argument)
    try:
        raw = os.fsencode(name)
    except UnicodeEncodeError as error:
        raise ArgumentError(
            f"invalid path {name!r}: the character at index {error.start} cannot be encoded as "
            f"{error.encoding}; pass what os.fsdecode returns"
        ) from None
    if 0 in raw:
        raise ArgumentError(
            f"invalid path {name!r}: it has a NUL character at index {name.index(chr(0))}"
        )
    return name


def c_path(path: str | os.PathLike[str]) -> bytes:
    """Return a path as C's file functions take it; raises what `checked_path` raises."""
    return os.fsencode(checked_path(path))


class Utf8Stream:
    """Decodes the pieces of tokens; holds back a character that is split between two of them.

    Bytes that are not UTF-8 become U+FFFD.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.waits: bool = False
        """Whether bytes of an incomplete character are held back."""

    def feed(self, piece: bytes) -> str:
        """Add bytes and return the characters that are complete."""
        if not self.waits:
            try:
                return piece.decode()
            except UnicodeDecodeError:
                pass  # a split character, or not UTF-8
        text = self._decoder.decode(piece)
        self.waits = bool(self._decoder.getstate()[0])
        return text

    def finish(self) -> str:
        """End the stream, and return the text for an incomplete character, if any."""
        self.waits = False
        return self._decoder.decode(b"", final=True)


class StopFinder:
    """Finds the first of several strings in a stream; holds back text that may begin one.

    The string that is complete first wins; of those that end at the same character, the longest.
    Each character is read once, however many strings there are (the Aho-Corasick algorithm).
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._firsts = {stop[0] for stop in stops}
        # A node for each prefix of a string: its children by character, the node of its longest
        # proper suffix that is a prefix too, its length, and the length of the longest string that
        # is a suffix of it.
        self._next: list[dict[str, int]] = [{}]
        self._shorter, self._depth, self._found = [0], [0], [0]
        for stop in stops:
            self._add(stop)
        self._link()
        self._node = 0
        self._pieces: deque[str] = deque()
        self._n_held = 0
        self.match: str | None = None
        """The string that was found."""

    def __bool__(self) -> bool:
        """Whether there are strings to find."""
        return bool(self._firsts)

    def feed(self, text: str) -> str:
        """Add text, and return the text that cannot be part of a stop string."""
        if not self._node and self._firsts.isdisjoint(text):
            return text
        node, following, shorter, found = self._node, self._next, self._shorter, self._found
        for i, char in enumerate(text, 1):
            while node and char not in following[node]:
                node = shorter[node]
            node = following[node].get(char, 0)
            if found[node]:
                self._node = 0
                certain = self._take(text[:i], found[node])
                self.match = self._held()
                return certain
        self._node = node
        return self._take(text, self._depth[node])

    @property
    def found(self) -> str | None:
        """The string that was found, as it was given."""
        return self.match

    def finish(self) -> str:
        """Return what was held back."""
        return self._held()

    def _held(self) -> str:
        held = "".join(self._pieces)
        self._pieces.clear()
        self._node = self._n_held = 0
        return held

    def _take(self, text: str, n_held: int) -> str:
        """Add text, and return all of it but the last ``n_held`` characters."""
        pieces = self._pieces
        pieces.append(text)
        n = self._n_held + len(text) - n_held
        self._n_held = n_held
        certain: list[str] = []
        while n and n >= len(pieces[0]):
            certain.append(pieces.popleft())
            n -= len(certain[-1])
        if n:
            certain.append(pieces[0][:n])
            pieces[0] = pieces[0][n:]
        return "".join(certain)

    def _add(self, stop: str) -> None:
        node = 0
        for depth, char in enumerate(stop, 1):
            known = self._next[node].get(char)
            if known is None:
                known = self._next[node][char] = len(self._next)
                self._next.append({})
                self._shorter.append(0)
                self._depth.append(depth)
                self._found.append(0)
            node = known
        self._found[node] = len(stop)

    def _link(self) -> None:
        """Find the longest suffix of each prefix that is a prefix too; the short ones first."""
        nodes = deque(self._next[0].values())
        while nodes:
            node = nodes.popleft()
            for char, after in self._next[node].items():
                other = self._shorter[node]
                while other and char not in self._next[other]:
                    other = self._shorter[other]
                self._shorter[after] = self._next[other].get(char, 0)
                self._found[after] = self._found[after] or self._found[self._shorter[after]]
                nodes.append(after)


def encode(text: Text) -> bytes:
    """Return a text as UTF-8.

    Raises:
        TokenizeError: It has a lone surrogate, or bytes that are not UTF-8.
        TypeError: It is not text.
    """
    if is_text(text) and not isinstance(text, str):
        data = bytes(text)  # a copy if it is mutable, so that it cannot change while C reads it
        if not data.isascii():
            _check_utf8(data)
        return data
    if not isinstance(text, str):
        raise TypeError(f"text must be str or bytes, not {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TokenizeError(
            f"the text has a lone surrogate at index {error.start}, which UTF-8 cannot encode; "
            "clean it with text.encode('utf-8', 'replace')"
        ) from None


def _check_utf8(data: bytes) -> None:
    """Raise unless bytes are UTF-8: tokenizers differ in what they make of invalid bytes."""
    decoder, start, waiting = codecs.getincrementaldecoder("utf-8")(), 0, 0
    try:
        if len(data) <= MEBIBYTE:
            data.decode()
            return
        for start in range(
            0, len(data), MEBIBYTE
        ):  # decoding all at once could take 4 times the memory
            waiting = len(decoder.getstate()[0])
            end = start + MEBIBYTE
            decoder.decode(data[start:end], final=end >= len(data))
    except UnicodeDecodeError as error:
        at = start - waiting + error.start
        raise TokenizeError(
            f"the text is not UTF-8: byte {at} is {data[at]:#04x} ({error.reason}); decode it "
            "first, for instance with text.decode('latin-1') or text.decode(errors='replace')"
        ) from None


def encode_all(texts: Iterable[Text]) -> list[bytes]:
    """Return texts as UTF-8; an error gives the index of the text that caused it."""
    if isinstance(texts, str | bytes | bytearray | memoryview):
        raise TypeError("texts must be a sequence of texts; for a single text call tokenize()")
    if not isinstance(texts, Iterable):
        raise TypeError(f"texts must be a sequence of texts, not {texts!r:.80}")
    data: list[bytes] = []
    try:
        for text in texts:
            data.append(encode(text))
    except TokenizeError as error:
        raise TokenizeError(f"text {len(data)}: {error}", len(data)) from None
    return data
