"""The loop of generation against the same loop in C: the same library, context and thread pool.

Question: how fast, relative to C, is a decode-sample-detokenize loop through the facade, with a
model so small that Python's share shows, and with one of a usual size?
"""

from __future__ import annotations

import ctypes
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import llamacffi
from llamacffi import ffi, library_dir
from llamacffi.context.decoding import Decoder

from .measure import alternately, ratio, row
from .models import random_llama

HERE = Path(__file__).parent


def run() -> dict[str, float]:
    """Print and return the ratios, for a tiny model and for one of 130 million weights."""
    with tempfile.TemporaryDirectory() as directory:
        loop = compile_loop(Path(directory))
        return {
            what: measure(loop, what, n_tokens, by_hand, **shape)
            for what, n_tokens, by_hand, shape in (
                ("2 layers of 64", 256, True, {"n_layer": 2, "n_embd": 64, "n_ff": 160}),
                ("130M weights", 48, False, {"n_layer": 12, "n_embd": 768, "n_ff": 2048}),
            )
        }


def compile_loop(directory: Path) -> Any:
    """Compile loop.c against the package's libraries; return its function."""
    from ffigen.vendor import ensure_tree

    tree, libraries, out = ensure_tree(HERE.parent).path, library_dir(), directory / "loop.so"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    command = [compiler, "-O2", "-shared", "-fPIC", HERE / "loop.c", "-o", out]
    command += [f"-I{tree}/include", f"-I{tree}/ggml/include"]
    command += [f"-L{libraries}", "-lllama", f"-Wl,-rpath,{libraries}"]
    subprocess.run(command, check=True)
    loop = ctypes.CDLL(str(out)).bench_loop
    loop.restype = ctypes.c_double
    pointer = ctypes.c_void_p
    loop.argtypes = (pointer, pointer, ctypes.c_int32, pointer, pointer)
    return loop


def measure(loop: Any, what: str, n_tokens: int, by_hand: bool, **shape: int) -> float:
    """Compare the loops on a random model with a vocabulary of 32,000; return the ratio."""
    with (
        random_llama(**shape) as model,
        llamacffi.Context(model, n_ctx=512, n_threads=1) as context,
        llamacffi.SamplerChain(llamacffi.Greedy()) as greedy,
    ):
        prompt = model.vocab.tokenize("The llama")
        texts: dict[str, list[int]] = {}

        def timed(name: str, function: Callable[..., tuple[float, list[int]]]) -> float:
            context.memory.clear()
            seconds, tokens = function(context, greedy, prompt, n_tokens)
            if texts.setdefault(name, tokens) != tokens or texts["C"][:n_tokens] != tokens:
                raise RuntimeError("the loops did not do the same")
            return seconds / n_tokens * 1e6

        def in_c() -> float:
            return timed("C", lambda *args: c_loop(loop, *args))

        in_c()  # warms up, and gives the tokens that the others must equal
        c, facade = alternately(in_c, lambda: timed("facade", facade_loop))
        row(f"{what}: C loop", c, "us/token")
        row(f"{what}: generate()", facade, "us/token")
        kept = ratio(f"{what}: generate(), speed relative to C", c, facade)
        if by_hand:
            facade, plain = alternately(
                lambda: timed("facade", facade_loop), lambda: timed("plain", plain_loop)
            )
            ratio(f"{what}: generate() by decode() and sample(), of it", facade, plain)
            c, hand = alternately(in_c, lambda: timed("hand", hand_loop))
            row(f"{what}: loop of sample, clear, add, decode", hand, "us/token")
            ratio(f"{what}: that loop, speed relative to C", c, hand)
        return kept


def c_loop(
    loop: Any,
    context: llamacffi.Context,
    greedy: llamacffi.SamplerChain,
    prompt: list[int],
    n: int,
) -> tuple[float, list[int]]:
    """Generate in C; return the seconds and the tokens."""
    batch = llamacffi.Batch(len(prompt))
    batch.add(prompt)
    context.decode(batch)
    tokens, n_bytes = ffi.new("llama_token[]", n), ffi.new("int64_t *")
    seconds = loop(*map(_address, (context.ptr, greedy.ptr)), n, *map(_address, (tokens, n_bytes)))
    if seconds < 0:
        raise RuntimeError("the C loop failed")
    return seconds, ffi.unpack(tokens, n)


def facade_loop(
    context: llamacffi.Context, greedy: llamacffi.SamplerChain, prompt: list[int], n: int
) -> tuple[float, list[int]]:
    """Generate with the facade; return the seconds, without the prompt's, and the tokens.

    One more token than in C is chosen, and one less decoded before the first: as many of each.
    """
    generation = llamacffi.generate(context, prompt, sampler=greedy, max_tokens=n + 1)
    tokens = [next(generation).id]
    began = time.perf_counter()
    tokens += [token.id for token in generation]
    return time.perf_counter() - began, tokens[:n]


def plain_loop(
    context: llamacffi.Context, greedy: llamacffi.SamplerChain, prompt: list[int], n: int
) -> tuple[float, list[int]]:
    """Generate as `facade_loop`, without the shortcut that decodes a token and samples the next."""
    with mock.patch.object(Decoder, "decode_and_sample", _nothing):
        return facade_loop(context, greedy, prompt, n)


def _nothing(*_: object) -> None:
    """Stand for a shortcut that is not possible."""


def hand_loop(
    context: llamacffi.Context, greedy: llamacffi.SamplerChain, prompt: list[int], n: int
) -> tuple[float, list[int]]:
    """Generate with the loop that users write themselves, without texts."""
    batch = llamacffi.Batch(len(prompt))
    batch.add(prompt)
    context.decode(batch)
    tokens: list[int] = []
    began = time.perf_counter()
    for pos in range(len(prompt), len(prompt) + n):
        token = greedy.sample(context)
        tokens.append(token)
        batch.clear()
        batch.add([token], pos)
        context.decode(batch)
    return time.perf_counter() - began, tokens


def _address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))
