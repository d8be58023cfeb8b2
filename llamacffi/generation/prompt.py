"""Prompts: text or tokens, converted to tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._core.hints import TEMPLATE
from .._core.values import elements, is_text
from ..errors import ArgumentError

if TYPE_CHECKING:
    from ..vocab.vocab import Vocab
    from .loop import Prompt


def prompt_tokens(vocab: Vocab, prompt: Any, start: int, parse_special: bool) -> Prompt:
    """Return the tokens of a prompt that starts at position ``start``.

    Raises:
        ArgumentError: The prompt is empty, or a token is not in the vocabulary.
        TypeError: The prompt is neither text nor tokens.
    """
    if is_text(prompt):
        ids = vocab.tokenize(prompt, add_special=start == 0, parse_special=parse_special)
        if start == 0:
            vocab.warn_of_second_bos(ids, stacklevel=5)
        tokens: Prompt = ids
    else:
        given = _token_list(prompt)
        try:
            tokens = vocab.check(given)
        except (ArgumentError, TypeError) as error:
            raise type(error)(f"prompt: {error}") from None
    if not len(tokens):
        raise ArgumentError("the prompt is empty: give at least one token")
    return tokens


def _token_list(prompt: Any) -> Any:
    """Return a prompt that is not text as tokens, which are still to be checked."""
    if hasattr(prompt, "dtype"):
        return prompt
    wanted = "prompt must be one text or one sequence of tokens"
    tokens = [] if isinstance(prompt, Mapping) else elements("prompt", prompt, "tokens, or a text")
    first = tokens[0] if tokens else prompt
    if isinstance(first, Mapping):
        raise TypeError(
            f"{wanted}, not {prompt!r:.80}: to format chat messages as text, use {TEMPLATE}"
        )
    if isinstance(first, str | bytes):
        raise TypeError(
            f"{wanted}, not several texts, {prompt!r:.80}: call generate() for each, with its own "
            "seq_id"
        )
    return tokens
