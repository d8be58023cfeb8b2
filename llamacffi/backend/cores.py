"""How many cores this process may keep busy."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# How often to look at what runs, and how many seconds to let pass between: what runs at each look
# is there to stay.
LOOKS, PAUSE = 3, 0.0005


def physical_cores() -> int:
    """Count the physical cores that this process may keep busy; at least 1.

    Two hardware threads of one core share its arithmetic units, so more threads than cores slow
    the computation down.  So do more than the quota of a container grants: the threads wait for
    each other, and one that was stopped stops all.
    """
    if sys.platform == "linux":
        allowed = os.sched_getaffinity(0)
        cores = len({_siblings(cpu) for cpu in allowed})
        return max(1, min(cores, math.floor(min(_quotas(Path("/")), default=cores))))
    # Elsewhere nobody tells: most x86 cores have two hardware threads, others one.
    per_core = 2 if platform.machine().lower() in ("x86_64", "amd64") else 1
    return max(1, (os.cpu_count() or 1) // per_core)


def processors() -> int:
    """Count the processors that this process may use, hardware threads among them; at least 1."""
    if sys.platform == "linux":
        allowed = len(os.sched_getaffinity(0))
        return max(1, math.ceil(min([allowed, *_quotas(Path("/"))])))
    return os.cpu_count() or 1


def free_cores() -> int:
    """Count the physical cores that other programs leave to this process; at least 1.

    Threads that spin for each other need a processor each: if there is one too few, all wait for
    the one that waits.  What counts is what runs now: the load average would also tell of what has
    ended a minute ago.  This process does not count, since the threads of a context that is there
    already spin for a while without work.  Only Linux tells.
    """
    return left(physical_cores(), os.cpu_count() or 1, _running(Path("/proc")))


def left(cores: int, online: int, running: int) -> int:
    """Return how many of ``cores`` there are for threads that spin; at least 1.

    Args:
        cores: The physical cores that may be used.
        online: All processors of the machine, hardware threads among them.
        running: How many threads of other programs use one.
    """
    return max(1, min(cores, online - running))


def _running(proc: Path) -> int:
    """Return how many threads of other programs use a processor; 0 if unknown.

    Args:
        proc: Where the system tells of processes.
    """
    found = []
    for look in range(LOOKS):
        if look:
            time.sleep(PAUSE)
        # "0.20 0.18 0.12 1/80 11206": the load, what runs of all, and the last process.
        fields = _read(proc / "loadavg").split()
        running = fields[3].partition("/")[0] if len(fields) > 3 else ""
        if not running.isdigit() or int(running) <= 1:  # this thread alone
            return 0
        found.append(int(running) - _own_running(proc))
    return max(0, min(found))


def _own_running(proc: Path) -> int:
    """Return how many threads of this process use a processor, or wait for one."""
    # "11206 (a name) R ...": the thread, its name, and what it does.
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
    """Yield how many processors' time each control group around this process grants, if it limits.

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
        # In a container the name may be that outside of it: then only its root is there.
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
