"""The ways in which the loaded libraries can differ from those the module was compiled for."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from llamacffi import lib
from llamacffi._native.library import same_commit

from .conftest import COMMIT, OTHER, of_another_commit, patch, rename

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="damages ELF files")
CORE = "libggml-base.so", "libggml.so", "libllama.so", "libmtmd.so"


@pytest.fixture
def elsewhere(package, tmp_path):
    """A directory with libraries of another commit."""
    directory = tmp_path / "elsewhere"
    shutil.copytree(package / "lib", directory)
    of_another_commit(*directory.glob("*.so"))
    return directory


def test_the_copy_works(run_copy, package):
    done = run_copy("import llamacffi; print(llamacffi.__file__)")
    assert (done.returncode, done.stdout.strip()) == (0, str(package / "__init__.py"))


@pytest.mark.parametrize("name", CORE)
def test_a_half_finished_upgrade(refusal, package, name):
    """One library comes from another build than the rest."""
    of_another_commit(package / "lib" / name)
    message = refusal()
    assert str(package / "lib" / name) in message
    assert {COMMIT, OTHER} <= set(message.replace(",", " ").replace(":", " ").split())
    assert "interrupted upgrade" in message
    assert not any(str(package / "lib" / other) in message for other in CORE if other != name)


def test_a_half_finished_upgrade_of_all_but_one(refusal, package):
    of_another_commit(*(package / "lib" / name for name in CORE[1:]))
    message = refusal()
    assert all(f"{package / 'lib' / name}: commit {OTHER}" in message for name in CORE[1:])


def test_the_search_path_does_not_matter(run_copy, elsewhere, package):
    """Many users of llama.cpp have their own build there."""
    done = run_copy(
        "from llamacffi import _native, devices; devices();"
        "print(*[_native.ffi.string(one.path).decode() for one in _native.libraries()])",
        LD_LIBRARY_PATH=str(elsewhere),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(package / "lib" / name) for name in CORE]


@pytest.mark.parametrize("name", CORE)
def test_preloaded_libraries(refusal, elsewhere, package, name):
    message = refusal(LD_PRELOAD=str(elsewhere / name))
    assert f"{elsewhere / name}: commit {OTHER}" in message
    assert COMMIT in message
    assert str(package / "lib") in message
    assert "LD_PRELOAD brought it in" in message


def test_a_library_that_another_package_has_loaded(refusal, elsewhere):
    loading = "\n".join(f"ctypes.CDLL({str(elsewhere / name)!r})" for name in CORE[:3])
    message = refusal(f"import ctypes\n{loading}")
    assert str(elsewhere / "libllama.so") in message
    assert "another package" in message


@pytest.mark.no_asan
def test_a_library_of_the_system(refusal, elsewhere):
    """It was not built by llamacffi, and is too old to report its version or commit."""
    for name in CORE:
        rename(elsewhere / name, "llamacffi_stamp", "someone_s_stamp")
    if hasattr(lib, "llama_version"):
        rename(elsewhere / "libllama.so", "llama_version", "llama_versiom")
    for function in "ggml_commit", "ggml_version":
        rename(elsewhere / "libggml-base.so", function, function[:-1] + "_")
    preload = ":".join(str(elsewhere / name) for name in CORE)
    message = refusal(LD_PRELOAD=preload)
    assert message.count("not built by llamacffi") == 4
    assert f"{elsewhere / 'libllama.so'}: not built by llamacffi\n" in message


@pytest.mark.no_asan
@pytest.mark.skipif(not hasattr(lib, "llama_version"), reason="this llama.cpp has no version")
def test_the_version_of_a_library_of_the_system(refusal, elsewhere):
    rename(elsewhere / "libllama.so", "llamacffi_stamp", "someone_s_stamp")
    message = refusal(LD_PRELOAD=str(elsewhere / "libllama.so"))
    assert "libllama.so: not built by llamacffi, version 0." in message


def test_a_library_that_lacks_a_function(refusal, elsewhere):
    """The compiled module needs this one."""
    rename(elsewhere / "libllama.so", "llama_log_set", "llama_log_sat")
    message = refusal(LD_PRELOAD=str(elsewhere / "libllama.so"))
    assert "undefined symbol: llama_log_set" in message
    assert f"{elsewhere / 'libllama.so'} is loaded; LD_PRELOAD brought it in" in message


def test_python_of_another_version(refusal, package):
    file = package / "_native" / "__init__.py"
    patch(file, b'__version__ = "0.1.0"', b'__version__ = "0.0.9"')
    message = refusal()
    assert f"{file} is from llamacffi 0.0.9" in message
    assert f"{package / '_llama.abi3.so'} is from 0.1.0" in message


def test_generated_python_of_another_build(run_copy, package):
    file = package / "_generated" / "__init__.py"
    text = file.read_text()
    file.write_text(text.replace('check_generated("', 'check_generated("0'))
    done = run_copy("from llamacffi import enums")
    assert done.returncode == 1
    assert f"ImportError: {file.parent} does not belong to the compiled module" in done.stderr


def test_a_missing_library_is_named(refusal, package):
    (package / "lib" / "libmtmd.so").unlink()
    message = refusal()
    assert "libmtmd.so: cannot open shared object file" in message
    assert f"libmtmd.so is needed by {package / '_llama.abi3.so'}," in message
    assert f"{package / 'lib'} contains LICENSE.llama.cpp, api.lock, libggml-base.so, " in message


def test_a_missing_library_of_a_library(refusal, package):
    rename(package / "lib" / "libmtmd.so", "libggml-base.so", "libggml-bose.so")
    message = refusal()
    assert f"libggml-bose.so is needed by {package / 'lib' / 'libmtmd.so'}," in message


def test_no_library_at_all(refusal, package):
    shutil.rmtree(package / "lib")
    assert f"{package / 'lib'} contains nothing" in refusal()


def test_no_compiled_module(refusal, package):
    (package / "_llama.abi3.so").rename(package / "_llama.cpython-27.so")
    message = refusal()
    assert "has no compiled module for this Python" in message
    assert "_llama.cpython-27.so" in message


@pytest.mark.parametrize("name", ["_llama.abi3.so", *(f"lib/{name}" for name in CORE)])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.9])
def test_a_truncated_file(refusal, package, name, kept):
    """Touching the missing pages would end the process with SIGBUS."""
    file = package / name
    os.truncate(file, int(file.stat().st_size * kept))
    assert f"{file} is truncated" in refusal()


def test_an_empty_file(refusal, package):
    library = package / "lib" / "libllama.so"
    os.truncate(library, 0)
    assert str(library) in refusal()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (COMMIT, COMMIT, True),
        (COMMIT, COMMIT[:7], True),
        (COMMIT[:9], COMMIT, True),
        (COMMIT, COMMIT[:6], False),
        (COMMIT, OTHER, False),
        (COMMIT, f"{COMMIT}-dirty", False),
        (f"{COMMIT}-dirty", f"{COMMIT}-dirty", True),
        ("tree-0123456789ab", "tree-0123456789ab", True),
        (COMMIT, "", False),
    ],
)
def test_names_of_commits(one, other, same):
    assert same_commit(one, other) is same
