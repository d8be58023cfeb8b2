"""Write models to GGUF files."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .._core.atomic import explain_failure, scratch_beside
from .._core.text import c_path, c_text, path_text
from .._native import ffi, lib
from ..errors import NativeError, UnsupportedError
from ..gguf.gguf import Gguf
from ..log import drain, recent, with_log
from .info import check_weights, is_divided, shape_of, weights
from .metadata import CHAT_TEMPLATE, typed
from .token_types import restore_token_types

if TYPE_CHECKING:
    from pathlib import Path

    from .info import ModelInfo


def save(
    model: ModelInfo, path: str | os.PathLike[str], load: Callable[[bytes], ModelInfo]
) -> None:
    """Write a model to a file atomically: the whole file or nothing.

    Args:
        model: The model.
        path: The path of the file.
        load: Loads the vocabulary of a GGUF in memory.
    """
    path = path_text(path)
    ptr = model.ptr
    check_weights(model)
    if is_divided(model):
        raise UnsupportedError(
            "a model loaded with split_mode='tensor' cannot be saved: load it without split_mode"
        )
    tensors = {c_text(tensor.name): tensor for tensor in weights(ptr)}
    _check_tensors(tensors)
    with scratch_beside(path) as directory:
        part = directory / "saved.gguf"
        _write(model, ptr, part, path)
        with Gguf.open(part) as saved:
            for name, tensor in tensors.items():
                # upstream: src/llama-model-saver.cpp add_tensors_from_model: leaves out some,
                # and so we add them.
                if name not in saved.tensors:
                    _add_tensor(saved, name, tensor)
            for key, value in _left_out(model):
                saved.setdefault(key, value)
            restore_token_types(model, saved, load)
            saved.write(path)
    drain()


def _check_tensors(tensors: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for weights that C cannot read, and so cannot write."""
    if "token_embd.weight" not in tensors:
        raise UnsupportedError("llama.cpp can save only models with token embeddings")
    unreadable = {name for name, one in tensors.items() if not lib.llamacffi_tensor_readable(one)}
    if unreadable:
        places = {c_text(lib.ggml_backend_buffer_name(tensors[name].buffer)) for name in unreadable}
        raise UnsupportedError(
            f"{len(unreadable)} weights are in a layout that cannot be read back "
            f"({', '.join(places)}): to save the model, load it with use_extra_bufts=False"
        )


def _write(model: ModelInfo, ptr: Any, part: Path, path: str | os.PathLike[str]) -> None:
    """Let llama.cpp write the file that becomes ``path``."""
    drain()
    try:
        lib.llama_model_save_to_file(ptr, c_path(part))
    except NativeError as error:
        raise with_log(
            UnsupportedError(
                f"llama.cpp cannot save {_which(model, str(error))}: copy its file instead, or "
                f"edit a copy of it with Gguf ({error})"
            )
        ) from error
    # upstream: include/llama.h llama_model_save_to_file: returns nothing; it only logs an error.
    if errors := recent(logging.ERROR):
        explain_failure(part, path)
        raise with_log(OSError(errno.EIO, errors[0], os.fspath(path)))


def _which(model: ModelInfo, reason: str) -> str:
    """Describe the kind of model that llama.cpp cannot save."""
    # upstream: src/llama-model-saver.cpp llama_model_saver_supports_arch: checks architectures, but
    # writing the precompiled_charsmap of a vocabulary fails with another error.
    with_charsmap = (
        lib.llama_vocab_type(lib.llama_model_get_vocab(model.ptr)) == lib.LLAMA_VOCAB_TYPE_UGM
    )
    if with_charsmap and "supports_arch" not in reason:
        return "a model whose vocabulary has a precompiled_charsmap, such as that of T5"
    return f"a model of the architecture {model.architecture!r}"


def _add_tensor(saved: Gguf, name: str, tensor: Any) -> None:
    """Add a weight that llama.cpp left out."""
    import numpy as np

    from .._generated.enums import GgmlType
    from ..gguf.types import array_of

    buffer = np.empty(lib.ggml_nbytes(tensor), np.uint8)
    lib.ggml_backend_tensor_get(tensor, ffi.from_buffer(buffer), 0, buffer.nbytes)
    type_ = GgmlType(tensor.type)
    saved.add_tensor(name, array_of(buffer, type_, shape_of(tensor)), type=type_)


def _left_out(model: ModelInfo) -> Iterator[tuple[str, Any]]:
    """Yield the metadata that llama.cpp does not save.

    Only the text of each value is known, not its type, so this yields only values whose type is
    clear: those of the vocabulary and the architecture, and texts.
    """
    for key, value in model.metadata.items():
        number = typed(value)
        if key == CHAT_TEMPLATE or key.startswith(f"{CHAT_TEMPLATE}."):
            yield key, value
        elif "\N{REPLACEMENT CHARACTER}" in value:  # it was not UTF-8
            continue
        elif key.startswith((f"{model.architecture}.", "tokenizer.")):
            yield key, value == "true" if value in BOOLS else number
        elif ".sampling." in key or key in NUMBERS:
            yield key, number
        elif key.startswith("general.") and isinstance(number, str) and value not in BOOLS:
            yield key, value


# upstream: src/llama-model-saver.cpp LLM_KV_GENERAL_QUANTIZATION_VERSION, LLM_KV_GENERAL_FILE_TYPE:
# not saved, like others whose type is not clear.
NUMBERS = "general.file_type", "general.quantization_version"
BOOLS = "true", "false"
