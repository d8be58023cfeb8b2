"""What importing the package does, and what it refuses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from llamacffi import _native, lib, library_dir
from tests.timing import within


def test_import_is_quick_and_quiet(run_python):
    code = """
        import json, os, sys, threading, time
        environment = dict(os.environ)
        began = time.process_time()  # what others do on the machine does not count
        import llamacffi
        seconds = time.process_time() - began
        print(json.dumps({
            "seconds": seconds,
            "numpy": "numpy" in sys.modules,
            "environment": environment == dict(os.environ),
            "threads": threading.active_count(),
            "modules": sorted(name for name in sys.modules if name.startswith("llamacffi")),
        }))
    """
    results = [run_python(code) for _ in range(5)]
    assert [(one.returncode, one.stderr) for one in results] == [(0, "")] * 5
    reports = [json.loads(one.stdout) for one in results]
    within(min(report["seconds"] for report in reports), 0.06)
    first = reports[0]
    assert (first["numpy"], first["environment"], first["threads"]) == (False, True, 1)
    modules = ["_llama", "_llama.lib", "_native", "_native.elf"]
    if _native.lib is not lib:  # another llama.cpp than the pinned one
        modules += ["_native.missing", "errors"]
    assert first["modules"] == ["llamacffi", *(f"llamacffi.{name}" for name in modules)]


def test_the_module_is_one_binary_for_all_pythons():
    assert Path(_native.module_path).name == "_llama.abi3.so"


def test_the_libraries_are_those_of_the_package():
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    loaded = {line.split()[-1] for line in maps.read_text().splitlines() if "/" in line}
    ours = {path for path in loaded if re.search(r"/lib(llama|ggml|mtmd)[^/]*\.so", path)}
    assert {Path(path).parent for path in ours} == {library_dir()}


def test_public_names_are_those_of_the_type_checker(root):
    """The lazy table and the imports for type checkers are the same list."""
    import llamacffi

    text = (root / "llamacffi" / "__init__.py").read_text()
    imported = set(re.findall(r"import (\w+) as \1$", text, re.MULTILINE))
    assert imported == {*llamacffi.__all__, "__version__"}
    for name in llamacffi.__all__:
        assert getattr(llamacffi, name) is not None
    assert f'\nversion = "{llamacffi.__version__}"\n' in (root / "pyproject.toml").read_text()
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        llamacffi.Modle  # noqa: B018
    assert set(llamacffi.__all__) <= set(dir(llamacffi))
    assert sys.modules["llamacffi"] is llamacffi


def test_import_does_without_typing(run_copy):
    """Importing `typing` would double the time.  An editable install imports it for its hook."""
    done = run_copy(
        'sys.modules.pop("typing", None); import llamacffi; print("typing" in sys.modules)'
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
