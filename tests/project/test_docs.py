"""The code of the README and of the documentation runs, and says what it does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in Path("docs").glob("*.md"))]


def snippets(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def test_there_are_snippets(root):
    assert len(snippets(root / "README.md")) >= 4


@pytest.mark.parametrize("page", PAGES)
def test_snippets_run(root, run_python, tmp_path, page):
    for code in snippets(root / page):
        result = run_python(code)
        assert (result.returncode, result.stderr) == (0, ""), f"{code}\n{result.stderr}"


def test_the_readme_counts_right(root):
    """The numbers it claims are those of the pinned API."""
    text = (root / "README.md").read_text()
    lock = (root / "headers" / "api.lock").read_text().splitlines()
    functions = sum(line.startswith("function ") and "llamacffi_" not in line for line in lock)
    claimed = re.search(r"([\d,]+) functions of llama.h", text)
    assert claimed is not None
    assert int(claimed[1].replace(",", "")) == functions


def test_every_option_that_is_named_exists(root, llama_cpp):
    named = set(re.findall(r"\b(GGML_[A-Z_]+)=?", (root / "docs/building.md").read_text()))
    options = "".join(path.read_text() for path in (llama_cpp / "ggml").rglob("CMakeLists.txt"))
    assert named
    assert {name for name in named if name not in options} == set()
