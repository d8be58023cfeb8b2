"""The repository holds nothing of llama.cpp, nothing generated, and no paths of a machine."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from ffigen.project import Project

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def tracked(root):
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    output = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    return [root / name for name in output.stdout.decode().split("\0") if name]


def test_nothing_of_upstream_and_nothing_generated_is_tracked(root, tracked):
    names = {path.relative_to(root).as_posix() for path in tracked}
    assert not [
        name
        for name in names
        if name.startswith(("vendor/llama.cpp", "build/", "docs/headers", "site/"))
    ]
    assert not [name for name in names if "_generated/" in name or name.endswith((".so", ".pyi"))]
    assert "headers/api.lock" in names


def test_the_lock_holds_facts_and_no_sentences(root):
    """Names, types, offsets and values, but no comments."""
    kinds = re.compile(r"^(constant|enum|struct|union|field|typedef|function) ")
    lines = (root / "headers" / "api.lock").read_text().splitlines()
    facts = [line for line in lines if not line.startswith("#")]
    assert len(facts) > 1500
    assert [line for line in facts if not kinds.match(line)] == []
    assert [line for line in facts if "//" in line or "/*" in line] == []


def test_no_paths_of_a_machine(root, tracked):
    pattern = re.compile(rb"/(?:home|root|Users)/\w+")
    guilty = [path for path in tracked if path.is_file() and pattern.search(path.read_bytes())]
    assert [path for path in guilty if path.name != "test_tree.py"] == []


def test_the_build_group_has_all_that_the_build_requires(root):
    """`make` builds without isolation, so it must install them itself."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert set(project["build-system"]["requires"]) - {"pip"} <= set(
        project["dependency-groups"]["build"]
    )


def test_the_changelog_names_the_pin(root):
    pin = tomllib.loads((root / "vendor" / "llama.toml").read_text())
    assert pin["commit"][:12] in (root / "CHANGELOG.md").read_text()


def test_every_part_has_one_name(root):
    """What native/ has for Python is declared in a header of the same name, and found by that."""
    sources = {path.stem: path for path in (root / "native").rglob("*.cpp")}
    names = {path.stem for path in (root / "headers" / "llamacffi").glob("*.h")}
    assert names <= set(sources)
    for name in names:
        assert f'#include "llamacffi/{name}.h"' in sources[name].read_text(), name


def test_every_part_that_uses_internals_can_be_left_out(root):
    parts = {path.stem for path in (root / "native" / "internals").glob("*.cpp")}
    assert set(Project(root).parts) == parts
    assert len(parts) > 4
    for name in parts:
        header = (root / "headers" / "llamacffi" / f"{name}.h").read_text()
        assert re.findall(r"#ifndef LLAMACFFI_WITHOUT_(\w+)", header) == [name.upper()]
