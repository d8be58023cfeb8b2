"""Use everything from several threads, interrupt it at random times, and check that it recovers.

python -m tests.soak --seconds 600 --seed 1

The main thread works under a timer whose signal raises KeyboardInterrupt, or closes an object, as a
handler of Ctrl-C would.  Other threads create, use and close objects of the same models, and try to
use objects of the main thread.  After each interrupt, the object that was in use must give the
right text, or say that it is closed; at the end, no object may be left.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamacffi import (
    AbortedError,
    Adapter,
    Batch,
    BusyError,
    ClosedError,
    Context,
    ContextShift,
    Dist,
    Grammar,
    Greedy,
    LlamaError,
    Model,
    Penalties,
    SamplerChain,
    StateError,
    Threadpool,
    TopK,
    demo,
    generate,
)
from llamacffi._core.ownership import live_objects
from tests.facade import loras

PROMPT = "The llama is"
Work = Callable[["User"], None]


class User:
    """A context and its sampler, adapter and so on, used by one thread."""

    def __init__(self, model: Model, lora: Path, seed: object) -> None:
        """Create the objects."""
        self.random = random.Random(str(seed))
        self.model, self.lora = model, lora
        self.sampler = SamplerChain(Penalties(), TopK(40), Greedy())
        self.chain = SamplerChain(TopK(4), Dist(1))
        self.context = Context(
            model, n_ctx=64, n_ubatch=16, n_threads=1, n_seq_max=2, kv_unified=True
        )

    def text(self, n: int = 5) -> str:
        """Return the text, which must always be the same."""
        self.context.memory.clear(data=False)
        return generate(self.context, PROMPT, sampler=self.sampler, max_tokens=n).text()

    def settle(self) -> None:
        """Undo what the operations may have changed."""
        self.context.adapters = {}
        self.context.set_sampler(1, None)
        self.context.set_embeddings(False)

    def close(self) -> None:
        """Close the parts, in any order."""
        parts = [self.context, self.sampler, self.chain]
        self.random.shuffle(parts)
        for one in parts:
            one.close()


def use_overflow(user: User) -> None:
    """Generate beyond the context."""
    user.context.memory.clear(data=False)
    generate(
        user.context, PROMPT, sampler=user.sampler, max_tokens=90, overflow=ContextShift()
    ).text()


def use_adapter(user: User) -> None:
    """Load an adapter, compute with it, and close it while it is in use."""
    adapter = Adapter(user.model, user.lora)
    user.context.adapters = {adapter: user.random.random()}
    user.text(2)
    adapter.close()
    user.context.adapters = None


def use_threads(user: User) -> None:
    """Change the threads that compute."""
    if user.random.random() < 0.5:
        user.context.n_threads = user.random.choice([1, 1, 2])
        user.text(2)
        user.context.n_threads = 1
    else:
        with Threadpool(2) as pool:
            user.context.attach_threadpool(pool)
            user.text(2)
        user.context.detach_threadpool()


def use_state(user: User) -> None:
    """Restore an earlier state."""
    user.text(3)
    if user.random.random() < 0.5:
        snapshot = user.context.snapshot()
        user.context.memory.remove(0, 2)
        user.context.restore(snapshot)
    else:
        state = user.context.save_state()
        user.context.memory.clear()
        user.context.load_state(state)


def use_memory(user: User) -> None:
    """Copy, move and forget tokens."""
    memory = user.context.memory
    memory.clear()
    user.context.decode(Batch.from_tokens(range(3, 11)))
    memory.fork(0, 1)
    memory.remove(1, 4)
    memory.remove(1)
    memory.cut(0, 2, 4)
    memory.shift(0, 3)
    user.context.decode(Batch.from_tokens([5], memory.next_pos()))


def use_views(user: User) -> None:
    """Read the outputs without copying them."""
    context = user.context
    context.set_embeddings(True)
    context.memory.clear(data=False)
    context.decode(Batch.from_tokens([5, 6]))
    views = [context.logits_view(), context.embeddings_view()]
    user.random.shuffle(views)
    views.append(views.pop(0)[3:5])
    views.clear()
    context.set_embeddings(False)
    context.decode(Batch.from_tokens([7], 2))


def use_graph(user: User) -> None:
    """Sample in the graph."""
    user.context.set_sampler(1, user.chain)
    user.context.memory.clear(data=False)
    user.context.decode(Batch.from_tokens([5, 6], seq_ids=(1,)))
    user.chain.sample(user.context)
    user.context.set_sampler(1, None)


def use_chains(user: User) -> None:
    """Create chains, and copies of them."""
    user.text(1)
    with SamplerChain(Grammar("root ::= [a-zA-Z ,.]*"), Penalties(), Dist(3)) as chain:
        user.context.decode(Batch.from_tokens([5], user.context.memory.next_pos()))
        chain.sample(user.context)
        chain.clone().copy_from(chain)


def make_context(user: User) -> None:
    """Create another context of the same model."""
    with Context(user.model, n_ctx=32, n_threads=1, samplers={0: SamplerChain(TopK(3), Dist(1))}):
        pass


def read_position(user: User) -> None:
    """Ask for what only the thread that computes may know."""
    user.context.memory.pos_max()


def read_seed(user: User) -> None:
    """The same, of a chain."""
    user.sampler.seed  # noqa: B018


def cancel(user: User) -> None:
    """Cancel the running computation."""
    user.context.cancel()


WORKS: tuple[Work, ...] = (
    *(lambda user: user.text() and None,) * 4,  # type: ignore[func-returns-value]
    *(use_overflow, use_adapter, use_threads, use_state, use_memory),
    *(use_views, use_graph, use_chains, make_context),
)


# How many seconds another thread may hold an object: it has to get the interpreter lock and a CPU,
# and an interrupted operation can leave two spinning threads, so that a text takes seconds.
PATIENCE = 60
# What must happen at least every five seconds.
OFTEN = ("done", "interrupted", "well", "in a thread", "closed by a thread")


class Soak:
    """One run of the soak test."""

    def __init__(self, seconds: float, seed: int, directory: Path) -> None:
        """Prepare the models and the expected text."""
        self.random, self.seed, self.seconds = random.Random(seed), seed, seconds
        self.end = time.monotonic() + seconds
        self.count: Counter[str] = Counter()
        self.errors: list[str] = []
        self.path, self.lora = directory / "demo.gguf", directory / "lora.gguf"
        demo.write(self.path)
        loras.write_lora(self.lora, {"blk.0.attn_q.weight": (96, 96)})
        with Model(self.path) as model:
            user = User(model, self.lora, 0)
            # Import everything before signals come: of 100 interrupted imports, 3 leave CPython
            # 3.11's global import lock held by their thread.  The lock is re-entrant, so that
            # thread continues, but any other thread that imports something waits forever.
            for _ in range(4):
                for work in (*WORKS, read_position, read_seed):
                    work(user)
                user.settle()
            self.want = user.text()
            user.close()
        self.shared = Model(self.path)
        self.main: User | None = None
        self.armed = False

    @property
    def goes_on(self) -> bool:
        """Whether time is left, and nothing has gone wrong."""
        return time.monotonic() < self.end and not self.errors

    def run(self) -> None:
        """Run all threads until the time is over."""
        workers = [
            threading.Thread(target=self.guard, args=(work, k), daemon=True)
            for k, work in enumerate((self.use_shared, self.use_own, self.disturb))
        ]
        for worker in workers:
            worker.start()
        signal.signal(signal.SIGALRM, self.on_signal)
        self.guard(self.interrupted, 9)
        for worker in workers:
            worker.join(60)
            if worker.is_alive():
                faulthandler.dump_traceback(all_threads=True)
                self.errors.append(f"{worker} does not end")
        self.main = None
        self.shared.close()
        workers.clear()
        gc.collect()
        if live_objects() and not self.errors:
            self.errors.append(f"{live_objects()} objects are left")
        for name in OFTEN if not self.errors else ():
            if self.count[name] < self.seconds / 5:
                self.errors.append(f"{name}: {self.count[name]} times in {self.seconds} s")

    def guard(self, work: Callable[[int], None], number: int) -> None:
        """Record an exception that must not be raised."""
        try:
            work(number)
        except BaseException as error:
            import traceback

            self.errors.append("".join(traceback.format_exception(error)))

    def on_signal(self, *_: object) -> None:
        """Interrupt the main thread, or close an object that it uses."""
        if not self.armed:
            return
        self.armed = False
        chance = self.random.random()
        user = self.main
        if chance < 0.04 and user is not None:
            self.count["closed by a handler"] += 1
            self.random.choice([user.context, user.sampler, user.model]).close()
        elif chance < 0.1 and user is not None:
            user.context.cancel()
        else:
            raise KeyboardInterrupt

    def interrupted(self, number: int) -> None:
        """Run operations in the main thread, under signals."""
        model = Model(self.path)
        user = self.main = User(model, self.lora, f"{self.seed} main")
        while self.goes_on:
            work = user.random.choice(WORKS)
            self.attempt(user, work)
            if not self.is_well(user):
                user.close()
                if model.closed or user.random.random() < 0.3:
                    model.close()
                    model = Model(self.path)
                user = self.main = User(model, self.lora, user.random.random())
        self.main = None
        user.close()
        model.close()

    def attempt(self, user: User, work: Work) -> None:
        """Run an operation, which is interrupted somewhere."""
        try:
            self.armed = True
            signal.setitimer(signal.ITIMER_REAL, 1e-6 + self.random.random() ** 2 * 0.02)
            work(user)
            self.armed = False
            self.count["done"] += 1
        except KeyboardInterrupt:
            self.count["interrupted"] += 1
        except (ClosedError, AbortedError, BusyError, StateError) as error:
            self.armed = False
            self.count[type(error).__name__] += 1
        signal.setitimer(signal.ITIMER_REAL, 0)

    def is_well(self, user: User) -> bool:
        """Return whether a context is still usable; if so, it must compute the right text."""
        end, last = time.monotonic() + PATIENCE, None
        while time.monotonic() < end:
            try:
                user.settle()
                text = user.text()
            except ClosedError:
                assert user.context.closed or user.sampler.closed or user.chain.closed
                return False
            except AbortedError as error:
                last = repr(error)
                continue  # a cancel() came after the end
            except BusyError as error:
                if "another thread" not in str(error):
                    raise
                last = repr(error)
                time.sleep(0.002)  # another thread is using it, and needs time to finish
                continue
            assert text == self.want, (text, self.want)
            self.count["well"] += 1
            return True
        faulthandler.dump_traceback(all_threads=True)
        raise AssertionError(f"another thread is in between, or cancels, for ever: {last}")

    def use_shared(self, number: int) -> None:
        """Use a model that another thread uses too, in contexts of this thread."""
        user = User(self.shared, self.lora, (self.seed, number))
        while self.goes_on:
            user.random.choice(WORKS)(user)
            user.settle()
            assert user.text() == self.want
            self.count["in a thread"] += 1
            if user.random.random() < 0.05:
                user.close()
                user = User(self.shared, self.lora, user.random.random())
        user.close()

    def use_own(self, number: int) -> None:
        """Create models that another thread closes meanwhile."""
        chance = random.Random(f"{self.seed} {number}")
        while self.goes_on:
            model = Model(self.path)
            timer = threading.Timer(chance.random() * 0.05, model.close)
            timer.start()
            try:
                user = User(model, self.lora, chance.random())
                while True:
                    chance.choice(WORKS)(user)
            except ClosedError:
                self.count["closed by a thread"] += 1
            except LlamaError as error:
                if not isinstance(error.__context__, ClosedError):
                    raise
            timer.join()

    def disturb(self, number: int) -> None:
        """Use objects of another thread: each use must raise the right error, or work."""
        chance = random.Random(f"{self.seed} {number}")
        while self.goes_on:
            time.sleep(chance.random() * 0.05)
            user = self.main
            if user is None:
                continue
            try:
                chance.choice([read_position, read_seed, cancel])(user)
            except LlamaError as error:
                self.count[f"disturbing: {type(error).__name__}"] += 1
            del user


def main(arguments: list[str] | None = None) -> int:
    """Run the soak test, and report what happened."""
    parser = argparse.ArgumentParser(description="Use everything, interrupt it, and see.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    args: Any = parser.parse_args(arguments)
    faulthandler.enable()
    print(f"seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        soak = Soak(args.seconds, args.seed, Path(directory))
        soak.run()
    print(", ".join(f"{name}: {n}" for name, n in sorted(soak.count.items())))
    print(*soak.errors[:3], sep="\n", file=sys.stderr, end="" if not soak.errors else "\n")
    return 1 if soak.errors else 0


if __name__ == "__main__":
    sys.exit(main())
