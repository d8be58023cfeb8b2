"""Following llama.cpp: what passes comes back, and what fails leaves no trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ffigen.follow.bump import WRITTEN, BumpError, Plan, bump, changed_changelog, install
from ffigen.follow.trial import StepError, run_step, sources, telling, trial
from ffigen.follow.versions import read_history
from ffigen.preprocess import GeneratorError
from ffigen.vendor import read_pin
from tests.timing import HANGS

from ..packages import Site, site

__all__ = ["site"]

B = "b" * 40
LLAMA_H, LLAMA_EXT_H = "include/llama.h", "src/llama-ext.h"
STRUCT = "    struct llama_vocab;\n"


def planted(text: str) -> dict[str, object]:
    """Return the change that plants a text in front of a declaration of llama.h."""
    return {LLAMA_H: lambda header: header.replace(STRUCT, f"{text}\n{STRUCT}", 1)}


def test_a_bump(site: Site) -> None:
    """The pin, the lock and the changelog are what the new version says."""
    archive = site.publish("2.0", B, planted("LLAMA_API int llama_planted(int a);"))
    before = site.files()
    report = bump(site.project, Plan("2.0", whole=False), lambda line: None)
    after = site.files()
    of_a_build = {"docs/raw_unsafe.toml", "docs/raw_unsafe.md"}
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == set(WRITTEN) - of_a_build
    assert set(before) - set(after) == set()

    pin = read_pin(site.root)
    assert (pin.version, pin.commit) == ("2.0", B)
    assert read_history(site.root)["2.0"].sha256 == pin.sha256
    assert (
        pin.sha256
        in subprocess.run(
            [sys.executable, "-m", "pip", "hash", str(archive)], capture_output=True, text=True
        ).stdout
    )
    assert "function int llama_planted(int a);" in site.project.lock.read_text()
    assert "llama.cpp: none..bbbbbbbbbbbb\n" in (site.root / "CHANGELOG.md").read_text()
    assert [(one.action, one.name) for one in report.changes] == [("added", "llama_planted")]
    assert report.level == "compatible"
    assert "# The one llama.cpp that" in (site.root / "vendor" / "llama.toml").read_text()


def test_a_bump_to_what_is_pinned_changes_no_fact(site: Site) -> None:
    lock = site.project.lock.read_text()
    report = bump(site.project, Plan("1.0", whole=False), lambda line: None)
    assert report.changes == []
    assert site.project.lock.read_text() == lock


def test_a_version_that_does_not_tell_its_commit(site: Site) -> None:
    site.publish("2.0", "ref: refs/heads/master")
    before = site.files()
    with pytest.raises(BumpError, match=r"(?s)^fetch: .*--commit"):
        bump(site.project, Plan("2.0", whole=False), lambda line: None)
    assert site.files() == before
    bump(site.project, Plan("2.0", commit=B, whole=False), lambda line: None)
    assert read_pin(site.root).commit == B


FAILURES = {
    "a version that there is not": ({}, "3.0", "fetch", "3.0"),
    "another hash": ({}, "2.0", "fetch", "wrong sha256"),
    "C++ in a header": (
        planted("template <typename T> T llama_planted(T);"),
        *("2.0", "generate", r"llama\.h:\d+.*template"),
    ),
    "what our C++ calls is gone": (
        {LLAMA_EXT_H: lambda text: text.replace("llama_graph_reserve", "llama_graph_plan")},
        *("2.0", "compile", r"graph\.cpp:\d+:.*llama_graph_reserve"),
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_leaves_no_trace_and_says_where(
    site: Site, failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, version, step, said = FAILURES[failure]
    site.publish("2.0", B, changes)
    before, temporary = site.files(), tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    sha256 = "0" * 64 if failure == "another hash" else None
    with pytest.raises(BumpError, match=f"(?s)^{step}: .*{said}.*Nothing was changed") as caught:
        bump(site.project, Plan(version, sha256, whole=False), lambda line: None)
    assert site.files() == before
    assert not list(temporary.iterdir())
    assert (caught.value.report is not None) == (step == "compile")


def break_make(site: Site, target: str) -> None:
    makefile = site.root / "Makefile"
    text = makefile.read_text()
    start = text.index(f"\n{target}:")
    recipe = "\n\t@echo 'native/x.cpp:3:1: error: it broke here'; exit 1\n"
    makefile.write_text(
        text[:start] + f"\n{target}:{recipe}\nold-{target}:" + text[start + 1 + len(target) + 1 :]
    )


def test_a_build_that_fails(site: Site) -> None:
    site.publish("2.0", B)
    break_make(site, "build")
    before = site.files()
    with pytest.raises(
        BumpError, match=r"build: it failed\n +native/x.cpp:3:1: error: it broke"
    ) as caught:
        bump(site.project, Plan("2.0"), lambda line: None)
    assert site.files() == before
    assert caught.value.step == "build"


@pytest.mark.parametrize("name", WRITTEN)
def test_what_cannot_be_written_leaves_the_others(site: Site, tmp_path: Path, name: str) -> None:
    """One of the files cannot be replaced: a directory has its name."""
    copy = tmp_path / "copy"
    for one in WRITTEN:
        (copy / one).parent.mkdir(parents=True, exist_ok=True)
        (copy / one).write_text("new")
        (site.root / one).touch()
    (site.root / name).unlink()
    (site.root / name).mkdir()
    (site.root / name / "in the way").touch()
    before = {name: content for name, (content, _) in site.files().items()}
    with pytest.raises(OSError, match=r".+"):
        install(copy, site.root)
    assert {name: content for name, (content, _) in site.files().items()} == before


def test_what_is_stopped_leaves_no_trace(site: Site, tmp_path: Path) -> None:
    """SIGTERM in the middle of a build: nothing changed, nothing is left, nobody goes on."""
    site.publish("2.0", B)
    makefile = site.root / "Makefile"
    pipe, temporary = tmp_path / "pipe", tmp_path / "temporary"
    os.mkfifo(pipe)
    temporary.mkdir()
    recipe = f"\nbuild:\n\t@echo builds > {pipe}; read line < {pipe}\nold:"
    makefile.write_text(makefile.read_text().replace("\nbuild:", recipe, 1))
    before = site.files()
    process = subprocess.Popen(
        [sys.executable, site.root / "build_ffi.py", "bump", "2.0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert process.stderr is not None
    assert any(line.startswith("build: make build") for line in process.stderr)
    assert pipe.read_text() == "builds\n"
    assert list(temporary.iterdir())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=HANGS) == 128 + signal.SIGTERM
    process.stderr.close()
    assert site.files() == before
    assert not list(temporary.iterdir())
    with pytest.raises(OSError, match="No such device or address"):  # nobody reads, who was there
        os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)


def test_the_command_line(site: Site) -> None:
    site.publish("2.0", B, planted("LLAMA_API int llama_planted(int a);"))
    site.publish("3.0", B, planted("template <typename T> T llama_planted(T);"))
    command = [sys.executable, site.root / "build_ffi.py", "bump", "--headers-only", "--report"]
    report = site.root.parent / "report.md"
    failed = subprocess.run([*command, report, "3.0"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "build_ffi.py: generate: " in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not report.exists()
    done = subprocess.run([*command, report, "2.0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "added function llama_planted" in done.stdout
    assert "- added function `llama_planted`" in report.read_text()


# --- The changelog --------------------------------------------------------------------------------

OLD, NEW = "1" * 40, "2" * 40


def test_the_changelog_of_an_unreleased_bump_keeps_where_it_began() -> None:
    text = "# C\n\n## Unreleased\n\nllama.cpp: none..abc (0.4)\n\n### Added\n\n- x\n"
    assert changed_changelog(text, OLD, NEW, " (0.5)") == text.replace(
        "none..abc (0.4)", "none..222222222222 (0.5)"
    )


def test_the_changelog_after_a_release_begins_with_the_old_pin() -> None:
    text = "# C\n\n## Unreleased\n\n## 0.1.0\n\nllama.cpp: none..abc\n"
    assert changed_changelog(text, OLD, NEW, "") == (
        "# C\n\n## Unreleased\n\nllama.cpp: 111111111111..222222222222\n\n"
        "## 0.1.0\n\nllama.cpp: none..abc\n"
    )


def test_a_changelog_without_a_place_for_it() -> None:
    with pytest.raises(GeneratorError, match="Unreleased"):
        changed_changelog("# C\n\n## 0.1.0\n", OLD, NEW, "")


# --- The copy -------------------------------------------------------------------------------------


def test_the_copy_has_what_git_has_and_what_is_new(site: Site) -> None:
    (site.root / "new.py").write_text("1")
    (site.root / "build").mkdir()
    (site.root / "build" / "ignored").write_text("1")
    with trial(site.root) as copy:
        assert (copy / "new.py").read_text() == "1"
        assert not (copy / "build").exists()
        assert (copy / "headers" / "api.lock").exists()
        assert set(sources(copy)) == set(sources(site.root))
    assert not copy.exists()


def test_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match="not a git checkout"), trial(tmp_path):
        pass


def test_a_step_that_fails_shows_what_tells_why(tmp_path: Path) -> None:
    code = "print('fine'); print('a.cpp:1:2: error: no'); print('done'); raise SystemExit(3)"
    with pytest.raises(StepError, match=r"^mine: it failed\n    a.cpp:1:2: error: no$"):
        run_step("mine", [sys.executable, "-c", code], tmp_path)


def test_a_failure_without_telling_lines_shows_the_last() -> None:
    assert telling("a\n\nb\n") == "it failed\n    a\n    b"
