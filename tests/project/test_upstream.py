"""The register of llama.cpp's quirks: what each workaround is about is in the pinned tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from ffigen.follow.quirks import Quirk, missing_names, read_quirks, read_upstream
from ffigen.vendor import fetched_tree


@pytest.fixture(scope="module")
def quirks(root: Path) -> list[Quirk]:
    """The whole register; reading it fails if a comment does not have its form."""
    return read_quirks(root)


def test_the_register_has_every_language(quirks: list[Quirk]) -> None:
    """Each kind of comment is found."""
    assert {Path(one.file).suffix for one in quirks} >= {".py", ".cpp", ".hpp", ".cmake"}
    assert len(quirks) > 100


def test_llama_cpp_has_what_each_workaround_is_about(root: Path, quirks: list[Quirk]) -> None:
    tree = fetched_tree(root)
    if tree is None:
        pytest.skip("the pinned llama.cpp is not in vendor/: run `python build_ffi.py vendor`")
    texts = read_upstream(quirks, tree)
    missing = [
        f"{one.file}:{one.line}: {one.path} {names or 'does not exist'}"
        for one in quirks
        for names in [missing_names(one, texts.get(one.path, ""))]
        if names
    ]
    assert missing == []
