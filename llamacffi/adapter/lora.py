"""What a file with a LoRA adapter consists of."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .._native import lib
from ..errors import AdapterError
from ..model.file_kind import LORA, kind_of

if TYPE_CHECKING:
    from ..gguf.gguf import Gguf, GgufTensor

    Shape = tuple[int, ...]

PART = re.compile(r"(.+)\.lora_([ab])")
# Its rows are chosen, and not multiplied with: its two parts are flipped.
EMBEDDING = "token_embd.weight"
ALPHA = "adapter.lora.alpha"
INVOCATION = "adapter.alora.invocation_tokens"


def check_kind(gguf: Gguf, name: str, architecture: Any, whose: str) -> None:
    """Raise AdapterError unless a file is a LoRA for an architecture.

    Args:
        gguf: The file.
        name: What to call it.
        architecture: Of the model.
        whose: What to call the model.
    """
    kind = kind_of(gguf.ptr)
    if kind not in ("", LORA):
        raise AdapterError(f"{name!r} is no LoRA adapter: it is {kind}")
    for key, wanted, what in (
        ("general.type", "adapter", "is no adapter"),
        ("adapter.type", "lora", "is no LoRA"),
        ("general.architecture", architecture, f"is not for {whose}"),
    ):
        found = gguf.get(key)
        if not isinstance(found, str) or found != wanted:
            raise AdapterError(
                f"{name!r} {what}: its {key} is {reprlib.repr(found)}, and not {wanted!r}"
            )


def pairs(gguf: Gguf, name: str) -> Iterator[tuple[str, GgufTensor, GgufTensor]]:
    """Yield the weights that are changed, each with its two matrices."""
    found: dict[str, dict[str, GgufTensor]] = {}
    for tensor in gguf.tensors.values():
        match = PART.fullmatch(tensor.name)
        if match:
            found.setdefault(match[1], {})[match[2]] = tensor
        elif not tensor.name.endswith("_norm.weight"):  # llama.cpp passes over those
            raise AdapterError(f"{name!r} is no LoRA: it has a tensor {tensor.name!r}")
    for weight, parts in found.items():
        if len(parts) < 2:
            missing = "lora_b" if "a" in parts else "lora_a"
            raise AdapterError(f"{name!r} is damaged: {weight!r} has no {missing}")
        yield weight, parts["a"], parts["b"]


def fits(weight: Shape, a: Shape, b: Shape, *, flipped: bool) -> bool:
    """Return whether ``b @ a`` has the shape of a weight; all in ggml's order."""
    if 0 in (*a, *b):
        return False
    if flipped:
        return a[0] == b[0] and (b[1], a[1], *a[2:]) == weight and a[2:] == b[2:]
    return a[1] == b[0] and (a[0], b[1], *a[2:]) == weight and a[2:] == b[2:]


def ggml_shape(tensor: GgufTensor) -> Shape:
    """Return a shape in ggml's order, with all the dimensions that ggml has."""
    shape = tuple(reversed(tensor.shape))
    return shape + (1,) * (lib.GGML_MAX_DIMS - len(shape))


def shape_text(shape: Shape) -> str:
    """Return a shape without the dimensions that it has not got."""
    n = max((i for i, size in enumerate(shape, start=1) if size != 1), default=1)
    return " x ".join(map(str, shape[: max(n, 2)]))
