"""Recognise GGUF files that hold something other than expected, and say how to use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._core.text import c_text
from .._native import ffi, lib
from ..errors import LoadError


def check_kind(gguf: Any, name: str) -> None:
    """Raise LoadError if the metadata of a file show that it is not a model.

    Args:
        gguf: The ``struct gguf_context *`` of the file.
        name: The name of the file, for the message.

    Raises:
        LoadError: The file is an adapter, a control vector or another kind of GGUF.
    """
    found = kind_of(gguf)
    if found not in ("", MODEL):
        raise LoadError(f"cannot load {name!r} as a model: it is {found}")


def kind_of(gguf: Any) -> str:
    """Return what a GGUF holds and how to use it, or "" if its metadata do not say.

    Args:
        gguf: The ``struct gguf_context *``.
    """
    for key, kinds in KINDS.items():
        if found := kinds.get(text_of(gguf, key)):
            return found
    n_layer = f"{text_of(gguf, ARCHITECTURE)}.block_count".encode()
    return "" if lib.gguf_find_key(gguf, n_layer) < 0 else MODEL


def check_magic(start: bytes, name: str | bytes) -> None:
    """Raise LoadError unless a file that begins with ``start`` is a GGUF."""
    if not start:
        raise LoadError(f"{name!r} is not a GGUF file: it is empty")
    if start != MAGIC:
        hint = f", like {OTHERS[start]}" if start in OTHERS else ""
        raise LoadError(f"{name!r} is not a GGUF file: it begins with {start!r}{hint}")


def text_of(gguf: Any, key: str) -> str:
    """Return a string of the metadata, or "" if the key is missing or holds another type."""
    at = lib.gguf_find_key(gguf, key.encode())
    if at < 0 or lib.gguf_get_kv_type(gguf, at) != lib.GGUF_TYPE_STRING:
        return ""
    return c_text(lib.gguf_get_val_str(gguf, at))


# upstream: src/llama-arch.cpp LLM_KV_GENERAL_ARCHITECTURE: what the keys of a model's own numbers
# begin with.
ARCHITECTURE = "general.architecture"


def architecture_of(metadata: Mapping[str, Any]) -> str:
    """Return the name of a model's architecture, such as ``llama``; empty if the file has none."""
    name = metadata.get(ARCHITECTURE, "")
    return name if isinstance(name, str) else ""


MAGIC: bytes = ffi.string(lib.GGUF_MAGIC)
# The first bytes (as many as the GGUF magic has) of files that people mistake for models.
OTHERS = {
    b"vers": "a Git LFS pointer: fetch the file itself with `git lfs pull`",
    b"<!do": "a web page: download the file itself",
    b"<!DO": "a web page: download the file itself",
    b"<htm": "a web page: download the file itself",
    b"PK\3\4": "a PyTorch model: convert it with llama.cpp's convert_hf_to_gguf.py",
    b"lmgg": "a model in a format older than GGUF: download it as GGUF",
    b"fmgg": "a model in a format older than GGUF: download it as GGUF",
    b"tjgg": "a model in a format older than GGUF: download it as GGUF",
}
MODEL = "a model: load it with Model(path)"
LORA = "a LoRA adapter: load its base model and pass both to Adapter(model, path)"
VECTOR = "a control vector: use ControlVector.from_file and Context.control_vector"
IMATRIX = "an importance matrix: open it with Imatrix.open and pass it to quantize()"
PROJECTOR = "an image or audio projector (mmproj): load the text model that it belongs to"

# Metadata values, by key, that identify each kind of file.
KINDS = {
    ARCHITECTURE: {"controlvector": VECTOR, "clip": PROJECTOR},
    "general.type": {
        "adapter": LORA,
        "controlvector": VECTOR,
        "imatrix": IMATRIX,
        "mmproj": PROJECTOR,
    },
}
