"""Check the vocabulary in the metadata of a file before C reads it.

upstream: src/llama-vocab.cpp LLM_KV_TOKENIZER_MODEL: some vocabularies make llama.cpp hang or end
the process while it reads them, and so we refuse them first.
"""

from __future__ import annotations

from typing import Any

from .._core.text import read_bytes
from .._native import ffi, lib
from ..errors import LoadError
from .file_kind import text_of
from .overrides import read_kv_overrides

# upstream: src/llama-arch.cpp "tokenizer.ggml.model", "%s.vocab_size": the keys that it reads.
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
    overrides = read_kv_overrides(struct)
    kind = overrides.get(KIND) or text_of(gguf, KIND)
    if not isinstance(kind, str) or not kind:
        return  # llama.cpp reports this itself
    given = [one for key, one in overrides.items() if key.endswith(COUNT)]
    # upstream: src/llama-vocab.cpp LLM_KV_VOCAB_SIZE: it is read as a uint32_t.
    counts = [one % 2**32 for one in given if type(one) is int]
    counts += [_count(gguf, i) for i in range(lib.gguf_get_n_kv(gguf)) if _is_count(gguf, i)]
    n_dummies = max(counts, default=0)
    raw = read_bytes(
        lambda text, size: lib.llamacffi_vocab_fault(
            *(gguf, kind.encode(errors="surrogateescape"), n_dummies, text, size)
        )
    )
    if raw:
        raise LoadError(f"cannot load {name!r}: {raw.decode(errors='replace')}")


def _is_count(gguf: Any, i: int) -> bool:
    key: bytes = ffi.string(lib.gguf_get_key(gguf, i))
    return key.endswith(COUNT.encode()) and lib.gguf_get_kv_type(gguf, i) == lib.GGUF_TYPE_UINT32


def _count(gguf: Any, i: int) -> int:
    return int(lib.gguf_get_val_u32(gguf, i))
