"""Following llama.cpp to another version in a copy, from which only a success is copied back."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..compile import check_module
from ..fetch import VendorError
from ..preprocess import GeneratorError
from ..project import Project
from ..vendor import adopt, change_pin
from .report import Report, Side
from .sides import Source, compare_sides, read_side, read_tree
from .trial import StepError, build, python, run_step, trial
from .versions import HISTORY, Version, fetch_version, format_history, read_history

Echo = Callable[[str], None]

# What a bump writes; nothing else.
WRITTEN = (
    "vendor/llama.toml",
    HISTORY.as_posix(),
    "headers/api.lock",
    "docs/raw_unsafe.toml",
    "docs/raw_unsafe.md",
    "CHANGELOG.md",
)
# The tests that matter: of the generator, the raw layer, the facade, and what is said of them.
TESTS = ("tests/ffigen", "tests/raw", "tests/facade", "tests/cli", "tests/project")
VERSIONS = (
    "import llamacffi; info = llamacffi.build_info(); print(info.llama_version, info.ggml_version)"
)


class BumpError(StepError):
    """A bump failed; the tree is as it was.  Has the report of what changed, if it came to that."""

    def __init__(self, error: Exception, step: str, report: Report | None) -> None:
        reason = str(error).removeprefix(f"{step}: ")
        super().__init__(step, f"{reason}\nNothing was changed.")
        self.report = report


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for."""

    number: str
    """The version of the pin's package."""
    sha256: str | None = None
    """Of its archive, if it is known from elsewhere."""
    commit: str | None = None
    """Of the llama.cpp in it, if it does not tell."""
    whole: bool = True
    """Build and test; otherwise only generate, and compile the module against the headers."""
    tests: Sequence[str] = TESTS


def bump(project: Project, plan: Plan, echo: Echo) -> Report:
    """Follow llama.cpp to a version: fetch, generate, compile, build, test, and then write.

    Args:
        project: This source tree.  It is written only at the end, when all has passed.
        plan: Where to go, and how.
        echo: Is told what is done.

    Returns:
        What changed in the API, with the places of our own code that it touches.

    Raises:
        BumpError: Something failed, and where.
    """
    report: Report | None = None
    step = "fetch"
    try:
        with trial(project.root) as copy:
            old = read_side("pin", project, echo)
            version = fetch_into(copy, plan, echo)
            step = "generate"
            new = read_new(Project(copy), version)
            report = compare_sides(old, new, project)
            step = "compile"
            check_module(Project(copy), copy / "vendor" / "llama.cpp")
            versions = ""
            if plan.whole:
                step = "build"
                versions = build_and_test(copy, plan.tests, echo)
            step = "write"
            describe(copy, old, new, versions)
            install(copy, project.root)
    except (GeneratorError, VendorError, OSError) as error:
        failed = error.step if isinstance(error, StepError) else step
        raise BumpError(error, failed, report) from error
    return report


def fetch_into(copy: Path, plan: Plan, echo: Echo) -> Version:
    """Fetch the version, and make it the pin of the copy."""
    tree = copy / "vendor" / ".llama.cpp.new"
    version = fetch_version(copy, plan.number, tree, sha256=plan.sha256, echo=echo)
    version = replace(version, commit=plan.commit or version.commit)
    if not re.fullmatch(r"[0-9a-f]{40}", version.commit):
        raise VendorError(
            f"{version.number} does not tell the commit of the llama.cpp in it, but "
            f"{version.commit}: give it with --commit, 40 hex digits."
        )
    pin = copy / "vendor" / "llama.toml"
    values = {"commit": version.commit, "version": version.number, "sha256": version.sha256}
    write(pin, change_pin(pin.read_text(encoding="utf-8"), **values))
    known = read_history(copy)
    write(copy / HISTORY, format_history({**known, version.number: version}))
    adopt(copy, tree)
    return version


def read_new(copy: Project, version: Version) -> Source:
    """Write the lock of the copy; return the facts in it."""
    tree = copy.root / "vendor" / "llama.cpp"
    write(copy.lock, copy.lock_text(tree))
    return read_tree(copy, tree, Side(version.number, version.commit))


def build_and_test(copy: Path, tests: Sequence[str], echo: Echo) -> str:
    """Build everything in the copy and run tests; return the versions of llama and ggml."""
    build(copy, own_environ(), echo)
    run_step("reference", ["make", "reference"], copy, own_environ(), echo)
    versions = run_step("import", [python(copy), "-c", VERSIONS], copy, own_environ(), echo)
    run_step("fuzz", ["make", "fuzz"], copy, own_environ(), echo)  # the table is of one llama.cpp
    run_step("tests", [python(copy), "-m", "pytest", "-q", *tests], copy, own_environ(), echo)
    llama, ggml = versions.split()
    return f" ({llama}, ggml {ggml})"


def own_environ() -> Mapping[str, str]:
    """Return the environment without what would lead to another llama.cpp."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LLAMACFFI_")}


# --- What is written ------------------------------------------------------------------------------


def describe(copy: Path, old: Source, new: Source, versions: str) -> None:
    """Write the changelog of the copy."""
    changelog = copy / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8")
    write(changelog, changed_changelog(text, old.side.commit, new.side.commit, versions))


def changed_changelog(text: str, old: str, new: str, versions: str) -> str:
    """Return the changelog with ``llama.cpp: old..new`` among what is not released.

    If there is such a line, its beginning stays: the last release had that.

    Raises:
        GeneratorError: There is no heading "Unreleased".
    """
    heading = re.search(r"^## \[?Unreleased\]?\n", text, re.MULTILINE)
    if not heading:
        raise GeneratorError('CHANGELOG.md has no heading "## Unreleased": add one')
    following = re.compile(r"^## ", re.MULTILINE).search(text, heading.end())
    end = following.start() if following else len(text)
    section = text[heading.end() : end]
    line = re.search(r"^llama\.cpp: (\S+?)\.\..*$", section, re.MULTILINE)
    if line:
        told = f"llama.cpp: {line[1]}..{new[:12]}{versions}"
        section = section[: line.start()] + told + section[line.end() :]
    else:
        section = f"\nllama.cpp: {old[:12]}..{new[:12]}{versions}\n{section}"
    return text[: heading.end()] + section + text[end:]


def write(path: Path, text: str) -> None:
    """Write a file of the copy."""
    path.write_text(text, encoding="utf-8")


def install(copy: Path, root: Path) -> None:
    """Copy the files that a bump has written from the copy to the tree: all of them, or none.

    Raises:
        OSError: A file cannot be written.  The tree is as it was.
    """
    texts = {name: (copy / name).read_bytes() for name in WRITTEN}
    before = {name: read_if_there(root / name) for name in WRITTEN}
    changed = [name for name in WRITTEN if texts[name] != before[name]]
    beside: dict[str, Path] = {}
    done: list[str] = []
    try:
        for name in changed:  # what can fail for want of room or of permission comes first
            descriptor, path = tempfile.mkstemp(prefix=".bump-", dir=(root / name).parent)
            beside[name] = Path(path)
            with open(descriptor, "wb") as file:
                file.write(texts[name])
            beside[name].chmod(0o644)
        for name in changed:
            beside[name].replace(root / name)
            done.append(name)
    except BaseException:  # also if interrupted: all of them, or none
        for name in done:
            restore(root / name, before[name])
        raise
    finally:
        for path_beside in beside.values():
            path_beside.unlink(missing_ok=True)


def read_if_there(path: Path) -> bytes | None:
    """Return the bytes of a file; None if there is none."""
    return path.read_bytes() if path.exists() else None


def restore(path: Path, data: bytes | None) -> None:
    """Make a file what it was."""
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
