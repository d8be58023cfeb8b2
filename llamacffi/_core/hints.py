"""Suggestions for parameters that do not exist here, but in other llama.cpp programs."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

_F = TypeVar("_F", bound=Callable[..., Any])

_SAMPLER = "sampler=SamplerChain.default({}=...) of generate()"
_OWN_SAMPLER = "sampler=SamplerChain({}, ...) of generate()"
_GENERATE = "{}= of generate()"
_CONTEXT = "{}= of Context"
_MODEL = "{}= of Model"
_ADAPTER = "context.adapters = {Adapter(model, path): scale}"
_LOG = "logging.getLogger('llamacffi').setLevel(...), or llamacffi.log.set_level()"
_BATCH = 'logits="all" of Batch.add()'
TEMPLATE = "Model.chat_template() with a renderer of templates such as Jinja"

# Maps names of other programs to our name, and where it is.  If a function has a parameter with our
# name, the user meant that one.
HINTS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("temperature", "temp"), ("temp", _SAMPLER.format("temp"))),
    **dict.fromkeys(("seed", "rng_seed"), ("seed", _SAMPLER.format("seed"))),
    "top_k": ("top_k", _OWN_SAMPLER.format("TopK(k)")),
    "top_p": ("top_p", _OWN_SAMPLER.format("TopP(p)")),
    "min_p": ("min_p", _OWN_SAMPLER.format("MinP(p)")),
    **dict.fromkeys(("typical_p", "typ_p"), ("", _OWN_SAMPLER.format("Typical(p)"))),
    **dict.fromkeys(
        ("repeat_penalty", "repetition_penalty", "penalty_repeat"),
        ("penalty_repeat", _OWN_SAMPLER.format("Penalties(repeat=...)")),
    ),
    **dict.fromkeys(
        ("repeat_last_n", "last_n_tokens_size", "last_n_tokens", "penalty_last_n"),
        ("penalty_last_n", _OWN_SAMPLER.format("Penalties(last_n=...)")),
    ),
    "frequency_penalty": ("", _OWN_SAMPLER.format("Penalties(freq=...)")),
    "presence_penalty": ("", _OWN_SAMPLER.format("Penalties(present=...)")),
    **dict.fromkeys(
        ("mirostat", "mirostat_mode"), ("mirostat", _OWN_SAMPLER.format("MirostatV2(tau, eta)"))
    ),
    "mirostat_tau": ("mirostat_tau", _OWN_SAMPLER.format("MirostatV2(tau, eta)")),
    "mirostat_eta": ("mirostat_eta", _OWN_SAMPLER.format("MirostatV2(tau, eta)")),
    "logit_bias": ("", _OWN_SAMPLER.format("LogitBias({token: bias})")),
    "logits_processor": ("", _OWN_SAMPLER.format("LogitsProcessor(function)")),
    **dict.fromkeys(
        ("grammar", "json_schema", "response_format"), ("", _OWN_SAMPLER.format("Grammar(text)"))
    ),
    **dict.fromkeys(
        ("max_new_tokens", "n_predict", "max_length", "max_tokens", "new_text_length"),
        ("max_tokens", _GENERATE.format("max_tokens")),
    ),
    **dict.fromkeys(
        ("stop", "stop_sequences", "stop_strings", "stop_words"),
        ("stop", _GENERATE.format("stop")),
    ),
    **dict.fromkeys(
        ("stopping_criteria", "stop_when"), ("stop_when", _GENERATE.format("stop_when"))
    ),
    **dict.fromkeys(("prompt", "messages"), ("prompt", "the second argument of generate()")),
    "stream": ("", "generate(), which is an iterator of tokens"),
    "echo": ("", "print(prompt), before the generated text"),
    **dict.fromkeys(("logprobs", "top_logprobs"), ("", _GENERATE.format("top_logprobs"))),
    "verbose": ("", _LOG),
    **dict.fromkeys(("lora_path", "lora", "lora_adapters"), ("", _ADAPTER)),
    **dict.fromkeys(("lora_base", "lora_scale"), ("", _ADAPTER)),
    "control_vectors": ("", "context.control_vector = ControlVector.from_file(...)"),
    **dict.fromkeys(("model_path", "model_file"), ("path", "the first argument of Model")),
    **dict.fromkeys(
        ("gpu_layers", "n_gpu_layers", "ngl", "num_gpu"),
        ("n_gpu_layers", _MODEL.format("n_gpu_layers")),
    ),
    "use_mmap": ("", "load_mode='mmap' of Model, or 'none' to read the file into memory"),
    "use_mlock": ("", "load_mode='mlock' of Model, or 'mmap_mlock' for a mapped file"),
    "use_direct_io": ("", "load_mode='direct_io' of Model"),
    **dict.fromkeys(
        ("override_tensor", "override_tensors"),
        ("", "tensor_buft_overrides={pattern: device} of Model"),
    ),
    "rpc_servers": ("", "devices= of Model, with what rpc.add_server() returns among them"),
    **dict.fromkeys(
        ("context_length", "num_ctx", "ctx_size", "max_seq_len", "n_ctx"),
        ("n_ctx", _CONTEXT.format("n_ctx")),
    ),
    **dict.fromkeys(("batch_size", "n_batch"), ("n_batch", _CONTEXT.format("n_batch"))),
    **dict.fromkeys(("threads", "num_threads", "nthreads"), ("n_threads", "n_threads= of Context")),
    **dict.fromkeys(("embedding", "embeddings"), ("embeddings", _CONTEXT.format("embeddings"))),
    "flash_attn": ("flash_attn_type", "flash_attn_type='enabled' of Context"),
    **dict.fromkeys(("f16_kv", "cache_type"), ("type_k", "type_k= and type_v= of Context")),
    "cache_type_k": ("type_k", _CONTEXT.format("type_k")),
    "cache_type_v": ("type_v", _CONTEXT.format("type_v")),
    **dict.fromkeys(("logits_all", "all_logits"), ("", _BATCH)),
    "draft_model": ("", "ctx_other= of Context, the context of the target"),
    **dict.fromkeys(("chat_format", "chat_handler", "chat_template"), ("", TEMPLATE)),
    "numa": ("", "backend.numa_init(strategy), before the first model is loaded"),
}

# The structs whose fields are parameters, and what takes them.
OWNERS = {
    "llama_model_params": "Model",
    "llama_context_params": "Context",
    "llama_model_quantize_params": "quantize()",
}


def hinting(function: _F) -> _F:
    """Make a function suggest what to use in place of an unknown parameter.

    This adds a Python frame to each call.
    """
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in parameters:
                raise TypeError(unknown_parameter(name, parameters))
        return function(*args, **kwargs)

    return cast("_F", call)


def unknown_parameter(name: str, known: Iterable[str]) -> str:
    """Return the message for a parameter that does not exist, with a suggestion.

    Args:
        name: The name of the parameter.
        known: The names that exist.
    """
    from .._generated.params import KINDS

    known = list(known)
    ours, where = HINTS.get(name, ("", ""))
    # A typing error is likelier than a parameter of something else.
    near = [ours] if ours in known else difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    owner = next((owner for struct, owner in OWNERS.items() if name in KINDS[struct]), None)
    if near:
        hint = f"did you mean {near[0]!r}?"
    elif owner is not None:
        hint = f"it is a parameter of {owner}"
    elif where:
        hint = f"use {where}"
    elif near := difflib.get_close_matches(name, known, n=1):
        hint = f"did you mean {near[0]!r}?"
    else:
        hint = f"the parameters are {', '.join(known)}"
    return f"unknown parameter {name!r}; {hint}"
