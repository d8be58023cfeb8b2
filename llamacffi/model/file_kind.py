"""What a file is that is no model, or no adapter and the like, and what to do with it."""

from __future__ import annotations

from typing import Any

from .._native import ffi, lib
from ..errors import LoadError


def check_kind(gguf: Any, name: str) -> None:
    """Raise unless the metadata in a file can be those of a model.

    Args:
        gguf: The ``struct gguf_context *`` of the file.
        name: Of the file, for the message.

    Raises:
        LoadError: It is something else.
    """
    found = kind_of(gguf)
    if found not in ("", MODEL):
        raise LoadError(f"cannot load {name!r} as a model: it is {found}")


def kind_of(gguf: Any) -> str:
    """Return what a GGUF is, and what to do with it; empty if its metadata do not tell.

    Args:
        gguf: The ``struct gguf_context *``.
    """
    for key, kinds in KINDS.items():
        if found := kinds.get(text_of(gguf, key)):
            return found
    n_layer = f"{text_of(gguf, ARCHITECTURE)}.block_count".encode()
    return "" if lib.gguf_find_key(gguf, n_layer) < 0 else MODEL


def check_magic(start: bytes, name: str | bytes) -> None:
    """Raise LoadError unless ``start`` is how a GGUF begins."""
    if not start:
        raise LoadError(f"{name!r} is no GGUF file: it is empty")
    if start != MAGIC:
        hint = OTHERS.get(start)
        raise LoadError(
            f"{name!r} is no GGUF file: it begins with {start!r}{f', as {hint}' if hint else ''}"
        )


def text_of(gguf: Any, key: str) -> str:
    """Return a string of the metadata; empty if there is none."""
    at = lib.gguf_find_key(gguf, key.encode())
    if at < 0 or lib.gguf_get_kv_type(gguf, at) != lib.GGUF_TYPE_STRING:
        return ""
    return str(ffi.string(lib.gguf_get_val_str(gguf, at)).decode(errors="replace"))


ARCHITECTURE = "general.architecture"
MAGIC: bytes = ffi.string(lib.GGUF_MAGIC)
# How other files begin that are taken for models, as long as the magic of GGUF.
OTHERS = {
    b"vers": "a pointer of Git LFS does: get the file itself with `git lfs pull`",
    b"<!do": "a web page does: download the file itself",
    b"<!DO": "a web page does: download the file itself",
    b"<htm": "a web page does: download the file itself",
    b"PK\3\4": "a model of PyTorch does: convert it with llama.cpp's convert_hf_to_gguf.py",
    b"lmgg": "files of the time before GGUF do: get the model as GGUF",
    b"fmgg": "files of the time before GGUF do: get the model as GGUF",
    b"tjgg": "files of the time before GGUF do: get the model as GGUF",
}
MODEL = "a model: load it with Model(path)"
LORA = "a LoRA adapter: load its base model, and give both to Adapter(model, path)"
VECTOR = "a control vector: use ControlVector.from_file, and Context.control_vector"
IMATRIX = "an importance matrix: use Imatrix.open, to quantize a model with it"
PROJECTOR = "a projector of images or sounds (mmproj), which goes beside a model of text"

# By key: the values that only other files have.
KINDS = {
    ARCHITECTURE: {"controlvector": VECTOR, "clip": PROJECTOR},
    "general.type": {
        "adapter": LORA,
        "controlvector": VECTOR,
        "imatrix": IMATRIX,
        "mmproj": PROJECTOR,
    },
}
