"""Where a destructor or a new thread of C++ would allocate, there is room, or an error."""

from __future__ import annotations

import sys

import pytest

pytestmark = [
    pytest.mark.no_asan,  # its shadow memory takes all address space
    pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as on Linux"),
]

# Limits the memory to what the process has now and some more.
LIMIT = """
import contextlib, resource, sys
from llamacffi import *

@contextlib.contextmanager
def limited(more):
    pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages + int(more), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
"""

SNAPSHOTS = (
    LIMIT
    + """
model = Model(sys.argv[1], n_gpu_layers=0)
context = Context(model, n_ctx=16_000, n_batch=2000, n_threads=1, flash_attn_type=sys.argv[2])
N = int(sys.argv[3])

def feed(n):
    pos = context.memory.next_pos()
    context.decode(Batch.from_tokens([5] * n, pos=pos, logits="none"))

feed(40)
first = context.snapshot(0)
for _ in range(N // 2000):
    feed(2000)
size = len(context.save_state(seq_id=0))
refused = taken = 0
for part in (0, 0.1, 0.3, 0.6, 0.9, 1.2, 2):
    before = context._snapshots._marks[0]
    with limited(part * size):
        try:
            context.snapshot(0)
            taken += 1
            break
        except (StateError, MemoryError):
            refused += 1
            assert context._snapshots._marks[0] is before
feed(1)
if not taken:
    context.restore(first)
    assert context.memory.pos_max() == 39
print(refused)
context.snapshot(0)
"""
)


@pytest.mark.parametrize("flash_attention", ["enabled", "disabled"])
def test_a_snapshot_without_room_is_refused_and_the_one_before_is_valid(
    demo_path, run_python, flash_attention
):
    done = run_python(SNAPSHOTS, demo_path, flash_attention, 6000)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1


def test_a_snapshot_in_many_pieces_without_room_is_refused(demo_path, run_python):
    """The values of one token are in as many places as they have numbers, and so are described."""
    done = run_python(
        LIMIT
        + """
model = Model(sys.argv[1], n_gpu_layers=0)
context = Context(model, n_ctx=4096, n_seq_max=2, kv_unified=True, n_threads=1,
    n_batch=4096, flash_attn_type="disabled")
batch = Batch(4096)
for pos in range(1500):
    for seq_id in (0, 1):
        batch.add([5], pos=pos, seq_ids=(seq_id,), logits="none")
context.decode(batch)
with limited(1 << 20):
    try:
        context.snapshot(0)
    except (StateError, MemoryError) as error:
        print(error)
snapshot = context.snapshot(0)
context.decode(Batch.from_tokens([5], pos=1500))
context.restore(snapshot)
""",
        demo_path,
    )
    assert done.returncode == 0, done.stderr
    assert "there is not enough memory for a snapshot of sequence 0" in done.stdout


def test_threads_that_do_not_start_are_an_error(demo_path, run_python, tmp_path):
    done = run_python(
        LIMIT
        + """
with limited(100 << 20):
    try:
        quantize(sys.argv[1], sys.argv[2], "Q8_0", nthread=200)
    except (QuantizeError, MemoryError) as error:
        print(error)
quantize(sys.argv[1], sys.argv[2], "Q8_0", nthread=3)
""",
        demo_path,
        tmp_path / "out.gguf",
    )
    assert done.returncode == 0, done.stderr
    assert "of 200 threads: give nthread=" in done.stdout
