"""``llamacffi run``: generate text after a prompt."""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._core.values import INT32_MAX, integer
from ..context.params import MODEST_CTX
from ..errors import ArgumentError
from ..sampling.base import Sampler
from ..sampling.chain import SamplerChain
from ..sampling.recommended import DEFAULTS
from ..sampling.samplers import Dist, MinP, Temp, TopK, TopP
from ..sampling.token_samplers import Penalties
from .failure import UsageError
from .inputs import add_model_option, model_path, read_text
from .interrupt import ctrl_c_cancels
from .progress import ProgressBar
from .terminal import fitting

if TYPE_CHECKING:
    from .._generated.context_params import ContextParams
    from .._generated.model_params import ModelParams
    from ..context.context import Context
    from ..generation.generation import Generation
    from ..model.model import Model

DEFAULT_PROMPT = b"The llama"  # for the built-in model, which only knows about llamas
# The options, and `SamplerChain.from_model`'s names for them.
SETTINGS = {
    "--temp": "temp",
    "--top-k": "top_k",
    "--top-p": "top_p",
    "--min-p": "min_p",
    "--repeat-penalty": "penalty_repeat",
}
# upstream: common/arg.cpp common_params_parser_init: other spellings in llama.cpp's programs.
SPELLINGS = {"--temp": ("--temperature",), "--seed": ("-s",)}


def add_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "run",
        help="generate text after a prompt",
        description="Print a prompt and the text that a model generates after it.  On a terminal, "
        "control characters are escaped, such as \\x1b; a file or a pipe gets them unchanged.",
        allow_abbrev=False,
    )
    add_model_option(parser)
    add = parser.add_argument
    add(
        "prompt",
        metavar="PROMPT",
        nargs="?",
        help="the prompt; if omitted, or -: stdin, without a newline at the end",
    )
    add(
        *("-n", "--max-tokens", "--predict", "--n-predict"),
        metavar="N",
        type=checked(int, max_tokens),
        default=128,
        help="stop after N tokens; -1: when the model ends or the context is full (default: 128)",
    )
    add(
        "--stop",
        metavar="TEXT",
        type=checked(str, stop_string),
        action="append",
        default=[],
        help="stop where TEXT appears; may be repeated",
    )
    add("-q", "--quiet", action="store_true", help="print only errors on stderr")
    _add_sampling_options(parser.add_argument_group("sampling"))
    _add_computing_options(parser.add_argument_group("computing"))
    return parser


def _add_sampling_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that become samplers, with their defaults in Python."""
    for flag, value, number, sampler, field, text in (
        ("--temp", "T", float, Temp, "t", "temperature: 0 is greedy, above 1 is more random"),
        ("--top-k", "K", int, TopK, "k", "keep the K best; 0 keeps all"),
        ("--top-p", "P", float, TopP, "p", "keep the best whose probabilities add up to P"),
        ("--min-p", "P", float, MinP, "p", "keep those at least P times as likely as the best"),
        ("--repeat-penalty", "R", float, Penalties, "repeat", "penalize repetition; 1: off"),
        ("--seed", "N", int, Dist, "seed", "the same seed chooses the same tokens"),
    ):
        name = SETTINGS.get(flag)
        default = "random" if name is None else f"the file's, or {DEFAULTS[name]}"
        group.add_argument(
            *(flag, *SPELLINGS.get(flag, ())),
            metavar=value,
            type=checked(number, functools.partial(_setting, sampler, field), field),
            help=f"{text} (default: {default})",
        )


def _setting(sampler: Callable[..., Sampler], field: str, value: float) -> float:
    """Return a number that a sampler accepts."""
    sampler(**{field: value})
    return value


def _add_computing_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that become parameters of the model and the context."""
    group.add_argument(
        *("-c", "--ctx", "--ctx-size"),
        metavar="N",
        type=checked(int, functools.partial(whole_number, 0)),
        help="context size in tokens; 0: as many as the model was trained with "
        f"(default: the same, but at most {MODEST_CTX})",
    )
    group.add_argument(
        *("-t", "--threads"),
        metavar="N",
        type=checked(int, functools.partial(whole_number, 1)),
        help="threads (default: the idle physical cores)",
    )
    group.add_argument(
        *("--ngl", "-ngl", "--gpu-layers", "--n-gpu-layers"),
        metavar="N",
        type=checked(int, functools.partial(whole_number, -1)),
        help="layers on the GPU; -1: all (default: llama.cpp's)",
    )


def checked(
    number: Callable[[str], Any], make: Callable[[Any], Any], field: str = "N"
) -> Callable[[str], Any]:
    """Return an argparse type that converts an argument and checks it.

    Args:
        number: Converts the text.
        make: Checks the result; its error message becomes that of the option.
        field: The name that this message starts with, which the name of the option replaces.
    """

    def convert(text: str) -> Any:
        value = number(text)
        try:
            return make(value)
        except ArgumentError as error:
            message, _, _remedy = str(error).partition("; ")  # the remedy for programs
            raise argparse.ArgumentTypeError(message.removeprefix(f"{field} ")) from None

    convert.__name__ = number.__name__  # argparse says "invalid int value"
    return convert


def max_tokens(n: int) -> int | None:
    """Return the number of ``-n`` as ``max_tokens`` of `generate`."""
    return None if n == -1 else integer("N", n, 1, INT32_MAX, ": give -1 for no limit")


def whole_number(least: int, n: int) -> int:
    """Return a number for C."""
    return integer("N", n, least, INT32_MAX)


def stop_string(text: str) -> str:
    """Return a stop string as Unicode, regardless of the locale."""
    if not text:
        raise ArgumentError("it is empty")
    return os.fsencode(text).decode(errors="replace")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    prompt = read_prompt(args)
    with load(args) as model, new_context(model, args) as context:
        tokens = model.vocab.tokenize(prompt.decode(errors="replace"), parse_special=True)
        if len(tokens) > context.n_ctx_seq:
            raise UsageError(
                f"the prompt has {len(tokens)} tokens, but the context is {context.n_ctx_seq}: "
                "raise --ctx"
            )
        if args.model is None and not args.quiet:
            print(
                "llamacffi: using the small built-in model; -m FILE loads another", file=sys.stderr
            )
        return stream(context, prompt, tokens, args)


def read_prompt(args: argparse.Namespace) -> bytes:
    """Return the prompt: the argument, stdin, or the default for the built-in model."""
    text = read_text(args.prompt, args)
    if args.prompt in (None, "-") and text is not None:
        text = text.removesuffix(b"\n").removesuffix(b"\r")
    if text:
        return text
    if args.prompt is not None:
        raise UsageError("the prompt is empty")
    if args.model is not None:
        raise UsageError("the prompt is missing: give PROMPT, or pipe it in")
    return DEFAULT_PROMPT


def load(args: argparse.Namespace) -> Model:
    """Load the model, with a progress bar if it takes a while."""
    from ..model.model import Model

    path = model_path(args)
    params: ModelParams = {}
    if args.ngl is not None:
        params["n_gpu_layers"] = args.ngl
    with ProgressBar(f"loading {os.path.basename(path)}", sys.stderr, quiet=args.quiet) as bar:
        return Model(path, progress=bar, **params)


def new_context(model: Model, args: argparse.Namespace) -> Context:
    """Create the context."""
    from ..context.context import Context

    params: ContextParams = {}
    if args.ctx is not None:
        params["n_ctx"] = args.ctx
    if args.threads is not None:
        params["n_threads"] = args.threads
    return Context(model, **params)


def stream(context: Context, prompt: bytes, tokens: list[int], args: argparse.Namespace) -> int:
    """Print the prompt and each generated token, then a summary."""
    from ..context.handle import decoder_of
    from ..generation.generation import generate

    chain = SamplerChain.from_model(context.model, seed=args.seed, **settings(args))
    generation = generate(
        context, tokens, sampler=chain, max_tokens=args.max_tokens, stop=args.stop
    )
    code = 0
    try:
        with ctrl_c_cancels(context):
            show(prompt.decode(errors="replace"))
            for token in generation:
                show(token.text)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    finally:
        print(flush=True)
    if not args.quiet:
        if (reason := decoder_of(context).contention.reason) is not None:
            remedy = "; try -t 1" if context.n_threads > 1 else ""
            print(f"llamacffi: slow: {reason}{remedy}", file=sys.stderr)
        print(summary(generation, chain.seed), file=sys.stderr)
    return code


def show(text: str) -> None:
    """Print a text at once, escaped for a terminal."""
    print(fitting(text, sys.stdout), end="", flush=True)


def settings(args: argparse.Namespace) -> dict[str, float | str]:
    """Return the sampling options that were given, as settings of `SamplerChain.from_model`."""
    given = {name: getattr(args, flag[2:].replace("-", "_")) for flag, name in SETTINGS.items()}
    return {name: value for name, value in given.items() if value is not None}


def summary(generation: Generation, seed: int | None) -> str:
    """Return the speed and the reason for stopping, in one line."""
    n = generation.n_generated
    parts = [
        f"prompt: {speed(generation.n_prompt, generation.n_prompt, generation.prompt_seconds)}",
        # The first token comes from the prompt; only the others are decoded one by one.
        f"generation: {speed(n, n - 1, generation.seconds)}",
        f"stopped: {generation.finish_reason or 'interrupted'}",
    ]
    if seed is not None:
        parts.append(f"seed: {seed}")
    return " | ".join(parts)


def speed(n: int, n_computed: int, seconds: float) -> str:
    """Return a number of tokens, and the tokens per second if measured."""
    tokens = f"{n} token{'' if n == 1 else 's'}"
    if n_computed < 1 or seconds <= 0:
        return tokens
    return f"{tokens}, {n_computed / seconds:.0f} tokens/s"
