"""Load models from files: the C calls, and clear errors for files that cannot be loaded."""

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
from .._core.shard_names import COUNT, NUMBER, shard_names, shard_prefix
from .._core.text import c_path, c_text, checked_path
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

# upstream: src/llama.cpp "failed to load model": logged after the reason of every failure.
NO_REASON = re.compile(r"failed to load model( from .*)?$")
# upstream: src/llama.cpp "error loading model: ": logged before a reason, like names of functions;
# our message says the same, and so we cut it off.
BEFORE_REASON = re.compile(r"^(\w+: |error loading model: )+")

# upstream: src/llama-model-loader.h "data is not within the file bounds": said of a tensor whose
# file was cut off, and so we say that.
CUT_OFF = re.compile(r" data is not within the file bounds.*$")


def load_path(path: Path, struct: Any, progress: Progress | None) -> Made:
    """Load a file, or all files of a split model.  Source: ``llama_model_load_from_file``."""
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
    """Load a model from the files it is split into.  Source: ``llama_model_load_from_splits``."""
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
                f"the position of {file.name!r} is at its end, byte {file.offset}: seek to the "
                "start of the GGUF or give offset="
            )
        check_magic(file.read(len(MAGIC)), file.name)
        _check_mode(file, struct)
        load_ptr, gguf_init = lib.llama_model_load_from_file_ptr, lib.gguf_init_from_file_ptr
        return load(
            lambda params: _call_reopened(file, make_model, load_ptr, params),
            struct,
            file.name,
            progress,
            read=lambda params: _call_reopened(file, _make_gguf, gguf_init, params),
        )


def make_model(function: Callable[..., Any], *args: Any) -> Made:
    """Call a C function that loads a model; `own` takes the result."""
    return make(lib.llama_model_free, (), function, *args)


def _make_gguf(function: Callable[..., Any], *args: Any) -> Made:
    """Call a C function that reads metadata; `own` takes the result."""
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
    """Call a C function that loads a model, and again without mapping if that is what failed.

    Args:
        call: Loads the model: takes the parameters, returns what `make` returns.
        struct: The ``struct llama_model_params *``.
        name: The name of the file, for messages.
        progress: The user's function.
        read: Reads the metadata of the file: takes ``struct gguf_init_params``, returns what `make`
            returns.
        explain: Called after a failure; raises a better error if it knows the reason.

    Returns:
        The ``struct llama_model *``, for `own`.

    Raises:
        LoadError: llama.cpp cannot load the model; the lines of its log are in the notes.
    """
    is_aligned = read is None or _check_file(struct, read, name)
    made, failure = _call(call, struct, name, progress)
    if failure is not None and not is_aligned:
        if load_mode.is_auto(struct):
            load_mode.use_read(struct)
            made, failure = _call(call, struct, name, progress)
        elif load_mode.is_mapped(struct):
            raise ArgumentError(
                f"{name!r} is not aligned, so it cannot be mapped: use load_mode='none'"
            ) from failure
    try:
        if failure is None:
            return made
        if explain is not None:
            explain()
        raise failure
    finally:
        del failure  # breaks the cycle between the error and this frame


def _call(
    call: Callable[[Any], Made], struct: Any, name: str, progress: Progress | None
) -> tuple[Made, LoadError | None]:
    """Call a C function that loads a model; return the model, or the error if it failed.

    Raises:
        BaseException: Whatever ``progress`` raised.
    """
    # Always set a callback: Ctrl-C can stop the load only while Python code runs.
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
        made = nothing  # frees the model
        bridge.reraise()
    if made[1] == ffi.NULL and failure is None:
        failure = log.with_log(LoadError(f"cannot load {name!r}: {_reason()}"))
    return made, failure


def _reason() -> str:
    """Return the reason why a load failed: the first error that llama.cpp logged."""
    for line in log.recent(logging.ERROR):
        if NO_REASON.search(line):
            continue
        reason = BEFORE_REASON.sub("", line)
        if reason.startswith("unknown model architecture"):
            version = c_text(lib.llama_version())
            return f"{reason}; this is llama.cpp {version}, a newer version may support it"
        if CUT_OFF.search(reason):
            return f"{CUT_OFF.sub('', reason)} ends after the end of the file, which is cut off"
        if reason.startswith("failed to read ") or "remaining file size" in reason:
            return f"{reason}; the file is damaged or cut off"
        return reason
    return "llama.cpp gave no reason"


def check_gguf(path: Path) -> None:
    """Raise a clear error unless ``path`` is a file that starts with the GGUF magic.

    Raises:
        ModelNotFoundError: The file does not exist.
        LoadError: The file cannot be read or is not a GGUF.
        ArgumentError: The path cannot be the name of a file.
    """
    name = checked_path(path)
    try:
        mode = os.stat(name).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a pipe could block forever
            raise LoadError(f"{name!r} is not a regular file: pass its bytes to Model.from_file")
        with open(name, "rb") as file:
            start = file.read(len(MAGIC))
    except FileNotFoundError:
        raise no_file("no such model file", name) from None
    except LoadError:
        raise
    except IsADirectoryError as error:
        reason = f"{error.strerror}: give the path of a GGUF file in it"
        raise LoadError(error.errno, reason, name) from None
    except OSError as error:
        raise LoadError(error.errno, error.strerror, name) from None
    check_magic(start, name)


def _check_mode(file: OpenFile, struct: Any) -> None:
    """Choose how to read an open file where llama.cpp's own choice would fail.

    Raises:
        ArgumentError: The parameters ask for a way of reading that this file does not allow.
    """
    if load_mode.is_direct(struct):
        raise ArgumentError("load_mode='direct_io' needs a path: llama.cpp opens the file itself")
    if struct.vocab_only and load_mode.is_auto(struct):
        load_mode.use_read(struct)  # no tensors are read, so alignment does not matter
    alignment = _alignment()
    if file.offset % alignment == 0:
        return
    # A mapped tensor has the same alignment as in the file.
    where = f"the GGUF starts at byte {file.offset} of {file.name!r}, not a multiple of {alignment}"
    if load_mode.is_auto(struct):
        load_mode.use_read(struct)
    elif load_mode.is_mapped(struct):
        raise ArgumentError(f"{where}, so it cannot be mapped: use load_mode='none'")
    if not hasattr(struct, "lazy_mode"):  # older versions of llama.cpp have no lazy mode
        return
    if struct.lazy_mode == lib.LLAMA_LAZY_MODE_ON:
        raise ArgumentError(f"{where}, so lazy_mode='on' is not possible: use lazy_mode='off'")
    struct.lazy_mode = lib.LLAMA_LAZY_MODE_OFF


def _metadata(call: Callable[[Any], Made]) -> Any:
    """Return the ``struct gguf_context *`` that a C function reads, owned; None if it fails."""
    log.drain()
    made = call(ffi.new("struct gguf_init_params *", {"no_alloc": True})[0])
    return None if made[1] == ffi.NULL else own(made)


def check_metadata(struct: Any, gguf: Any, name: str) -> None:
    """Adapt the metadata overrides to the file, and check the metadata that llama.cpp will use.

    Args:
        struct: The ``struct llama_model_params *``.
        gguf: The ``struct gguf_context *``.
        name: The name of the file, for messages.

    Raises:
        LoadError: The file is not a model, or llama.cpp cannot handle its metadata or vocabulary.
    """
    check_kind(gguf, name)
    fit_kv_overrides(struct, gguf)
    check_hyperparameters(struct, gguf, name)
    check_vocabulary(struct, gguf, name)
    check_factor_types(struct, gguf, name)


def _check_file(struct: Any, read: Callable[[Any], Made], name: str) -> bool:
    """Check the metadata of a file, and adapt the overrides to them.

    Returns:
        Whether the tensors are aligned in the file, so that they can be mapped.

    Raises:
        LoadError: The file is not a model, or llama.cpp cannot handle its metadata or vocabulary.
    """
    gguf = _metadata(read)
    if gguf is None:  # loading it will report what is wrong
        return True
    check_metadata(struct, gguf, name)
    return bool(lib.gguf_get_data_offset(gguf) % _alignment() == 0)


def _alignment() -> int:
    return int(lib.ggml_backend_buft_get_alignment(lib.ggml_backend_cpu_buffer_type()))


def _call_reopened(
    file: OpenFile, call: Callable[..., Made], function: Callable[..., Any], params: Any
) -> Made:
    """Open the file again and call a C function that reads it from the start of the GGUF."""
    with own_file(file.descriptor, file.offset, file.name) as again:
        return call(function, again.ptr, params)


def shard_info(path: Path) -> tuple[int, int]:
    """Return the index of a shard and the number of shards; (0, 1) if the model is not split.

    Raises:
        LoadError: The file is not a GGUF or is damaged.
    """
    raw = c_path(path)
    gguf = _metadata(lambda params: _make_gguf(lib.gguf_init_from_file, raw, params))
    if gguf is None:
        raise log.with_log(LoadError(f"cannot load {os.fspath(path)!r}: {_reason()}"))

    def number(key: str, default: int) -> int:
        i = lib.gguf_find_key(gguf, key.encode())
        if i < 0 or lib.gguf_get_kv_type(gguf, i) != lib.GGUF_TYPE_UINT16:
            return default
        return int(lib.gguf_get_val_u16(gguf, i))

    return number(NUMBER, 0), number(COUNT, 1) or 1


def check_shards(paths: Sequence[Path]) -> None:
    """Check that these are all the shards of one model, in order.

    Raises:
        ArgumentError: There are too few or too many files, or their order is wrong.
        LoadError: A file is missing or is not a GGUF.
    """
    if not paths:
        raise ArgumentError("from_splits needs at least one path")
    for path in paths:
        check_gguf(path)
    for i, path in enumerate(paths):
        no, count = shard_info(path)
        if i == 0 and count != len(paths):
            raise ArgumentError(
                f"{os.fspath(path)!r} belongs to a model in {count} files, but {len(paths)} were "
                "given"
            )
        if no != i:
            raise ArgumentError(
                f"{os.fspath(path)!r} is file {no + 1} of {count}, but was given as file {i + 1}"
            )


def explain_shards(path: Path) -> None:
    """Raise a clear error if a file could not be loaded because the model is split.

    Raises:
        ModelNotFoundError: Another file of the model is missing.
        LoadError: It is not the first file, or the other names cannot be derived from its name.
    """
    name = os.fsdecode(path)
    try:
        no, count = shard_info(path)
    except LoadError:
        return
    if count < 2:
        return
    prefix = shard_prefix(name, no, count)
    if prefix is None:
        raise LoadError(
            f"{name!r} is file {no + 1} of {count}, but its name does not end in "
            f"{shard_names('', count)[no]}: pass all files to Model.from_splits"
        )
    names = shard_names(prefix, count)
    if no:
        raise LoadError(f"{name!r} is file {no + 1} of {count}: load the first one, {names[0]!r}")
    for i, one in enumerate(names):
        if not os.path.exists(one):
            raise ModelNotFoundError(
                errno.ENOENT, f"file {i + 1} of the {count} files of this model is missing", one
            )
