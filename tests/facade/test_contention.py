"""A context chooses its number of threads with care, and warns if other work uses the CPUs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from llamacffi import ArgumentError, Context, Threadpool, lib
from llamacffi.backend import cores as _cores
from llamacffi.backend.threads import MOST_THREADS, PER_PROCESSOR
from llamacffi.context.contention import Usage
from llamacffi.model.weights import is_elsewhere, places

THERE = _cores.processors()


@pytest.mark.parametrize(
    ("n_threads", "usage", "lack"),
    [
        (2, Usage(1.0, 1.98, 0.99, 4), False),  # nothing else runs
        (2, Usage(0.2, 0.1, 0.1, 99), False),  # too short to say
        (2, Usage(1.0, 1.0, 0.5, 300), True),  # two others on two CPUs
        (2, Usage(1.0, 1.3, 0.66, 300), True),  # one other
        (32, Usage(1.0, 31.4, 1.0, 1000), True),  # one other among many
        (32, Usage(1.0, 31.9, 1.0, 700), False),
        (2, Usage(1.0, 2.0, 0.5, 300), True),  # two contexts that compute at once
        (2, Usage(1.0, 0.2, 0.1, 1), False),  # waits for the disk
        (16, Usage(1.0, 1.0, 1.0, 8), False),  # waits for a GPU
        (1, Usage(1.0, 0.3, 0.3, 90), True),
        (1, Usage(1.0, 0.7, 0.7, 90), False),
    ],
)
def test_when_threads_lack_cpus(n_threads, usage, lack):
    assert bool(usage.lacking(n_threads)) == lack


@pytest.mark.parametrize(
    ("cores", "online", "running", "expected"),
    [(2, 2, 0, 2), (2, 2, 1, 1), (2, 2, 5, 1), (8, 16, 5, 8), (8, 16, 10, 6), (4, 64, 30, 4)],
)
def test_how_many_cores_are_left(cores, online, running, expected):
    assert _cores.left(cores, online, running) == expected


@pytest.mark.parametrize(
    ("file", "own", "running"),
    [
        ("0.20 0.18 0.12 3/80 11206\n", "RSS", 2),
        ("0.20 0.18 0.12 7/80 11206\n", "RRSR", 4),
        ("0.20 0.18 0.12 3/80 11206\n", "RRRR", 0),
        ("0.20 0.18 0.12 3/80 11206\n", "", 2),
        ("0.20 0.18 0.12 1/80 11206\n", "R", 0),
        ("0.0 0.0 0.0 0/0 0\n", "R", 0),
        ("", "R", 0),
        ("what?", "R", 0),
    ],
)
def test_how_many_threads_of_others_run(tmp_path, file, own, running):
    (tmp_path / "loadavg").write_text(file)
    for i, state in enumerate(own):
        (tmp_path / f"self/task/{i}").mkdir(parents=True)
        (tmp_path / f"self/task/{i}/stat").write_text(f"{i} (a) R (b) {state} 1 2 3\n")
    assert _cores._running(tmp_path) == running


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports who runs")
def test_threads_of_this_process_do_not_count():
    """Those of a context that was made just now spin."""
    proc = _cores.Path("/proc")
    for _ in range(1000):  # they do so for some milliseconds, in which this thread may not run
        before = _cores._own_running(proc)
        with Threadpool(4, poll=100):
            if _cores._own_running(proc) >= before + 3:
                return
    pytest.fail("no thread was seen to spin")


def test_the_cores_that_are_left_are_some():
    assert 1 <= _cores.free_cores() <= _cores.physical_cores() <= THERE


@pytest.mark.processor
def test_a_context_leaves_other_work_its_cores(model, monkeypatch):
    for running, expected in ((0, _cores.physical_cores()), (10**6, 1)):
        monkeypatch.setattr(_cores, "_running", lambda _proc, running=running: running)
        with Context(model, n_ctx=64) as context:
            assert (context.n_threads, context.n_threads_batch) == (expected, expected)


@contextmanager
def busy(processors: list[int]) -> Iterator[None]:
    """Keep processors busy meanwhile; not for ever, whatever becomes of this process."""
    code = "import os, sys, time\nos.sched_setaffinity(0, {int(sys.argv[1])})\n"
    code += "while time.process_time() < 60: pass"
    command = [sys.executable, "-I", "-c", code]
    processes = [subprocess.Popen([*command, str(one)]) for one in processors]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


SLOW = """
import logging, os, sys, time
from llamacffi import Batch, Context, Model
from llamacffi.context.handle import decoder_of
os.sched_setaffinity(0, map(int, sys.argv[2:]))
logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stdout)
with Model(sys.argv[1]) as model:
    context = Context(model, n_ctx=256, n_threads=2)
    batch, reason = Batch(1), None
    while time.process_time() < 60 and reason is None:
        context.memory.clear()
        reason = decoder_of(context).contention.reason  # and another round after that
        for pos in range(20):
            batch.set_one(5, pos)
            context.decode(batch)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports who runs")
@pytest.mark.skipif(_cores.physical_cores() < 2, reason="needs two cores")
@pytest.mark.no_asan
def test_a_busy_machine(run_python, demo_path):
    """The context may use two CPUs, and other processes use both."""
    processors = sorted(os.sched_getaffinity(0))[:2]
    with busy(processors):
        result = run_python(SLOW, demo_path, *processors)
    assert result.returncode == 0, result
    (line,) = result.stdout.splitlines()  # once
    assert line.startswith("WARNING other work uses the CPUs: 2 threads got ")
    assert line.endswith("fewer threads are much faster; try n_threads=1")


def test_one_thread_is_left_alone(model):
    """It gets no warning and no other number of threads."""
    with Context(model, n_ctx=64, n_threads=1) as context:
        assert (context.n_threads, context.n_threads_batch) == (1, 1)


@pytest.mark.parametrize("name", ["n_threads", "n_threads_batch"])
def test_far_more_threads_than_processors(model, name):
    most = max(MOST_THREADS, PER_PROCESSOR * THERE)
    message = f"{name}={most + 1} is more than {most}: this process may use {THERE} processor"
    with pytest.raises(ArgumentError, match=message):
        Context(model, n_ctx=64, **{"n_threads": 1, name: most + 1})
    with Context(model, n_ctx=64, n_threads=1) as context:
        for n in (most + 1, lib.GGML_MAX_N_THREADS):
            with pytest.raises(ArgumentError, match=rf"use at most {name}={THERE}"):
                setattr(context, name, n)
        assert (context.n_threads, context.n_threads_batch) == (1, 1)
    with Threadpool(most + 1) as pool:  # which alone does nothing
        assert pool.n_threads == most + 1


def test_some_more_threads_than_processors(model, caplog):
    with Context(model, n_ctx=64, n_threads=THERE) as context:
        assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
        context.n_threads_batch = THERE + 1
    (record,) = (one for one in caplog.records if one.levelno >= logging.WARNING)
    assert f"n_threads_batch={THERE + 1} is more than the {THERE} processors" in record.message
    caplog.clear()
    Context(model, n_ctx=64, n_threads=THERE + 1).close()
    assert [one.message.split(" ")[0] for one in caplog.records if one.levelno >= 30] == [
        f"n_threads={THERE + 1}"
    ]


@pytest.mark.parametrize(
    ("weights", "elsewhere"),
    [
        ({"token_embd.weight": True, "blk.0.w": False, "output.weight": False}, True),
        ({"token_embd.weight": True, "blk.0.w": False, "output.weight": True}, False),
        ({"token_embd.weight": True, "blk.0.w": True, "output.weight": False}, False),
        ({"token_embd.weight": True, "blk.0.w": False}, False),  # it is the output's, too
        ({"token_embd.weight": False, "blk.0.w": False}, True),
        ({"per_layer_token_embd.weight": True, "blk.0.w": False, "output.weight": False}, True),
        ({}, False),
    ],
)
def test_when_all_layers_are_elsewhere(weights, elsewhere):
    assert is_elsewhere(weights.items()) == elsewhere


def test_a_matrix_with_copies_on_two_devices_counts_as_elsewhere():
    twice = [("token_embd.weight", True), ("blk.0.w", False), ("token_embd.weight", False)]
    assert is_elsewhere(twice)


def test_this_model_is_here(model):
    found = dict(places(model.ptr))
    assert len(found) > 5
    assert all(found.values())
    assert not is_elsewhere(found.items())
