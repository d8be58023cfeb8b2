"""The metadata of a loaded model, as llama.cpp returns them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .._core.text import read_metadata
from .._native import lib

# The key of the default chat template; named templates append a dot and their name.
# upstream: src/llama-arch.cpp LLM_KV_TOKENIZER_CHAT_TEMPLATE: the key.
CHAT_TEMPLATE = "tokenizer.chat_template"


class Metadata(Mapping[str, str]):
    """The metadata of a model: copied from C once, so they stay valid after it is closed."""

    def __init__(self, ptr: Any) -> None:
        self._values = read_metadata(
            ptr,
            lib.llama_model_meta_count,
            lib.llama_model_meta_key_by_index,
            lib.llama_model_meta_val_str_by_index,
        )

    def __getitem__(self, key: str) -> str:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


def typed(value: str) -> int | float | str:
    """Convert the text of a metadata value to the int or float that it looks like."""
    if re.fullmatch(r"-?\d+", value):
        return int(value)
    return float(value) if re.fullmatch(r"-?\d+\.\d+(e[-+]?\d+)?", value) else value
