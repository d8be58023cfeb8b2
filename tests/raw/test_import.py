"""What importing the package does, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from llamacffi import _ffi, backend, ffi, lib


def test_import_is_quick_and_quiet(run_python):
    code = """
        import json, os, sys, threading, time
        environment = dict(os.environ)
        began = time.perf_counter()
        import llamacffi
        seconds = time.perf_counter() - began
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
    assert min(report["seconds"] for report in reports) < 0.06
    first = reports[0]
    assert (first["numpy"], first["environment"], first["threads"]) == (False, True, 1)
    assert first["modules"] == [
        "llamacffi",
        "llamacffi._ffi",
        "llamacffi._llama",
        "llamacffi._llama.lib",
    ]


def test_the_module_is_one_binary_for_all_pythons():
    assert Path(_ffi.module_path).name == "_llama.abi3.so"


def test_the_libraries_are_those_of_the_package():
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    loaded = {line.split()[-1] for line in maps.read_text().splitlines() if "/" in line}
    ours = {path for path in loaded if re.search(r"/lib(llama|ggml|mtmd)[^/]*\.so", path)}
    assert {Path(path).parent for path in ours} == {backend.library_dir()}


@pytest.fixture
def copy_of_package(tmp_path: Path, root: Path) -> Path:
    """A copy of the installed package, to be damaged."""
    target = tmp_path / "copy" / "llamacffi"
    shutil.copytree(root / "llamacffi", target, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_ffi.module_path, target)
    shutil.copytree(backend.library_dir(), target / "lib", dirs_exist_ok=True)
    return target


# An editable install finds the package by a hook, which comes before the search path.
PREFER = """
import sys
sys.meta_path[:] = [one for one in sys.meta_path if "ScikitBuild" not in type(one).__name__]
sys.path.insert(0, {directory!r})
"""


def run_copy(run_python, package: Path, code: str, **environment: str):
    """Run code that imports the copy and not the installed package."""
    setup = PREFER.format(directory=str(package.parent))
    return run_python(f"{setup}\n{code}", env={**os.environ, **environment})


def test_the_copy_works(run_python, copy_of_package):
    result = run_copy(run_python, copy_of_package, "import llamacffi; print(llamacffi.__file__)")
    assert (result.returncode, result.stdout.strip()) == (0, str(copy_of_package / "__init__.py"))


def test_a_library_of_another_commit_is_refused(run_python, copy_of_package):
    library = copy_of_package / "lib" / "libggml-base.so"
    ours = ffi.string(lib.llamacffi_built_commit())
    other = b"f" * len(ours)
    data = library.read_bytes()
    assert ours in data
    library.write_bytes(data.replace(ours, other))
    result = run_copy(run_python, copy_of_package, "import llamacffi")
    assert result.returncode == 1
    assert "ImportError" in result.stderr
    assert other.decode() in result.stderr
    assert ours.decode() in result.stderr


def test_a_library_on_the_search_path_is_refused_too(run_python, copy_of_package, tmp_path):
    ours = ffi.string(lib.llamacffi_built_commit())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    library = elsewhere / "libggml-base.so"
    data = (copy_of_package / "lib" / library.name).read_bytes()
    library.write_bytes(data.replace(ours, b"e" * len(ours)))
    result = run_copy(
        run_python, copy_of_package, "import llamacffi", LD_LIBRARY_PATH=str(elsewhere)
    )
    assert result.returncode == 1
    assert "e" * len(ours) in result.stderr
    assert ours.decode() in result.stderr


def test_a_missing_library_is_named(run_python, copy_of_package):
    (copy_of_package / "lib" / "libmtmd.so").unlink()
    result = run_copy(run_python, copy_of_package, "import llamacffi")
    assert result.returncode == 1
    assert "ImportError" in result.stderr
    assert "libmtmd.so" in result.stderr


def test_missing_backends_are_named(run_python, copy_of_package):
    for backend_library in copy_of_package.glob("lib/libggml-cpu*"):
        backend_library.unlink()
    result = run_copy(
        run_python,
        copy_of_package,
        "import llamacffi\ntry: llamacffi.devices()\n"
        "except llamacffi.BackendUnavailableError as error: print(error)",
    )
    assert result.returncode == 0, result.stderr
    assert "no CPU backend" in result.stdout
    assert str(copy_of_package / "lib") in result.stdout


def test_public_names_are_those_of_the_type_checker(root):
    """The lazy table and the imports for type checkers are the same list."""
    import llamacffi

    text = (root / "llamacffi" / "__init__.py").read_text()
    imported = set(re.findall(r"import (\w+) as \1$", text, re.MULTILINE))
    assert imported == set(llamacffi.__all__)
    for name in llamacffi.__all__:
        assert getattr(llamacffi, name) is not None
    assert llamacffi.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        llamacffi.Modle  # noqa: B018
    assert set(llamacffi.__all__) <= set(dir(llamacffi))
    assert sys.modules["llamacffi"] is llamacffi
