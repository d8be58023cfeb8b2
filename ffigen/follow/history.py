"""The proof over history: the generator with every llama.cpp that the pin's package has carried."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..compile import CompileError, check_module, failing_parts
from ..lock import Facts, read_lock
from ..project import Project
from ..render import write_if_changed
from ..vendor import CHECKOUT_VARIABLE, read_pin
from .trial import build, python, run_step, trial
from .versions import (
    HISTORY,
    Version,
    available_versions,
    format_history,
    read_history,
    version_key,
    version_tree,
)

Echo = Callable[[str], None]

# What a whole build has to pass: the raw layer, and the built-in model, whose logits are known.
TESTS = ("tests/raw", "tests/facade/test_demo.py")


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of one version."""

    version: Version
    facts: Facts
    without: Mapping[str, str]
    """The parts of native/ that do not suit it, with the compiler's word."""


def prove(project: Project, number: str, echo: Echo, *, whole: bool = False) -> Proof:
    """Generate the binding of a version and compile it.

    Args:
        project: This source tree.
        number: The version of the pin's package.
        echo: Is told what is done.
        whole: Also build it with its llama.cpp, and run the tests of the raw layer.

    Raises:
        GeneratorError: The headers are not understood, or something does not compile.
        VendorError: The version cannot be fetched.
        StepError: The build or the tests failed.
    """
    with version_tree(project.root, number, echo) as (tree, version):
        facts = read_lock(project.lock_text(tree), number)
        without = compile_what_suits(project, tree)
        if whole:
            prove_whole(project.root, tree, echo)
    return Proof(version, facts, without)


def compile_what_suits(project: Project, tree: Path) -> dict[str, str]:
    """Compile the module for a tree, without the parts that do not suit it; return those.

    Raises:
        CompileError: Something else does not compile.
    """
    try:
        check_module(project, tree)
    except CompileError:
        failed = failing_parts(project, tree)
        check_module(project, tree, failed)
        return failed
    return {}


def prove_whole(root: Path, tree: Path, echo: Echo) -> None:
    """Build a copy of ourselves against a tree, and test it."""
    environ = {**os.environ, CHECKOUT_VARIABLE: str(tree)}
    with trial(root) as copy:
        build(copy, environ, echo)
        run_step("tests", [python(copy), "-m", "pytest", "-q", *TESTS], copy, environ, echo)


def describe(proof: Proof, *, whole: bool) -> str:
    """Return one line about a version."""
    facts = proof.facts
    parts = f", without {', '.join(proof.without)}" if proof.without else ""
    done = "builds, and passes its tests" if whole else "compiles"
    return (
        f"{proof.version.number} {proof.version.commit[:12]}: {len(facts.functions)} functions, "
        f"{len(facts.records)} structs, {len(facts.enumerators)} enumerators; {done}{parts}"
    )


ALL, NEWEST = "all", "newest"


def resolve(root: Path, names: Sequence[str]) -> list[str]:
    """Return the versions that are named, the oldest first.

    Args:
        root: The top directory of our sources.
        names: Versions; ``newest``; or ``all`` from the first one in vendor/history.toml.

    Raises:
        VendorError: Not all are named, and the package index cannot be asked.
    """
    asked = {ALL, NEWEST} & set(names)
    there = sorted(available_versions(root), key=version_key) if asked else []
    known = read_history(root)
    first = min(map(version_key, [*known, read_pin(root).version]))
    numbers = {name for name in names if name not in asked}
    if NEWEST in asked:
        numbers.add(there[-1])
    if ALL in asked:
        numbers |= {*known, *(one for one in there if version_key(one) >= first)}
    return sorted(numbers, key=version_key)


def record(project: Project, proofs: Sequence[Proof]) -> bool:
    """Add the versions that were proved to vendor/history.toml; tell whether it changed."""
    known = {proof.version.number: proof.version for proof in proofs}
    text = format_history(read_history(project.root) | known)
    return write_if_changed(project.root / HISTORY, text)
