"""Whether the processor can compute with the types that the tensors of a model have.

llama.cpp asks a GPU before it puts a tensor there, and takes the processor for all others without
asking: a type that none of its kernels reads ends in a failed assertion, or a call of NULL, on a
thread where nothing can catch it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._native import ffi, lib
from ..errors import LoadError
from .weights import CAN_LIST, tensors

if TYPE_CHECKING:
    from typing import TypeAlias

    Rule: TypeAlias = tuple[re.Pattern[str], Callable[[int], bool], str]


def check_weight_types(model: Any, name: str) -> None:
    """Raise unless each tensor on the processor has a type that its operation can read there.

    Only types and names are read, not the weights.

    Args:
        model: The ``struct llama_model *``.
        name: Where it comes from, for messages.

    Raises:
        LoadError: One has another type, or one is missing that llama.cpp takes for optional, and
            computes with.
    """
    if not CAN_LIST:
        return
    found = {ffi.string(tensor.name).decode(errors="replace") for tensor in tensors(model)}
    for part in ("enc.blk.0.", "dec.blk.0."):  # of T5: other layers use those of the first
        needed = f"{part}attn_rel_b.weight"
        if needed not in found and any(one.startswith(part) for one in found):
            raise LoadError(f"cannot load {name!r}: it has no tensor {needed!r}")
    for tensor in tensors(model):
        if tensor.type == lib.GGML_TYPE_F32 or not _is_on_processor(tensor):
            continue
        tensor_name = ffi.string(tensor.name).decode(errors="replace")
        _, fits, reads = next(rule for rule in RULES if rule[0].search(tensor_name))
        if not fits(tensor.type):
            raise LoadError(
                f"cannot load {name!r}: the tensor {tensor_name!r} is {_type_name(tensor.type)}, "
                f"and on the processor {reads}; Gguf.replace_tensor(..., type='f32') converts one"
            )


def check_factor_types(struct: Any, gguf: Any, name: str) -> None:
    """Raise unless the factors of positions are F32, which each device needs.

    While it loads, llama.cpp makes the operation that reads them, which fails an assertion that
    names no tensor.

    Args:
        struct: The ``struct llama_model_params *``.
        gguf: The ``struct gguf_context *`` of the file.
        name: Of the file, for the message.

    Raises:
        LoadError: They have another type.
    """
    for i in range(0 if struct.vocab_only else lib.gguf_get_n_tensors(gguf)):
        type_ = lib.gguf_get_tensor_type(gguf, i)
        if type_ == lib.GGML_TYPE_F32:
            continue
        tensor_name = ffi.string(lib.gguf_get_tensor_name(gguf, i)).decode(errors="replace")
        if FACTORS.search(tensor_name):
            raise LoadError(
                f"cannot load {name!r}: the tensor {tensor_name!r} is {_type_name(type_)}, and "
                "these factors must be F32; Gguf.replace_tensor(..., type='f32') converts one"
            )


def _is_on_processor(tensor: Any) -> bool:
    """Return whether the processor computes with a tensor, in the layout that it has in a file."""
    if tensor.buffer == ffi.NULL:
        return False
    place = lib.ggml_backend_buffer_get_type(tensor.buffer)
    if not lib.ggml_backend_buft_is_host(place):
        return False
    device = lib.ggml_backend_buft_get_device(place)
    return bool(
        device == ffi.NULL
        or lib.ggml_backend_dev_type(device) == lib.GGML_BACKEND_DEVICE_TYPE_CPU
        or lib.ggml_backend_dev_buffer_type(device) != place  # memory that a GPU can reach too
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
    return str(ffi.string(lib.ggml_type_name(type_)).decode()).upper()


FACTORS = re.compile(r"\brope_(freqs|factors_\w+)\.weight$")

# What reads a tensor, by its name: the first that matches counts.
RULES: tuple[Rule, ...] = (
    (
        re.compile(r"(^d2t|\bffn_gate_tid2eid|^masked_embd_ordering)(\.weight)?$"),
        _is_index,
        "these are indices: I32 or I64",
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
        "it is added or multiplied element by element, which needs F32",
    ),
    (
        re.compile(r"^(conv1d|posnet\.|convnext\.\d+\.dw)"),
        _is_float,
        "it is a kernel of a convolution: F32, F16 or BF16",
    ),
    (
        re.compile(""),
        _is_multiplied,
        "a matrix must be F32, F16, BF16 or quantized",
    ),
)
