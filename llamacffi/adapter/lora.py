"""The parts of a LoRA file: metadata, and pairs of matrices."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from .._native import lib
from ..errors import AdapterError
from ..model.file_kind import ARCHITECTURE, LORA, kind_of

if TYPE_CHECKING:
    from ..gguf.gguf import Gguf, GgufTensor

    Shape = tuple[int, ...]

PART = re.compile(r"(.+)\.lora_([ab])")
# upstream: src/llama-adapter.cpp is_token_embd: rows of this weight are looked up instead of
# multiplied with, and so its two matrices are transposed.
EMBEDDING = "token_embd.weight"
# upstream: src/llama-adapter.cpp LLM_KV_ADAPTER_LORA_ALPHA,
# LLM_KV_ADAPTER_ALORA_INVOCATION_TOKENS: the keys that it reads.
ALPHA = "adapter.lora.alpha"
INVOCATION = "adapter.alora.invocation_tokens"


def check_kind(gguf: Gguf, name: str, architecture: str, whose: str) -> None:
    """Raise AdapterError unless a file is a LoRA adapter for an architecture.

    Args:
        gguf: The file.
        name: The name of the file, for messages.
        architecture: The architecture of the model.
        whose: The model, for messages.
    """
    # upstream: src/llama-adapter.cpp LLM_KV_GENERAL_TYPE, LLM_KV_ADAPTER_TYPE: checks these, too.
    kind = kind_of(gguf.ptr)
    if kind not in ("", LORA):
        raise AdapterError(f"{name!r} is not a LoRA adapter: it is {kind}")
    for key, wanted, what in (
        ("general.type", "adapter", "is not an adapter"),
        ("adapter.type", "lora", "is not a LoRA adapter"),
        (ARCHITECTURE, architecture, f"does not fit {whose}"),
    ):
        found = gguf.get(key)
        if not isinstance(found, str) or found != wanted:
            raise AdapterError(
                f"{name!r} {what}: its {key} is {reprlib.repr(found)}, not {wanted!r}"
            )


def alpha_of(gguf: Gguf, name: str) -> float | None:
    """Return the alpha of an adapter; None if its file has none.

    Raises:
        AdapterError: It is not a finite float32.
    """
    alpha = gguf.get(ALPHA)
    if alpha is None:
        return None
    single = gguf.type(ALPHA) == lib.GGUF_TYPE_FLOAT32
    if isinstance(alpha, float) and single and math.isfinite(alpha):
        return alpha
    raise AdapterError(
        f"{name!r} is damaged: {ALPHA} must be a finite float32, not {reprlib.repr(alpha)}"
    )


def weight_changes(
    gguf: Gguf, name: str, shapes: Mapping[str, Shape], whose: str
) -> list[tuple[str, GgufTensor, GgufTensor]]:
    """Return the name of each weight that an adapter changes, with its two matrices.

    Args:
        gguf: The file of the adapter.
        name: What to call the file.
        shapes: The shapes of the model's weights, in ggml's order.
        whose: What to call the model.

    Raises:
        AdapterError: The adapter does not fit the model, or changes nothing.
    """
    found = list(_pairs(gguf, name))
    if not found:
        raise AdapterError(f"{name!r} changes nothing: it has no lora_a and lora_b tensors")
    for weight, a, b in found:
        shape = shapes.get(weight)
        if shape is None:
            raise AdapterError(f"{name!r} does not fit {whose}, which has no tensor {weight!r}")
        if not _fits(shape, ggml_shape(a), ggml_shape(b), flipped=weight == EMBEDDING):
            raise AdapterError(
                f"{name!r} does not fit {whose}: {weight!r} is {_shape_text(shape)}, but lora_a is "
                f"{_shape_text(ggml_shape(a))} and lora_b is {_shape_text(ggml_shape(b))}"
            )
    return found


def _pairs(gguf: Gguf, name: str) -> Iterator[tuple[str, GgufTensor, GgufTensor]]:
    """Yield the name of each weight that the adapter changes, with its two matrices."""
    found: dict[str, dict[str, GgufTensor]] = {}
    for tensor in gguf.tensors.values():
        match = PART.fullmatch(tensor.name)
        if match:
            found.setdefault(match[1], {})[match[2]] = tensor
        # upstream: src/llama-adapter.cpp "_norm.weight": llama.cpp ignores these, and so we do.
        elif not tensor.name.endswith("_norm.weight"):
            raise AdapterError(f"{name!r} is not a LoRA adapter: it has a tensor {tensor.name!r}")
    for weight, parts in found.items():
        if len(parts) < 2:
            missing = "lora_b" if "a" in parts else "lora_a"
            raise AdapterError(f"{name!r} is damaged: {weight!r} has no {missing}")
        yield weight, parts["a"], parts["b"]


def _fits(weight: Shape, a: Shape, b: Shape, *, flipped: bool) -> bool:
    """Return whether ``b @ a`` has the shape of the weight; shapes are in ggml's order."""
    if 0 in (*a, *b):
        return False
    if flipped:
        return a[0] == b[0] and (b[1], a[1], *a[2:]) == weight and a[2:] == b[2:]
    return a[1] == b[0] and (a[0], b[1], *a[2:]) == weight and a[2:] == b[2:]


def ggml_shape(tensor: GgufTensor) -> Shape:
    """Return the shape of a tensor in ggml's order, padded to GGML_MAX_DIMS dimensions."""
    shape = tuple(reversed(tensor.shape))
    return shape + (1,) * (lib.GGML_MAX_DIMS - len(shape))


def _shape_text(shape: Shape) -> str:
    """Return a shape as text, without trailing dimensions of 1."""
    n = max((i for i, size in enumerate(shape, start=1) if size != 1), default=1)
    return " x ".join(map(str, shape[: max(n, 2)]))
