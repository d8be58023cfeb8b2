"""Importance matrices in files of the older format."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np


def legacy(
    entries: Mapping[str, tuple[int, Sequence[float]]], *, n_chunks: int = 9, dataset: str = ""
) -> bytes:
    """Return a file with the calls and the values of each tensor.

    Args:
        entries: Those, by the names of the tensors.
        n_chunks: How many chunks of text it is of, where there is a ``dataset``.
        dataset: The name of the text; the oldest files have none.
    """
    raw = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        raw += struct.pack(f"<i{len(name)}sii", len(name), name.encode(), calls, len(values))
        raw += np.array(values, "<f4").tobytes()
    if dataset:
        raw += struct.pack(f"<ii{len(dataset)}s", n_chunks, len(dataset), dataset.encode())
    return raw
