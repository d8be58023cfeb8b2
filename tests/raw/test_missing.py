"""A llama.cpp that lacks some functions: everything else works."""

from __future__ import annotations

import pytest

from llamacffi import UnsupportedError, _native, ffi, lib
from llamacffi._native.missing import complete


class Incomplete:
    """A `lib` that says that two of its functions are missing."""

    NAMES = ("llama_time_us", "llama_nowhere")

    def __getattr__(self, name: str) -> object:
        return getattr(lib, name)

    def llamacffi_missing(self, i: int, one: object) -> bool:
        if i >= len(self.NAMES):
            return False
        self.kept = ffi.new("char[]", self.NAMES[i].encode()), ffi.new("char[]", b"it is old")
        one.name, one.reason = self.kept
        return True


@pytest.fixture
def older():
    return complete(Incomplete(), ffi)


def test_names_that_exist(older):
    assert older.llama_max_devices() == lib.llama_max_devices()
    assert older.LLAMA_TOKEN_NULL == lib.LLAMA_TOKEN_NULL
    assert older.llama_max_devices is older.llama_max_devices


@pytest.mark.parametrize("name", Incomplete.NAMES)
def test_a_missing_name_says_why(older, name):
    with pytest.raises(UnsupportedError, match=f"{name} cannot be used: it is old"):
        getattr(older, name)
    assert not hasattr(older, name)


def test_a_name_that_never_existed(older):
    with pytest.raises(AttributeError, match="llama_typo"):
        older.llama_typo  # noqa: B018


def test_names_that_this_build_lacks():
    """The names reported as missing have reasons; with the pinned llama.cpp there are none."""
    one = ffi.new("struct llamacffi_missing_name *")
    count = 0
    while lib.llamacffi_missing(count, one):
        count += 1
        assert ffi.string(one.reason)
    assert (_native.lib is lib) == (count == 0)
    assert not lib.llamacffi_missing(-1, one)
