"""Run all benchmarks and print them as one table.

Question: how much slower is the package than raw calls of the same library?  The two sides of a row
are measured alternately in one run, so that a busy machine disturbs both alike; the medians of the
pairs and their spread are printed.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable

import llamacffi
from llamacffi import ffi, lib

PAIRS = 15
CALLS = 100_000
TOKENS = 512


def main() -> None:
    """Print where this ran and what it measured."""
    commit = ffi.string(lib.ggml_commit()).decode()
    print(f"llamacffi {llamacffi.__version__}, llama.cpp {commit[:12]}")
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {PAIRS} pairs\n")
    print(f"{'':44} {'median':>10} {'10 % .. 90 %':>20}")
    calls()
    imports()
    generation()


def row(what: str, values: list[float], unit: str) -> None:
    """Print the median of some values and their spread."""
    deciles = statistics.quantiles(values, n=10)
    print(
        f"{what:44} {statistics.median(values):10.2f} {deciles[0]:9.2f} .. {deciles[-1]:.2f} {unit}"
    )


def nanoseconds(function: Callable[[], object]) -> float:
    """Time one call."""
    return timeit.timeit(function, number=CALLS) / CALLS * 1e9


def calls() -> None:
    """Compare a guarded call with one of the same kind that has no guard."""
    pairs = [
        (nanoseconds(lib.llama_max_devices), nanoseconds(lib.llamacffi_log_count))
        for _ in range(PAIRS)
    ]
    row("guarded call, lib.llama_max_devices()", [a for a, _ in pairs], "ns")
    row("what the guard adds", [a - b for a, b in pairs], "ns")


def imports() -> None:
    """Time the import in fresh processes, without the start of Python itself."""
    code = "import time; t = time.perf_counter(); import llamacffi; print(time.perf_counter() - t)"
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(PAIRS)
    ]
    row("import llamacffi", [one * 1e3 for one in seconds], "ms")


def generation() -> None:
    """Compare the facade's loop with the same raw calls, greedy, on the built-in model."""
    with (
        llamacffi.Model(llamacffi.demo.path()) as model,
        llamacffi.Context(model, n_ctx=1024, n_threads=1) as context,
    ):
        prompt = model.vocab.tokenize("The llama")
        facade, raw = [], []
        for _ in range(PAIRS):
            facade.append(facade_loop(context, prompt))
            raw.append(raw_loop(context, prompt))
    row("generate(), greedy", facade, "us/token")
    row("the same by raw calls", raw, "us/token")
    row("what the facade adds", [a - b for a, b in zip(facade, raw, strict=True)], "us/token")


def facade_loop(context: llamacffi.Context, prompt: list[int]) -> float:
    """Generate with the facade; return microseconds for each token."""
    context.memory.clear()
    with llamacffi.SamplerChain(llamacffi.Greedy()) as greedy:
        generation = llamacffi.generate(context, prompt, sampler=greedy, max_tokens=TOKENS)
        next(generation)
        began = time.perf_counter()
        n = sum(1 for _ in generation)
        return (time.perf_counter() - began) / n * 1e6


def raw_loop(context: llamacffi.Context, prompt: list[int]) -> float:
    """Do the same by the C functions alone, without text; return microseconds for each token."""
    context.memory.clear()
    ptr = context.ptr
    sampler = lib.llama_sampler_init_greedy()
    tokens = ffi.new("llama_token[]", prompt)
    lib.llama_decode(ptr, lib.llama_batch_get_one(tokens, len(prompt)))
    one = ffi.new("llama_token[1]")
    one[0] = lib.llama_sampler_sample(sampler, ptr, -1)
    batch = lib.llama_batch_get_one(one, 1)
    began = time.perf_counter()
    for _ in range(TOKENS - 1):
        lib.llama_decode(ptr, batch)
        one[0] = lib.llama_sampler_sample(sampler, ptr, -1)
    seconds = time.perf_counter() - began
    lib.llama_sampler_free(sampler)
    return seconds / (TOKENS - 1) * 1e6


if __name__ == "__main__":
    main()
