"""Check the vocabulary in the metadata of a file before C reads it."""

from __future__ import annotations

import itertools
from typing import Any

from .._core.text import c_text, read_bytes
from .._native import ffi, lib
from ..errors import LoadError

KIND = "tokenizer.ggml.model"
COUNT = ".vocab_size"  # follows the name of the architecture


def check_vocabulary(struct: Any, gguf: Any, name: str) -> None:
    """Raise LoadError for a vocabulary that would make llama.cpp hang or end the process.

    Args:
        struct: The ``struct llama_model_params *``, which may override metadata.
        gguf: The ``struct gguf_context *`` of the file.
        name: The name of the file, for the message.

    Raises:
        LoadError: llama.cpp cannot read the vocabulary.
    """
    overrides = _overrides(struct)
    kind = overrides.get(KIND, _string(gguf, KIND))
    if not isinstance(kind, bytes):
        return  # llama.cpp reports this itself
    counts = [one for key, one in overrides.items() if key.endswith(COUNT)]
    counts += [_count(gguf, i) for i in range(lib.gguf_get_n_kv(gguf)) if _is_count(gguf, i)]
    n_dummies = max((one for one in counts if isinstance(one, int)), default=0)
    raw = read_bytes(
        lambda text, size: lib.llamacffi_vocab_fault(
            *(gguf, kind, min(max(n_dummies, 0), 2**64 - 1), text, size)
        )
    )
    if raw:
        raise LoadError(f"cannot load {name!r}: {raw.decode(errors='replace')}")


def _overrides(struct: Any) -> dict[str, bytes | int]:
    """Return the strings and integers that replace metadata."""
    found: dict[str, bytes | int] = {}
    for i in itertools.count():
        if struct.kv_overrides == ffi.NULL or struct.kv_overrides[i].key[0] == b"\0":
            break
        one = struct.kv_overrides[i]
        key = c_text(one.key)
        if one.tag == lib.LLAMA_KV_OVERRIDE_TYPE_STR:
            found.setdefault(key, ffi.string(one.val_str))
        elif one.tag == lib.LLAMA_KV_OVERRIDE_TYPE_INT:
            found.setdefault(key, one.val_i64 % 2**32)  # as C reads it
    return found


def _string(gguf: Any, key: str) -> bytes | None:
    at = lib.gguf_find_key(gguf, key.encode())
    if at < 0 or lib.gguf_get_kv_type(gguf, at) != lib.GGUF_TYPE_STRING:
        return None
    value: bytes = ffi.string(lib.gguf_get_val_str(gguf, at))
    return value


def _is_count(gguf: Any, i: int) -> bool:
    key: bytes = ffi.string(lib.gguf_get_key(gguf, i))
    return key.endswith(COUNT.encode()) and lib.gguf_get_kv_type(gguf, i) == lib.GGUF_TYPE_UINT32


def _count(gguf: Any, i: int) -> int:
    return int(lib.gguf_get_val_u32(gguf, i))
