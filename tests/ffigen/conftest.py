"""A llama.cpp tree in miniature: the headers that the generator reads, with planted text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ffigen.api import Api
from ffigen.parse import read_api
from ffigen.preprocess import preprocess

EMPTY = (
    *("ggml/include/ggml.h", "ggml/include/ggml-alloc.h", "ggml/include/ggml-backend.h"),
    *("ggml/include/ggml-cpu.h", "ggml/include/ggml-opt.h", "ggml/include/ggml-rpc.h"),
    *("ggml/include/gguf.h", "tools/mtmd/mtmd.h", "tools/mtmd/mtmd-helper.h"),
)

# In front of what a test plants, so that its first line is line 7 of llama.h.
PROLOGUE = """\
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#define DEPRECATED(func, hint) func __attribute__((deprecated(hint)))
"""

Plant = Callable[..., Path]
Read = Callable[[str], Api]


@pytest.fixture(scope="session")
def headers(root: Path) -> Path:
    """The project's headers/."""
    return root / "headers"


@pytest.fixture(scope="session")
def plant() -> Plant:
    """Write a tree whose llama.h has the given text."""

    def write(directory: Path, text: str | bytes) -> Path:
        for name in EMPTY:
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("#pragma once\n")
        (directory / "include").mkdir(exist_ok=True)
        planted = text if isinstance(text, bytes) else text.encode()
        (directory / "include" / "llama.h").write_bytes(PROLOGUE.encode() + planted + b"\n")
        return directory

    return write


@pytest.fixture(scope="session")
def ours(plant: Plant, headers: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What our own headers declare, and the structs of llama.cpp that they mention."""
    tree = plant(tmp_path_factory.mktemp("ours"), "")
    return {one.name for one in read_api(preprocess(headers, tree), headers, tree).declarations}


@pytest.fixture
def read(plant: Plant, headers: Path, ours: set[str], tmp_path: Path) -> Read:
    """Parse a tree whose llama.h has the given text, without our own header's part of it."""

    def parse(text: str) -> Api:
        tree = plant(tmp_path / "tree", text)
        api = read_api(preprocess(headers, tree), headers, tree)
        kept = (one for one in api.declarations if one.name not in ours)
        return Api(tuple(kept), {k: v for k, v in api.omitted.items() if k != "DEPRECATED"})

    return parse
