"""Splitting a model into several files, and merging them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from .._core.atomic import replacing_all
from .._core.shard_names import COUNT, NUMBER, TENSORS, shard_names, shard_prefix
from .._core.text import checked_path
from .._core.values import flag, integer
from ..errors import ArgumentError, GgufError
from .gguf import Gguf

if TYPE_CHECKING:
    from .gguf import GgufTensor

MOST = 2**16 - 1  # the count is an unsigned number of 16 bits


def split(
    source: str | os.PathLike[str] | Gguf,
    prefix: str | os.PathLike[str],
    *,
    max_tensors: int | None = None,
    max_bytes: int | None = None,
    no_tensor_first: bool = False,
) -> list[Path]:
    """Write a model as several files, all or none.

    Args:
        source: The model.
        prefix: Where to: the path of each file begins with it, and llama.cpp adds which of how
            many it is.
        max_tensors: How many tensors one file may have.
        max_bytes: How many bytes the tensors of one file may have; a larger one is in a file of
            its own.
        no_tensor_first: Leave the first file to the metadata.

    Returns:
        The files; `Model` loads the first.

    Raises:
        ArgumentError: There is no limit, or it is less than 1, or it makes too many files; or
            no file can be called so.
        GgufError: The source is no GGUF, or a part of a model.
        OSError: A file cannot be written.

    Source: ``llama_split_path``.
    """
    for name, limit in (("max_tensors", max_tensors), ("max_bytes", max_bytes)):
        if limit is not None:
            integer(name, limit, 1)
    no_tensor_first = flag("no_tensor_first", no_tensor_first)
    if not os.path.basename(name := checked_path(prefix, "prefix")):
        raise ArgumentError(f"prefix={name!r} has no name for the files to begin with: add one")
    if max_tensors is None and max_bytes is None:
        raise ArgumentError("say how large a file may be, with max_tensors= or max_bytes=")
    with ExitStack() as stack:
        if not isinstance(source, Gguf):
            source = stack.enter_context(Gguf.open(source))
        if (count := _number(source, COUNT, "the source", 1)) > 1:
            raise GgufError(f"it is a part of a model of {count} files; merge them first")
        parts = list(_parts(source, max_tensors, max_bytes))
        if no_tensor_first or not parts:
            parts.insert(0, [])
        paths = paths_of(prefix, len(parts))
        with replacing_all() as instead:
            for i, (path, tensors) in enumerate(zip(paths, parts, strict=True)):
                with source.copy() if i == 0 else Gguf.new() as shard:
                    _fill(shard, tensors, i, len(parts), len(source.tensors))
                    shard.write(instead(path))
        return paths


def _parts(
    gguf: Gguf, max_tensors: int | None, max_bytes: int | None
) -> Iterator[list[GgufTensor]]:
    """Yield the tensors of each file."""
    part: list[GgufTensor] = []
    size = 0
    for tensor in gguf.tensors.values():
        padded = tensor.nbytes + -tensor.nbytes % gguf.alignment
        full = max_tensors is not None and len(part) >= max_tensors
        if part and (full or (max_bytes is not None and size + padded > max_bytes)):
            yield part
            part, size = [], 0
        part.append(tensor)
        size += padded
    if part:
        yield part


def _fill(shard: Gguf, tensors: list[GgufTensor], i: int, n: int, n_tensors: int) -> None:
    for name in list(shard.tensors):
        shard.remove_tensor(name)
    for tensor in tensors:
        shard.add_tensor(tensor.name, tensor)
    shard.set(NUMBER, i, type="u16")
    shard.set(COUNT, n, type="u16")
    shard.set(TENSORS, n_tensors, type="i32")


def merge(first: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write a model of several files as one, at once or not at all.

    Args:
        first: The first of its files.
        target: The file to write.

    Raises:
        ModelNotFoundError: A file is not there.
        GgufError: ``first`` is not the first of several files, or they do not belong together.
        ArgumentError: ``target`` is one of them.
        OSError: The target cannot be written.

    Source: ``llama_split_prefix``, ``llama_split_path``.
    """
    with ExitStack() as stack:
        files = open_all(first)
        for gguf in files.values():
            stack.enter_context(gguf)
        check_other(target, files)
        if next(iter(files.values())).get(COUNT, 0) == 0:
            raise GgufError(f"{os.fspath(first)!r} is not one of several files: it is whole")
        stack.enter_context(whole(files)).write(target)


def whole(files: Mapping[Path, Gguf]) -> Gguf:
    """Return the model of several files as one, with their data; the caller closes it."""
    first, *rest = files.values()
    merged = first.copy()
    for gguf in rest:
        for tensor in gguf.tensors.values():
            merged.add_tensor(tensor.name, tensor)
    for key in (NUMBER, COUNT, TENSORS):
        merged.pop(key, None)
    return merged


def check_other(target: str | os.PathLike[str], sources: Iterable[str | os.PathLike[str]]) -> None:
    """Raise unless ``target`` is none of the files that are read.

    Raises:
        ArgumentError: It is one of them.
    """
    target = checked_path(target, "target")  # the functions below take numbers for descriptors
    if os.path.exists(target) and any(os.path.samefile(target, path) for path in sources):
        raise ArgumentError(f"{target!r} is both read and written; choose another name")


def open_all(first: str | os.PathLike[str], *, metadata_only: bool = False) -> dict[Path, Gguf]:
    """Open all files of a model, also of one that is a single file.

    Returns:
        Them in order; the caller closes them.

    Raises:
        ModelNotFoundError: A file is not there.
        GgufError: ``first`` is not the first, or they do not belong together.
    """
    with ExitStack() as stack:
        gguf = stack.enter_context(Gguf.open(first, metadata_only=metadata_only))
        files = {Path(first): gguf}
        n = _number(gguf, COUNT, first, 1)
        if n > 1 and _number(gguf, NUMBER, first, 0) != 0:
            raise GgufError(f"{os.fspath(first)!r} is not the first of {n} files: name that one")
        for i, path in enumerate(paths_of(prefix_of(first, n), n) if n > 1 else ()):
            if i > 0:
                files[path] = stack.enter_context(Gguf.open(path, metadata_only=metadata_only))
                if _number(files[path], NUMBER, path, -1) != i:
                    raise GgufError(f"{os.fspath(path)!r} does not say that it is file {i} of {n}")
        names = [name for one in files.values() for name in one.tensors]
        if len(set(names)) != len(names):
            raise GgufError(f"a tensor is in two of the files of {os.fspath(first)!r}")
        expected = _number(gguf, TENSORS, first, len(names)) if n > 1 else len(names)
        if expected != len(names):
            raise GgufError(f"{os.fspath(first)!r} has {expected} tensors; {len(names)} are there")
        stack.pop_all()
        return files


def _number(gguf: Gguf, key: str, path: str | os.PathLike[str], default: int) -> int:
    value = gguf.get(key, default)
    if not isinstance(value, int):
        raise GgufError(f"{key!r} of {os.fspath(path)!r} is no integer but {value!r}")
    if key != TENSORS and not -1 <= value <= MOST:
        raise GgufError(f"{key!r} of {os.fspath(path)!r} is {value}, and not in 0 to {MOST}")
    return value


def paths_of(prefix: str | os.PathLike[str], n: int) -> list[Path]:
    """Return the paths that llama.cpp gives to the files of a model.

    Args:
        prefix: What they begin with.
        n: How many there are.

    Raises:
        ArgumentError: There are too many.
    """
    if n > MOST:
        raise ArgumentError(f"{n} files are too many; at most {MOST} are possible")
    return [Path(name) for name in shard_names(prefix, n)]


def prefix_of(first: str | os.PathLike[str], n: int) -> str:
    """Return what the names of all ``n`` files of a model begin with, by that of the first.

    Raises:
        GgufError: It is not named as the first of so many.
    """
    prefix = shard_prefix(first, 0, n)
    if prefix is None:
        expected = shard_names("PREFIX", n)[0]
        raise GgufError(f"{os.fspath(first)!r} is not named as the first of {n} files: {expected}")
    return prefix
