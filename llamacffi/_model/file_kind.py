"""What a GGUF is that is no model, and what to do with it."""

from __future__ import annotations

from typing import Any

from .._ffi import ffi, lib
from ..errors import LoadError


def check_kind(gguf: Any, name: str) -> None:
    """Raise unless the metadata in a file can be those of a model.

    Args:
        gguf: The ``struct gguf_context *`` of the file.
        name: Of the file, for the message.

    Raises:
        LoadError: It is something else.
    """
    for key, kinds in KINDS.items():
        if found := kinds.get(text_of(gguf, key)):
            raise LoadError(f"cannot load {name!r} as a model: it is {found}")


def text_of(gguf: Any, key: str) -> str:
    """Return a string of the metadata; empty if there is none."""
    at = lib.gguf_find_key(gguf, key.encode())
    if at < 0 or lib.gguf_get_kv_type(gguf, at) != lib.GGUF_TYPE_STRING:
        return ""
    return str(ffi.string(lib.gguf_get_val_str(gguf, at)).decode(errors="replace"))


ARCHITECTURE = "general.architecture"
_LORA = "a LoRA adapter: load its base model, and give both to Adapter(model, path)"
_VECTOR = "a control vector: use ControlVector.from_file, and Context.control_vector"
_IMATRIX = "an importance matrix: use Imatrix.open, to quantize a model with it"
_PROJECTOR = "a projector of images or sounds (mmproj), which goes beside a model of text"

# By key: the values that only other files have.
KINDS = {
    ARCHITECTURE: {"controlvector": _VECTOR, "clip": _PROJECTOR},
    "general.type": {
        "adapter": _LORA,
        "controlvector": _VECTOR,
        "imatrix": _IMATRIX,
        "mmproj": _PROJECTOR,
    },
}
