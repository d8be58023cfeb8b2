"""What the facade does with the values of the table: the check that comes before C."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import numpy as np

import llamacffi
from llamacffi import (
    ArgumentError,
    Batch,
    Context,
    Gguf,
    Grammar,
    Model,
    ModelNotFoundError,
    SamplerChain,
    StateError,
    Threadpool,
    UnsupportedError,
    quantize,
)

from .table import ROOT

UNUSED = "-"


@dataclass(frozen=True)
class Things:
    """What the checks are shown with."""

    model: Model
    context: Context
    path: Path
    directory: Path


@dataclass(frozen=True)
class Check:
    """A value of the table that is an error of the facade.

    Attributes:
        functions: Patterns of the functions.
        place: A pattern of the place in their arguments.
        public: What a user calls.
        error: What it raises.
        call: Does so, with such a value.
    """

    functions: str
    place: str
    public: str
    error: type[Exception]
    call: Callable[[Things], object]

    def __str__(self) -> str:
        return f"`{self.public}`: `{self.error.__name__}`"


@dataclass(frozen=True)
class Own:
    """A value that no user of the facade gives.

    Attributes:
        functions: Patterns of the functions.
        place: A pattern of the place in their arguments.
        reason: Where it comes from.
    """

    functions: str
    place: str
    reason: str

    def __str__(self) -> str:
        return self.reason


def _many(things: Things) -> object:
    return Batch(2).add([1, 2, 3])


def _no_sequence(things: Things) -> object:
    return Batch(2).add([1], seq_ids=())


def _threads(things: Things) -> object:
    things.context.n_threads = 1000
    return things


def _encode(things: Things) -> object:
    things.context.encode(Batch.from_tokens([1, 2]))
    return things


CHECKS: tuple[Check, ...] = (
    Check(
        "llama_init_from_model llama_new_context_with_model",
        "params.type_[kv]",
        "Context",
        ArgumentError,
        lambda of: Context(of.model, n_ctx=64, type_k="q8_1"),
    ),
    Check(
        "llama_init_from_model llama_new_context_with_model",
        "params.n_threads*",
        "Context",
        ArgumentError,
        lambda of: Context(of.model, n_ctx=64, n_threads=1000),
    ),
    Check("llama_set_n_threads", "n_threads*", "Context.n_threads", ArgumentError, _threads),
    Check(
        "llama_vocab_is_control llama_token_is_control",
        "token",
        "Vocab.is_control",
        ArgumentError,
        lambda of: of.model.vocab.is_control(2**20),
    ),
    Check("llama_decode llama_encode", "batch.n_tokens", "Batch.add", ArgumentError, _many),
    Check("llama_decode llama_encode", "batch.n_seq_id*", "Batch.add", ArgumentError, _no_sequence),
    Check("llama_encode", "ctx", "Context.encode", UnsupportedError, _encode),
    Check("llama_process", "type", "Context.encode", UnsupportedError, _encode),
    Check(
        "llama_state_set_data llama_set_state_data llama_state_seq_set_data*",
        "s*",
        "Context.load_state",
        StateError,
        lambda of: of.context.load_state(b"\1" * 100),
    ),
    Check(
        "llama_sampler_init_grammar_lazy*",
        "trigger_*[[]0]",
        "Grammar",
        ArgumentError,
        lambda _: Grammar('root ::= "a"', trigger_patterns=["x" * 100_000]),
    ),
    Check(
        "llama_sampler_chain_*",
        "chain",
        "SamplerChain",
        TypeError,
        lambda of: SamplerChain(of.context),  # type: ignore[arg-type]
    ),
    Check(
        "llama_model_quantize",
        "fname_inp",
        "quantize",
        ModelNotFoundError,
        lambda of: quantize("", of.directory / "out.gguf"),
    ),
    Check(
        "llama_model_quantize",
        "params[[]0].*_type",
        "quantize",
        ArgumentError,
        lambda of: quantize(of.path, of.directory / "out.gguf", output_tensor_type="q2_k"),
    ),
    Check(
        "gguf_set_arr_data",
        "type",
        "Gguf",
        TypeError,
        lambda _: Gguf.new().__setitem__("key", [1j]),
    ),
    Check(
        "ggml_*",
        "type",
        "Gguf.add_tensor",
        ArgumentError,
        lambda _: Gguf.new().add_tensor("name", np.zeros(4, np.float32), type=1000),
    ),
    Check(
        "ggml_threadpool_*",
        "*n_threads",
        "Threadpool",
        ArgumentError,
        lambda _: Threadpool(1000),
    ),
)

OWN: tuple[Own, ...] = (
    Own("llama_tokenize", "text_len", "the length of the text that it was given"),
    Own("llama_detokenize", "n_tokens", "the length of the tokens that it was given"),
    Own("llama_set_adapters_lora", "n_adapters", "the length of its own array"),
    Own("llama_sampler_apply", "cur_p*", "the length of its own array"),
    Own("llama_sampler_init_*", "n*", "the length of its own array"),
    Own("gguf_get_arr_str", "i", "below the length that it asked for"),
    Own("gguf_set_arr_*", "n", "the length of its own array"),
    Own("ggml_validate_row_data", "nbytes", "the length of its own array"),
    Own("ggml_quantize_chunk", "[snr]*", "the shape of its own array"),
    Own("ggml_backend_tensor_[gs]et", "[so]*", "the size of the tensor"),
    Own("ggml_new_tensor", "n*", "the shape of its own array"),
    Own("ggml_new_graph_custom", "size", "a constant"),
    Own("ggml_mul_mat", "a", "a matrix of its own"),
    Own("ggml_op_name", "op", "the operation of a node"),
    Own("ggml_backend_*_get", "i*", "below the count that it asked for"),
)


def entry_of(function: str, place: str) -> Check | Own | None:
    """Return what the facade does with a place, or None."""
    entries: Sequence[Check | Own] = (*CHECKS, *OWN)
    for one in entries:
        names = one.functions.split()
        if any(fnmatchcase(function, name) for name in names) and fnmatchcase(place, one.place):
            return one
    return None


def facade_of(function: str, place: str) -> str:
    """Return what the facade does with a place, in words."""
    if function not in used():
        return UNUSED
    return str(entry_of(function, place) or "")


@cache
def used() -> frozenset[str]:
    """Return the functions of C that the package calls, from Python or from native/."""
    python = [*Path(llamacffi.__file__).parent.rglob("*.py")]
    names = {name for path in python for name in re.findall(r"\blib\.(\w+)", path.read_text())}
    for path in (ROOT / "native").rglob("*.cpp"):
        names |= set(re.findall(r"\b((?:llama|ggml|gguf|mtmd)_\w+)\(", path.read_text()))
    return frozenset(names)
