"""Check that the CPU can compute with the types of a model's tensors.

upstream: src/llama-model-loader.cpp weight_buft_supported: asks other devices whether they support
a tensor, but not the CPU.  A type that no CPU kernel reads ends in a failed assertion or a call of
NULL, on a thread where nothing can catch it, and so we check the types after loading.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._core.text import c_text
from .._native import ffi, lib
from ..errors import LoadError
from .weights import CAN_LIST, tensors

if TYPE_CHECKING:
    from typing import TypeAlias

    Rule: TypeAlias = tuple[re.Pattern[str], Callable[[int], bool], str]


def check_weight_types(model: Any, name: str) -> None:
    """Raise LoadError if the CPU cannot compute with the type of a tensor that is placed there.

    Only types and names are read, not the weights.

    Args:
        model: The ``struct llama_model *``.
        name: The source of the model, for messages.

    Raises:
        LoadError: A type is not supported, or a tensor is missing that llama.cpp loads as optional
            but needs.
    """
    if not CAN_LIST:
        return
    found = {c_text(tensor.name) for tensor in tensors(model)}
    # upstream: src/models/t5.cpp attn_rel_b, attn_rel_b_enc: optional in all layers, though layers
    # without one use that of the first, and so we require the first.
    for part in ("enc.blk.0.", "dec.blk.0."):
        needed = f"{part}attn_rel_b.weight"
        if needed not in found and any(one.startswith(part) for one in found):
            raise LoadError(f"cannot load {name!r}: it has no tensor {needed!r}")
    for tensor in tensors(model):
        if tensor.type == lib.GGML_TYPE_F32 or not _is_on_cpu(tensor):
            continue
        tensor_name = c_text(tensor.name)
        _, fits, reads = next(rule for rule in RULES if rule[0].search(tensor_name))
        if not fits(tensor.type):
            raise LoadError(
                f"cannot load {name!r}: the tensor {tensor_name!r} is {_type_name(tensor.type)}, "
                f"but on the CPU {reads}; convert it with Gguf.replace_tensor(..., type='f32')"
            )


def check_factor_types(struct: Any, gguf: Any, name: str) -> None:
    """Raise LoadError if RoPE factors are not F32, which every device needs.

    Args:
        struct: The ``struct llama_model_params *``.
        gguf: The ``struct gguf_context *`` of the file.
        name: The name of the file, for the message.

    Raises:
        LoadError: RoPE factors have another type.
    """
    # upstream: src/llama-model-loader.cpp weight_buft_supported: builds the operation that reads
    # the factors, which fails an assertion that names no tensor, and so we check first.
    for i in range(0 if struct.vocab_only else lib.gguf_get_n_tensors(gguf)):
        type_ = lib.gguf_get_tensor_type(gguf, i)
        if type_ == lib.GGML_TYPE_F32:
            continue
        tensor_name = c_text(lib.gguf_get_tensor_name(gguf, i))
        if FACTORS.search(tensor_name):
            raise LoadError(
                f"cannot load {name!r}: the tensor {tensor_name!r} is {_type_name(type_)}, but "
                "RoPE factors must be F32; convert it with Gguf.replace_tensor(..., type='f32')"
            )


def _is_on_cpu(tensor: Any) -> bool:
    """Return whether the CPU computes with a tensor in the layout that it has in the file."""
    if tensor.buffer == ffi.NULL:
        return False
    place = lib.ggml_backend_buffer_get_type(tensor.buffer)
    if not lib.ggml_backend_buft_is_host(place):
        return False
    device = lib.ggml_backend_buft_get_device(place)
    return bool(
        device == ffi.NULL
        or lib.ggml_backend_dev_type(device) == lib.GGML_BACKEND_DEVICE_TYPE_CPU
        or lib.ggml_backend_dev_buffer_type(device) != place  # memory that a GPU can access too
    )


def _is_multiplied(type_: int) -> bool:
    return bool(lib.ggml_get_type_traits_cpu(type_).vec_dot != ffi.NULL)


def _is_float(type_: int) -> bool:
    return type_ in (lib.GGML_TYPE_F32, lib.GGML_TYPE_F16, lib.GGML_TYPE_BF16)


def _is_f32(type_: int) -> bool:
    return bool(type_ == lib.GGML_TYPE_F32)


def _is_index(type_: int) -> bool:
    return type_ in (lib.GGML_TYPE_I32, lib.GGML_TYPE_I64)


def _type_name(type_: int) -> str:
    return c_text(lib.ggml_type_name(type_)).upper()


FACTORS = re.compile(r"\brope_(freqs|factors_\w+)\.weight$")

# The types that the operation on a tensor can read, by its name; the first match applies.
RULES: tuple[Rule, ...] = (
    (
        re.compile(r"(^d2t|\bffn_gate_tid2eid|^masked_embd_ordering)(\.weight)?$"),
        _is_index,
        "indices must be I32 or I64",
    ),
    (
        re.compile(
            r"\.(bias|scale|input_scale|scales)$"
            r"|(norm|norm_\w+|_ln|_sinks|_base|_scale|_score|\.gamma)(\.weight)?$"
            r"|\b(ssm_a|ssm_d|ssm_conv1d\w*|ple_conv1d|shortconv\.conv)(\.weight)?$"
            r"|\b(rope_freqs|rope_factors_\w+|z_l_init|exp_probs_b\w*)(\.weight)?$"
            r"|\b(time_mix_(lerp_\w+|first|decay|[wav]0|k_k|k_a|r_k)|channel_mix_lerp_\w)\.weight$"
        ),
        _is_f32,
        "element-wise addition and multiplication need F32",
    ),
    (
        re.compile(r"^(conv1d|posnet\.|convnext\.\d+\.dw)"),
        _is_float,
        "convolution kernels must be F32, F16 or BF16",
    ),
    (
        re.compile(""),
        _is_multiplied,
        "matrices must be F32, F16, BF16 or quantized",
    ),
)
