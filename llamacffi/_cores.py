"""How many cores this process may keep busy."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path


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
