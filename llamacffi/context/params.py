"""The parameters of a context: converted, and checked before C sees them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._core.params import fill
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

# Fields of llama_context_params that `Context` fills itself.
OWNED = {
    "abort_callback": "use Context.cancel()",
    "abort_callback_data": "use Context.cancel()",
    "cb_eval_user_data": "use cb_eval, a Python function, which has its own data",
    "n_samplers": "it is the number of samplers",
    "defrag_thold": "llama.cpp no longer defragments its memory, and ignores it",
}

# What llama.cpp would assert, adjust, or compute nonsense with.
LIMITS = {
    "n_ctx": (0, INT32_MAX),
    "n_batch": (1, INT32_MAX),
    "n_ubatch": (1, INT32_MAX),
    "n_seq_max": (1, lib.llama_max_parallel_sequences()),
    "n_threads": (1, lib.GGML_MAX_N_THREADS),
    "n_threads_batch": (1, lib.GGML_MAX_N_THREADS),
}

# How long a context is that nobody has asked for: memory for all that a model was trained with may
# be too much.
MODEST_CTX = 4096
BLOCK = 256  # llama.cpp rounds up to a multiple of it
ROPE = ("rope_scaling_type", "rope_freq_base", "rope_freq_scale")
YARN = ("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx")
# Of these, llama.cpp reads some only where it interpolates by YaRN.
YARN_ALONE = ("yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx")


class ContextRequest:
    """What a context is to be: the struct for C, and what it points to."""

    __slots__ = ("abort", "chains", "keep", "n_outputs_max", "observer", "other", "struct")

    struct: Any
    """The ``struct llama_context_params *``."""
    keep: list[object]
    """What C reads as long as the context lives."""
    abort: Any
    """The ``struct llamacffi_abort_flag *`` that C polls."""
    observer: Observer | None
    """Who sees the compute graphs."""
    other: ContextHandle | None
    """The context whose memory or weights this one uses."""
    chains: dict[int, SamplerChain]
    """What each sequence is sampled with in the graph."""
    n_outputs_max: int
    """How many outputs a batch can have; 0 if as many as tokens."""

    def __init__(self, model: Model, params: Mapping[str, Any]) -> None:
        """Fill the struct and check it.

        Raises:
            TypeError: A parameter is unknown, or of another type.
            ArgumentError: A value is out of range.
            ContextError: There is not memory enough.
            UnsupportedError: The model cannot do that, or was loaded without its weights.
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
        return other.ptr, other.ptr  # the pointer is what keeps it alive


def default_n_ctx(struct: Any, model: Model, other: ContextHandle | None) -> int:
    """Return the length of a context if nobody gives one: that of the training, or a modest one.

    A context that works with another has as many as that one.  Sequences with room of their own
    have the same whole blocks each, so that there is nothing for llama.cpp to adjust.
    """
    if other is not None:
        length: int = lib.llama_n_ctx(other.ptr)
        return length
    trained: int = lib.llama_model_n_ctx_train(model.ptr)  # 0 of a vocabulary alone
    n = int(struct.n_seq_max)
    if not trained or struct.kv_unified:
        return min(trained * n, MODEST_CTX) or int(struct.n_ctx)
    share, whole = MODEST_CTX // n // BLOCK * BLOCK, -(-trained // BLOCK) * BLOCK
    return n * max(BLOCK, min(whole, share))


def default_n_threads(model: Model, offload_kqv: bool) -> int:
    """Return how many threads to compute with.

    Args:
        model: The model.
        offload_kqv: Whether what is remembered goes where the layers are.
    """
    if CAN_LIST and offload_kqv and model.devices and is_elsewhere(places(model.ptr)):
        return 1  # which is faster than several: it has next to nothing to compute
    return min(free_cores(), lib.GGML_MAX_N_THREADS)


def check_ranges(struct: Any, model: Model) -> None:
    """Check the numbers that llama.cpp would assert, adjust, or compute nonsense with."""
    for name in ("n_threads", "n_threads_batch"):
        if name == "n_threads" or struct.n_threads_batch != struct.n_threads:
            check_computing(name, getattr(struct, name))
    if not struct.n_ctx and not lib.llama_model_n_ctx_train(model.ptr):
        raise ArgumentError(
            "n_ctx=0 is the length that the model was trained with, which its file does not tell: "
            "give a number"
        )
    for name in ("rope_freq_base", "rope_freq_scale"):
        if (number := getattr(struct, name)) < 0:
            raise ArgumentError(f"{name}={number} must be above 0, or 0 for the model's own")
    _check_outputs(struct)
    for name in ("type_k", "type_v"):
        _check_cache_type(name, getattr(struct, name))
    disabled = struct.flash_attn_type == lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if disabled and lib.ggml_is_quantized(struct.type_v):
        raise ArgumentError(
            "type_v is quantized, which needs flash attention: leave out flash_attn_type"
        )


def _check_outputs(struct: Any) -> None:
    """Check that each sequence can have an output: llama.cpp makes room for that at once."""
    n_seq_max = struct.n_seq_max
    for name in ("n_ctx", "n_batch", "n_outputs_max"):
        value = param_or_zero(struct, name)
        if (value or name == "n_batch") and value < n_seq_max:
            raise ArgumentError(
                f"{name}={value} is less than n_seq_max={n_seq_max}: each sequence needs a place"
            )


def _check_cache_type(name: str, number: int) -> None:
    """Check that attention can compute with a type: some are only for weights or indices.

    Without these functions llama.cpp would call NULL.
    """
    known = 0 <= number < lib.GGML_TYPE_COUNT
    plain = number == lib.GGML_TYPE_F32  # used as it is
    if known and not plain:
        on_cpu = lib.ggml_get_type_traits_cpu(number)
        reads = on_cpu.vec_dot if name == "type_k" else lib.ggml_get_type_traits(number).to_float
        known = on_cpu.from_float != ffi.NULL and reads != ffi.NULL
    if not known:
        raise ArgumentError(
            f"{name}={number} is not a type that a cache can have: give one of weights, as "
            '"f16", "bf16", "q8_0" or "q4_0"'
        )


def check_model(struct: Any, model: Model, given: set[str]) -> None:
    """Check what this model would ignore, or answer with nonsense.

    Args:
        struct: The parameters.
        model: The model.
        given: Those that the user has chosen.

    Raises:
        UnsupportedError: The model cannot do that.
        ArgumentError: A parameter has no effect beside the others.
    """
    ptr = model.ptr
    if is_draft(struct):
        _check_draft(model)
    else:
        _check_trunk(model)
    encodes = lib.llama_model_has_encoder(ptr)
    if encodes and param_or_zero(struct, "n_outputs_max"):
        raise UnsupportedError("an encoder has an output for each token: leave out n_outputs_max")
    pooled = struct.pooling_type not in (
        lib.LLAMA_POOLING_TYPE_UNSPECIFIED,
        lib.LLAMA_POOLING_TYPE_NONE,
    )
    if encodes and lib.llama_model_has_decoder(ptr) and model.architecture not in SHARING:
        if pooled:
            raise UnsupportedError(
                "the decoder reads the encoder's output for each token: leave out pooling_type"
            )
        if struct.n_seq_max > 1 and not struct.kv_unified:
            raise UnsupportedError(
                "the decoder of this model has one buffer for all sequences: give kv_unified=True"
            )
    _check_blocks(struct, model)
    _check_rope(struct, model, given)


def _check_blocks(struct: Any, model: Model) -> None:
    """Check that each head fills whole blocks of a quantized type: else C reads beyond them."""
    if not hasattr(lib, "llamacffi_model_head_unit"):  # an older llama.cpp does not tell
        return
    for name, values in (("type_k", False), ("type_v", True)):
        number = getattr(struct, name)
        block = lib.ggml_blck_size(number)
        unit = lib.llamacffi_model_head_unit(model.ptr, values) if block > 1 else 0
        if unit % block:
            kind = ffi.string(lib.ggml_type_name(number)).decode()
            raise ArgumentError(
                f"{name}={kind!r} stores blocks of {block} numbers, and the heads of this model "
                f"have widths that are only multiples of {unit}: give another type"
            )


def _check_draft(model: Model) -> None:
    """Check that the layers that predict several tokens at once are there, and were loaded."""
    if not lib.llama_model_n_layer_nextn(model.ptr):
        raise UnsupportedError(
            f"{model!r} has no layers for multi-token prediction: load one that has, with "
            "load_mtp=True"
        )
    own = re.compile(r"\bblk\.(\d+)\.(nextn\.)?")
    found = (
        own.search(ffi.string(one.name).decode(errors="replace")) for one in tensors(model.ptr)
    )
    n_layer = lib.llama_model_n_layer(model.ptr)
    if not any(one and (one[2] or int(one[1]) >= n_layer) for one in found):
        raise UnsupportedError(
            f"{model!r} was loaded without its layers for multi-token prediction: give "
            "load_mtp=True to Model"
        )


def _check_trunk(model: Model) -> None:
    """Check that there is more than the layers that predict several tokens at once.

    Of a file that begins without this norm, llama.cpp takes all other layers for optional, and then
    computes with those that are not there.
    """
    if not hasattr(lib, "llama_model_n_layer_nextn"):  # an older llama.cpp has no such layers
        return
    if not lib.llama_model_n_layer_nextn(model.ptr):
        return
    first = {name for name in weight_shapes(model.ptr) if name.startswith("blk.0.")}
    if first.isdisjoint({"blk.0.attn_norm.weight", "blk.0.post_attention_norm.weight"}):
        raise UnsupportedError(
            f"{model!r} has only layers for multi-token prediction, or is not whole: it drafts for "
            'another model, with ctx_type="mtp" and load_mtp=True'
        )


def _check_rope(struct: Any, model: Model, given: set[str]) -> None:
    """Check that what is said of positions reaches them."""
    defaults = lib.llama_context_default_params()
    chosen = [
        name
        for name in (*ROPE, *YARN)
        if name in given and getattr(struct, name) != getattr(defaults, name)
    ]
    if chosen and lib.llama_model_rope_type(model.ptr) == lib.LLAMA_ROPE_TYPE_NONE:
        raise UnsupportedError(f"{model!r} has no rotary positions: leave out {chosen[0]}")
    alone = [name for name in chosen if name in YARN_ALONE]
    if alone and not _interpolates(struct, model):
        raise ArgumentError(
            f"{alone[0]} is for YaRN, which this context does not use: give "
            'rope_scaling_type="yarn", or a yarn_ext_factor'
        )


def _interpolates(struct: Any, model: Model) -> bool:
    """Return whether positions are scaled by YaRN."""
    if struct.yarn_ext_factor >= 0:
        return bool(struct.yarn_ext_factor > 0)
    key = f"{model.architecture}.rope.scaling"
    if own := model.metadata.get(f"{key}.yarn_ext_factor"):
        return float(own) > 0
    if struct.rope_scaling_type != lib.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED:
        return bool(struct.rope_scaling_type == lib.LLAMA_ROPE_SCALING_TYPE_YARN)
    return model.metadata.get(f"{key}.type") == "yarn"


def check_sharing(other: ContextHandle | None, struct: Any, model: Model) -> None:
    """Check that a context can use what another has: llama.cpp ignores it, or takes all on trust.

    Raises:
        UnsupportedError: This model shares nothing.
        ArgumentError: The other context does not fit.
    """
    if other is None:
        return
    own = model.architecture
    if own not in SHARING:
        raise UnsupportedError(
            f"a context of {own!r} uses nothing of another: ctx_other is for draft models "
            f"({', '.join(SHARING)})"
        )
    n_vocab, theirs = len(model.vocab), len(traits_of(other).vocab)
    if n_vocab != theirs:
        raise ArgumentError(
            f"ctx_other is of a model with {theirs} tokens, and this one has {n_vocab}: a draft "
            "model has the vocabulary of its target"
        )
    if own == "gemma4-assistant":
        _check_shared_memory(other, struct)


def _check_shared_memory(other: ContextHandle, struct: Any) -> None:
    """Check that two contexts can share one memory, which llama.cpp resizes for the new one."""
    target = traits_of(other).model.architecture
    if target != "gemma4":
        raise ArgumentError(f"ctx_other is of {target!r}; a gemma4-assistant drafts for gemma4")
    n_seq_max, unified = lib.llama_n_seq_max(other.ptr), bool(struct.kv_unified)
    if (struct.n_seq_max, unified) != (n_seq_max, traits_of(other).kv_unified):
        raise ArgumentError(
            f"ctx_other has n_seq_max={n_seq_max} and kv_unified={traits_of(other).kv_unified}: "
            "give the same values"
        )
    ptr = other.ptr  # held as long as its memory is looked at
    memory = lib.llama_get_memory(ptr)
    if any(lib.llama_memory_seq_pos_max(memory, i) >= 0 for i in range(n_seq_max)):
        raise ArgumentError(
            "ctx_other remembers tokens, which llama.cpp would forget: create both contexts first"
        )
