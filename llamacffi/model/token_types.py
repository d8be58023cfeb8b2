"""The types of tokens, as a file keeps them, from the attributes that llama.cpp has made of them.

A file has one type for each token.  When llama.cpp reads it, it adds attributes by the texts of
tokens and by the names of models; when it writes one, a token with two attributes gets no type.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .._native import lib

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..gguf.gguf import Gguf
    from .model import Model

    Attributes = npt.NDArray[np.int64]
    Types = npt.NDArray[np.int32]

KEY = "tokenizer.ggml.token_type"
# llama.cpp adds this one to others, and others to it.
ADDED = "CONTROL"

logger: logging.Logger = logging.getLogger("llamacffi")


def restore_token_types(model: Model, saved: Gguf) -> None:
    """Give all tokens the types with which they have the attributes of the model's when loaded.

    Which of several types a token has had is tried out: only llama.cpp knows what it adds to which.

    Args:
        model: The model that was saved.
        saved: What llama.cpp has written of it, which is changed.
    """
    import numpy as np

    if model.vocab.type == lib.LLAMA_VOCAB_TYPE_NONE:
        return
    attributes = _attributes(model)
    saved[KEY] = types = _types(attributes, last=True)
    several = types != _types(attributes, last=False)
    if not several.any():
        return
    found = [key for key in saved if key.endswith("_token_id") and key not in model.metadata]
    wrong = np.flatnonzero(_read_back(model, saved) != attributes)
    for without in ([], found):
        # A token that was found by its text has got attributes by that.
        before = {key: saved.pop(key) for key in without}
        for i in range(2):
            types[wrong] = _types(attributes[wrong], last=bool(i))
            saved[KEY] = types
            wrong = np.flatnonzero(_read_back(model, saved) != attributes)
            if not len(wrong):
                return
        for key, value in before.items():
            saved.set(key, value, type="u32")
    logger.warning("save: %d tokens lose attributes, as token %d", len(wrong), wrong[0])


def _attributes(model: Model) -> Attributes:
    import numpy as np

    vocab = model.vocab.ptr
    return np.array([lib.llama_vocab_get_attr(vocab, i) for i in range(len(model.vocab))], np.int64)


def _types(attributes: Attributes, *, last: bool) -> Types:
    """Return a type for each token, one of those that it seems to have had.

    Args:
        attributes: Of the tokens.
        last: Whether the type that llama.cpp adds counts less than others.
    """
    import numpy as np

    from .._generated.enums import TokenAttr, TokenType

    names = [name for name in TokenType.__members__ if TokenAttr[name] and name != ADDED]
    types = np.full(len(attributes), TokenType.UNDEFINED, np.int32)
    for name in (ADDED, *names) if last else (*names, ADDED):
        types[attributes & TokenAttr[name] != 0] = TokenType[name]
    return types


def _read_back(model: Model, saved: Gguf) -> Attributes:
    """Return the attributes of the tokens of a model that is loaded from what was saved."""
    with saved.copy() as probe:
        for name in list(probe.tensors):
            probe.remove_tensor(name)
        data = probe.to_bytes()
    with type(model).from_file(data, vocab_only=True) as read:
        return _attributes(read)
