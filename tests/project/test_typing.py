"""Types as a user's type checker sees them."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llamacffi
from tests.project.test_docstrings import DESCRIBED

PROGRAM = Path(__file__).with_name("typed_user.py")
# Mistakes, each with mypy's error code.
MISTAKES = """
import llamacffi
from llamacffi import Batch, Context, Greedy, Model, SamplerChain, TopK, generate, lib

model = Model("model.gguf", n_gpu_layer=1)  # call-arg
Model("model.gguf", load_mode=1.5)  # arg-type
Model(3)  # arg-type
Context("model.gguf")  # arg-type
Context(model, n_ctx="512")  # arg-type
context = Context(model)
context.decode([1, 2, 3])  # arg-type
context.logit()  # attr-defined
context.n_ctx = 3  # misc
SamplerChain("greedy")  # arg-type
TopK(p=3)  # call-arg
Greedy(1)  # call-arg
generate(context)  # call-arg
generate(context, "text", max_token=3)  # call-arg
Batch(8).add(["text"])  # list-item
lib.llama_n_ctx()  # call-arg
llamacffi.nothing  # attr-defined
"""


@pytest.fixture
def program(tmp_path):
    """The user's program, in the user's directory."""
    return Path(shutil.copy(PROGRAM, tmp_path))


@pytest.fixture
def mypy(root, tmp_path):
    def run(file):
        options = ["--strict", "--no-error-summary", "--follow-imports=silent"]
        cache = ["--cache-dir", root / ".mypy_cache" / "users"]
        return subprocess.run(
            [sys.executable, "-m", "mypy", *options, *cache, file],
            cwd=tmp_path,
            env={"MYPYPATH": str(root), "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_mypy_accepts_a_correct_program(mypy, program):
    result = mypy(program)
    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr


def test_mypy_finds_mistakes(mypy, tmp_path):
    program = tmp_path / "mistakes.py"
    program.write_text(MISTAKES)
    found = re.findall(r"^\S+:(\d+): error: .*\[([\w-]+)\]$", mypy(program).stdout, re.MULTILINE)
    lines = MISTAKES.split("\n")
    expected = [(str(i), line.split("# ")[1]) for i, line in enumerate(lines, 1) if "# " in line]
    assert found == expected


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
def test_pyright_accepts_a_correct_program(root, program):
    settings = f'{{"extraPaths": ["{root}"], "typeCheckingMode": "strict"}}'
    (program.parent / "pyrightconfig.json").write_text(settings)
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, program]
    result = subprocess.run(
        command, cwd=program.parent, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
def test_all_types_are_known(root, tmp_path):
    """A checker has nothing to infer."""
    command = [sys.executable, "-m", "pyright", "--verifytypes", "llamacffi", "--ignoreexternal"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run(
        [*command, "--pythonpath", sys.executable],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Type completeness score: 100%" in result.stdout, result.stdout + result.stderr


def test_the_program_uses_every_public_name():
    tree = ast.parse(PROGRAM.read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert set(llamacffi.__all__) - names == set()
    members = {name for name in DESCRIBED if "." in name and not name.endswith(".__init__")}
    missing = {name for name in members if name.rpartition(".")[2] not in used}
    assert missing == set()
