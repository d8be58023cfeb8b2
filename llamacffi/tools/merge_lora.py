"""Merging LoRA adapters into the weights of a model."""

from __future__ import annotations

import os
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
    EMBEDDING,
    INVOCATION,
    alpha_of,
    check_kind,
    ggml_shape,
    weight_changes,
)
from ..errors import AdapterError, ArgumentError
from ..gguf.gguf import Gguf
from ..gguf.shards import check_other, merge_files, open_all
from ..gguf.tensors import GgufTensor, computed_tensor
from ..gguf.types import ggml_type, quantize_array, row_bytes
from ..model.file_kind import MODEL, architecture_of, kind_of

if TYPE_CHECKING:
    from ..gguf.types import AnyType, Array, Floats


@dataclass
class Change:
    """What adapters add to one weight."""

    terms: list[tuple[float, GgufTensor, GgufTensor]] = field(default_factory=list)
    """For each adapter the scale, and the matrices ``lora_a`` and ``lora_b``."""

    def apply(self, base: GgufTensor) -> Floats:
        """Return the weight with all terms added.

        Raises:
            AdapterError: The sum contains NaN or inf.
        """
        weight = base.dequantize()
        for scale, a, b in self.terms:
            left, right = _matrix(b), _matrix(a)
            if base.name == EMBEDDING:  # its matrices are stored transposed
                left, right = right, np.swapaxes(left, -1, -2)
            with np.errstate(over="ignore", invalid="ignore"):  # checked below
                weight += np.float32(scale) * (left @ right).reshape(weight.shape)
        if not np.isfinite(weight).all():
            raise AdapterError(f"merging the adapters produces NaN or inf in {base.name!r}")
        return weight


def merge_lora(
    model: str | os.PathLike[str],
    adapters: Mapping[str | os.PathLike[str], float],
    target: str | os.PathLike[str],
    *,
    type: AnyType | None = None,
) -> None:
    """Merge LoRA adapters into a model, and write the result as one file.

    The merged model computes the same as the model with its adapters, up to rounding to the type of
    the weights, without their cost.  The target appears only when it is complete.

    Args:
        model: The model; if it has several files, the first.
        adapters: Adapter files and their scales; 1.0 is the strength that they were trained for.
        target: The file to write.
        type: The type of the changed weights; by default each keeps its own.  Quantized weights are
            rounded twice, so start from F16 if you can.

    Raises:
        ModelNotFoundError: A file does not exist.
        GgufError: A file is not GGUF.
        AdapterError: ``model`` is not a model; or an adapter is not a LoRA, does not fit the model,
            makes a weight NaN or inf, or is activated by tokens (aLoRA).
        ArgumentError: A scale is not finite, weights cannot be converted to the type, or the target
            is one of the files that are read.
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
            raise AdapterError(f"cannot merge an adapter into {model!r}: it is {kind}, not a model")
        check_other(target, files)
        merged = stack.enter_context(merge_files(files))
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
    # Computed while it is written: all changed weights at once would need the memory of the model.
    return lambda: quantize_array(change.apply(base), type_)


def _add(changes: dict[str, Change], model: Gguf, adapter: Gguf, name: str, scale: float) -> None:
    """Add the terms of an adapter.

    Raises:
        AdapterError: The adapter does not fit the model.
    """
    check_kind(adapter, name, architecture_of(model), "this model")
    if INVOCATION in adapter:
        raise AdapterError(
            f"{name!r} takes effect only after certain tokens, so it cannot be merged: load it "
            "with Adapter instead"
        )
    alpha = alpha_of(adapter, name)
    shapes = {weight: ggml_shape(tensor) for weight, tensor in model.tensors.items()}
    for weight, a, b in weight_changes(adapter, name, shapes, "this model"):
        rank = ggml_shape(b)[0]
        term = (scale * alpha / rank if alpha else scale, a, b)
        changes.setdefault(weight, Change()).terms.append(term)


def _check_type(base: GgufTensor, type_: GgmlType) -> None:
    """Reject, before the work begins, a type that a weight cannot be converted to.

    Raises:
        ArgumentError: The weight cannot have that type.
    """
    plain = type_ in (GgmlType.F32, GgmlType.F16, GgmlType.BF16)
    to_float = lib.ggml_get_type_traits(type_).to_float
    if not plain and (to_float == ffi.NULL or not lib.ggml_is_quantized(type_)):
        raise ArgumentError(
            f"{base.name!r} cannot be converted to {type_.name}: give another type="
        )
    if lib.ggml_quantize_requires_imatrix(type_):
        raise ArgumentError(
            f"{base.name!r} needs an importance matrix to become {type_.name}: give type='f16', "
            "and quantize the result"
        )
    row_bytes(type_, base.shape[-1])


def _matrix(tensor: GgufTensor) -> Floats:
    return tensor.dequantize().reshape(ggml_shape(tensor)[::-1])
