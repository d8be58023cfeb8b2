"""Restore the types of tokens, which a file stores, from the attributes that llama.cpp derives.

A file has one type for each token.

upstream: src/llama-vocab.cpp LLAMA_TOKEN_ATTR_CONTROL: reading a file adds attributes to tokens
because of their texts and the name of the model, and so a token can have two.
upstream: src/llama-model-saver.cpp LLAMA_TOKEN_TYPE_UNDEFINED: written for a token with two
attributes, and so we find the type that it had.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._native import lib

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..gguf.gguf import Gguf
    from .info import ModelInfo

    Attributes = npt.NDArray[np.int64]
    Types = npt.NDArray[np.int32]

# upstream: src/llama-arch.cpp "tokenizer.ggml.token_type": the types of all tokens.
KEY = "tokenizer.ggml.token_type"
# The attribute that llama.cpp combines with others.
ADDED = "CONTROL"

logger: logging.Logger = logging.getLogger("llamacffi")


def restore_token_types(model: ModelInfo, saved: Gguf, load: Callable[[bytes], ModelInfo]) -> None:
    """Set the types of all tokens so that loading the file gives them the model's attributes.

    Where a token could have had one of several types, try each: only llama.cpp knows which
    attributes it adds to which type.

    Args:
        model: The model that was saved.
        saved: The file that llama.cpp wrote; it is changed.
        load: Loads the vocabulary of a GGUF in memory.
    """
    import numpy as np

    if lib.llama_vocab_type(_vocab(model)) == lib.LLAMA_VOCAB_TYPE_NONE:
        return
    attributes = _attributes(model)
    saved[KEY] = types = _types(attributes, last=True)
    ambiguous = types != _types(attributes, last=False)
    if not ambiguous.any():
        return
    found = [key for key in saved if key.endswith("_token_id") and key not in model.metadata]
    wrong = np.flatnonzero(_read_back(saved, load) != attributes)
    for without in ([], found):
        # upstream: src/llama-vocab.cpp special_token_types: without these keys llama.cpp finds
        # special tokens by their texts, and adds attributes.
        before = {key: saved.pop(key) for key in without}
        for i in range(2):
            types[wrong] = _types(attributes[wrong], last=bool(i))
            saved[KEY] = types
            wrong = np.flatnonzero(_read_back(saved, load) != attributes)
            if not len(wrong):
                return
        for key, value in before.items():
            saved.set(key, value, type="u32")
    logger.warning("save: %d tokens lose attributes, for example token %d", len(wrong), wrong[0])


def _attributes(model: ModelInfo) -> Attributes:
    import numpy as np

    ptr = model.ptr  # noqa: F841  held while C reads the vocabulary
    vocab = _vocab(model)
    n = lib.llama_vocab_n_tokens(vocab)
    return np.array([lib.llama_vocab_get_attr(vocab, i) for i in range(n)], np.int64)


def _vocab(model: ModelInfo) -> Any:
    return lib.llama_model_get_vocab(model.ptr)


def _types(attributes: Attributes, *, last: bool) -> Types:
    """Return a type for each token that agrees with one of its attributes.

    Args:
        attributes: The attributes of the tokens.
        last: Whether to prefer other attributes to ``ADDED``.
    """
    import numpy as np

    from .._generated.enums import TokenAttr, TokenType

    names = [name for name in TokenType.__members__ if TokenAttr[name] and name != ADDED]
    types = np.full(len(attributes), TokenType.UNDEFINED, np.int32)
    for name in (ADDED, *names) if last else (*names, ADDED):
        types[attributes & TokenAttr[name] != 0] = TokenType[name]
    return types


def _read_back(saved: Gguf, load: Callable[[bytes], ModelInfo]) -> Attributes:
    """Load the saved vocabulary and return the attributes of its tokens."""
    with saved.copy() as probe:
        for name in list(probe.tensors):
            probe.remove_tensor(name)
        data = probe.to_bytes()
    with load(data) as vocabulary:
        return _attributes(vocabulary)
