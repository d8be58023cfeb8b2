"""Command line of the generator; the work is in ffigen/.

python build_ffi.py vendor      fetch the llama.cpp that vendor/llama.toml pins
python build_ffi.py generate    headers -> C and Python
python build_ffi.py lock        write headers/api.lock, or one to lie beside libraries
python build_ffi.py check       is headers/api.lock fresh?
python build_ffi.py diff        what is different between two llama.cpp?
python build_ffi.py history     prove the generator with versions of the past
python build_ffi.py bump        follow llama.cpp to a version
python build_ffi.py parts       which parts of native/ do not compile with a llama.cpp?
python build_ffi.py exports     which functions do the linked libraries export?
"""

from __future__ import annotations

import argparse
import difflib
import json
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ffigen.project import Project

ROOT = Path(__file__).resolve().parent
HEADERS = ROOT / "headers"
LOCK = HEADERS / "api.lock"


def vendor(args: argparse.Namespace) -> int:
    """Fetch llama.cpp unless it is there."""
    from ffigen.vendor import ensure_tree, read_pin

    tree = ensure_tree(ROOT)
    if args.json:
        pinned = tree.commit == read_pin(ROOT).commit
        told = {"path": tree.path.as_posix(), "commit": tree.commit, "pinned": pinned}
        print(json.dumps(told))
    return 0


def generate(args: argparse.Namespace) -> int:
    """Write what is generated from the headers."""
    package = args.package or args.out / "package"
    for path in project().generate(llama_cpp(args), args.out, package, args.without):
        print(f"wrote {path}")
    return 0


def lock(args: argparse.Namespace) -> int:
    """Write headers/api.lock, or one to lie beside libraries."""
    from ffigen.render import write_if_changed
    from ffigen.vendor import commit_of

    path, text = args.out or LOCK, project().lock_text(llama_cpp(args))
    if args.out:
        text += f"# llama.cpp: {args.commit or commit_of(llama_cpp(args))}\n"
    texts = {path: text}
    if args.hash:
        texts[args.hash] = f'#define LLAMACFFI_BUILT_LAYOUT "{digest(text)}"\n'
    for file, content in texts.items():
        if write_if_changed(file, content):
            print(f"wrote {file}")
    return 0


def check(args: argparse.Namespace) -> int:
    """Compare headers/api.lock with the headers; print the difference."""
    old = LOCK.read_text(encoding="utf-8") if LOCK.exists() else ""
    new = project().lock_text(llama_cpp(args))
    if old == new:
        return 0
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), "headers/api.lock", "the headers", lineterm="", n=0
    )
    print("\n".join(lines))
    print("headers/api.lock is stale: run `python build_ffi.py lock`", file=sys.stderr)
    return 1


def diff(args: argparse.Namespace) -> int:
    """Compare two llama.cpp; exits with 0 if nothing changed, 1 if nothing broke, 2 if it did."""
    from ffigen.follow.sides import compare_sides, read_side

    here = project()
    old, new = (read_side(name, here, tell) for name in (args.old, args.new))
    report = compare_sides(old, new, here, uses=args.uses)
    template = "diff.md.j2" if args.format == "markdown" else "diff.txt.j2"
    if args.format == "json":
        print(report.json())
    else:
        print(report.render(template, here.templates), end="")
    return {"nothing": 0, "compatible": 1, "breaking": 2}[report.level]


def history(args: argparse.Namespace) -> int:
    """Generate the binding of versions of the past, and compile it."""
    from ffigen.follow.history import ALL, describe, prove, record, resolve
    from ffigen.follow.versions import HISTORY

    here = project()
    build = resolve(ROOT, args.build)
    names = args.versions or ([] if build else [ALL])
    proofs = []
    for number in resolve(ROOT, [*names, *build]):
        whole = number in build
        proofs.append(prove(here, number, tell, whole=whole))
        print(describe(proofs[-1], whole=whole), flush=True)
    if ALL in names and record(here, proofs):
        print(f"wrote {HISTORY}")
    return 0


def bump(args: argparse.Namespace) -> int:
    """Follow llama.cpp to a version; what fails leaves the tree as it was."""
    from ffigen.follow.bump import TESTS, BumpError, Plan
    from ffigen.follow.bump import bump as follow
    from ffigen.follow.versions import available_versions

    here = project()
    number = available_versions(ROOT)[0] if args.version == "newest" else args.version
    plan = Plan(number, args.sha256, args.commit, whole=args.whole, tests=args.tests or TESTS)
    try:
        report = follow(here, plan, tell)
    except BumpError as error:
        if error.report:
            print(error.report.render("diff.txt.j2", here.templates), end="")
        raise
    print(report.render("diff.txt.j2", here.templates), end="")
    if args.report:
        args.report.write_text(report.render("diff.md.j2", here.templates), encoding="utf-8")
    return 0


def parts(args: argparse.Namespace) -> int:
    """Print the parts of native/ that do not compile against a llama.cpp, for CMake."""
    from ffigen.compile import failing_parts

    failed = failing_parts(project(), llama_cpp(args))
    for part, error in failed.items():
        print(f"built without native/{part}.cpp: {error}", file=sys.stderr)
    print(";".join(failed), end="")
    return 0


def exports(args: argparse.Namespace) -> int:
    """Report the functions that no library exports, or only a backend does."""
    from ffigen import render
    from ffigen.exports import late_functions

    api = project().api(llama_cpp(args), args.without)
    unexported, late = late_functions(api, args.libraries, args.nm)
    text = render.render(
        "exports.py.j2", api, HEADERS / "templates", unexported=unexported, late=late
    )
    if args.package:
        render.write_if_changed(args.package / "_generated" / "exports.py", text)
    print(f"{len(late)} functions come with a backend; exported by no library: {unexported}")
    return 0


def tell(line: str) -> None:
    """Say what is done, beside what is printed."""
    print(line, file=sys.stderr)


def project() -> Project:
    """Return this source tree."""
    from ffigen.project import Project

    return Project(ROOT)


def llama_cpp(args: argparse.Namespace) -> Path:
    """Return the tree to read: the one that was named, or the pinned one."""
    if args.llama_cpp:
        return Path(args.llama_cpp).resolve()
    from ffigen.vendor import ensure_tree

    return ensure_tree(ROOT).path


def digest(text: str) -> str:
    """Return the hash of a lock, as the package makes it; which cannot be imported yet."""
    result: str = runpy.run_path(str(ROOT / "llamacffi" / "_native" / "layout.py"))["digest"](text)
    return result


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    main_parser = argparse.ArgumentParser(
        description="Generate the binding of llama.cpp from its headers."
    )
    commands = main_parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Any) -> argparse.ArgumentParser:
        name = function.__name__
        one = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        one.set_defaults(run=function)
        return one

    command(vendor).add_argument("--json", action="store_true", help="print path and commit")
    compared = command(diff)
    compared.set_defaults(failure=3, format="text")
    sides = "a version of the pin's package, a llama.cpp tree, an api.lock, or `pin`"
    compared.add_argument("old", metavar="OLD", help=sides)
    compared.add_argument("new", metavar="NEW", help="the same")
    for form, what in (("json", "the whole report, as JSON"), ("markdown", "for a pull request")):
        compared.add_argument(
            f"--{form}", action="store_const", dest="format", const=form, help=what
        )
    compared.add_argument(
        "--no-uses", action="store_false", dest="uses", help="leave out what uses it"
    )
    bumped = command(bump)
    bumped.add_argument("version", metavar="VERSION", help="of the pin's package, or newest")
    bumped.add_argument("--sha256", help="of its archive, if you know it from elsewhere")
    bumped.add_argument("--commit", help="of the llama.cpp in it, if it does not tell")
    bumped.add_argument("--report", type=Path, metavar="FILE", help="write the changes as Markdown")
    bumped.add_argument(
        "--headers-only",
        action="store_false",
        dest="whole",
        help="generate and compile the module, but neither build llama.cpp nor test",
    )
    bumped.add_argument(
        "--tests", action="append", metavar="PATH", help="run these instead of those that matter"
    )
    proved = command(history)
    proved.add_argument(
        "versions", metavar="VERSION", nargs="*", help="or newest, or all (default)"
    )
    proved.add_argument(
        "--build", action="append", default=[], metavar="VERSION", help="build whole, and test"
    )
    for function in (generate, lock, check, parts, exports):
        one = command(function)
        one.add_argument("--llama-cpp", metavar="DIR", help="a llama.cpp tree (default: the pin)")
        if function in (generate, exports):
            one.add_argument(
                "--without",
                action="append",
                default=[],
                metavar="PART",
                help="leave out what does not compile: see `parts`",
            )
            one.add_argument("--package", type=Path, metavar="DIR", help="where the Python goes")
        if function is generate:
            one.add_argument("--out", type=Path, required=True, metavar="DIR")
        if function is lock:
            one.add_argument("--out", type=Path, metavar="FILE", help="default: headers/api.lock")
            one.add_argument("--commit", help="of the tree, if that itself does not tell")
            one.add_argument("--hash", type=Path, metavar="HEADER", help="where its hash goes")
        if function is exports:
            one.add_argument("--nm", default="nm", help="the program that lists symbols")
            one.add_argument("libraries", type=Path, nargs="+", metavar="LIBRARY")
    return main_parser


def main() -> int:
    """Run one command; what goes wrong is one sentence on stderr."""
    from ffigen.preprocess import GeneratorError
    from ffigen.vendor import VendorError

    args = parser().parse_args()
    failure: int = getattr(args, "failure", 1)
    try:
        return int(args.run(args))
    except (GeneratorError, VendorError) as error:
        print(f"build_ffi.py: {error}", file=sys.stderr)
        return failure


if __name__ == "__main__":
    sys.exit(main())
