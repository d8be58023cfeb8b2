"""The code of the README and of the documentation runs, and prints what the pages show."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.project import page_files
from tests.project.pages import MARK, blocks, programs, source

PAGES = ["README.md", *sorted(path.as_posix() for path in Path("docs").rglob("*.md"))]


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A directory with the files that the pages use."""
    return page_files.write(tmp_path_factory.mktemp("pages"))


def test_every_page_of_the_guide_has_code_that_runs(root):
    for path in [root / "README.md", *(root / "docs" / "guide").glob("*.md")]:
        assert any(not block.title for block in blocks(path)), path


@pytest.mark.parametrize("page", PAGES)
def test_snippets_run(root, run_python, files, tmp_path, page):
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    for program in programs(root / page):
        result = run_python(source(program))
        assert (result.returncode, result.stderr) == (0, ""), result.stderr
        printed = result.stdout.split(f"{MARK}\n")
        assert len(printed) == len(program) + 1
        for block, text in zip(program, printed, strict=False):
            assert block.prints(text), f"{block.place}:{block.line} prints\n{text}"


@pytest.mark.parametrize("page", PAGES)
def test_code_that_does_not_run_compiles(root, page):
    for block in blocks(root / page):
        compile(block.code, block.place, "exec")


def test_a_wrong_output_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n```text\n1 ...\n```\n")
    (block,) = blocks(page)
    assert block.prints("1 and more\n")
    assert not block.prints("2\n")


def test_the_readme_counts_the_functions_of_the_pinned_api(root):
    text = (root / "README.md").read_text()
    lock = (root / "headers" / "api.lock").read_text().splitlines()
    functions = sum(line.startswith("function ") and "llamacffi_" not in line for line in lock)
    claimed = re.search(r"more than ([\d,]+) functions of llama.h", text)
    assert claimed is not None
    assert int(claimed[1].replace(",", "")) < functions < 1.2 * int(claimed[1].replace(",", ""))


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(root, page):
    """The other pages are checked by ``mkdocs build --strict``."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (root / page).read_text())
    assert links
    assert [link for link in links if not (root / link).exists()] == []


def test_the_paths_in_contributing_exist(root):
    text = (root / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`(?!\S*NAME)([\w.]+/[\w./]*)`", text)
    places = (root, root / "llamacffi")
    assert paths
    assert [one for one in paths if not any((place / one).exists() for place in places)] == []


def test_the_design_names_the_rooms_that_are_there(root):
    text = (root / "docs" / "design.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    package = (root / "llamacffi").iterdir()
    there = {path.stem for path in package if path.suffix in ("", ".py") and path.stem[:2] != "__"}
    assert named == there - {"hub", "rpc", "shards", "lib"}


def test_every_option_that_is_named_exists(root, llama_cpp):
    named = set(re.findall(r"\b(GGML_[A-Z_]+)=?", (root / "docs/building.md").read_text()))
    options = "".join(path.read_text() for path in (llama_cpp / "ggml").rglob("CMakeLists.txt"))
    assert named
    assert {name for name in named if name not in options} == set()
