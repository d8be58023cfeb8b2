"""Thread pools: their limits, their owners, and two contexts that share one."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

import pytest

from llamacffi import (
    ArgumentError,
    Batch,
    BusyError,
    ClosedError,
    Context,
    Threadpool,
    UnsupportedError,
    enums,
    lib,
)
from llamacffi.backend.threads import Placement
from llamacffi.context.handle import computing_of
from tests.timing import HANGS

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells where a thread runs")


def decode(context: Context, tokens=range(8), pos=0):
    """Compute some tokens from scratch and return the logits of the last."""
    context.memory.remove(0, pos)
    batch = Batch(len(tokens))
    batch.add(tokens, pos=pos)
    context.decode(batch)
    return context.logits()


@pytest.fixture
def pool():
    """A single thread: the calling one."""
    with Threadpool(1) as pool:
        yield pool


@pytest.fixture
def cpus():
    """The processors that this thread may run on, restored after the test."""
    before = Placement.current()
    yield sorted(before.cpus)
    assert Placement.current() == before


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_threads": 0}, r"n_threads must be between 1 and 512, not 0"),
        ({"n_threads": -1}, r"n_threads must be .* not -1"),
        ({"n_threads": 513}, r"n_threads must be .* not 513"),
        ({"n_threads": 2**40}, r"n_threads must be between 1 and 512, not 1099511627776"),
        ({"poll": 101}, r"poll must be between 0 and 100, not 101"),
        ({"poll": -1}, r"poll must be .* not -1"),
        ({"cpus": []}, r"cpus is empty"),
        ({"cpus": [1, 0, 1, 1]}, r"cpus has 1 twice.*not a mask"),
        ({"cpus": [512]}, r"in cpus must be between 0 and 511, not 512"),
        ({"cpus": [-1, 0]}, r"in cpus must be .* not -1"),
        ({"cpus": [511]}, r"cpus=\[511\] cannot be used"),
        ({"cpus": [0, 511]}, r"cpus=\[511\] cannot be used"),
        ({"priority": "urgent"}, r"priority must be one of LOW, NORMAL.*, not 'urgent'"),
        ({"priority": 7}, r"priority must be one of .* not 7"),
        ({"n_threads": 1, "strict_cpu": True}, "1 threads its own processor, but cpus has 0"),
        ({"n_threads": 2, "cpus": [0], "strict_cpu": True}, r"each of 2 threads"),
    ],
)
def test_invalid_values(params, message):
    with pytest.raises(ArgumentError, match=message):
        Threadpool(**params)


@pytest.mark.parametrize(
    "params",
    [{"n_threads": 1.5}, {"cpus": ["0"]}, {"cpus": 0}, {"paused": "yes"}, {"priority": None}],
)
def test_values_of_a_wrong_type(params):
    with pytest.raises(TypeError):
        Threadpool(**params)


def test_the_number_of_threads_can_change(new_context):
    context = new_context(n_threads=1, n_threads_batch=2)
    expected = decode(context)
    for n_threads, n_threads_batch in ((2, 2), (3, 1), (1, 1)):
        context.n_threads = n_threads
        context.n_threads_batch = n_threads_batch
        assert (context.n_threads, context.n_threads_batch) == (n_threads, n_threads_batch)
        assert (lib.llama_n_threads(context.ptr), lib.llama_n_threads_batch(context.ptr)) == (
            n_threads,
            n_threads_batch,
        )
        assert (decode(context) == expected).all()
    for wrong in (0, -1, 513):
        with pytest.raises(ArgumentError, match=f"n_threads_batch must be .* 512, not {wrong}"):
            context.n_threads_batch = wrong
    with pytest.raises(TypeError):
        context.n_threads = "2"
    assert (context.n_threads, context.n_threads_batch) == (1, 1)


@pytest.mark.parametrize("params", [{}, {"poll": 0}, {"poll": 1}, {"paused": True}])
def test_other_threads_compute_the_same(new_context, params):
    context = new_context(n_threads=2)
    expected = decode(context), decode(context, [3], 8)
    with Threadpool(2, **params) as pool, Threadpool(2) as batch_pool:
        for pools in ((pool,), (pool, batch_pool), (batch_pool, pool), (pool,)):
            context.attach_threadpool(*pools)
            assert (decode(context) == expected[0]).all()
            assert (decode(context, [3], 8) == expected[1]).all()
        pool.pause()
        assert (decode(context) == expected[0]).all()  # the graph wakes the threads
        pool.pause()
        pool.resume()
        context.detach_threadpool()
        context.detach_threadpool()
    assert (decode(context) == expected[0]).all()


def test_a_pool_must_be_large_enough(new_context, pool):
    context = new_context(n_threads=2, n_threads_batch=1)
    expected = decode(context)
    with pytest.raises(ArgumentError, match=r"more than the 1 threads of <Threadpool of 1>"):
        context.attach_threadpool(pool)
    with Threadpool(2) as larger:
        context.attach_threadpool(larger, pool)
        with pytest.raises(ArgumentError, match=r"n_threads_batch=2 is more than the 1 "):
            context.n_threads_batch = 2
        with pytest.raises(ArgumentError, match=r"n_threads=3 is more than the 2 "):
            context.n_threads = 3
        context.n_threads = 1
        context.attach_threadpool(pool)
        assert (decode(context) == expected).all()
    with pytest.raises(TypeError, match="Threadpool"):
        context.attach_threadpool(None)
    with pytest.raises(ClosedError):
        context.attach_threadpool(larger)
    assert (decode(context) == expected).all()


def test_closing_an_attached_pool_changes_nothing(new_context):
    context = new_context(n_threads=2)
    expected = decode(context)
    first, second = Threadpool(2), Threadpool(2)
    context.attach_threadpool(first)
    decode(context)
    first.close()
    assert (decode(context) == expected).all()
    context.attach_threadpool(second)  # the backend still has the first, and is about to pause it
    second.close()
    del first, second
    assert (decode(context) == expected).all()
    with pytest.raises(ArgumentError, match="closed"):
        context.n_threads = 3
    context.detach_threadpool()
    assert (decode(context) == expected).all()


@linux
def test_threads_end_with_their_context(new_context):
    """Not with the object that once was one, nor with the pool that was there before."""
    before = len(tasks())
    context = new_context(n_threads=2)
    wait_for(lambda: len(tasks()) == before + 1)
    for n_threads in (5, 3, 2, 3):
        context.n_threads = n_threads
        decode(context, [1])
        decode(context)
    wait_for(lambda: len(tasks()) == before + 3)
    context.close()
    wait_for(lambda: len(tasks()) == before)
    with pytest.raises(ClosedError):
        context.n_threads = 1
    with pytest.raises(ClosedError):
        computing_of(context).pools  # noqa: B018  raises


class Held:
    """A context that is held as while C computes tokens."""

    def __init__(self, context, n_tokens):
        self.computing, self.n_tokens = computing_of(context), n_tokens

    def __enter__(self):
        self.pools = self.computing.enter(sys._getframe(1), self.n_tokens)

    def __exit__(self, *_):
        self.computing.leave(sys._getframe(1), self.pools)


def test_one_pool_runs_one_graph_at_a_time(new_context):
    """Without a lock the graphs would corrupt each other or hang."""
    busy = []
    one, other = new_context(n_threads=2), new_context(n_threads=2)
    expected = decode(one)
    with Threadpool(2) as pool:
        one.attach_threadpool(pool)
        other.attach_threadpool(pool)
        with Held(one, 1):

            def use():
                for call in (lambda: decode(other), pool.pause, pool.resume):
                    with pytest.raises(BusyError, match="another thread is using this Threadpool"):
                        call()
                    busy.append(call)

            thread = threading.Thread(target=use)
            thread.start()
            thread.join()
        assert len(busy) == 3
        assert (decode(other) == expected).all()
        # The backend keeps a detached pool until the next graph.
        other.detach_threadpool()
        with Held(one, 1), pytest.raises(BusyError):
            decode(other)
        assert (decode(other) == expected).all()
        with Held(one, 1):
            assert (decode(other) == expected).all()


def test_contexts_with_pools_of_their_own_compute_at_once(model):
    """Each thread has its own context; the model is shared."""
    results = []

    def work(seed):
        with Threadpool(1) as pool, Context(model, n_ctx=128, n_threads=1) as context:
            context.attach_threadpool(pool)
            for _ in range(5):
                results.append((seed, decode(context, [seed] * 64).tobytes()))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 15
    assert len(set(results)) == 3


@linux
def test_the_caller_is_placed_only_while_it_computes(new_context, cpus):
    context = new_context(n_threads=1)
    expected = decode(context)
    with Threadpool(cpus=cpus[:1], strict_cpu=True) as pool:
        assert pool.n_threads == 1
        assert Placement.current().cpus == set(cpus)
        context.attach_threadpool(pool)
        with Held(context, 1):
            assert Placement.current().cpus == {cpus[0]}
        assert Placement.current().cpus == set(cpus)
        assert (decode(context) == expected).all()
        pool.pause()  # when it wakes the pool, ggml binds the thread itself
        assert (decode(context) == expected).all()
        assert Placement.current().cpus == set(cpus)


@linux
def test_each_thread_is_bound_to_its_processor(cpus):
    """According to the kernel, for the second thread of the pool."""
    if len(cpus) < 2:
        pytest.skip("needs two processors")
    before = tasks()
    with Threadpool(cpus=reversed(cpus[:2]), strict_cpu=True) as pool:
        own = pool.placement.cpus
        assert len(own) == 1
        wait_for(lambda: [cpu for _, cpu in tasks() - before] == [frozenset(cpus[:2]) - own])
    with Threadpool(2, cpus=cpus[:1]):
        wait_for(lambda: [cpu for _, cpu in tasks() - before] == [frozenset(cpus[:1])])


@linux
def test_batches_run_on_the_processors_of_their_pool(new_context, cpus):
    if len(cpus) < 2:
        pytest.skip("needs two processors")
    context = new_context(n_threads=1)
    with Threadpool(cpus=cpus[:1]) as pool, Threadpool(cpus=cpus[1:2]) as batch_pool:
        context.attach_threadpool(pool, batch_pool)
        for n_tokens, cpu in ((1, cpus[0]), (2, cpus[1])):
            with Held(context, n_tokens):
                assert Placement.current().cpus == {cpu}


@linux
@pytest.mark.parametrize("priority", ["low", enums.GgmlSchedPriority.HIGH, "REALTIME"])
def test_priorities_are_set_or_refused(new_context, priority, cpus):
    before = Placement.current()
    try:
        pool = Threadpool(1, priority=priority)
    except UnsupportedError:
        assert os.geteuid(), "the superuser may have any"
        return
    with pool:
        context = new_context(n_threads=1)
        context.attach_threadpool(pool)
        with Held(context, 1):
            assert Placement.current()[1:] != before[1:]
        decode(context)


@linux
def test_a_priority_that_is_refused(run_python):
    """Without the privilege, ggml only warns, and continues with another priority."""
    result = run_python("""
        import os, resource, llamacffi
        llamacffi.Threadpool(1, priority="low").close()  # while modules can still be imported
        resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
        if not os.geteuid():
            os.setuid(65534)
        try:
            llamacffi.Threadpool(1, priority="high")
        except llamacffi.UnsupportedError as error:
            assert "CAP_SYS_NICE" in str(error)
            llamacffi.Threadpool(1, priority="low").close()
            print("refused")
    """)
    assert (result.returncode, result.stdout) == (0, "refused\n"), result


def tasks():
    """Return the threads of this process, each with the processors it may run on."""
    found = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            found.add((task, frozenset(os.sched_getaffinity(int(task)))))
    return found


def wait_for(condition):
    """Wait until another thread has started."""
    end = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


EXIT = """
import sys, threading, time
from llamacffi import *
from llamacffi._core import shutdown

shutdown.EXIT_SECONDS = 10_000
model = Model(sys.argv[1])
early = Threadpool(2)
context = Context(model, n_ctx=1024, n_ubatch=8, n_threads=2)
late = Threadpool(2)
context.attach_threadpool({pools})
started = threading.Event()

def work():
    batch = Batch(512)
    batch.add([7] * 512)
    while True:
        started.set()
        context.decode(batch)
        context.memory.clear()

threading.Thread(target=work, daemon=True).start()
started.wait()
time.sleep(0.05)  # into the computation, most likely
"""


@pytest.mark.parametrize("pools", ["early", "late", "late, early"])
def test_exit_while_a_daemon_thread_computes(run_python, demo_path, pools):
    """It is cancelled, whichever is freed first, and neither waits forever for the other."""
    result = run_python(EXIT.format(pools=pools), demo_path)
    assert (result.returncode, result.stderr) == (0, ""), result


def test_a_graph_in_another_thread_keeps_its_pool(run_python, demo_path):
    """All objects are closed and dropped while it runs."""
    result = run_python(
        """
        import gc, sys, threading
        from llamacffi import *
        from llamacffi._core.ownership import live_objects

        model = Model(sys.argv[1])
        pool = Threadpool(2)
        context = Context(model, n_ctx=1024, n_ubatch=8, n_threads=2)
        context.attach_threadpool(pool)
        started = threading.Event()

        def work(context):
            batch = Batch(512)
            batch.add([7] * 512)
            started.set()
            context.decode(batch)

        thread = threading.Thread(target=work, args=(context,))
        thread.start()
        started.wait()
        for thing in (pool, context, model):
            thing.close()
        del pool, context, model, thing
        gc.collect()
        thread.join()
        del thread
        gc.collect()
        assert live_objects() == 0, live_objects()
        print("ok")
        """,
        demo_path,
    )
    assert (result.returncode, result.stdout) == (0, "ok\n"), result


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_pool_stays_with_its_process(run_python):
    result = run_python(
        """
        import os, sys, warnings
        from llamacffi import *
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
        pool = Threadpool(2)
        child = os.fork()
        if child == 0:
            try:
                pool.pause()
            except ForkError:
                Threadpool(2).close()
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        pool.pause()
        print("ok")
        """
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "ok\n", ""), result


@pytest.mark.no_asan
def test_threads_that_cannot_start(run_python):
    """An assertion of ggml fails, so memory leaks, as the error says."""
    result = run_python("""
        import resource
        from llamacffi import *
        Threadpool(2).close()
        limit = resource.getrlimit(resource.RLIMIT_AS)[1]
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20, limit))
        try:
            Threadpool(512)
        except BackendUnavailableError as error:
            assert "cannot start 512 threads" in str(error), error
            print("ok")
    """)
    assert (result.returncode, result.stdout) == (0, "ok\n"), result
