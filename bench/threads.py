"""Thread pools: how ggml's threads wait, and how that compares with OpenMP's.

Question: what should the pool of a context be, so that decoding one token at a time loses nothing
to a build with ``GGML_OPENMP=ON``?  The loop is in C.  Each library has a process of its own; the
rows are measured in turn, round by round, and compared with the first row of their block.  For one
thread the time is that of its processor, which other work on the machine disturbs less.

The other library is the directory of a ``libggml-cpu`` that was built with OpenMP from the same
tree: ``python -m bench.threads DIRECTORY``.  Without one only the pools are compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import llamacffi
from llamacffi import lib, library_dir

from .loop import c_loop, compile_loop
from .measure import ratio, row
from .models import write_random_llama

ROUNDS = 15


class Threads(NamedTuple):
    """The configuration of a row."""

    library: str
    """The CPU backend: ``"own"`` or ``"openmp"``."""
    n_threads: int
    pool: dict[str, Any] | None
    """The parameters of the pool; None if ggml starts its own threads."""
    waiting: bool
    """Whether the loop runs in a thread that the main thread waits for."""

    def __str__(self) -> str:
        pool = ", ".join(f"{name} {value}" for name, value in (self.pool or {}).items())
        where = ", main thread waits" if self.waiting else ""
        return f"{self.library}, {'no pool' if self.pool is None else f'pool {pool}'}{where}"


def main() -> None:
    """Run the benchmark with the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("openmp", nargs="?", type=Path, help="directory of the other libggml-cpu")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.openmp)
    else:
        run(args.openmp)


def run(openmp: Path | None = None) -> None:
    """Print all rows, for one and two threads, for a tiny model and one of 130M weights."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = {"own": stack.enter_context(worker(library_dir()))}
        if openmp is not None:
            workers["openmp"] = stack.enter_context(worker(openmp))
        for what, n_tokens, shape in (
            ("2 layers of 64", 100, (2, 64, 160)),
            ("130M weights", 12, (12, 768, 2048)),
        ):
            path = directory / f"{what.replace(' ', '-')}.gguf"
            write_random_llama(path, *shape)
            for n_threads in (1, 2):
                print(f"\n{what}, {n_threads} thread(s)")
                block(workers, path, n_tokens, n_threads)


def block(workers: dict[str, Worker], path: Path, n_tokens: int, n_threads: int) -> None:
    """Measure all configurations with this number of threads, in turn."""
    polls = (0, 1, 50, 100) if n_threads > 1 else (0,)
    pools = [None, *({"poll": poll} for poll in polls)]
    ways = [Threads("own", n_threads, pool, waiting) for waiting in (False, True) for pool in pools]
    if "openmp" in workers:
        ways[:0] = [Threads("openmp", n_threads, None, waiting) for waiting in (False, True)]
    times: dict[str, list[float]] = {str(way): [] for way in ways}
    for i in range(-1, ROUNDS):
        for way in ways if i % 2 else reversed(ways):
            seconds = workers[way.library].ask(path=str(path), n_tokens=n_tokens, way=way[1:])
            if i >= 0:  # the first round warms up
                times[str(way)].append(seconds / n_tokens * 1e6)
    reference = times[str(ways[0])]
    for name, values in times.items():
        row(name, values, "us/token")
    for name, values in times.items():
        ratio(f"{name}: speed", reference, values)


class Worker:
    """A process that has loaded one of the libraries."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin
        assert process.stdout
        self._in: IO[str] = process.stdin
        self._out: IO[str] = process.stdout

    def ask(self, **question: Any) -> float:
        """Return how many seconds it takes."""
        print(json.dumps(question), file=self._in, flush=True)
        return float(self._out.readline())


@contextmanager
def worker(directory: Path) -> Iterator[Worker]:
    """Start a process that computes with the CPU backend of a directory."""
    command = [sys.executable, "-m", "bench.threads", "--worker", str(directory)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield Worker(process)
        assert process.stdin
        process.stdin.close()


def work(directory: Path) -> None:
    """Answer the requests of the main process."""
    lib.ggml_backend_load_all_from_path(str(directory).encode())  # before the package loads its own
    models: dict[str, llamacffi.Model] = {}
    with tempfile.TemporaryDirectory() as temporary:
        loop = compile_loop(Path(temporary))
        for line in sys.stdin:
            question = json.loads(line)
            path = question["path"]
            if path not in models:
                models.clear()
                models[path] = llamacffi.Model(path)
            print(measure(loop, models[path], question["n_tokens"], *question["way"]), flush=True)


def measure(
    loop: Any,
    model: llamacffi.Model,
    n_tokens: int,
    n_threads: int,
    pool: dict[str, Any] | None,
    waiting: bool,
) -> float:
    """Return the seconds of one run of the C loop: wall time, or CPU time for one thread."""
    result: list[float] = []
    with (
        llamacffi.Context(model, n_ctx=512, n_threads=n_threads) as context,
        llamacffi.SamplerChain(llamacffi.Greedy()) as greedy,
        ExitStack() as stack,
    ):
        if pool is None:
            lib.llama_detach_threadpool(context.ptr)
        else:
            threads = stack.enter_context(llamacffi.Threadpool(n_threads, **pool))
            context.attach_threadpool(threads)

        def compute() -> None:
            # The first run wakes the threads.
            for n in (8, n_tokens):
                context.memory.clear()
                began = time.thread_time()
                seconds = c_loop(loop, context, greedy, [1, 2, 3], n)[0]
                result[:] = [seconds if n_threads > 1 else time.thread_time() - began]

        if waiting:
            thread = threading.Thread(target=compute)
            thread.start()
            thread.join()
        else:
            compute()
    return result[0]


if __name__ == "__main__":
    main()
