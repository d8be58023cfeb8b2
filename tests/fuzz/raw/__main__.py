"""The command line: see the package."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from . import page, table
from .child import PATIENCE
from .runner import run, write
from .signatures import functions
from .walk import walk


def main() -> int:
    """Run it; return 1 if the data differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.raw", description=__doc__)
    parser.add_argument("functions", nargs="*", metavar="FUNCTION", help="all if none is given")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="CPU seconds for a call")
    parser.add_argument("--few", action="store_true", help="a few bad values for each place")
    parser.add_argument(
        "--update", action="store_true", help="write what is found, and keep the rest"
    )
    parser.add_argument("--nulls", action="store_true", help="only NULL in each place")
    parser.add_argument("--compare", action="store_true", help="write nothing, tell what differs")
    parser.add_argument("--render", action="store_true", help="only write the page from the data")
    parser.add_argument("--in", dest="directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.directory:
        _work(options.directory, options.few, options.patience, options.nulls)
        return 0
    if options.render:
        page.write()
        return 0
    start = time.monotonic()
    names = options.functions or list(functions())
    reports = run(names, options.jobs, options.few, options.patience, options.nulls)
    found = table.tabulate(reports)
    print(f"{found.calls} calls of {len(reports)} functions in {time.monotonic() - start:.0f} s")
    if options.update:
        found = table.updated(table.load(), found, names, nulls=options.nulls)
    elif options.functions or options.compare:
        return _compare(found, [one.function for one in reports])
    table.PATH.write_text(table.dump(found), encoding="utf-8")
    page.write()
    return 0


def _work(directory: Path, few: bool, patience: float, nulls: bool) -> None:
    names = (directory / "names").read_text().split("\n")
    known = functions()
    (directory / "work").mkdir()
    with (directory / "reports").open("w") as reports:
        for report in walk(
            [known[name] for name in names if name], directory / "work", few, patience, nulls
        ):
            reports.write(write(report))
            reports.flush()


def _compare(found: table.Table, names: list[str]) -> int:
    """Print what is not in the data, and what is there and was not found."""
    known = {one for one in table.load().fatal_places if one[0] in names}
    new, gone = sorted(found.fatal_places - known), sorted(known - found.fatal_places)
    for function, place, kind in new:
        print(f"not in the table: {function}, {place}, {kind}")
    for function, place, kind in gone:
        print(f"no longer fatal: {function}, {place}, {kind}")
    return 1 if new or gone else 0


if __name__ == "__main__":
    raise SystemExit(main())
