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

# upstream: src/llama-model-loader.cpp n_split: the loader reads the count as uint16_t
MOST = 2**16 - 1


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
        prefix: The beginning of the path of each file; llama.cpp's suffix, such as
            ``-00001-of-00003.gguf``, is added.
        max_tensors: The maximum number of tensors in one file.
        max_bytes: The maximum size of the tensors in one file, in bytes; a larger tensor gets a
            file of its own.
        no_tensor_first: Put only the metadata into the first file.

    Returns:
        The paths of the files, in order; `Model` loads the first.

    Raises:
        ArgumentError: No limit was given, it is less than 1, or it results in too many files; or
            ``prefix`` is not a valid path.
        GgufError: The source is not a GGUF, or is one of several files itself.
        OSError: A file cannot be written.

    Source: ``llama_split_path``.
    """
    for name, limit in (("max_tensors", max_tensors), ("max_bytes", max_bytes)):
        if limit is not None:
            integer(name, limit, 1)
    no_tensor_first = flag("no_tensor_first", no_tensor_first)
    if not os.path.basename(name := checked_path(prefix, "prefix")):
        raise ArgumentError(f"prefix={name!r} must end with the beginning of a file name")
    if max_tensors is None and max_bytes is None:
        raise ArgumentError("give max_tensors or max_bytes to limit the size of a file")
    with ExitStack() as stack:
        if not isinstance(source, Gguf):
            source = stack.enter_context(Gguf.open(source))
        if (count := _number(source, COUNT, "the source", 1)) > 1:
            raise GgufError(f"the source is one of {count} files of a model: merge them first")
        parts = list(_parts(source, max_tensors, max_bytes))
        if no_tensor_first or not parts:
            parts.insert(0, [])
        paths = paths_of(prefix, len(parts))
        with replacing_all() as temporary:
            for i, (path, tensors) in enumerate(zip(paths, parts, strict=True)):
                with source.copy() if i == 0 else Gguf.new() as shard:
                    _fill(shard, tensors, i, len(parts), len(source.tensors))
                    shard.write(temporary(path))
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
    """Write a model in several files as a single file, completely or not at all.

    Args:
        first: The first of its files.
        target: The file to write.

    Raises:
        ModelNotFoundError: A file is missing.
        GgufError: ``first`` is not the first of several files, or they do not belong together.
        ArgumentError: ``target`` is one of the files.
        OSError: The target cannot be written.

    Source: ``llama_split_prefix``, ``llama_split_path``.
    """
    with ExitStack() as stack:
        files = open_all(first)
        for gguf in files.values():
            stack.enter_context(gguf)
        check_other(target, files)
        if next(iter(files.values())).get(COUNT, 0) == 0:
            raise GgufError(f"{os.fspath(first)!r} is a complete model, not one of several files")
        stack.enter_context(merge_files(files)).write(target)


def merge_files(files: Mapping[Path, Gguf]) -> Gguf:
    """Return one `Gguf` with the content of all files of a model; the caller closes it."""
    first, *rest = files.values()
    model = first.copy()
    for gguf in rest:
        for tensor in gguf.tensors.values():
            model.add_tensor(tensor.name, tensor)
    for key in (NUMBER, COUNT, TENSORS):
        model.pop(key, None)
    return model


def check_other(target: str | os.PathLike[str], sources: Iterable[str | os.PathLike[str]]) -> None:
    """Check that ``target`` is not one of the files that are read.

    Raises:
        ArgumentError: It is one of them.
    """
    target = checked_path(target, "target")  # os.path would take a number for a descriptor
    if os.path.exists(target) and any(os.path.samefile(target, path) for path in sources):
        raise ArgumentError(f"{target!r} is both input and output: choose another name")


def open_all(first: str | os.PathLike[str], *, metadata_only: bool = False) -> dict[Path, Gguf]:
    """Open all files of a model, which may also be a single file.

    Returns:
        The open files by path, in order; the caller closes them.

    Raises:
        ModelNotFoundError: A file is missing.
        GgufError: ``first`` is not the first file, or the files do not belong together.
    """
    with ExitStack() as stack:
        gguf = stack.enter_context(Gguf.open(first, metadata_only=metadata_only))
        files = {Path(first): gguf}
        n = _number(gguf, COUNT, first, 1)
        if n > 1 and _number(gguf, NUMBER, first, 0) != 0:
            raise GgufError(f"{os.fspath(first)!r} is not the first of {n} files: give the first")
        for i, path in enumerate(paths_of(prefix_of(first, n), n) if n > 1 else ()):
            if i > 0:
                files[path] = stack.enter_context(Gguf.open(path, metadata_only=metadata_only))
                if _number(files[path], NUMBER, path, -1) != i:
                    raise GgufError(
                        f"the metadata of {os.fspath(path)!r} do not say that it is file {i} of {n}"
                    )
        names = [name for one in files.values() for name in one.tensors]
        if len(set(names)) != len(names):
            raise GgufError(f"two of the files of {os.fspath(first)!r} have the same tensor")
        expected = _number(gguf, TENSORS, first, len(names)) if n > 1 else len(names)
        if expected != len(names):
            raise GgufError(
                f"{os.fspath(first)!r} says that the model has {expected} tensors, but its files "
                f"have {len(names)}"
            )
        stack.pop_all()
        return files


def _number(gguf: Gguf, key: str, path: str | os.PathLike[str], default: int) -> int:
    value = gguf.get(key, default)
    if not isinstance(value, int):
        raise GgufError(f"{key!r} in {os.fspath(path)!r} must be an integer, not {value!r}")
    if key != TENSORS and not -1 <= value <= MOST:
        raise GgufError(f"{key!r} in {os.fspath(path)!r} must be between 0 and {MOST}, not {value}")
    return value


def paths_of(prefix: str | os.PathLike[str], n: int) -> list[Path]:
    """Return the paths that llama.cpp gives to the files of a model.

    Args:
        prefix: The beginning of their paths.
        n: The number of files.

    Raises:
        ArgumentError: There are more files than the format allows.
    """
    if n > MOST:
        raise ArgumentError(f"a model can have at most {MOST} files, not {n}: raise the limit")
    return [Path(name) for name in shard_names(prefix, n)]


def prefix_of(first: str | os.PathLike[str], n: int) -> str:
    """Return the common beginning of the paths of all ``n`` files of a model.

    Raises:
        GgufError: ``first`` is not named like the first of ``n`` files.
    """
    prefix = shard_prefix(first, 0, n)
    if prefix is None:
        expected = shard_names("PREFIX", n)[0]
        raise GgufError(
            f"{os.fspath(first)!r} is the first of {n} files, so its name must be like {expected}"
        )
    return prefix
