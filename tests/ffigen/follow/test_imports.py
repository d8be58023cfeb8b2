"""The build does not need ffigen/follow/: imports lead from there to ffigen/, never back."""

from __future__ import annotations

import ast
from pathlib import Path


def imported(path: Path) -> set[str]:
    """Return what a module imports, as far as it says ``from``."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {
        f"{'.' * node.level}{node.module or ''}.{alias.name}"
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_generator_does_not_import_follow(root: Path) -> None:
    here, follow = root / "ffigen", root / "ffigen" / "follow"
    assert {"bump.py", "diff.py", "history.py"} <= {path.name for path in follow.glob("*.py")}
    assert any(
        name.startswith("..project") for path in follow.glob("*.py") for name in imported(path)
    )
    for path in here.glob("*.py"):
        assert not any("follow" in name.split(".") for name in imported(path)), path
