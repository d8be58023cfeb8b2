"""Check a model's hyperparameters in the metadata of its file before C computes with them.

upstream: src/llama-model.cpp load_hparams: trusts most of them.  llama.cpp divides by zeros,
allocates by negative numbers, and fails assertions on threads where nothing can catch them, and so
we check them first.  What only the compute graph shows is checked when a context is created; see
`context.graph`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from .._core.text import c_text
from .._core.values import INT32_MAX
from .._native import ffi, lib
from ..errors import LoadError
from .file_kind import ARCHITECTURE, text_of
from .overrides import read_kv_overrides

Number: TypeAlias = "int | float"

WIDE = 2**24
"""Above any real width, count or size; the product of two such numbers fits in 64 bits."""


class Rule(NamedTuple):
    """The range that some keys of some architectures must be in."""

    keys: re.Pattern[str]
    architectures: re.Pattern[str]
    low: float
    high: float
    excepted: tuple[float, ...] = ()
    """Values outside the range that are allowed too: llama.cpp writes them for "none"."""

    def allows(self, value: Number) -> bool:
        """Return whether a hyperparameter may have this value."""
        return self.low <= value <= self.high or value in self.excepted

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"


def _rule(keys: str, architectures: str, low: float, high: float, *excepted: float) -> Rule:
    return Rule(re.compile(keys), re.compile(architectures), low, high, excepted)


def check_hyperparameters(struct: Any, gguf: Any, name: str) -> None:
    """Raise LoadError for a number that llama.cpp cannot compute with.

    Args:
        struct: The ``struct llama_model_params *``, which may override metadata.
        gguf: The ``struct gguf_context *`` of the file.
        name: The name of the file, for the message.

    Raises:
        LoadError: A number is out of range, or several do not fit together.
    """
    # upstream: src/llama-model.cpp vocab_only: none of the numbers is read then.
    if struct.vocab_only:
        return
    overridden = read_kv_overrides(struct)
    architecture = str(overridden.pop(ARCHITECTURE, None) or text_of(gguf, ARCHITECTURE))
    prefix = f"{architecture}."
    prefixes = (prefix, OTHER)
    found = {key: values for key, values in _numbers(gguf, prefixes) if key not in overridden}
    found.update((key, value) for key, value in overridden.items() if key.startswith(prefixes))
    for key, values in found.items():
        suffix = key.removeprefix(prefix)
        for value in values if isinstance(values, list) else [values]:
            wanted = _wanted(suffix, architecture, value)
            if wanted:
                where = "kv_overrides" if key in overridden else "the file"
                raise LoadError(
                    f"cannot load {name!r}: {key} is {value} in {where}, but must be {wanted}"
                )
    for keys, architectures, problem in RELATIONS:
        values = [_listed(found.get(prefix + key)) for key in keys]
        if re.fullmatch(architectures, architecture) and problem(*values):
            raise LoadError(
                f"cannot load {name!r}: {prefix}{keys[0]} is {_abbreviated(values[0])}, but "
                f"{problem(*values)}"
            )


def _listed(value: Any) -> list[Any]:
    """Return a number or an array of numbers as a list; None as an empty one."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _abbreviated(values: list[Any]) -> str:
    text = ", ".join(map(str, values[:4])) + (", ..." if len(values) > 4 else "")
    return text if len(values) == 1 else f"[{text}]"


def _wanted(key: str, architecture: str, value: Any) -> str | None:
    """Return what a number must be, in words, if it is not that; else None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if (key, value) in INFINITE else "a finite number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    for rule in RULES if isinstance(value, int) else FLOAT_RULES:
        if rule.keys.fullmatch(key) and rule.architectures.fullmatch(architecture):
            return None if rule.allows(value) else str(rule)
    return None


def _numbers(gguf: Any, prefixes: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield the numbers and arrays of numbers whose keys start with one of the prefixes."""
    types = _c_types()
    for i in range(lib.gguf_get_n_kv(gguf)):
        key = c_text(lib.gguf_get_key(gguf, i))
        if not key.startswith(prefixes):
            continue
        type_ = lib.gguf_get_kv_type(gguf, i)
        if type_ in types:
            yield key, ffi.cast(f"{types[type_]} *", lib.gguf_get_val_data(gguf, i))[0]
        elif type_ == lib.GGUF_TYPE_ARRAY and lib.gguf_get_arr_type(gguf, i) in types:
            data = lib.gguf_get_arr_data(gguf, i)
            n = lib.gguf_get_arr_n(gguf, i)
            if n:
                yield (
                    key,
                    ffi.unpack(ffi.cast(f"{types[lib.gguf_get_arr_type(gguf, i)]} *", data), n),
                )


def _c_types() -> Mapping[int, str]:
    """Return the C type of each number type of GGUF."""
    return {
        lib.GGUF_TYPE_UINT8: "uint8_t",
        lib.GGUF_TYPE_INT8: "int8_t",
        lib.GGUF_TYPE_UINT16: "uint16_t",
        lib.GGUF_TYPE_INT16: "int16_t",
        lib.GGUF_TYPE_UINT32: "uint32_t",
        lib.GGUF_TYPE_INT32: "int32_t",
        lib.GGUF_TYPE_UINT64: "uint64_t",
        lib.GGUF_TYPE_INT64: "int64_t",
        lib.GGUF_TYPE_FLOAT32: "float",
        lib.GGUF_TYPE_FLOAT64: "double",
    }


def _needs_heads(heads: list[Any]) -> str | None:
    return "at least one layer must have attention" if heads and not any(heads) else None


def _needs_keys(kv_heads: list[Any], heads: list[Any]) -> str | None:
    if kv_heads and not any(kv_heads) and any(heads):
        return "some layers have attention, which needs key/value heads"
    return None


def _needs_both(one: list[Any], other: list[Any]) -> str | None:
    if any(one) != any(other):
        return f"the other MLA length is {_abbreviated(other)}: either both are 0 or neither is"
    return None


def _needs_first(types: list[Any]) -> str | None:
    return "the first layer must have its own indexer (1)" if types and not types[0] else None


def _needs_layers(stacked: list[Any], layers: list[Any]) -> str | None:
    if stacked and layers and stacked[0] >= layers[0]:
        return f"it must be below the number of layers (block_count), {layers[0]}"
    return None


def _needs_windows(pattern: list[Any]) -> str | None:
    return "at least one layer must have a sliding window" if pattern and not any(pattern) else None


# Architectures that need no attention heads.
WITHOUT_HEADS = r"mamba2?|a?rwkv.*|wavtokenizer-dec"

# Rules that relate several numbers: the keys, the architectures, and a function that returns what
# is wrong, or None.
RELATIONS: tuple[tuple[tuple[str, ...], str, Callable[..., str | None]], ...] = (
    (("attention.head_count",), f"(?!({WITHOUT_HEADS})$).*", _needs_heads),
    (
        ("attention.head_count_kv", "attention.head_count"),
        f"(?!({WITHOUT_HEADS})$).*",
        _needs_keys,
    ),
    (("attention.key_length_mla", "attention.value_length_mla"), ".*", _needs_both),
    (("attention.indexer.types",), "glm-dsa", _needs_first),
    (("n_deepstack_layers", "block_count"), "qwen3vl(moe)?", _needs_layers),
    (("attention.sliding_window_pattern",), "dots3note", _needs_windows),
)

# upstream: src/llama-arch.cpp "xielu.alpha_p": the keys of the activation of Apertus do not start
# with the name of the architecture, and so they are checked under this prefix.
OTHER = "xielu."

# upstream: src/llama-hparams.h kda_gate_lower_bound: infinite if there is no bound.
INFINITE = (("kda.gate_lower_bound", -math.inf),)

# The first rule that matches a key applies.  Zero is common and means "none"; rules that forbid it
# name the architectures where llama.cpp divides by the number or needs what it counts.
# upstream: src/llama-arch.cpp LLM_ARCH_NAMES, LLM_KV_NAMES: the names of architectures and keys.
RULES = (
    _rule(r"pooling_type|classifier\.pooling_type", ".*", -1, 4, 2**32 - 1),
    _rule(r"decoder_start_token_id", ".*", -1, INT32_MAX, 2**32 - 1),
    _rule(r"deepstack_mapping", ".*", -1, WIDE, 2**32 - 1),
    _rule(r"block_count", ".*", 1, WIDE),
    _rule(r"(embedding|context)_length", ".*", 1, INT32_MAX),
    _rule(r"ple\.layer_multipliers", ".*", 0, 2**63 - 1),
    _rule(r"full_attention_interval", ".*", 1, WIDE),
    _rule(
        r"ssm\.(group_count|time_step_rank|state_size|inner_size)",
        r"mamba2|falcon-h1|granitehybrid|nemotron_h(_moe)?|qwen3next|qwen35(moe)?|qwen4exp",
        *(1, WIDE),
    ),
    _rule(r"ssm\.(inner_size|state_size|time_step_rank)", r"mamba|jamba|plamo2", 1, WIDE),
    _rule(r"ssm\.conv_kernel", r"mamba2?|jamba|plamo2|falcon-h1|granitehybrid", 1, WIDE),
    _rule(r"wkv\.head_size|token_shift_count", r"a?rwkv\d.*", 1, WIDE),
    _rule(r"kda\.head_dim", r"kimi.*|bailingmoe3|glm5-next", 1, WIDE),
    _rule(r"interleave_moe_layer_step", r"ernie4_5-moe", 1, WIDE),
    _rule(r"experts_per_group", r"grovemoe", 1, WIDE),
    _rule(r"attention\.output_group_count", r"deepseek4|dflash", 1, WIDE),
    _rule(r"attention\.indexer\.(head_count|key_length|top_k)", r"glm-dsa", 1, INT32_MAX),
    _rule(r"attention\.group_norm_groups", r"wavtokenizer-dec", 1, WIDE),
    _rule(r"attention\.relative_buckets_count", r"t5(encoder)?", 2, WIDE),
    _rule(r"attention\.sliding_window", r"afmoe|llama4", 1, WIDE),
    _rule(r"attention\.head_count", r"olmo2|phimoe|gemma[23]|deepseek2.*", 1, WIDE),
    _rule(r"attention\.(key|value)_length_mla", r"kimi.*", 1, WIDE),
    _rule(r"expert_feed_forward_length", r"mimo2", 1, WIDE),
    _rule(
        r"(rope\.scaling\.original_)?context_length|.*(token_id|top_k)|vocab_size"
        r"|attention\.temperature_length|ple\.head_offsets|ple\.head_vocab_sizes",
        *(".*", 0, INT32_MAX),
    ),
    _rule(r".*", ".*", 0, WIDE),
)
FLOAT_RULES = (
    _rule(r".*epsilon", ".*", 0, 1),
    _rule(r"rope\.freq_base(_swa)?", ".*", 1e-9, 1e18),
    _rule(r"attention\.compress_rope_freq_base", ".*", 0, 1e18),
    _rule(r"rope\.scaling\.(factor|original_context_length)", ".*", 0, 1e9),
    _rule(r"rope\.scaling\.attn_factor", ".*", 0, 1000),  # scales keys, often stored as F16
    _rule(r"attention\.max_alibi_bias|attention\.clamp_kqv", ".*", 0, 1e9),
    _rule(r".*", ".*", -1e9, 1e9),
)
