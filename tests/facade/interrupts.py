"""Interrupt an operation at a line, or between two instructions, and see what is left.

python -m tests.facade.interrupts MODEL LORA (line|opcode) N SEED [OPERATION...]

N is at how many places of each operation, chosen at random; 0 is all of them.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import llamacffi
from llamacffi import (
    Adapter,
    Batch,
    Context,
    Dist,
    Gguf,
    Grammar,
    Model,
    Penalties,
    SamplerChain,
    Threadpool,
    TopK,
    generate,
    quantize,
)
from llamacffi._handle import live_objects
from llamacffi.shards import split

PACKAGE = os.path.dirname(os.path.abspath(llamacffi.__file__ or ""))


class Stop:
    """Counts the lines or instructions of the package, and raises KeyboardInterrupt at one."""

    def __init__(self, at: int, opcodes: bool) -> None:
        self.at, self.opcodes = at, opcodes
        self.n = 0
        self.where = ""

    def __call__(self, frame: FrameType, _event: str, _argument: object) -> Any:
        """Look into a call, if it is one of the package's."""
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = self.opcodes, not self.opcodes
        return self.step

    def step(self, frame: FrameType, event: str, _argument: object) -> Any:
        """Count one step."""
        if event in ("line", "opcode"):
            self.n += 1
            if self.n == self.at:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
                raise KeyboardInterrupt
        return self.step

    def run(self, operation: Callable[[], object]) -> bool:
        """Run an operation under it; return whether it was interrupted."""
        sys.settrace(self)
        try:
            operation()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False


class Subject:
    """The objects that are interrupted, and what is done with them."""

    def __init__(self, path: str, lora: str, directory: str) -> None:
        self.path, self.lora, self.directory = path, lora, Path(directory)
        self.model = Model(path)
        self.adapter = Adapter(self.model, lora)
        self.context = Context(self.model, n_ctx=64, n_threads=1, n_seq_max=2, kv_unified=True)
        self.sampler = SamplerChain(Penalties(), TopK(40), Dist(1))
        self.in_graph = SamplerChain(TopK(4), Dist(1))
        self.want = self.text()

    def text(self) -> str:
        """Return what must always be the same."""
        self.context.memory.clear(data=False)
        return generate(self.context, "The llama", sampler=self.sampler, max_tokens=3).text()

    def check(self) -> None:
        """Raise unless all can be used on."""
        self.context.adapters = {}
        self.context.set_sampler(1, None)
        self.context.set_embeddings(False)
        self.context.detach_threadpool()
        assert self.text() == self.want, self.want

    def generate(self) -> None:
        self.text()

    def view(self) -> None:
        context = self.context
        context.memory.clear(data=False)
        context.set_embeddings(True)
        context.decode(Batch.from_tokens([5]))
        views = [context.logits_view(), context.embeddings_view()]
        views.append(views[0][3:5])
        del views
        context.decode(Batch.from_tokens([6], 1))
        context.set_embeddings(False)

    def set_threads(self) -> None:
        self.context.n_threads = 3 - self.context.n_threads
        self.context.n_threads_batch = 1

    def set_adapters(self) -> None:
        self.context.adapters = {self.adapter: 0.5}
        self.context.decode(Batch.from_tokens([5], self.context.memory.next_pos()))
        self.context.adapters = None

    def attach(self) -> None:
        pool = Threadpool(2)
        self.context.attach_threadpool(pool)
        for _ in range(2):
            self.context.decode(Batch.from_tokens([5], self.context.memory.next_pos()))
        self.context.detach_threadpool()

    def restore(self) -> None:
        self.context.restore(self.context.snapshot())

    def load_state(self) -> None:
        self.context.load_state(self.context.save_state())

    def make_context(self) -> None:
        with Context(self.model, n_ctx=32, n_threads=1) as context:
            context.decode(Batch.from_tokens([1]))

    def make_sampling_context(self) -> None:
        with Context(self.model, n_ctx=32, n_threads=1, samplers={0: self.in_graph}):
            pass

    def make_model(self) -> None:
        with Model(self.path) as model:
            model.vocab.tokenize("a")

    def make_adapter(self) -> None:
        with Adapter(self.model, self.lora):
            pass

    def make_chain(self) -> None:
        with SamplerChain(Penalties(), Grammar("root ::= [a-z ]*"), Dist(1)) as chain:
            self.context.memory.clear(data=False)
            self.context.decode(Batch.from_tokens([1]))
            chain.sample(self.context)
            chain.clone()

    def set_sampler(self) -> None:
        self.context.set_sampler(1, self.in_graph)
        self.context.set_sampler(1, None)

    def use_memory(self) -> None:
        memory = self.context.memory
        memory.clear(data=False)
        self.context.decode(Batch.from_tokens([1, 2, 3, 4]))
        memory.copy(0, 1)
        memory.remove(1)
        memory.shift(0, 2)
        self.context.decode(Batch.from_tokens([1], memory.next_pos()))

    def write_files(self) -> None:
        self.context.save_file(self.directory / "state")
        self.context.load_file(self.directory / "state")
        with Gguf.open(self.path) as gguf:
            gguf.write(self.directory / "copy.gguf")

    def save(self) -> None:
        self.model.save(self.directory / "saved.gguf")

    def quantize(self) -> None:
        quantize(self.path, self.directory / "small.gguf", "Q8_0")

    def split(self) -> None:
        split(self.path, self.directory / "part", max_tensors=8)

    def read_open_file(self) -> None:
        with open(self.path, "rb") as file:
            Model.from_file(file, vocab_only=True).close()

    def left(self) -> list[str]:
        """Return the files that nobody asked for, and those that are open."""
        files = [one.name for one in self.directory.iterdir() if one.name.startswith(".")]
        links = Path("/proc/self/fd")
        opened = [os.readlink(one) for one in links.iterdir() if one.is_symlink()]
        return sorted(files + [one for one in opened if ".gguf" in one or "/state" in one])


OPERATIONS = [
    *("generate", "view", "set_threads", "set_adapters", "attach", "restore", "load_state"),
    *("make_context", "make_sampling_context", "make_model", "make_adapter", "make_chain"),
    *("set_sampler", "use_memory", "write_files", "save", "quantize", "split", "read_open_file"),
]


def try_all(subject: Subject, name: str, opcodes: bool, n: int, chance: random.Random) -> list[str]:
    """Interrupt one operation at some places; return what went wrong."""
    operation = getattr(subject, name)
    operation()
    counter = Stop(0, opcodes)
    counter.run(operation)
    subject.check()
    gc.collect()
    before, opened, wrong = live_objects(), subject.left(), list[str]()
    handled = sys.exc_info()[1]
    places = range(1, counter.n + 1)
    for at in chance.sample(places, min(n, len(places))) if n else places:
        stop = Stop(at, opcodes)
        try:
            stop.run(operation)
            subject.check()
        except Exception as error:
            wrong.append(f"{name} at {stop.where}: {error!r}")
            break
        gc.collect()
        if sys.exc_info()[1] is not handled:
            break  # CPython 3.11 keeps what leaves a `with`, if a trace function raises just there
        # One more or less: whether the context has a pool for single tokens and one for several.
        if live_objects() > before + 1:
            wrong.append(f"{name} at {stop.where}: {live_objects() - before} objects are left")
            break
        if (left := subject.left()) != opened:
            wrong.append(f"{name} at {stop.where}: left are {left}")
            break
    return wrong


def main(path: str, lora: str, kind: str, n: str, seed: str, *names: str) -> int:
    """Try all operations."""
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        subject = Subject(path, lora, directory)
        for name in names or OPERATIONS:
            wrong += try_all(subject, name, kind == "opcode", int(n), random.Random(seed))
    del subject
    gc.collect()
    kept = sys.exc_info()[1]  # by CPython 3.11, with the objects of its frames: see above
    if live_objects() and not wrong and kept is None:
        wrong.append(f"{live_objects()} objects are left")
    print(*wrong, sep="\n")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
