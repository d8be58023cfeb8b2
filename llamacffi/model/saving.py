"""Models into files."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .._core.atomic import explain_failure, scratch_beside
from .._core.text import c_path, path_text
from .._native import ffi, lib
from ..backend.device_types import text
from ..errors import NativeError, UnsupportedError
from ..gguf.gguf import Gguf
from ..log import drain, recent, with_log
from .info import CHAT_TEMPLATE, shape_of, typed, weights
from .token_types import restore_token_types

if TYPE_CHECKING:
    from pathlib import Path

    from .model import Model


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a model to a file, at once or not at all."""
    path = path_text(path)
    ptr = model.ptr
    model._check_weights()
    if model._divided:
        raise UnsupportedError(
            "weights that are divided among devices (split_mode='tensor') cannot be saved"
        )
    tensors = {text(tensor.name): tensor for tensor in weights(ptr)}
    _check_tensors(tensors)
    with scratch_beside(path) as directory:
        part = directory / "saved.gguf"
        _write(model, ptr, part, path)
        with Gguf.open(part) as saved:
            for name, tensor in tensors.items():
                if name not in saved.tensors:  # as the embeddings of a model without an output
                    _add_tensor(saved, name, tensor)
            for key, value in _left_out(model):
                saved.setdefault(key, value)
            restore_token_types(model, saved)
            saved.write(path)
    drain()


def _check_tensors(tensors: Mapping[str, Any]) -> None:
    """Raise for weights that cannot be written: C would read from nowhere."""
    if "token_embd.weight" not in tensors:
        raise UnsupportedError("llama.cpp can only save models that have token embeddings")
    kept = {name for name, one in tensors.items() if not lib.llamacffi_tensor_readable(one)}
    if kept:
        places = {text(lib.ggml_backend_buffer_name(tensors[name].buffer)) for name in kept}
        raise UnsupportedError(
            f"{len(kept)} weights are in a layout that cannot be read back ({', '.join(places)}): "
            "to save the model, load it with use_extra_bufts=False"
        )


def _write(model: Model, ptr: Any, part: Path, path: str | os.PathLike[str]) -> None:
    """Let llama.cpp write the file that becomes ``path``."""
    drain()
    try:
        lib.llama_model_save_to_file(ptr, c_path(part))
    except NativeError as error:
        raise with_log(
            UnsupportedError(
                f"llama.cpp cannot save {_which(model, str(error))}: copy its file instead, or "
                f"change a copy of it with Gguf ({error})"
            )
        ) from error
    if errors := recent(logging.ERROR):  # it returns nothing
        explain_failure(part, path)
        raise with_log(OSError(errno.EIO, errors[0], os.fspath(path)))


def _which(model: Model, reason: str) -> str:
    """Return which models llama.cpp cannot save, of which this is one."""
    # It knows of architectures; but with this vocabulary there is an array that it has no code for.
    with_charsmap = lib.llama_vocab_type(model.vocab.ptr) == lib.LLAMA_VOCAB_TYPE_UGM
    if with_charsmap and "supports_arch" not in reason:
        return "a model whose vocabulary has a precompiled_charsmap, as that of T5"
    return f"a model of the architecture {model.architecture!r}"


def _add_tensor(saved: Gguf, name: str, tensor: Any) -> None:
    """Add a weight that llama.cpp has left out."""
    import numpy as np

    from .._generated.enums import GgmlType
    from ..gguf.types import array_of

    buffer = np.empty(lib.ggml_nbytes(tensor), np.uint8)
    lib.ggml_backend_tensor_get(tensor, ffi.from_buffer(buffer), 0, buffer.nbytes)
    type_ = GgmlType(tensor.type)
    saved.add_tensor(name, array_of(buffer, type_, shape_of(tensor)), type=type_)


def _left_out(model: Model) -> Iterator[tuple[str, Any]]:
    """Yield what llama.cpp does not save, as far as it is known.

    Only the text of the values is known, not their types, so only those are taken of which it can
    be told: how the vocabulary and the architecture are, and texts.
    """
    for key, value in model.metadata.items():
        number = typed(value)
        if key == CHAT_TEMPLATE or key.startswith(f"{CHAT_TEMPLATE}."):
            yield key, value
        elif "\N{REPLACEMENT CHARACTER}" in value:  # it was no UTF-8
            continue
        elif key.startswith((f"{model.architecture}.", "tokenizer.")):
            yield key, value == "true" if value in BOOLS else number
        elif ".sampling." in key or key in NUMBERS:
            yield key, number
        elif key.startswith("general.") and isinstance(number, str) and value not in BOOLS:
            yield key, value


NUMBERS = "general.file_type", "general.quantization_version"
BOOLS = "true", "false"
