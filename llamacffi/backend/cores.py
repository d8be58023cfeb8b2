"""Count the cores that this process may keep busy."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# Count running threads this many times, with a pause of so many seconds in between, and take the
# lowest count: only threads that run each time will keep running.
N_SAMPLES, PAUSE = 3, 0.0005


def physical_cores() -> int:
    """Count the physical cores that this process may keep busy; at least 1.

    The hardware threads of a core share its arithmetic units, so more threads than cores slow the
    computation down.  So do more threads than the CPU quota of a container allows: the threads wait
    for each other, and one that is throttled stops all.

    Returns:
        The number of cores.
    """
    if sys.platform == "linux":
        allowed = os.sched_getaffinity(0)
        cores = len({_siblings(cpu) for cpu in allowed})
        return max(1, min(cores, math.floor(min(_quotas(Path("/")), default=cores))))
    # Elsewhere, guess: most x86 cores have two hardware threads, others have one.
    per_core = 2 if platform.machine().lower() in ("x86_64", "amd64") else 1
    return max(1, (os.cpu_count() or 1) // per_core)


def processors() -> int:
    """Count the processors that this process may use, including hardware threads; at least 1."""
    if sys.platform == "linux":
        allowed = len(os.sched_getaffinity(0))
        return max(1, math.ceil(min([allowed, *_quotas(Path("/"))])))
    return os.cpu_count() or 1


def free_cores() -> int:
    """Count the physical cores that other programs leave free for this process; at least 1.

    Threads that spin for each other need a processor each: with one too few, all wait for the
    thread that has none.  This counts what runs now; the load average would include programs that
    ended a minute ago.  It ignores this process, where the threads of an existing context may spin
    without work.  Outside Linux, it returns all physical cores.
    """
    return left(physical_cores(), os.cpu_count() or 1, _running(Path("/proc")))


def left(cores: int, online: int, running: int) -> int:
    """Return how many of ``cores`` are left for threads that spin; at least 1.

    Args:
        cores: The physical cores that may be used.
        online: All processors of the machine, including hardware threads.
        running: The number of threads of other programs that are running.
    """
    return max(1, min(cores, online - running))


def _running(proc: Path) -> int:
    """Return how many threads of other programs use a processor; 0 if unknown.

    Args:
        proc: The proc file system.
    """
    found = []
    for i in range(N_SAMPLES):
        if i:
            time.sleep(PAUSE)
        # "0.20 0.18 0.12 1/80 11206": loads, running and total threads, and the last process.
        fields = _read(proc / "loadavg").split()
        running = fields[3].partition("/")[0] if len(fields) > 3 else ""
        if not running.isdigit() or int(running) <= 1:  # this thread alone
            return 0
        found.append(int(running) - _own_running(proc))
    return max(0, min(found))


def _own_running(proc: Path) -> int:
    """Return how many threads of this process use a processor or wait for one."""
    # "11206 (a name) R ...": the thread, its name, and its state.
    stats = (_read(file) for file in (proc / "self/task").glob("*/stat"))
    return max(1, sum(stat.rpartition(")")[2].split()[:1] == ["R"] for stat in stats))


def _siblings(cpu: int) -> str:
    """Return the hardware threads of a CPU's core, as the kernel names them."""
    try:
        path = f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return str(cpu)


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quota, in processors, of each control group around this process that has one.

    Args:
        root: The root of the file system.
    """
    groups = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if not controllers:  # version 2
            mount, files = groups, ["cpu.max"]
        elif "cpu" in controllers.split(","):
            mount, files = groups / "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        # In a container the name may be the host's: then only the root of the mount exists.
        group = mount / name.lstrip("/")
        for directory in (group, *group.parents):
            values = " ".join(_read(directory / file) for file in files).split()
            if len(values) == 2 and values[0].isdigit() and int(values[1]):
                yield int(values[0]) / int(values[1])
            if directory == mount:
                break


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
