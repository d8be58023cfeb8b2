"""Models from files: the calls of C, and clear errors for what can be wrong with a file."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .. import log
from .._core.callbacks import Bridge
from .._core.files import OpenFile, c_file, own_file
from .._core.ownership import make, own
from .._core.path_hints import no_file
from .._core.text import c_path, checked_path
from .._native import ffi, lib
from ..errors import ArgumentError, LoadError, ModelNotFoundError, NativeError
from . import load_mode
from .file_kind import MAGIC, check_kind, check_magic
from .hyperparameters import check_hyperparameters
from .overrides import fit_kv_overrides
from .vocabulary import check_vocabulary
from .weight_types import check_factor_types

if TYPE_CHECKING:
    from typing import TypeAlias

    from .._core import types as types
    from .._core.ownership import Made

    Progress: TypeAlias = Callable[[float], bool | None]
    Path: TypeAlias = str | os.PathLike[str]

# What llama.cpp says of every load that failed, beside the reason.
NO_REASON = re.compile(r"failed to load model( from .*)?$")
# What stands before it: names of functions, and what we say ourselves.
BEFORE_REASON = re.compile(r"^(\w+: |error loading model: )+")

# What it says of a tensor that ends behind the file.
CUT_OFF = re.compile(r" data is not within the file bounds.*$")


def load_path(path: Path, struct: Any, progress: Progress | None) -> Made:
    """Load a file, and those that belong to it.  Source: ``llama_model_load_from_file``."""
    check_gguf(path)
    raw = c_path(path)
    return load(
        lambda params: make_model(lib.llama_model_load_from_file, raw, params),
        struct,
        os.fspath(path),
        progress,
        read=lambda params: _make_gguf(lib.gguf_init_from_file, raw, params),
        explain=lambda: explain_shards(path),
    )


def load_splits(paths: Sequence[Path], struct: Any, progress: Progress | None) -> Made:
    """Load the files of one model.  Source: ``llama_model_load_from_splits``."""
    check_shards(paths)
    raw = [ffi.new("char[]", c_path(path)) for path in paths]
    array = ffi.new("const char *[]", raw)
    return load(
        lambda params: make_model(lib.llama_model_load_from_splits, array, len(raw), params),
        struct,
        os.fspath(paths[0]),
        progress,
        read=lambda params: _make_gguf(lib.gguf_init_from_file, raw[0], params),
    )


def load_file(
    source: types.FileSource,
    offset: int | None,
    struct: Any,
    progress: Progress | None,
    name: str | None = None,
) -> Made:
    """Load from an open file or bytes.  Source: ``llama_model_load_from_file_ptr``."""
    with c_file(source, offset=offset, name=name) as file:
        if file.offset == file.size > 0:
            raise LoadError(
                f"{file.name!r} is read from its end, at byte {file.offset}: seek to where the "
                "GGUF begins, or give offset="
            )
        check_magic(file.read(len(MAGIC)), file.name)
        _check_mode(file, struct)
        load_ptr = lib.llama_model_load_from_file_ptr
        return load(
            lambda params: _read_again(file, make_model, load_ptr, params),
            struct,
            file.name,
            progress,
            read=lambda params: _read_again(file, _make_gguf, lib.gguf_init_from_file_ptr, params),
        )


def make_model(function: Callable[..., Any], *args: Any) -> Made:
    """Call a C function that loads a model, for `own`."""
    return make(lib.llama_model_free, (), function, *args)


def _make_gguf(function: Callable[..., Any], *args: Any) -> Made:
    """Call a C function that reads metadata, for `own`."""
    return make(lib.gguf_free, (), function, *args)


def load(
    call: Callable[[Any], Made],
    struct: Any,
    name: str,
    progress: Progress | None,
    *,
    read: Callable[[Any], Made] | None = None,
    explain: Callable[[], None] | None = None,
) -> Made:
    """Run a C function that loads a model, and perhaps again in a way that is possible.

    Args:
        call: Gets the parameters, returns what `make` does.
        struct: The ``struct llama_model_params *``.
        name: The file, for messages.
        progress: The user's function.
        read: Gets the parameters for it, returns the metadata in the file as `make` does.
        explain: Raises a better error for a load that failed, if it finds one.

    Returns:
        The ``struct llama_model *``, for `own`.

    Raises:
        LoadError: llama.cpp cannot load it; the lines of its log are in the notes.
    """
    is_aligned = read is None or _look(struct, read, name)
    made, failure = _call(call, struct, name, progress)
    if failure is not None and not is_aligned:
        if load_mode.is_auto(struct):
            load_mode.read(struct)
            made, failure = _call(call, struct, name, progress)
        elif load_mode.is_mapped(struct):
            raise ArgumentError(
                f"{name!r} is not aligned to be mapped: load_mode='none' can"
            ) from failure
    try:
        if failure is None:
            return made
        if explain is not None:
            explain()
        raise failure
    finally:
        del failure  # it would keep this frame, and this frame it


def _call(
    call: Callable[[Any], Made], struct: Any, name: str, progress: Progress | None
) -> tuple[Made, LoadError | None]:
    """Run a C function that loads a model; return the model, or why there is none.

    Raises:
        BaseException: What ``progress`` has raised.
    """
    # Always a callback: Python must run now and then for Ctrl-C to stop the load.
    bridge = Bridge(progress or (lambda _part: None))
    user_data = ffi.new_handle(bridge)
    struct.progress_callback = lib.llamacffi_on_progress
    struct.progress_callback_user_data = user_data
    log.drain()
    nothing: Made = (), ffi.NULL
    made, failure = nothing, None
    try:
        made = call(struct[0])
    except NativeError as error:
        reason = str(error).partition(": ")[2]
        failure = log.with_log(LoadError(f"cannot load {name!r}: {reason}"))
        failure.__cause__ = error
    if bridge.error is not None:
        made = nothing  # which frees the model
        bridge.reraise()
    if made[1] == ffi.NULL and failure is None:
        failure = log.with_log(LoadError(f"cannot load {name!r}: {_reason()}"))
    return made, failure


def _reason() -> str:
    """Return why a load failed, in a few words: the first error that llama.cpp logged."""
    for line in log.recent(logging.ERROR):
        if NO_REASON.search(line):
            continue
        reason = BEFORE_REASON.sub("", line)
        if reason.startswith("unknown model architecture"):
            version = ffi.string(lib.llama_version()).decode()
            return f"{reason}; this is llama.cpp {version}, and a newer one may know it"
        if CUT_OFF.search(reason):
            return f"{CUT_OFF.sub('', reason)} is not all in the file, which is cut off"
        if reason.startswith("failed to read ") or "remaining file size" in reason:
            return f"{reason}; the file is damaged or cut off"
        return reason
    return "llama.cpp gives no reason"


def check_gguf(path: Path) -> None:
    """Raise a clear error unless ``path`` is a file that begins as a GGUF does.

    Raises:
        ModelNotFoundError: There is no such file.
        LoadError: It cannot be read, or is something else.
        ArgumentError: No file can be called so.
    """
    name = checked_path(path)
    try:
        mode = os.stat(name).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # to open a pipe could take forever
            raise LoadError(f"{name!r} is no regular file; see Model.from_file for bytes")
        with open(name, "rb") as file:
            start = file.read(len(MAGIC))
    except FileNotFoundError:
        raise no_file("there is no such model file", name) from None
    except LoadError:
        raise
    except IsADirectoryError as error:
        reason = f"{error.strerror}: name a GGUF file in it"
        raise LoadError(error.errno, reason, name) from None
    except OSError as error:
        raise LoadError(error.errno, error.strerror, name) from None
    check_magic(start, name)


def _check_mode(file: OpenFile, struct: Any) -> None:
    """Choose how to read from an open file where llama.cpp's own choice would fail.

    Raises:
        ArgumentError: What was asked for is not possible.
    """
    if load_mode.is_direct(struct):
        raise ArgumentError("load_mode='direct_io' needs a path: llama.cpp opens the file itself")
    if struct.vocab_only and load_mode.is_auto(struct):
        load_mode.read(struct)  # without tensors, nothing need be aligned
    alignment = _alignment()
    if file.offset % alignment == 0:
        return
    # Mapped tensors are where they are in the file.
    where = (
        f"the GGUF is at byte {file.offset} of {file.name!r}, and {alignment} does not divide that"
    )
    if load_mode.is_auto(struct):
        load_mode.read(struct)
    elif load_mode.is_mapped(struct):
        raise ArgumentError(f"{where}: it cannot be mapped; load_mode='none' reads it into memory")
    if not hasattr(struct, "lazy_mode"):  # an older llama.cpp reads all at once
        return
    if struct.lazy_mode == lib.LLAMA_LAZY_MODE_ON:
        raise ArgumentError(f"{where}: lazy_mode='on' is not possible, 'off' is")
    struct.lazy_mode = lib.LLAMA_LAZY_MODE_OFF


def _metadata(call: Callable[[Any], Made]) -> Any:
    """Return an owned ``struct gguf_context *`` from one of C's functions, or None."""
    log.drain()
    made = call(ffi.new("struct gguf_init_params *", {"no_alloc": True})[0])
    return None if made[1] == ffi.NULL else own(made)


def check_metadata(struct: Any, gguf: Any, name: str) -> None:
    """Fit the overrides of metadata, and check what llama.cpp would read then.

    Args:
        struct: The ``struct llama_model_params *``.
        gguf: The ``struct gguf_context *``.
        name: Of the file, for messages.

    Raises:
        LoadError: It is no model, or has numbers or a vocabulary that llama.cpp could not read.
    """
    check_kind(gguf, name)
    fit_kv_overrides(struct, gguf)
    check_hyperparameters(struct, gguf, name)
    check_vocabulary(struct, gguf, name)
    check_factor_types(struct, gguf, name)


def _look(struct: Any, read: Callable[[Any], Made], name: str) -> bool:
    """Look at the metadata in a file, and fit the overrides of it.

    Returns:
        Whether tensors can be used where they are in the file.

    Raises:
        LoadError: It is no model, or has numbers or a vocabulary that llama.cpp could not read.
    """
    gguf = _metadata(read)
    if gguf is None:  # the load itself will say what is wrong
        return True
    check_metadata(struct, gguf, name)
    return bool(lib.gguf_get_data_offset(gguf) % _alignment() == 0)


def _alignment() -> int:
    return int(lib.ggml_backend_buft_get_alignment(lib.ggml_backend_cpu_buffer_type()))


def _read_again(
    file: OpenFile, call: Callable[..., Made], function: Callable[..., Any], params: Any
) -> Made:
    """Call a C function that reads a ``FILE *`` with one of its own, at the beginning."""
    with own_file(file.descriptor, file.offset, file.name) as again:
        return call(function, again.ptr, params)


def shard_info(path: Path) -> tuple[int, int]:
    """Return which of how many files this is, counted from 0; of a single one, 0 of 1.

    Raises:
        LoadError: It is no GGUF, or damaged.
    """
    raw = c_path(path)
    gguf = _metadata(lambda params: _make_gguf(lib.gguf_init_from_file, raw, params))
    if gguf is None:
        raise log.with_log(LoadError(f"cannot load {os.fspath(path)!r}: {_reason()}"))

    def number(key: bytes, default: int) -> int:
        i = lib.gguf_find_key(gguf, key)
        if i < 0 or lib.gguf_get_kv_type(gguf, i) != lib.GGUF_TYPE_UINT16:
            return default
        return int(lib.gguf_get_val_u16(gguf, i))

    return number(b"split.no", 0), number(b"split.count", 1) or 1


def check_shards(paths: Sequence[Path]) -> None:
    """Raise unless these are all files of one model, in order.

    Raises:
        ArgumentError: There are too few or too many, or the order is another.
        LoadError: One is no GGUF, or not there.
    """
    if not paths:
        raise ArgumentError("from_splits needs at least one path")
    for path in paths:
        check_gguf(path)
    for i, path in enumerate(paths):
        no, count = shard_info(path)
        if i == 0 and count != len(paths):
            raise ArgumentError(
                f"{os.fspath(path)!r} is of a model in {count} files, but {len(paths)} are given"
            )
        if no != i:
            raise ArgumentError(
                f"{os.fspath(path)!r} is file {no + 1} of {count}, but is given as file {i + 1}"
            )


def explain_shards(path: Path) -> None:
    """Raise for a file that is one of several, if that is why it could not be loaded.

    Raises:
        ModelNotFoundError: Another file of the model is not there.
        LoadError: It is not the first, or its name does not tell the others.
    """
    name = os.fsdecode(path)
    try:
        no, count = shard_info(path)
    except LoadError:
        return
    if count < 2:
        return
    prefix = read_prefix(name, no, count)
    if prefix is None:
        raise LoadError(
            f"{name!r} is file {no + 1} of {count}, but its name does not end as theirs do "
            f"(-00001-of-{count:05}.gguf): use Model.from_splits with all of them"
        )
    names = [shard_name(prefix, i, count) for i in range(count)]
    if no:
        raise LoadError(f"{name!r} is file {no + 1} of {count}: load the first, {names[0]!r}")
    for i, one in enumerate(names):
        if not os.path.exists(one):
            raise ModelNotFoundError(
                errno.ENOENT, f"file {i + 1} of the {count} of this model is missing", one
            )


def read_prefix(name: str, no: int, count: int) -> str | None:
    """Return the part of a shard's name that all have, or None.  Source: ``llama_split_prefix``."""
    raw = c_path(name)
    buffer = ffi.new("char[]", len(raw) + 1)
    size = lib.llama_split_prefix(buffer, len(raw) + 1, raw, no, count)
    return os.fsdecode(raw[:size]) if size > 0 else None


def shard_name(prefix: str, no: int, count: int) -> str:
    """Return the name of a shard.  Source: ``llama_split_path``."""
    raw = c_path(prefix)
    room = len(raw) + 64
    buffer = ffi.new("char[]", room)
    size = lib.llama_split_path(buffer, room, raw, no, count)
    return os.fsdecode(ffi.buffer(buffer, size)[:])
