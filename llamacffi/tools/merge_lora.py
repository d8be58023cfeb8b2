"""LoRA adapters as a part of the model: merged into its weights for good."""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .._core.text import checked_path
from .._core.values import mapping, number
from .._generated.enums import GgmlType
from .._native import ffi, lib
from ..adapter.lora import (
    ALPHA,
    EMBEDDING,
    INVOCATION,
    check_kind,
    fits,
    ggml_shape,
    pairs,
    shape_text,
)
from ..errors import AdapterError, ArgumentError
from ..gguf.gguf import Gguf
from ..gguf.shards import check_other, open_all, whole
from ..gguf.tensors import GgufTensor, computed_tensor
from ..gguf.types import ggml_type, quantize_array, row_bytes
from ..model.file_kind import MODEL, kind_of

if TYPE_CHECKING:
    from ..gguf.types import AnyType, Array, Floats


@dataclass
class Change:
    """What the adapters add to one weight."""

    parts: list[tuple[float, GgufTensor, GgufTensor]] = field(default_factory=list)
    """Scales, and the two matrices."""

    def apply(self, base: GgufTensor) -> Floats:
        """Return the weight with all that is added.

        Raises:
            AdapterError: It has numbers that are not finite.
        """
        weight = base.dequantize()
        for scale, a, b in self.parts:
            left, right = _matrix(b), _matrix(a)
            if base.name == EMBEDDING:  # the parts are flipped
                left, right = right, np.swapaxes(left, -1, -2)
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found next
                weight += np.float32(scale) * (left @ right).reshape(weight.shape)
        if not np.isfinite(weight).all():
            raise AdapterError(f"with the adapters, {base.name!r} has numbers that are not finite")
        return weight


def merge_lora(
    model: str | os.PathLike[str],
    adapters: Mapping[str | os.PathLike[str], float],
    target: str | os.PathLike[str],
    *,
    type: AnyType | None = None,
) -> None:
    """Write a model whose weights have LoRA adapters in them, at once or not at all.

    It computes as the model does with the adapters, but for the rounding to the type of the
    weights, and needs none of their time.

    Args:
        model: The model; of several files, the first.  The result is one file.
        adapters: Scales by the files of the adapters; 1.0 is as they were trained.
        target: The file to write.
        type: Of the weights that change; omitted, each keeps its own.  A quantized one is rounded
            twice: best start from F16.

    Raises:
        ModelNotFoundError: There is no such file.
        GgufError: One is no GGUF.
        AdapterError: The model is none; or an adapter is no LoRA, does not fit the model, makes
            numbers of its weights that are not finite, or is activated by tokens (aLoRA).
        ArgumentError: A scale is no finite number, the type cannot be made, or the target is one
            of the files that are read.
        OSError: The target cannot be written.
    """
    mapping("adapters", adapters, "files to scales")
    model, target = checked_path(model, "model"), checked_path(target, "target")
    paths = [checked_path(path, "adapters") for path in adapters]
    with ExitStack() as stack:
        files = open_all(model)
        for gguf in files.values():
            stack.enter_context(gguf)
        kind = kind_of(next(iter(files.values())).ptr)
        if kind not in ("", MODEL):
            raise AdapterError(f"{model!r} is no model to merge an adapter into: it is {kind}")
        check_other(target, files)
        merged = stack.enter_context(whole(files))
        changes: dict[str, Change] = {}
        for path, scale in zip(paths, adapters.values(), strict=True):
            adapter = stack.enter_context(Gguf.open(path))
            check_other(target, [path])
            _add(changes, merged, adapter, path, number("scale", scale))
        for name, change in changes.items():
            base = merged.tensors[name]
            wanted = base.type if type is None else ggml_type(type)
            _check_type(base, wanted)
            merged.replace_tensor(
                name, computed_tensor(name, wanted, base.shape, _maker(change, base, wanted))
            )
        merged.write(target)


def _maker(change: Change, base: GgufTensor, type_: GgmlType) -> Callable[[], Array]:
    # Computed when it is written: all changed weights would take the memory of the model.
    return lambda: quantize_array(change.apply(base), type_)


def _add(changes: dict[str, Change], model: Gguf, adapter: Gguf, name: str, scale: float) -> None:
    """Add what an adapter changes.

    Raises:
        AdapterError: It does not fit the model.
    """
    check_kind(adapter, name, model.get("general.architecture"), "this model")
    if INVOCATION in adapter:
        raise AdapterError(
            f"{name!r} takes effect only after certain tokens, which weights cannot express: use "
            "Adapter"
        )
    alpha = adapter.get(ALPHA, 0.0)
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        raise AdapterError(
            f"{name!r} is damaged: its {ALPHA} is {reprlib.repr(alpha)}, and no finite number"
        )
    found = list(pairs(adapter, name))
    if not found:
        raise AdapterError(f"{name!r} changes nothing: it has no lora_a and lora_b")
    for weight, a, b in found:
        base = model.tensors.get(weight)
        if base is None:
            raise AdapterError(f"{name!r} is not for this model, which has no {weight!r}")
        shape, rank = ggml_shape(base), ggml_shape(b)[0]
        if not fits(shape, ggml_shape(a), ggml_shape(b), flipped=weight == EMBEDDING):
            raise AdapterError(
                f"{name!r} is not for this model: {weight!r} is {shape_text(shape)}, and the parts "
                f"are lora_a {shape_text(ggml_shape(a))} and lora_b {shape_text(ggml_shape(b))}"
            )
        part = (scale * alpha / rank if alpha else scale, a, b)
        changes.setdefault(weight, Change()).parts.append(part)


def _check_type(base: GgufTensor, type_: GgmlType) -> None:
    """Raise before the work if a weight cannot be made that type.

    Raises:
        ArgumentError: It cannot.
    """
    plain = type_ in (GgmlType.F32, GgmlType.F16, GgmlType.BF16)
    to_float = lib.ggml_get_type_traits(type_).to_float
    if not plain and (to_float == ffi.NULL or not lib.ggml_is_quantized(type_)):
        raise ArgumentError(f"{base.name!r} cannot be {type_.name}: give type=")
    if lib.ggml_quantize_requires_imatrix(type_):
        raise ArgumentError(
            f"{base.name!r} cannot be {type_.name} without an importance matrix: give type='f16', "
            "and quantize the result"
        )
    row_bytes(type_, base.shape[-1])


def _matrix(tensor: GgufTensor) -> Floats:
    return tensor.dequantize().reshape(ggml_shape(tensor)[::-1])
