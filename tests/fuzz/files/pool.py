"""Processes that use changed files, and what has become of them."""

from __future__ import annotations

import faulthandler
import itertools
import json
import mmap
import os
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .recipe import Recipe, make
from .seeds import Seed

CHUNK = 60  # files for one process
CPU_SECONDS = 5.0  # that a file may take
SECONDS = 120.0  # by the clock: only for what waits without end
MEMORY = 4 * 2**30
FILE = 2**28
PROGRESS = struct.Struct("<q")
NAMES = {signal.SIGPROF: "endless", signal.SIGALRM: "waits for ever"}


@dataclass(frozen=True)
class Finding:
    """A file that was not used as it should be."""

    recipe: Recipe
    what: str


class Pool:
    """Forks processes for lists of recipes."""

    def __init__(self, directory: Path, seeds: dict[str, Seed], jobs: int) -> None:
        """Work with the files in ``directory``."""
        self._directory, self._seeds, self._jobs = directory, seeds, jobs
        self.n_refused = 0
        """How many files were refused, as damaged ones should be."""
        self.n_done = 0
        """How many were used."""

    def run(
        self, recipes: Iterator[Recipe], until: Callable[[], bool] = lambda: False
    ) -> Iterator[Finding]:
        """Use the files, and yield what is wrong with each that is not handled as it should be."""
        running: dict[int, Child] = {}
        more: list[list[Recipe]] = []
        while True:
            while len(running) < self._jobs:
                chunk = more.pop() if more else ([] if until() else _take(recipes))
                if not chunk:
                    break
                child = Child(self, chunk)
                running[child.pid] = child
            if not running:
                return
            pid, status = os.wait()
            if pid not in running:
                continue
            child = running.pop(pid)
            findings, left = child.end(status)
            yield from findings
            if left:
                more.append(left)


def _take(recipes: Iterator[Recipe]) -> list[Recipe]:
    return list(itertools.islice(recipes, CHUNK))


class Child:
    """A process that uses one file after another."""

    def __init__(self, pool: Pool, recipes: Sequence[Recipe]) -> None:
        """Fork it."""
        self._pool, self._recipes = pool, recipes
        self._progress = mmap.mmap(-1, mmap.PAGESIZE)
        PROGRESS.pack_into(self._progress, 0, -1)
        shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self._work = Path(tempfile.mkdtemp(prefix="fuzz-files-", dir=shared))
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._main()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)

    def _main(self) -> None:
        from .use import World

        with open(self._work / "stderr", "w") as stderr:
            os.dup2(stderr.fileno(), 2)
        faulthandler.enable(2)
        _limit()
        world = World(self._pool._directory, self._work)
        with open(self._work / "findings", "w") as findings:
            n_refused = 0
            for i, recipe in enumerate(self._recipes):
                PROGRESS.pack_into(self._progress, 0, i)
                signal.setitimer(signal.ITIMER_PROF, 2 * CPU_SECONDS)
                signal.setitimer(signal.ITIMER_REAL, SECONDS)
                data = make(self._pool._seeds[recipe.seed].data, recipe.edits)
                before, what = time.process_time(), None
                try:
                    path = self._pool._seeds[recipe.seed].path
                    n_refused += world.use(recipe.use, path, data) is not None
                except Exception as error:
                    what = f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-4)}"
                seconds = time.process_time() - before
                if seconds > CPU_SECONDS:
                    what = f"took {seconds:.1f} s of CPU"
                if what is not None:
                    print(json.dumps([i, what]), file=findings, flush=True)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            (self._work / "refused").write_text(str(n_refused))

    def end(self, status: int) -> tuple[list[Finding], list[Recipe]]:
        """Return what the process has found, and the recipes that it has not got to."""
        found: list[Finding] = []
        path = self._work / "findings"
        for line in path.read_text().splitlines() if path.exists() else ():
            i, what = json.loads(line)
            found.append(Finding(self._recipes[i], what))
        if (self._work / "refused").exists():
            self._pool.n_refused += int((self._work / "refused").read_text())
        (at,) = PROGRESS.unpack_from(self._progress)
        self._pool.n_done += at + 1
        left: list[Recipe] = []
        if status:
            text = (self._work / "stderr").read_text(errors="replace")
            text = text.partition("Extension modules")[0][-1500:]
            if at < 0:
                raise RuntimeError(f"the fuzz itself failed: {text}")
            found.append(Finding(self._recipes[at], f"{_death(status)}\n{text}"))
            left = list(self._recipes[at + 1 :])
        shutil.rmtree(self._work, ignore_errors=True)
        return found, left


def _limit() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))


def _death(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = signal.Signals(os.WTERMSIG(status))
        return NAMES.get(number, number.name)
    return f"exit {os.WEXITSTATUS(status)}"
