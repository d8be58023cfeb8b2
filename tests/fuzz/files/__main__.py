"""The command line: see the package."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import seeds
from .campaign import by_chance, corpus
from .pool import Finding, Pool
from .recipe import Recipe


def main() -> int:
    """Run it; return 1 if something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.files", description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="how many changed files")
    parser.add_argument("--first", type=int, default=0, help="the number of the first: to go on")
    parser.add_argument("--seed", type=int, default=0, help="of the chance")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--minutes", type=float, default=10, help="end after so long")
    parser.add_argument("--replay", metavar="RECIPE", help="one file alone, or 'corpus' for all")
    parser.add_argument("--models", type=Path, help="a directory with more models to change")
    parser.add_argument("--only", default="", help="seeds whose names have this in them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        files = seeds.write(Path(name))
        files |= seeds.more(options.models) if options.models else {}
        pool = Pool(Path(name), files, options.jobs)
        if options.replay:
            replayed = corpus() if options.replay == "corpus" else [Recipe.parse(options.replay)]
            return _report(pool.run(iter(replayed)))
        chosen = {name: one for name, one in files.items() if options.only in name}
        recipes = by_chance(chosen, options.seed, options.first, options.first + options.count)
        start = time.monotonic()
        end = start + 60 * options.minutes
        failed = _report(pool.run(recipes, until=lambda: time.monotonic() > end))
        seconds = time.monotonic() - start
        print(f"{pool.n_done} files in {seconds:.0f} s, {pool.n_refused} of them refused")
        print(f"to go on: --seed {options.seed} --first {options.first + pool.n_done}")
        return failed


def _report(findings: Iterator[Finding]) -> int:
    """Print what was found, each with its recipe; return 1 if there is something."""
    found = 0
    for finding in findings:
        found += 1
        print(f"--- {finding.what.strip()}\n{finding.recipe}", flush=True)
    print(f"{found} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
