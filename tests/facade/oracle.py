"""The answers of the built-in model, in closed form."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pytest

from llamacffi import demo

# How far computed logits may be off: they are numbers of up to 21, in single precision.  Devices
# may multiply with less.
tolerance = 1e-3


def logits_after(tokens: Iterable[int]) -> npt.NDArray[np.float32]:
    """Return the logits after each token: ``[n_tokens, n_vocab]``."""
    entries = demo.vocabulary()
    return demo.log_probabilities()[[entries[token].state for token in tokens]]


def close_to(logits: npt.NDArray[np.float32]) -> object:
    """Compare with computed logits."""
    return pytest.approx(logits, abs=tolerance)


def greedy(token: int, n: int) -> list[int]:
    """Follow the most likely tokens from ``token`` on, up to the end or ``n`` of them."""
    path: list[int] = []
    while len(path) < n and token != END:
        token = int(logits_after([token])[0].argmax())
        path.append(token)
    return path


def token(text: str) -> int:
    """Return the id of a word, with its blank."""
    return IDS[text.replace(" ", "\N{LOWER ONE EIGHTH BLOCK}")]


IDS = {entry.text: i for i, entry in enumerate(demo.vocabulary())}
START, END = IDS["<s>"], IDS["</s>"]
