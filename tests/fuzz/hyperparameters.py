"""Models whose metadata has wrong numbers: each is refused with a documented error, or computes.

    python -m tests.fuzz.hyperparameters DIRECTORY [--only TEXT] [--key TEXT] [--share N --seed S]

DIRECTORY has models, as upstream's test-llama-archs writes with ``-o``, or metadata alone.  Each
number in the metadata of the architecture is replaced by others: in the file, by ``kv_overrides``,
and in metadata of which a model is made in memory, whose tensors fit any numbers.  Then the model
is loaded, a context is made, and a few tokens are decoded.  Now and then with two threads: what is
a `NativeError` of `decode` with one, which is a finding, ends the process there.  Others are a
process that ends, too much time, logits that are not finite.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llamacffi import Batch, Context, Gguf, Model, backend
from llamacffi.errors import ArgumentError, ContextError, LoadError, UnsupportedError

SECONDS = 5  # of CPU time that a case may take
MEMORY = 6 << 30
BATCH = 400  # cases of one process
INTEGERS = (0, 1, -1, 3, 7, 255, 1 << 16, (1 << 31) - 1)
FLOATS = (0.0, -1.0, -1e-5, 1e-30, 1e30, math.nan, math.inf, -math.inf)
WIDE = 1 << 24  # what is above is refused
WAYS = ("file", "override", "fill")
DOCUMENTED = (LoadError, ContextError, UnsupportedError, ArgumentError)


@dataclass(frozen=True)
class Case:
    """A value to put in the place of another."""

    path: Path
    key: str
    value: Any
    way: str
    n_threads: int

    def __str__(self) -> str:
        value = self.value
        if isinstance(value, list) and len(value) > 8:
            value = f"[{value[0]}, ... {len(value)}]"
        return f"{self.path.stem} {self.key}={value} ({self.way}, {self.n_threads} threads)"


def cases(path: Path) -> Iterator[Case]:
    """Yield all cases of a model."""
    with Gguf.open(path, metadata_only=True) as gguf:
        values = dict(gguf)
    with Gguf.open(path) as gguf:
        ways = WAYS if gguf.tensors else ("fill",)
    prefix = f"{values['general.architecture']}."
    for i, (key, value) in enumerate(values.items()):
        if key.startswith(prefix):
            for new in replacements(value):
                for way in ways:
                    if way == "override" and not is_override(value, new):
                        continue
                    if way != "fill" or is_small(key, new):
                        yield Case(path, key, new, way, 2 if i % 16 == 0 else 1)


def is_small(key: str, new: Any) -> bool:
    """Return whether a model made in memory is not so large that it needs time to be filled."""
    is_wide = isinstance(new, int) and 255 < new <= WIDE
    return not key.endswith("block_count") and not is_wide


def is_override(value: Any, new: Any) -> bool:
    """Return whether ``kv_overrides`` takes a value in the place of another."""
    if isinstance(new, list) or isinstance(value, list | np.ndarray):
        return False
    return not isinstance(new, float) or math.isfinite(new)


def replacements(value: Any) -> Iterator[Any]:
    """Yield what to put in the place of a value."""
    if isinstance(value, list | np.ndarray):
        yield from arrays(list(value))
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, float):
        yield from (new for new in FLOATS if new != value)
    elif isinstance(value, int):
        news = dict.fromkeys((*INTEGERS, value + 1, value - 1, 2 * value))
        yield from (new for new in news if new != value)


def arrays(value: list[Any]) -> Iterator[Any]:
    """Yield arrays, and numbers in the place of an array."""
    if not value or isinstance(value[0], str):
        return
    kind = type(value[0].item() if hasattr(value[0], "item") else value[0])
    yield from (value[:-1], [], value * 300)
    numbers = {bool: (False, True), float: FLOATS}.get(kind, INTEGERS)
    for number in numbers:
        yield from ([number] * len(value), [*value[:-1], number], number)


def put(gguf: Gguf, case: Case) -> None:
    """Store the value of a case."""
    value = case.value
    if isinstance(value, list):
        kind = array_type(value)
        numbers = [one & 0xFFFFFFFF for one in map(int, value)] if kind == "u32" else value
        gguf.set(case.key, numbers, type=kind)
    elif isinstance(value, bool):
        gguf.set(case.key, value, type="bool")
    elif isinstance(value, float):
        gguf.set(case.key, value, type="f32")
    else:
        gguf.set(case.key, value & 0xFFFFFFFF, type="u32")


def array_type(value: list[Any]) -> Any:
    """Return how to store an array."""
    if not value or (isinstance(value[0], int | np.integer) and not isinstance(value[0], bool)):
        return "u32"
    return "bool" if isinstance(value[0], bool | np.bool_) else "f32"


def load(case: Case, directory: Path) -> Model:
    """Load the model of a case."""
    if case.way == "override":
        return Model(case.path, n_gpu_layers=0, kv_overrides={case.key: case.value})
    with Gguf.open(case.path, metadata_only=case.way == "fill") as gguf:
        put(gguf, case)
        if case.way == "fill":
            return Model.from_gguf(gguf, fill, n_gpu_layers=0)
        path = directory / "model.gguf"
        gguf.write(path)
    return Model(path, n_gpu_layers=0)


def fill(_name: str, array: Any) -> None:
    """Give a tensor small numbers."""
    array[...] = 0.01


def compute(case: Case, directory: Path) -> str | None:
    """Load, decode, and return what is wrong."""
    try:
        with (
            load(case, directory) as model,
            Context(model, n_ctx=64, n_batch=32, n_threads=case.n_threads) as context,
        ):
            return decode(model, context)
    except DOCUMENTED:
        return None
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"


def decode(model: Any, context: Any) -> str | None:
    """Decode tokens as a text and one by one."""
    tokens = [1 + i % 5 for i in range(20)]
    batch = Batch(32)
    batch.add(tokens, logits="last")
    if model.has_encoder:
        context.encode(batch)
        if not model.has_decoder:
            return None
        batch.clear()
        batch.add(tokens[:4], logits="last")
    context.decode(batch)
    finite = bool(np.isfinite(context.logits()).all())
    with contextlib.suppress(UnsupportedError):  # of diffusion
        batch.clear()
        batch.add([3], pos=20 if not model.has_encoder else 4, logits="last")
        context.decode(batch)
        finite &= bool(np.isfinite(context.logits()).all())
    return None if finite else "logits are not finite"


def child(some: list[Case], directory: Path, report: Any) -> None:
    """Run cases, and write a line when one is done: what is found, or nothing."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    os.dup2(devnull, 1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    for case in some:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        found = compute(case, directory) or ""
        os.write(report, f"{' '.join(found.splitlines())}\n".encode())
    signal.setitimer(signal.ITIMER_PROF, 0)


def run(todo: list[Case]) -> Iterator[tuple[Case, str]]:
    """Run all cases in processes of their own; yield each with what is found, or with ""."""
    while todo:
        some, todo = todo[:BATCH], todo[BATCH:]
        with tempfile.TemporaryDirectory() as directory:
            read, written = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(read)
                status = 1  # of what `compute` does not expect, or who ends the process in it
                try:
                    child(some, Path(directory), written)
                    status = 0
                finally:
                    os._exit(status)
            os.close(written)
            n_done = 0
            with open(read, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    yield some[n_done], line.rstrip("\n")
                    n_done += 1
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if n_done < len(some):
            yield some[n_done], end_of(status)
            todo = some[n_done + 1 :] + todo


def end_of(status: int) -> str:
    """Return how a process has ended before its work was done."""
    if status >= 0:
        return f"the process ended with status {status}"
    sig = signal.Signals(-status)
    return "too slow" if sig == signal.SIGPROF else sig.name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--key", default="")
    parser.add_argument("--share", type=float, default=1.0, help="of all cases")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["GGML_NO_BACKTRACE"] = "1"
    backend.load()
    pick = random.Random(options.seed)
    import llamacffi.model.making  # noqa: F401  now, and not while someone changes it

    n_cases = n_found = 0
    for path in sorted(options.directory.glob("*.gguf")):
        if options.only in path.stem:
            todo = [case for case in cases(path) if options.key in case.key]
            todo = [case for case in todo if pick.random() < options.share]
            print(f"{path.stem}: {len(todo)} cases", file=sys.stderr, flush=True)
            for case, found in run(todo):
                n_cases += 1
                if found:
                    n_found += 1
                    print(f"{case}: {found}", flush=True)
    print(f"{n_cases} cases, {n_found} findings")
    return int(n_found > 0)


if __name__ == "__main__":
    sys.exit(main())
