"""Stop strings and UTF-8 do not depend on how a text is split into pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llamacffi._core.text import StopFinder, Utf8Stream, read_bytes
from llamacffi._native import ffi
from tests.timing import limited

few = st.text("abé", max_size=12)


def stopped(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Return the text before the first stop string: the definition, on the whole text."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            match = max(ending, key=len)
            return text[: end - len(match)], match
    return text, None


def streamed(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    finder, out = StopFinder(stops), ""
    for piece in pieces:
        out += finder.feed(piece)
        if finder.match is not None:
            return out, finder.match
    return out + finder.finish(), None


@given(few, st.lists(st.text("abé", min_size=1, max_size=4), max_size=4))
@example("ab", ["b", "ab"])
@example("aab", ["aabb", "ab"])
@example("abc", [])
def test_stop_strings_at_every_split(text, stops):
    expected = stopped(text, stops)
    assert streamed([text], stops) == expected
    assert streamed(list(text), stops) == expected
    for i, j in itertools.combinations_with_replacement(range(len(text) + 1), 2):
        assert streamed([text[:i], text[i:j], text[j:]], stops) == expected


@given(st.lists(few, max_size=5), st.lists(st.text("abé", min_size=1, max_size=4), min_size=1))
def test_no_more_text_is_held_back_than_needed(pieces, stops):
    finder, given_out, fed = StopFinder(stops), "", ""
    for piece in pieces:
        given_out += finder.feed(piece)
        if finder.match is not None:
            return
        fed += piece
        held = fed[len(given_out) :]
        assert fed == given_out + held
        assert not held or any(stop.startswith(held) for stop in stops)


def test_held_back_text_is_returned_once():
    finder = StopFinder(["stop"])
    assert finder.feed("a sto") == "a "
    assert finder.finish() == "sto"
    assert finder.finish() == ""
    assert finder.match is None


STOPS = {
    "long, and almost there": (["a" * 5000 + "b"], "a"),
    "again and again": (["ab" * 2500 + "c"], "ab"),
    "each longer than the last": (["a" * n + "b" for n in range(1, 300)], "a"),
    "many": ([f"stop {i}" for i in range(1000)], "stop "),
    "one that is as long as may be": (["x" * 99_999], "x"),
}


@pytest.mark.parametrize("kind", STOPS)
def test_each_character_is_looked_at_once(kind):
    """A hundred thousand tokens take the same time with any stop strings."""
    stops, piece = STOPS[kind]
    finder, n = StopFinder(stops), 0
    with limited(4):
        for i in range(100_000):
            n += len(finder.feed(piece if i % 4999 else "!"))
            assert finder.match is None
        n += len(finder.finish())
    assert n == 100_000 * len(piece) + 21 * (1 - len(piece))


@given(st.one_of(st.binary(max_size=12), st.text(max_size=6).map(str.encode)), st.data())
@example(b"\xf0\x9f\xa6\x99\xf0\x9f", None)
@example(b"\xe2\x82\xff\xc3", None)
def test_utf8_at_every_split(data, draw):
    expected = data.decode(errors="replace")
    for i, j in itertools.combinations_with_replacement(range(len(data) + 1), 2):
        stream = Utf8Stream()
        text = "".join(map(stream.feed, (data[:i], data[i:j], data[j:]))) + stream.finish()
        assert text == expected


def test_a_character_is_returned_when_it_is_complete():
    stream = Utf8Stream()
    assert [stream.feed(bytes([byte])) for byte in "🦙é".encode()] == [*["", "", "", "🦙"], "", "é"]
    assert stream.finish() == ""


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100])
def test_read_bytes_asks_again_if_the_buffer_was_small(length):
    """Like snprintf, C needs one byte more than the text, for the NUL."""
    text, sizes = b"x" * length, []

    def write(buffer, size):
        sizes.append(size)
        ffi.memmove(buffer, (text + b"\0")[:size], min(size, length + 1))
        return length

    assert read_bytes(write, 8) == text
    assert sizes == ([8] if length < 8 else [8, length + 1])


def test_read_bytes_of_nothing():
    assert read_bytes(lambda _buffer, _size: -1) == b""
