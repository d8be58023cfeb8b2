"""The generator with other llama.cpp than the pinned one, and what is learnt from them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ffigen.compile import CompileError, check_module
from ffigen.fetch import VendorError
from ffigen.follow.history import compile_what_suits, describe, prove, record, resolve
from ffigen.follow.versions import (
    Version,
    available_versions,
    fetch_version,
    format_history,
    read_history,
    version_key,
)
from ffigen.preprocess import INCLUDE_DIRS
from ffigen.project import Project
from ffigen.vendor import read_pin

from ..packages import Change, Site, site

__all__ = ["site"]

B, C = "b" * 40, "c" * 40


def silent(line: str) -> None:
    """Tell nobody."""


def test_versions_are_numbers() -> None:
    assert sorted(["0.3.9", "0.3.36", "0.3.10"], key=version_key) == ["0.3.9", "0.3.10", "0.3.36"]


def test_the_history_of_this_project(root: Path) -> None:
    """It begins where the packages that carry a tree with all we need do, and has the pin."""
    known = read_history(root)
    pin = read_pin(root)
    assert next(iter(known)) == "0.3.16"
    assert known[pin.version] == Version(pin.version, pin.commit, pin.sha256)
    assert all(len(one.commit) == 40 and len(one.sha256) == 64 for one in known.values())
    assert format_history(known) == (root / "vendor" / "history.toml").read_text()


# --- Versions of the package ----------------------------------------------------------------------


def test_what_the_index_has(site: Site) -> None:
    site.publish("1.10", B)
    site.publish("1.9", B)
    assert available_versions(site.root) == ["1.10", "1.9", "1.0"]
    assert resolve(site.root, ["newest"]) == ["1.10"]
    assert resolve(site.root, ["all"]) == ["1.0", "1.9", "1.10"]
    assert resolve(site.root, ["newest", "1.0"]) == ["1.0", "1.10"]


def test_an_index_that_does_not_answer(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(site.index / "nowhere"))
    with pytest.raises(VendorError, match="name a version"):
        resolve(site.root, ["newest"])
    assert resolve(site.root, ["1.0"]) == ["1.0"]


def test_a_version_is_fetched_with_its_commit(site: Site, tmp_path: Path) -> None:
    site.publish("2.0", B)
    version = fetch_version(site.root, "2.0", tmp_path / "tree")
    assert (version.number, version.commit, len(version.sha256)) == ("2.0", B, 64)
    assert (tmp_path / "tree" / "include" / "llama.h").exists()


def test_a_version_that_is_known_must_be_the_same(site: Site, tmp_path: Path) -> None:
    site.publish("2.0", B)
    (site.root / "vendor" / "history.toml").write_text(
        format_history({"2.0": Version("2.0", B, "0" * 64)})
    )
    with pytest.raises(VendorError, match="wrong sha256"):
        fetch_version(site.root, "2.0", tmp_path / "tree")


def test_a_package_that_does_not_tell_its_commit(site: Site, tmp_path: Path) -> None:
    """Its headers have a hash."""
    site.publish("2.0", "ref: refs/heads/master")
    version = fetch_version(site.root, "2.0", tmp_path / "tree")
    assert re.fullmatch(r"tree-[0-9a-f]{12}", version.commit)


# --- Proving --------------------------------------------------------------------------------------

LLAMA_EXT_H = "src/llama-ext.h"


def without_reserve(text: str) -> str:
    return text.replace("llama_graph_reserve", "llama_graph_plan")


def test_a_version_is_proved_and_recorded(site: Site) -> None:
    """What is no longer in its C++ costs the part that needs it, and no more."""
    changes: dict[str, Change] = {LLAMA_EXT_H: without_reserve}
    site.publish("2.0", B, changes)
    one = prove(site.project, "2.0", silent)
    assert list(one.without) == ["graph"]
    assert "llama_graph_reserve" in one.without["graph"]
    assert describe(one, whole=False).endswith("enumerators; compiles, without graph")
    first = prove(site.project, "1.0", silent)
    assert first.without == {}
    assert record(site.project, [first, one])
    assert not record(site.project, [first, one])  # it is written there already
    assert list(read_history(site.root)) == ["1.0", "2.0"]


def test_the_command_line(site: Site) -> None:
    site.publish("2.0", B, {"include/llama.h": lambda text: text + "\ntemplate <int> void f();\n"})
    command = [sys.executable, site.root / "build_ffi.py", "history"]
    done = subprocess.run([*command, "1.0"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("; compiles\n")) == (0, 1), done.stderr
    failed = subprocess.run([*command, "1.0", "2.0"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stdout.startswith("1.0 ")
    assert "build_ffi.py: " in failed.stderr
    assert "include/llama.h:" in failed.stderr
    assert "template <int> void f();" in failed.stderr


# --- Parts ----------------------------------------------------------------------------------------


@pytest.fixture
def copy(llama_cpp: Path, tmp_path: Path) -> Path:
    """All headers of the pinned llama.cpp that our C++ includes."""
    for folder in (*INCLUDE_DIRS, "src", "ggml/src"):
        (tmp_path / folder).mkdir(parents=True)
        for header in (llama_cpp / folder).glob("*.h"):
            (tmp_path / folder / header.name).write_bytes(header.read_bytes())
    return tmp_path


def test_the_pinned_llama_cpp_suits_every_part(root: Path, copy: Path) -> None:
    project = Project(root)
    assert compile_what_suits(project, copy) == {}


# What the C++ of each part calls, and where it is declared.
CALLED = {
    "graph": (LLAMA_EXT_H, "llama_graph_reserve"),
    "pending": ("src/llama-context.h", "sched_reserve"),
    "quantize": (LLAMA_EXT_H, "llama_ftype_get_default_type"),
    "model": ("src/llama-model.h", "llama_internal_get_tensor_map"),
}


@pytest.mark.parametrize("parts", [["graph", "model"], ["pending", "quantize"]], ids=", ".join)
def test_parts_are_left_out(root: Path, copy: Path, parts: list[str]) -> None:
    """Their functions are not declared then, and said to be missing; the rest compiles."""
    for header, old in map(CALLED.__getitem__, parts):
        path = copy / header
        path.write_text(path.read_text().replace(old, f"{old}_2"))
    project = Project(root)
    with pytest.raises(CompileError) as caught:
        check_module(project, copy)
    said = re.findall(r"^(\w+)\.cpp does not compile:$", str(caught.value), re.MULTILINE)
    assert said == parts  # all that fail, not only the first
    failed = compile_what_suits(project, copy)
    assert list(failed) == parts
    missing = project.missing(project.api(copy, parts), parts)
    for part in parts:
        assert f"{part}.cpp:" in failed[part]
        assert any(project.parts[part] in one.reason for one in missing)
    assert all(any(project.parts[part] in one.reason for part in parts) for one in missing)


def test_what_an_older_llama_cpp_lacks_is_known(root: Path, copy: Path) -> None:
    path = copy / "include" / "llama.h"
    text = path.read_text()
    text = text.replace("llama_max_devices(void)", "llama_max_devices(int planted)")
    text = text.replace("llama_time_us", "llama_time_in_us")
    path.write_text(text)
    project = Project(root)
    missing = {one.name: one.reason for one in project.missing(project.api(copy), ())}
    assert set(missing) == {"llama_max_devices", "llama_time_us"}
    assert missing["llama_time_us"].endswith("does not have it")
    assert missing["llama_max_devices"].endswith("argument 1 int planted is new")


def test_nothing_is_missing_from_the_pinned_one(root: Path, llama_cpp: Path) -> None:
    project = Project(root)
    assert project.missing(project.api(llama_cpp), ()) == []
