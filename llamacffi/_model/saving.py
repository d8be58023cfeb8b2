"""Models into files."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .._atomic import explain_failure, scratch_beside
from .._devices import text
from .._ffi import ffi, lib
from .._text import c_path, path_text
from ..errors import NativeError, UnsupportedError
from ..gguf import Gguf
from ..log import drain, recent, with_log
from .info import CHAT_TEMPLATE, shape_of, typed, weights

if TYPE_CHECKING:
    from pathlib import Path

    from ..model import Model

# The flags of a token beside its type: llama.cpp takes a token with one for one without a type.
EXTRA_ATTRS = "NORMALIZED", "LSTRIP", "RSTRIP", "SINGLE_WORD"


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a model to a file, at once or not at all."""
    path = path_text(path)
    ptr = model.ptr
    if model.without_weights:
        raise UnsupportedError(f"{model!r} was loaded with {model.without_weights}=True")
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
            saved.update(_token_types(model, saved))
            for key, value in _left_out(model.metadata):
                saved.setdefault(key, value)
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
            UnsupportedError(f"llama.cpp cannot save a model of {model.architecture}: {error}")
        ) from error
    if errors := recent(logging.ERROR):  # it returns nothing
        explain_failure(part, path)
        raise with_log(OSError(errno.EIO, errors[0], os.fspath(path)))


def _add_tensor(saved: Gguf, name: str, tensor: Any) -> None:
    """Add a weight that llama.cpp has left out."""
    import numpy as np

    from .._generated.enums import GgmlType
    from .._gguf.types import array_of

    buffer = np.empty(lib.ggml_nbytes(tensor), np.uint8)
    lib.ggml_backend_tensor_get(tensor, ffi.from_buffer(buffer), 0, buffer.nbytes)
    type_ = GgmlType(tensor.type)
    saved.add_tensor(name, array_of(buffer, type_, shape_of(tensor)), type=type_)


def _left_out(metadata: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield what llama.cpp does not compute with and so does not save, as far as it is known.

    Only the text of the values is known, not their types, so only those are taken of which it can
    be told.
    """
    for key, value in metadata.items():
        if key == CHAT_TEMPLATE or key.startswith(f"{CHAT_TEMPLATE}."):
            yield key, value
        elif ".sampling." in key or key in NUMBERS:
            yield key, typed(value)
        elif key.startswith("general.") and isinstance(typed(value), str) and value not in BOOLS:
            yield key, value


NUMBERS = "general.file_type", "general.quantization_version"
BOOLS = "true", "false"


def _token_types(model: Model, saved: Gguf) -> dict[str, Any]:
    """Return the types of the tokens, if llama.cpp has not written all of them."""
    import numpy as np

    from .._generated.enums import TokenAttr, TokenType

    vocab = model.vocab.ptr
    if lib.llama_vocab_type(vocab) == lib.LLAMA_VOCAB_TYPE_NONE:
        return {}
    flags = sum(TokenAttr[name] for name in EXTRA_ATTRS)
    attrs = np.array([lib.llama_vocab_get_attr(vocab, i) for i in range(len(model.vocab))])
    if not (attrs & flags).any():
        return {}
    types = np.full(len(attrs), TokenType.UNDEFINED, np.int32)
    # The control type first: llama.cpp adds it to the type of a token that should have it.
    for name in ("CONTROL", *(name for name in TokenType.__members__ if name != "CONTROL")):
        if TokenAttr[name]:
            types[attrs & TokenAttr[name] != 0] = TokenType[name]
    return {"tokenizer.ggml.token_type": types}
