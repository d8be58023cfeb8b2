"""``LLAMACFFI_LIBRARY_DIR``: another build is accepted if its API is the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llamacffi import _native, ffi, lib
from llamacffi._native import layout as _layout

from .conftest import COMMIT, OTHER, of_another_commit, rename

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="damages ELF files")

# Check that everything works, and print where it came from.
DECODE = """
from llamacffi import *
from llamacffi import backend
from llamacffi import _native
with Model(sys.argv[1]) as model, Context(model, n_ctx=64, n_threads=1) as context:
    batch = Batch(3)
    batch.add(model.vocab.tokenize("a b"))
    context.decode(batch)
    assert context.logits().shape == (len(model.vocab),)
paths = [ffi.string(one.path).decode() for one in _native.libraries()]
with open("/proc/self/maps") as maps:
    paths += [line.split()[-1] for line in maps if "libggml-cpu" in line]
print(*sorted({path.rpartition("/")[0] for path in paths}), library_dir())
"""


@pytest.fixture
def chosen(tmp_path: Path) -> Path:
    """A copy of the libraries in another directory."""
    return shutil.copytree(_native.library_dir, tmp_path / "chosen")


@pytest.fixture
def another(chosen: Path) -> Path:
    """The same libraries, but from another commit."""
    of_another_commit(*chosen.glob("*.so"), chosen / "api.lock")
    return chosen


def edit(directory: Path, old: str, new: str) -> None:
    """Change the api.lock beside the libraries."""
    file = directory / "api.lock"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_the_same_build(run_copy, chosen, demo_path):
    (chosen / "api.lock").unlink()
    done = run_copy(DECODE, demo_path, LLAMACFFI_LIBRARY_DIR=str(chosen))
    assert (done.stdout, done.stderr) == (f"{chosen} {chosen}\n", "")


def test_a_relative_path(run_copy, chosen, demo_path):
    done = run_copy(DECODE, demo_path, LLAMACFFI_LIBRARY_DIR=chosen.name)
    assert (done.stdout, done.stderr) == (f"{chosen} {chosen}\n", "")


def test_no_choice(run_copy, package, demo_path):
    done = run_copy(DECODE, demo_path, LLAMACFFI_LIBRARY_DIR="")
    assert (done.stdout, done.stderr) == (f"{package / 'lib'} {package / 'lib'}\n", "")


def test_another_commit_with_the_same_api(run_copy, another, demo_path):
    done = run_copy(DECODE, demo_path, LLAMACFFI_LIBRARY_DIR=str(another))
    assert (done.stdout, done.stderr) == (f"{another} {another}\n", "")


def test_a_build_by_somebody_else(run_copy, another, demo_path):
    for library in another.glob("*.so"):
        rename(library, "llamacffi_stamp", "someone_s_stamp")
    done = run_copy(DECODE, demo_path, LLAMACFFI_LIBRARY_DIR=str(another))
    assert (done.stdout, done.stderr) == (f"{another} {another}\n", "")


def test_additions_do_no_harm(run_copy, another, demo_path):
    edit(another, "function ", "function int llama_new(void);\nconstant LLAMA_NEW = 1\nfunction ")
    done = run_copy(DECODE, demo_path, LLAMACFFI_LIBRARY_DIR=str(another))
    assert (done.stdout, done.stderr) == (f"{another} {another}\n", "")


def test_a_new_field_in_the_middle(refusal, another):
    edit(
        another,
        "field llama_batch.pos @",
        "field llama_batch.planted @16: int planted;\nfield llama_batch.pos @1",
    )
    message = refusal(LLAMACFFI_LIBRARY_DIR=str(another))
    assert f"the API of llama.cpp {OTHER} differs from that of {COMMIT}" in message
    assert message.splitlines()[1:4] == [
        "+field llama_batch.planted @16: int planted;",
        "-field llama_batch.pos @24: llama_pos *pos;",
        "+field llama_batch.pos @124: llama_pos *pos;",
    ]


def test_a_long_difference_is_cut(refusal, another):
    lock = another / "api.lock"
    lines = lock.read_text().splitlines()
    lock.write_text(
        "\n".join(line for line in lines if not line.startswith("constant GGML_")) + "\n"
    )
    gone = sum(line.startswith("constant GGML_") for line in lines)
    message = refusal(LLAMACFFI_LIBRARY_DIR=str(another)).splitlines()
    assert f"... and {gone - 20} more" == message[21]
    assert all(line.startswith("-constant GGML_") for line in message[1:21])


def test_the_api_is_unknown(refusal, another):
    (another / "api.lock").unlink()
    message = refusal(LLAMACFFI_LIBRARY_DIR=str(another))
    assert OTHER in message
    assert COMMIT in message
    assert f"python build_ffi.py lock --llama-cpp TREE --out {another / 'api.lock'}" in message


@pytest.mark.parametrize("line", ["", f"# llama.cpp: {'e' * 40}\n"])
def test_an_api_lock_of_another_commit(refusal, another, line):
    edit(another, f"# llama.cpp: {OTHER}\n", line)
    message = refusal(LLAMACFFI_LIBRARY_DIR=str(another))
    assert f"but the libraries were built from {OTHER}; write it again from their" in message


def test_our_own_api_lock_is_checked(refusal, another, package):
    edit(package / "lib", "constant GGML_MAX_DIMS = 4", "constant GGML_MAX_DIMS = 5")
    assert "was not made for the compiled module" in refusal(LLAMACFFI_LIBRARY_DIR=str(another))
    (package / "lib" / "api.lock").unlink()
    assert "No such file" in refusal(LLAMACFFI_LIBRARY_DIR=str(another))


def test_libraries_of_different_builds(refusal, chosen):
    of_another_commit(chosen / "libggml.so")
    message = refusal(LLAMACFFI_LIBRARY_DIR=str(chosen))
    assert "come from different builds" in message
    assert f"{chosen / 'libggml.so'}: commit {OTHER}" in message


def test_a_directory_without_libraries(refusal, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    message = refusal(LLAMACFFI_LIBRARY_DIR=str(empty))
    assert (
        f"libggml-base.so, libggml.so, libllama.so, libmtmd.so not found: {empty} contains nothing"
        in message
    )
    assert "is not a directory" in refusal(LLAMACFFI_LIBRARY_DIR=str(empty / "x"))


def test_another_soname(refusal, chosen):
    """Like those from llama.cpp's own build, which have a version."""
    rename(chosen / "libllama.so", "libllama.so", "libllm.so.0")
    message = refusal(LLAMACFFI_LIBRARY_DIR=str(chosen))
    assert f"{chosen / 'libllama.so'} has the SONAME libllm.so.0" in message
    assert "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON" in message


def test_a_chosen_library_needs_a_missing_one(refusal, chosen):
    rename(chosen / "libmtmd.so", "libggml-base.so", "libmissing.so.1")
    message = refusal(LLAMACFFI_LIBRARY_DIR=str(chosen))
    assert f"{chosen / 'libmtmd.so'} cannot be loaded: libmissing.so.1: cannot open" in message
    assert f"libmissing.so.1 is needed by {chosen / 'libmtmd.so'}" in message


def test_a_chosen_library_lacks_a_function(refusal, chosen):
    rename(chosen / "libllama.so", "llama_log_set", "llama_log_sat")
    message = refusal(LLAMACFFI_LIBRARY_DIR=str(chosen))
    assert "undefined symbol: llama_log_set" in message
    assert f"LLAMACFFI_LIBRARY_DIR={chosen}" in message


def test_our_library_was_loaded_first(refusal, chosen, package):
    before = f"import ctypes; ctypes.CDLL({str(package / 'lib' / 'libggml-base.so')!r})"
    message = refusal(before, LLAMACFFI_LIBRARY_DIR=str(chosen))
    assert f"{package / 'lib' / 'libggml-base.so'} is used instead of" in message


def test_the_hash_in_the_module_is_that_of_its_api_lock():
    lock = Path(_native.module_path).parent / "lib" / "api.lock"
    text = lock.read_text()
    assert _layout.digest(text) == ffi.string(lib.llamacffi_built_layout()).decode()
    assert _layout.commit_of(text) == COMMIT


def test_the_command_that_the_error_suggests(root, llama_cpp, tmp_path):
    out = tmp_path / "api.lock"
    command = [sys.executable, "build_ffi.py", "lock", "--llama-cpp", llama_cpp, "--out", out]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    text = out.read_text()
    assert _layout.digest(text) == ffi.string(lib.llamacffi_built_layout()).decode()
    assert _layout.commit_of(text) == COMMIT


OURS = """\
# a comment
struct a size 16
field a.x @0: int x;
field a.y @8: void *y;
enum kind.A = 0
constant N = 4
typedef uint8_t guid[16];
function int f(int a);
function struct a *g(void); deprecated
function int llamacffi_f(void);
constant LLAMACFFI_N = 1
"""


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ("# a comment\n", "", []),
        ("; deprecated", ";", []),
        ("function int llamacffi_f(void);\n", "", []),
        ("constant LLAMACFFI_N = 1", "constant LLAMACFFI_N = 2", []),
        ("constant N = 4\n", "constant N = 4\nconstant M = 4\n", []),
        ("enum kind.A = 0\n", "enum kind.A = 0\nenum kind.B = 1\n", []),
        ("constant N = 4", "constant N = 5", ["-constant N = 4", "+constant N = 5"]),
        ("constant N = 4\n", "", ["-constant N = 4"]),
        ("f(int a)", "f(long a)", ["-function int f(int a);", "+function int f(long a);"]),
        ("[16]", "[8]", ["-typedef uint8_t guid[16];", "+typedef uint8_t guid[8];"]),
        (
            "size 16\nfield a.x @0",
            "size 24\nfield a.z @0: long z;\nfield a.x @8",
            [
                "-struct a size 16",
                "+struct a size 24",
                "+field a.z @0: long z;",
                "-field a.x @0: int x;",
                "+field a.x @8: int x;",
            ],
        ),
    ],
)
def test_differences_of_facts(old, new, difference):
    assert old in OURS
    theirs = OURS.replace(old, new)
    assert _layout.differences(OURS, theirs) == difference
    added = len(_layout.facts(theirs)) > len(_layout.facts(OURS))
    assert (_layout.digest(OURS) == _layout.digest(theirs)) == (not difference and not added)


def test_the_order_of_facts_does_not_matter():
    backwards = "\n".join(reversed(OURS.splitlines()))
    assert _layout.digest(OURS) == _layout.digest(backwards)
    assert _layout.differences(OURS, backwards) == []
