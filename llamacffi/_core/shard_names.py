"""The names of the files of a model that is split into several."""

from __future__ import annotations

import os
import re

from .._native import ffi, lib
from .text import c_path

# upstream: src/llama-arch.cpp LLM_KV_SPLIT_NO, LLM_KV_SPLIT_COUNT, LLM_KV_SPLIT_TENSORS_COUNT: the
# keys that say which file it is, of how many, and how many tensors all of them have.
NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"

# upstream: src/llama.cpp "%s-%05d-of-%05d.gguf": how such a name ends.  This finds the numbers in
# names that are not on this machine; where the numbers are known, llama.cpp itself is asked.
SHARD = re.compile(r"-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$")


def shard_names(prefix: str | os.PathLike[str], count: int) -> list[str]:
    """Return the names of all files of a model.

    Args:
        prefix: What they begin with.
        count: How many there are.

    Source: ``llama_split_path``.
    """
    raw = c_path(prefix)
    size = len(raw) + 64
    buffer = ffi.new("char[]", size)
    names = []
    for i in range(count):
        length = lib.llama_split_path(buffer, size, raw, i, count)
        names.append(os.fsdecode(ffi.buffer(buffer, length)[:]))
    return names


def shard_prefix(name: str | os.PathLike[str], i: int, count: int) -> str | None:
    """Return what the names of all files of a model begin with.

    Args:
        name: The name of one of them.
        i: Which it is, from 0.
        count: How many there are.

    Returns:
        The prefix, or None if the name is not that of file ``i`` of ``count``.

    Source: ``llama_split_prefix``.
    """
    raw = c_path(name)
    buffer = ffi.new("char[]", len(raw) + 1)
    length = lib.llama_split_prefix(buffer, len(buffer), raw, i, count)
    return os.fsdecode(raw[:length]) if length > 0 else None


def all_shards(name: str) -> list[str]:
    """Return the names of all files of the model that a file belongs to, by its name alone."""
    found = SHARD.search(name)
    if found is None or not int(found["count"]):
        return [name]
    return shard_names(name[: found.start()], int(found["count"]))
