"""Ctrl-C between any two steps of the interpreter: the objects remain usable.

And objects that are closed there: nothing is freed that C still reads.

See `tests.facade.interrupts` for the steps, and `tests.soak` for real signals among threads.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from llamacffi import (
    ArgumentError,
    Batch,
    BusyError,
    Context,
    Dist,
    SamplerChain,
    TopK,
    UnsupportedError,
)
from llamacffi._core.locks import CallLock, CallLocks
from llamacffi._core.ownership import live_objects
from llamacffi.batch.arrays import BatchArrays
from llamacffi.batch.batch import arrays_of
from llamacffi.context.handle import computing_of
from llamacffi.sampling.chain import native
from tests.conftest import ROOT
from tests.facade import interrupts, loras, operations


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "demo.lora.gguf"
    return loras.write_lora(path, {"blk.0.attn_q.weight": (96, 96)})


# Makes the GNU C library overwrite freed memory, so that reading it shows.
PERTURBED = {**os.environ, "MALLOC_PERTURB_": "165"}


@pytest.mark.parametrize(
    # The number of places per operation; `python -m tests.facade.interrupts` can try all of them.
    ("what", "kind", "n"),
    [
        ("interrupt", "line", 15),
        ("interrupt", "opcode", 15),
        ("interrupt", "opcode:locks.py", 10),
        ("close", "line", 12),
    ],
)
def test_at_some_step_of_each_operation(demo_path, lora, what, kind, n):
    program = [sys.executable, "-m", "tests.facade.interrupts", demo_path, lora]
    result = subprocess.run(
        [*program, what, kind, str(n), "7"],
        env=PERTURBED,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
    n_places, n_findings = map(int, re.findall(r"\d+", result.stdout))
    assert n_places > (0.5 if ":" in kind else 0.9) * n * len(operations.OPERATIONS)
    assert n_findings == 0


# An object to close, and code that reads a part of it.
LOOKS = {
    "chain": "SamplerChain(Penalties(), TopK(40), vocab=model.vocab), lambda one: one.names",
    "model": "Model(sys.argv[1]), lambda one: one.vocab",
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_closed_at_each_line_of_a_look(run_python, demo_path, look):
    code = f"""
        import sys
        from llamacffi import *
        from tests.facade.interrupts import Stop
        model, n_closed = Model(sys.argv[1]), 0
        for at in range(1, 100):
            one, look = {look}
            one.ptr
            stop = Stop(at, "line", one.close)
            try:
                stop.run(lambda: look(one))
            except ClosedError:
                pass
            n_closed += one.closed
            if not stop.where:
                break
        print(10 < n_closed == at - 1)
    """
    result = run_python(code, demo_path, cwd=ROOT, env=PERTURBED)
    assert (result.returncode, result.stdout, result.stderr) == (0, "True\n", "")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no such timer here")
def test_real_signals_at_random_times(run_python, demo_path):
    code = """
        import gc, random, signal, sys
        from llamacffi import *
        from llamacffi._core.ownership import live_objects
        chance = random.Random(3)
        model = Model(sys.argv[1])
        context = Context(model, n_ctx=64, n_threads=1)
        sampler = SamplerChain(Penalties(), TopK(40), Dist(1))

        def text():
            context.memory.clear(data=False)
            return generate(context, "The llama", sampler=sampler, max_tokens=4).text()

        def interrupt(*_):
            raise KeyboardInterrupt

        want, n, objects = text(), 0, live_objects()
        signal.signal(signal.SIGALRM, interrupt)
        for i in range(600):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + chance.random() * 2e-3)
                while True:
                    text()
            except KeyboardInterrupt:
                n += 1
            assert text() == want, i
        assert n == 600
        gc.collect()
        assert live_objects() == objects, live_objects()
    """
    result = run_python(code, demo_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no such timer here")
def test_a_slice_of_the_soak():
    # An interrupt before the `with` of a file is not a leak: the file is closed then.
    python = [sys.executable, "-X", "dev", "-W", "ignore:unclosed file:ResourceWarning"]
    command = [*python, "-m", "tests.soak", "--seconds", "20", "--seed", "1"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
    assert "interrupted: " in result.stdout


def entered(lock):
    """Hold a lock in a call that has ended, as after an interrupt just before the release."""
    lock.__enter__()


def test_a_lock_is_free_when_the_call_has_ended():
    lock = CallLock("thing")
    for _ in range(3):
        entered(lock)
        lock.check()
        with lock:
            pass
    with lock:
        with pytest.raises(BusyError, match="this thread is using this thing already"):
            lock.check()
        with pytest.raises(BusyError, match="this thread is using"):
            entered(lock)
    entered(lock)


def test_an_ended_call_does_not_keep_a_context_alive(model):
    """Its variables may refer to the context, and the lock of a pool refers to the call."""

    def interrupt_and_drop():
        context = Context(model, n_ctx=32, n_threads=1)
        for pool in computing_of(context).pools.attached:
            pool.exclusive.enter(sys._getframe())

    before = live_objects()
    interrupt_and_drop()
    gc.collect()
    assert live_objects() == before


def test_another_thread_takes_over_too():
    lock, results = CallLock("thing"), []

    def work():
        try:
            with lock:
                results.append("in")
        except BusyError as error:
            results.append(str(error))

    def run():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return results.pop()

    with lock:
        assert run().startswith("another thread is using this thing")
    entered(lock)
    assert run() == "in"
    thread = threading.Thread(target=entered, args=(lock,))
    thread.start()
    thread.join()
    with lock:  # was held by a thread that has ended
        pass


def test_one_of_many_takes_over():
    """However many calls try at once, only one holds the lock."""
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        lock, inside, most, n_in = CallLock("thing"), [], [], []

        def work():
            for _ in range(300):
                try:
                    with lock:
                        inside.append(1)
                        most.append(len(inside))
                        inside.pop()
                        n_in.append(1)
                    entered(lock)
                except BusyError:
                    pass

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(most) == {1}
        assert len(n_in) > 10
        with lock:
            pass
    finally:
        sys.setswitchinterval(switch)


def test_several_locks_are_held_or_none():
    one, two, three = (CallLock(name) for name in ("one", "two", "three"))
    entered(two)
    with CallLocks(one, two):
        assert len(one.holders) == len(two.holders) == 1
    with three, pytest.raises(BusyError, match="three already"):
        entered(CallLocks(one, two, three))
    assert not one.holders
    assert not two.holders


def test_a_suspended_generator_has_not_ended():
    lock = CallLock("thing")

    def generator():
        with lock:
            yield

    waiting = generator()
    next(waiting)
    with pytest.raises(BusyError):
        entered(lock)
    waiting.close()
    entered(lock)


def test_a_batch_after_an_interrupted_decode():
    batch = Batch(4)
    entered(arrays_of(batch).lock)
    batch.add([1, 2])
    batch.set_one(3, 0)
    assert batch.tokens.tolist() == [3]


def test_a_chain_is_free_when_its_context_is_interrupted(model, monkeypatch):
    chain, entered, enter = SamplerChain(TopK(4), Dist(1)), [], CallLock.enter

    def interrupted(self, frame):
        enter(self, frame)
        if self is native(chain).lock and not entered:
            entered.append(self)
            raise KeyboardInterrupt

    monkeypatch.setattr(CallLock, "enter", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Context(model, n_ctx=32, n_threads=1, samplers={0: chain})
    assert chain.names == ["top-k", "dist"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, BusyError, ArgumentError])
def test_tokens_computed_before_an_interrupt_are_recorded(new_context, error):
    """Signals are usually handled after the C call; their handlers may raise any exception."""

    class Interrupted(BatchArrays):
        __slots__ = ()

        def submit(self, *args):
            assert super().submit(*args) == 0
            raise error("by a handler")

    context = new_context(n_seq_max=2, kv_unified=True)
    batch = Batch.from_tokens([1, 2, 3], seq_ids=(0, 1))
    arrays_of(batch).__class__ = Interrupted
    with pytest.raises(error, match="by a handler"):
        context.decode(batch)
    assert context.memory.pos_max(0) == context.memory.pos_max(1) == 2
    with pytest.raises(UnsupportedError, match="may share tokens at positions 0 to 2"):
        context.memory.shift(0, 1)
    with pytest.raises(IndexError, match="there are no outputs"):
        context.logits()
    context.decode(Batch.from_tokens([4], 3))


def test_a_batch_that_does_not_reach_c_changes_nothing(new_context):
    context, batch = new_context(), Batch(4)
    batch.add([1, 2, 3])
    context.decode(batch)
    batch.set_one(4, 3)
    want = context.logits().copy()
    with arrays_of(batch).lock, pytest.raises(BusyError):  # as if another thread were decoding it
        context.decode(batch)
    assert (context.logits() == want).all()
    assert context.memory.pos_max(0) == 2


def test_a_callback_that_stops_and_an_interrupt(model):
    stop = True
    with Context(
        model, n_ctx=64, n_threads=1, cb_eval=lambda _node, ask: ask or not stop
    ) as context:

        class Both(BatchArrays):
            __slots__ = ()

            def submit(self, *args):
                super().submit(*args)
                raise KeyboardInterrupt

        batch = Batch.from_tokens([1, 2, 3])
        arrays_of(batch).__class__ = Both
        with pytest.raises(KeyboardInterrupt):
            context.decode(batch)
        stop = False
        context.decode(Batch.from_tokens([1], context.memory.next_pos()))


@pytest.mark.parametrize("name", ["logits_view", "embeddings_view"])
def test_an_interrupt_while_a_view_is_deleted(new_context, name):
    """No Python code runs then, in which an interrupt could be lost and the cleanup skipped."""
    context = new_context(embeddings=True)
    context.decode(Batch.from_tokens([1, 2]))
    views = [getattr(context, name)()]
    stop = interrupts.Stop(1, "line")
    assert not stop.run(views.clear)
    context.decode(Batch.from_tokens([3], 2))
    assert stop.where == ""


def test_every_operation_is_tried():
    public = {name for name, one in vars(operations.Subject).items() if callable(one)}
    assert public - {"__init__", "text", "decode", "check", "left"} == set(operations.OPERATIONS)
