"""Backends from another llama.cpp, or with a library missing."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from .conftest import COMMIT, OTHER, of_another_commit, rename

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="damages ELF files")

DEVICES = """
import logging
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s", level=logging.WARNING)
import llamacffi
from llamacffi import backend
try:
    print(*backend.backends())
except llamacffi.LlamaError as error:
    print(type(error).__name__, error)
"""
LOAD = """
import llamacffi
from llamacffi import backend
backend.unload("RPC")
try:
    print(backend.load_library(sys.argv[1]))
except llamacffi.LlamaError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def rpc(package):
    """A backend of the copy other than the CPU's."""
    library = package / "lib" / "libggml-rpc.so"
    if not library.exists():
        pytest.skip("a build without GGML_RPC")
    return library


@pytest.fixture
def plug_in(rpc, tmp_path):
    """The same backend, in a directory of its own."""
    return shutil.copy(rpc, tmp_path / "libggml-rpc.so")


def test_no_cpu_backend(run_copy, package):
    for library in package.glob("lib/libggml-cpu*"):
        library.unlink()
    done = run_copy(DEVICES)
    assert (done.returncode, done.stderr) == (0, "")
    message = f"BackendUnavailableError no CPU backend for this machine in {package / 'lib'}:"
    assert message in done.stdout


def test_a_backend_of_another_commit(run_copy, rpc, package):
    of_another_commit(rpc)
    done = run_copy(DEVICES)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        f"LoadError the backend {rpc} was built from llama.cpp {OTHER}, "
        f"but {package / 'lib' / 'libggml-base.so'} was built from {COMMIT}"
    )


def test_a_backend_by_the_environment(run_copy, plug_in):
    done = run_copy(DEVICES, GGML_BACKEND_PATH=str(plug_in))
    assert (done.stdout, done.stderr) == ("RPC CPU RPC\n", "")
    of_another_commit(plug_in)
    done = run_copy(DEVICES, GGML_BACKEND_PATH=str(plug_in))
    assert done.stdout.startswith(
        f"LoadError the backend {plug_in} was built from llama.cpp {OTHER}"
    )


def test_a_backend_of_somebody_else(run_copy, plug_in):
    """Its commit is unknown, and it uses our ggml."""
    rename(plug_in, "llamacffi_stamp", "someone_s_stamp")
    done = run_copy(LOAD, plug_in)
    assert (done.stdout, done.stderr) == ("RPC\n", "")


@pytest.mark.no_asan
@pytest.mark.parametrize("commit", [COMMIT, OTHER])
def test_a_backend_with_a_ggml_of_its_own(run_copy, plug_in, tmp_path, package, commit):
    """Like a backend from llama.cpp's own build: its libraries have other names."""
    theirs = shutil.copy(package / "lib" / "libggml-base.so", tmp_path / "libggml-bose.so")
    rename(theirs, "libggml-base.so", "libggml-bose.so")
    rename(theirs, "llamacffi_stamp", "someone_s_stamp")
    of_another_commit(theirs, commit=commit)
    rename(plug_in, "libggml-base.so", "libggml-bose.so")
    rename(plug_in, "llamacffi_stamp", "someone_s_stamp")
    done = run_copy(LOAD, plug_in)
    if commit == COMMIT:
        assert (done.stdout, done.stderr) == ("RPC\n", "")
    else:
        message = f"LoadError the backend {plug_in} contains its own ggml, from llama.cpp {OTHER}"
        assert done.stdout.startswith(message)


def test_a_backend_that_lacks_a_library(run_copy, rpc, plug_in):
    """Like a GPU backend without the driver installed: the other backends work."""
    rename(rpc, "libggml-base.so", "libmissing.so.1")
    done = run_copy(
        DEVICES + "try: llamacffi.device('RPC0')\n"
        "except llamacffi.BackendUnavailableError as error: print(error)"
    )
    reason = f"{rpc}: libmissing.so.1: cannot open shared object file: No such file or directory"
    assert done.stdout.splitlines() == [
        f"WARNING the backend {reason.replace(':', ' was not loaded:', 1)}",
        "CPU",
        f"there is no device 'RPC0'; available: CPU; {reason.replace(':', ' was not loaded:', 1)}",
    ]
    rename(plug_in, "libggml-base.so", "libmissing.so.1")
    shutil.copy(plug_in, rpc.with_name("libggml-other.so"))
    done = run_copy(LOAD.replace('backend.unload("RPC")', ""), plug_in)
    assert done.stdout.startswith(
        f"LoadError cannot load a backend from {str(plug_in)!r}: libmissing"
    )


def test_the_cpu_backend_lacks_a_library(run_copy, package):
    library = package / "lib" / "libggml-cpu.so"
    if not library.exists():
        pytest.skip("a build of all variants")
    rename(library, "libggml-base.so", "libmissing.so.1")
    done = run_copy(DEVICES)
    assert f"{library} was not loaded: libmissing.so.1: cannot open" in done.stdout


def test_a_truncated_backend(run_copy, rpc, plug_in):
    os.truncate(rpc, rpc.stat().st_size // 2)
    done = run_copy(DEVICES)
    assert done.stdout.startswith(f"LoadError the backend {rpc} is truncated")
    shutil.copy(plug_in, rpc)
    os.truncate(plug_in, rpc.stat().st_size // 2)
    done = run_copy(LOAD, plug_in)
    assert done.stdout.startswith(f"LoadError the backend {plug_in} is truncated")
