"""What to do instead of the options that llama.cpp's own programs have."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import takewhile

from .source import is_model

_TEXT = "give the text itself, without an option, or pipe it in"
_FILE = "pipe the file in, as in `llamacffi run < FILE`"
_MODEL = "download the file, and give it with -m; Model.from_pretrained() in Python does both"
_CHAT = (
    "these commands only continue a text; in Python, Model.chat_template() has the template of a "
    "chat, and generate() takes the text that a renderer of templates makes of it"
)
_SAMPLER = "in Python, SamplerChain takes all samplers"
_PARAMETER = "in Python, Model and Context take all parameters of llama.cpp"

NO_MODEL = (
    "`llamacffi info` tells of this machine; in Python, Model(path) and Gguf.open(path) tell of a "
    "model"
)

# By option, where no option of ours means the same.
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
    """Return what to say of the first option that is another program's; None if there is none.

    Args:
        arguments: All that was given.
        known: The options of the command.
    """
    for argument in takewhile(lambda one: one != "--", arguments):
        name = argument.partition("=")[0]
        if name in OTHERS and name not in known:
            return f"unknown option {name!r}: {OTHERS[name]}"
    return None


def no_command(arguments: Sequence[str]) -> str | None:
    """Return what to say where a model stands in place of a command; None if none does."""
    first = next(iter(arguments), "")
    if first.partition("=")[0] in ("-m", "--model"):
        return "give a command first, as in `llamacffi run -m FILE`"
    if first.startswith("-") or not is_model(first):
        return None
    return (
        f"{first!r} is a model: give a command first, as in `llamacffi run -m {shlex.quote(first)}`"
    )
