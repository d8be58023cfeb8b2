"""Hints for options that llama.cpp's own programs have, and this one lacks."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import takewhile

from .inputs import is_model

_TEXT = "give the text as an argument, without an option, or pipe it in"
_FILE = "pipe the file in: `llamacffi run < FILE`"
_MODEL = "download the file and give it with -m; in Python, Model.from_pretrained() does both"
_CHAT = (
    "these commands only continue a text; in Python, render Model.chat_template() and give the "
    "text to generate()"
)
_SAMPLER = "in Python, SamplerChain accepts every sampler"
_PARAMETER = "in Python, Model and Context accept every parameter of llama.cpp"

NO_MODEL = (
    "`llamacffi info` describes this machine; in Python, Model(path) and Gguf.open(path) describe "
    "a model"
)

# upstream: common/arg.cpp common_params_parser_init: options that we lack or name differently.
OTHERS = {
    **dict.fromkeys(("-m", "--model"), NO_MODEL),
    **dict.fromkeys(("-p", "--prompt"), _TEXT),
    **dict.fromkeys(("-f", "--file", "-bf", "--binary-file"), _FILE),
    **dict.fromkeys(("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file"), _MODEL),
    **dict.fromkeys(("-mu", "--model-url", "-dr", "--docker-repo"), _MODEL),
    **dict.fromkeys(("-cnv", "--conversation", "-i", "--interactive"), _CHAT),
    **dict.fromkeys(("-sys", "--system-prompt", "--chat-template", "--jinja"), _CHAT),
    **dict.fromkeys(("--grammar", "--grammar-file", "-j", "--json-schema"), _SAMPLER),
    **dict.fromkeys(("--samplers", "--mirostat", "--typical", "--logit-bias"), _SAMPLER),
    **dict.fromkeys(("--presence-penalty", "--frequency-penalty"), _SAMPLER),
    **dict.fromkeys(("-b", "--batch-size", "-ub", "--ubatch-size"), _PARAMETER),
    **dict.fromkeys(("-fa", "--flash-attn", "-ctk", "--cache-type-k"), _PARAMETER),
    **dict.fromkeys(("-ctv", "--cache-type-v", "-dev", "--device"), _PARAMETER),
    **dict.fromkeys(("-ts", "--tensor-split", "-sm", "--split-mode"), _PARAMETER),
    **dict.fromkeys(("-mg", "--main-gpu", "-tb", "--threads-batch"), _PARAMETER),
    **dict.fromkeys(("--mlock", "--no-mmap", "-ot", "--override-tensor"), _PARAMETER),
    **dict.fromkeys(("-cmoe", "--cpu-moe", "-ncmoe", "--n-cpu-moe"), _PARAMETER),
    **dict.fromkeys(("--lora", "--lora-scaled", "--control-vector"), "in Python, see Adapter"),
}


def other_option(arguments: Sequence[str], known: Sequence[str]) -> str | None:
    """Return a hint for the first option of llama.cpp's programs that we lack, or None.

    Args:
        arguments: All arguments.
        known: The options of the command.
    """
    for argument in takewhile(lambda one: one != "--", arguments):
        name = argument.partition("=")[0]
        if name in OTHERS and name not in known:
            return f"unknown option {name!r}: {OTHERS[name]}"
    return None


def no_command(arguments: Sequence[str]) -> str | None:
    """Return a hint if the arguments start with a model instead of a command, or None."""
    first = next(iter(arguments), "")
    if first.partition("=")[0] in ("-m", "--model"):
        return "give a command first, as in `llamacffi run -m FILE`"
    if first.startswith("-") or not is_model(first):
        return None
    return (
        f"{first!r} is a model: give a command first, as in `llamacffi run -m {shlex.quote(first)}`"
    )
