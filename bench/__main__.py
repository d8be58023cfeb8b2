"""Run the benchmarks and print them as one table; `python -m bench.threads` measures threads.

Question: how much slower is the package than C, or than raw calls of the same library?  The two
sides of a row are measured alternately in one run, so that a busy machine disturbs both alike; the
medians of the pairs and their spread are printed.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import numpy as np

import llamacffi
from llamacffi import ffi, lib

from . import loop, outputs, tokenize
from .measure import PAIRS, alternately, nanoseconds, row


def main() -> None:
    """Run the benchmarks; print the machine, the versions and the results."""
    commit = ffi.string(lib.ggml_commit()).decode()
    print(f"llamacffi {llamacffi.__version__}, llama.cpp {commit[:12]}")
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, medians of pairs\n")
    print(f"{'':52} {'median':>10} {'10 % .. 90 %':>20}")
    calls()
    imports()
    batches()
    outputs.run()
    tokenize.run()
    loop.run()


def calls() -> None:
    """Compare a guarded call with a similar one without a guard."""
    guarded, plain = alternately(
        lambda: nanoseconds(lib.llama_max_devices), lambda: nanoseconds(lib.llamacffi_log_count)
    )
    row("guarded call, lib.llama_max_devices()", guarded, "ns")
    row("what the guard adds", [a - b for a, b in zip(guarded, plain, strict=True)], "ns")


def imports() -> None:
    """Time the import in fresh processes, excluding the start of Python itself."""
    code = "import time; t = time.perf_counter(); import llamacffi; print(time.perf_counter() - t)"
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(PAIRS)
    ]
    row("import llamacffi", [one * 1e3 for one in seconds], "ms")


def batches() -> None:
    """Time adding 512 tokens to a batch."""
    tokens, batch = np.arange(512, dtype=np.int32), llamacffi.Batch(512)

    def add() -> None:
        batch.clear()
        batch.add(tokens)

    row("Batch.add of 512 tokens", [nanoseconds(add, 5_000) / 1e3 for _ in range(PAIRS)], "us")


if __name__ == "__main__":
    main()
