"""Conversion and validation of the parameters of a context."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._core.params import fill
from .._core.text import c_text
from .._core.values import INT32_MAX, check_object
from .._native import ffi, lib
from ..backend.cores import free_cores
from ..backend.tensor import Observer
from ..backend.threads import check_computing
from ..errors import ArgumentError, UnsupportedError
from ..model.info import check_weights
from ..model.weights import CAN_LIST, is_elsewhere, places, tensors, weight_shapes
from .compat import SHARING, is_draft, param_or_zero
from .graph_samplers import check_chains
from .handle import ContextHandle, traits_of
from .memory_size import check_memory

if TYPE_CHECKING:
    from ..model.model import Model
    from ..sampling.chain import SamplerChain

# Fields of llama_context_params that `Context` sets itself, and what to do instead.
OWNED = {
    "abort_callback": "use Context.cancel()",
    "abort_callback_data": "use Context.cancel()",
    "cb_eval_user_data": "give the data to cb_eval, which can be any Python function",
    "n_samplers": "it follows from samplers",
    "defrag_thold": "llama.cpp ignores it, since it no longer defragments its memory",
}

# Beyond these limits llama.cpp would abort, adjust the value, or compute garbage.
LIMITS = {
    "n_ctx": (0, INT32_MAX),
    "n_batch": (1, INT32_MAX),
    "n_ubatch": (1, INT32_MAX),
    "n_seq_max": (1, lib.llama_max_parallel_sequences()),
    "n_threads": (1, lib.GGML_MAX_N_THREADS),
    "n_threads_batch": (1, lib.GGML_MAX_N_THREADS),
}

# The largest default of n_ctx: the memory for the full length of the training may be too much.
MODEST_CTX = 4096
# upstream: src/llama-context.cpp "GGML_PAD(cparams.n_ctx, 256)": it rounds lengths up to a multiple
# of this, so our defaults are multiples.
BLOCK = 256
ROPE = ("rope_scaling_type", "rope_freq_base", "rope_freq_scale")
YARN = ("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx")
# upstream: src/llama-context.cpp yarn_ext_factor: these matter only if it is not 0.
YARN_ALONE = ("yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx")


class ContextRequest:
    """The parameters of a context to create: the struct for C, and the objects it points to."""

    __slots__ = ("abort", "chains", "keep", "n_outputs_max", "observer", "other", "struct")

    struct: Any
    """The ``struct llama_context_params *``."""
    keep: list[object]
    """Objects that C reads as long as the context lives."""
    abort: Any
    """The ``struct llamacffi_abort_flag *`` that C polls."""
    observer: Observer | None
    """Calls ``cb_eval`` for the nodes of the compute graphs."""
    other: ContextHandle | None
    """The context whose memory or weights this one uses."""
    chains: dict[int, SamplerChain]
    """The chain that samples each sequence in the graph."""
    n_outputs_max: int
    """The largest number of outputs of a batch; 0 if it is not limited."""

    def __init__(self, model: Model, params: Mapping[str, Any]) -> None:
        """Fill the struct and check it.

        Raises:
            TypeError: A parameter is unknown, or has the wrong type.
            ArgumentError: A value is out of range.
            ContextError: There is not enough memory.
            UnsupportedError: The model does not support a parameter, or was loaded without its
                weights.
        """
        check_object("model", model, "Model")
        self.struct = struct = ffi.new("struct llama_context_params *")
        struct[0] = lib.llama_context_default_params()
        if "n_threads" not in params:
            struct.n_threads = default_n_threads(model, bool(params.get("offload_kqv", True)))
        self.abort = ffi.new("struct llamacffi_abort_flag *")
        struct.abort_callback = lib.llamacffi_abort_requested
        struct.abort_callback_data = self.abort
        self.observer = self.other = None
        self.chains = {}
        chains = params.get("samplers")
        params = {name: value for name, value in params.items() if name != "samplers"}
        converters = {"cb_eval": self._callback, "ctx_other": self._context}
        self.keep = fill(struct, "llama_context_params", params, OWNED, converters, LIMITS)
        if self.observer is not None:
            struct.cb_eval_user_data = self.observer.handle
        if "n_threads_batch" not in params:
            struct.n_threads_batch = struct.n_threads
        if "n_ctx" not in params:
            struct.n_ctx = default_n_ctx(struct, model, self.other)
        check_ranges(struct, model)
        check_weights(model)
        check_model(struct, model, {name for name in params if params[name] is not None})
        check_sharing(self.other, struct, model)
        self.n_outputs_max = param_or_zero(struct, "n_outputs_max")
        check_memory(struct, model)
        if chains is not None:
            self.chains = check_chains(chains, struct.n_seq_max)

    def _callback(self, function: Any) -> tuple[Any, object]:
        """Convert ``cb_eval``."""
        if function is None:
            return ffi.NULL, None
        if not callable(function) or isinstance(function, ffi.CData):
            raise TypeError(f"cb_eval must be a Python function, not {function!r}")
        self.observer = Observer(function, self.abort)
        return lib.llamacffi_on_eval, self.observer.handle

    def _context(self, other: Any) -> tuple[Any, object]:
        """Convert ``ctx_other``."""
        if other is None:
            return ffi.NULL, None
        if not isinstance(other, ContextHandle):
            raise TypeError(f"ctx_other must be a Context, not {other!r}")
        self.other = other
        return other.ptr, other.ptr  # the pointer keeps the C object alive


def default_n_ctx(struct: Any, model: Model, other: ContextHandle | None) -> int:
    """Return the default of ``n_ctx``: the length of the training, but at most `MODEST_CTX`.

    A context that uses another one has the same length.  If sequences have separate buffers, each
    gets the same number of whole blocks, so that llama.cpp adjusts nothing.
    """
    if other is not None:
        length: int = lib.llama_n_ctx(other.ptr)
        return length
    trained: int = lib.llama_model_n_ctx_train(model.ptr)  # 0 if only a vocabulary was loaded
    n = int(struct.n_seq_max)
    if not trained or struct.kv_unified:
        return min(trained * n, MODEST_CTX) or int(struct.n_ctx)
    share, whole = MODEST_CTX // n // BLOCK * BLOCK, -(-trained // BLOCK) * BLOCK
    return n * max(BLOCK, min(whole, share))


def default_n_threads(model: Model, offload_kqv: bool) -> int:
    """Return the default number of threads.

    Args:
        model: The model.
        offload_kqv: Whether the KV cache is on the devices of the layers.
    """
    if CAN_LIST and offload_kqv and model.devices and is_elsewhere(places(model.ptr)):
        return 1  # faster than several, since the CPU has next to nothing to compute
    return min(free_cores(), lib.GGML_MAX_N_THREADS)


def check_ranges(struct: Any, model: Model) -> None:
    """Refuse numbers that make llama.cpp abort or compute garbage, or that it would adjust."""
    for name in ("n_threads", "n_threads_batch"):
        if name == "n_threads" or struct.n_threads_batch != struct.n_threads:
            check_computing(name, getattr(struct, name))
    if not struct.n_ctx and not lib.llama_model_n_ctx_train(model.ptr):
        raise ArgumentError(
            "n_ctx=0 means the length that the model was trained with, but its file does not have "
            "it: give a number"
        )
    for name in ("rope_freq_base", "rope_freq_scale"):
        if (number := getattr(struct, name)) < 0:
            raise ArgumentError(
                f"{name} must be positive, or 0 for the model's value, not {number}"
            )
    _check_outputs(struct)
    for name in ("type_k", "type_v"):
        _check_cache_type(name, getattr(struct, name))
    disabled = struct.flash_attn_type == lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if disabled and lib.ggml_is_quantized(struct.type_v):
        raise ArgumentError("a quantized type_v needs flash attention: leave out flash_attn_type")


def _check_outputs(struct: Any) -> None:
    """Check that each sequence can have an output.

    upstream: src/llama-context.cpp output_reserve, n_seq_max: a new context reserves memory for one
    output of each sequence.
    """
    n_seq_max = struct.n_seq_max
    for name in ("n_ctx", "n_batch", "n_outputs_max"):
        value = param_or_zero(struct, name)
        if (value or name == "n_batch") and value < n_seq_max:
            raise ArgumentError(
                f"{name}={value} is less than n_seq_max={n_seq_max}: raise {name}, or lower "
                "n_seq_max"
            )


def _check_cache_type(name: str, number: int) -> None:
    """Check that attention supports a type; some are only for weights or indices.

    upstream: ggml/src/ggml-cpu/ops.cpp vec_dot, from_float, to_float: it calls these functions of a
    type without a check for NULL.
    """
    known = 0 <= number < lib.GGML_TYPE_COUNT
    plain = number == lib.GGML_TYPE_F32  # used as it is
    if known and not plain:
        on_cpu = lib.ggml_get_type_traits_cpu(number)
        reads = on_cpu.vec_dot if name == "type_k" else lib.ggml_get_type_traits(number).to_float
        known = on_cpu.from_float != ffi.NULL and reads != ffi.NULL
    if not known:
        raise ArgumentError(
            f"{name}={number} cannot be used for the KV cache: give another type, such as "
            '"f16", "bf16", "q8_0" or "q4_0"'
        )


def check_model(struct: Any, model: Model, given: set[str]) -> None:
    """Refuse parameters that have no effect with this model, or make it compute garbage.

    Args:
        struct: The parameters.
        model: The model.
        given: The names of those that the user has set.

    Raises:
        UnsupportedError: The model does not support a parameter.
        ArgumentError: A parameter has no effect together with the others.
    """
    ptr = model.ptr
    if is_draft(struct):
        _check_draft(model)
    else:
        _check_trunk(model)
    encodes = lib.llama_model_has_encoder(ptr)
    if encodes and param_or_zero(struct, "n_outputs_max"):
        raise UnsupportedError("an encoder outputs every token: leave out n_outputs_max")
    pooled = struct.pooling_type not in (
        lib.LLAMA_POOLING_TYPE_UNSPECIFIED,
        lib.LLAMA_POOLING_TYPE_NONE,
    )
    if encodes and lib.llama_model_has_decoder(ptr) and model.architecture not in SHARING:
        if pooled:
            raise UnsupportedError(
                "the decoder needs the encoder's output of each token: leave out pooling_type"
            )
        if struct.n_seq_max > 1 and not struct.kv_unified:
            raise UnsupportedError(
                "the decoder of this model shares one buffer between all sequences: set "
                "kv_unified=True"
            )
    _check_blocks(struct, model)
    _check_rope(struct, model, given)


def _check_blocks(struct: Any, model: Model) -> None:
    """Check that each head fills whole blocks of a quantized type; C would read past the end."""
    if not hasattr(lib, "llamacffi_model_head_unit"):  # an older llama.cpp
        return
    for name, values in (("type_k", False), ("type_v", True)):
        number = getattr(struct, name)
        block = lib.ggml_blck_size(number)
        unit = lib.llamacffi_model_head_unit(model.ptr, values) if block > 1 else 0
        if unit % block:
            kind = c_text(lib.ggml_type_name(number))
            raise ArgumentError(
                f"{name}={kind!r} stores blocks of {block} numbers, but the head sizes of this "
                f"model are multiples of {unit}: give another type"
            )


def _check_draft(model: Model) -> None:
    """Check that the model has layers for multi-token prediction, and that they were loaded."""
    if not lib.llama_model_n_layer_nextn(model.ptr):
        raise UnsupportedError(
            f"{model!r} has no layers for multi-token prediction: load a model that has them, with "
            "load_mtp=True"
        )
    own = re.compile(r"\bblk\.(\d+)\.(nextn\.)?")
    found = (own.search(c_text(one.name)) for one in tensors(model.ptr))
    n_layer = lib.llama_model_n_layer(model.ptr)
    if not any(one and (one[2] or int(one[1]) >= n_layer) for one in found):
        raise UnsupportedError(
            f"{model!r} was loaded without its layers for multi-token prediction: pass "
            "load_mtp=True to Model"
        )


def _check_trunk(model: Model) -> None:
    """Check that the model has layers besides those for multi-token prediction.

    upstream: src/models/deepseek2.cpp mtp_only: if the first layer has no such norm, it takes all
    normal layers to be optional, and then computes with missing ones.
    """
    if not hasattr(lib, "llama_model_n_layer_nextn"):  # an older llama.cpp has no such layers
        return
    if not lib.llama_model_n_layer_nextn(model.ptr):
        return
    first = {name for name in weight_shapes(model.ptr) if name.startswith("blk.0.")}
    if first.isdisjoint({"blk.0.attn_norm.weight", "blk.0.post_attention_norm.weight"}):
        raise UnsupportedError(
            f"{model!r} has only layers for multi-token prediction, or is incomplete: use it as a "
            'draft for another model, with ctx_type="mtp" and load_mtp=True'
        )


def _check_rope(struct: Any, model: Model, given: set[str]) -> None:
    """Check that the parameters for positions have an effect."""
    defaults = lib.llama_context_default_params()
    chosen = [
        name
        for name in (*ROPE, *YARN)
        if name in given and getattr(struct, name) != getattr(defaults, name)
    ]
    if chosen and lib.llama_model_rope_type(model.ptr) == lib.LLAMA_ROPE_TYPE_NONE:
        raise UnsupportedError(f"{model!r} has no rotary embeddings: leave out {chosen[0]}")
    alone = [name for name in chosen if name in YARN_ALONE]
    if alone and not _interpolates(struct, model):
        raise ArgumentError(
            f"{alone[0]} has an effect only with YaRN, which this context does not use: set "
            'rope_scaling_type="yarn" or yarn_ext_factor'
        )


def _interpolates(struct: Any, model: Model) -> bool:
    """Return whether YaRN scales the positions."""
    if struct.yarn_ext_factor >= 0:
        return bool(struct.yarn_ext_factor > 0)
    key = f"{model.architecture}.rope.scaling"
    if own := model.metadata.get(f"{key}.yarn_ext_factor"):
        return float(own) > 0
    if struct.rope_scaling_type != lib.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED:
        return bool(struct.rope_scaling_type == lib.LLAMA_ROPE_SCALING_TYPE_YARN)
    return model.metadata.get(f"{key}.type") == "yarn"


def check_sharing(other: ContextHandle | None, struct: Any, model: Model) -> None:
    """Check ``ctx_other``, which llama.cpp ignores for most models, and never checks.

    Raises:
        UnsupportedError: A context of this model does not use another one.
        ArgumentError: The other context does not fit.
    """
    if other is None:
        return
    own = model.architecture
    if own not in SHARING:
        raise UnsupportedError(
            f"a context of {own!r} does not use another context: ctx_other is for draft models "
            f"({', '.join(SHARING)})"
        )
    n_vocab, theirs = len(model.vocab), len(traits_of(other).vocab)
    if n_vocab != theirs:
        raise ArgumentError(
            f"the model of ctx_other has {theirs} tokens, but this one has {n_vocab}: a draft "
            "model must have the vocabulary of its target"
        )
    if own == "gemma4-assistant":
        _check_shared_memory(other, struct)


def _check_shared_memory(other: ContextHandle, struct: Any) -> None:
    """Check that two contexts can share one memory.

    upstream: src/llama-model.cpp mem_other: the new context uses the memory of the other one, with
    whatever parameters both have.
    """
    target = traits_of(other).model.architecture
    if target != "gemma4":
        raise ArgumentError(
            f"the model of ctx_other is {target!r}: a gemma4-assistant is a draft for gemma4"
        )
    n_seq_max, unified = lib.llama_n_seq_max(other.ptr), bool(struct.kv_unified)
    if (struct.n_seq_max, unified) != (n_seq_max, traits_of(other).kv_unified):
        raise ArgumentError(
            f"ctx_other has n_seq_max={n_seq_max} and kv_unified={traits_of(other).kv_unified}: "
            "give both contexts the same values"
        )
    ptr = other.ptr  # keeps the context alive while its memory is read
    memory = lib.llama_get_memory(ptr)
    if any(lib.llama_memory_seq_pos_max(memory, i) >= 0 for i in range(n_seq_max)):
        raise ArgumentError(
            "ctx_other has tokens, which llama.cpp would remove: create both contexts before the "
            "first batch"
        )
