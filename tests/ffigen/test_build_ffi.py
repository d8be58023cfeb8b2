"""The command line: what a user of build_ffi.py sees."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ffigen.preprocess import INCLUDE_DIRS
from tests.timing import within


@pytest.fixture
def build(root):
    """Run build_ffi.py."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, root / "build_ffi.py", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")

    return run


@pytest.fixture
def copy(llama_cpp, tmp_path) -> Path:
    """A copy of the real public headers, to plant changes in."""
    for folder in INCLUDE_DIRS:
        (tmp_path / "copy" / folder).mkdir(parents=True)
        for header in (llama_cpp / folder).glob("*.h"):
            shutil.copy(header, tmp_path / "copy" / folder)
    return tmp_path / "copy"


def plant(tree: Path, header: str, old: str, new: str) -> None:
    path = tree / header
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, (old, text.count(old))
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_committed_lock_is_fresh(build, llama_cpp):
    result = build("check", "--llama-cpp", llama_cpp)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_copy_is_as_good_as_the_tree(build, copy):
    assert build("check", "--llama-cpp", copy).returncode == 0


LLAMA_H = "include/llama.h"
# What is planted -> lines of the difference.
CHANGES = {
    "a field in the middle of a struct": (
        "int32_t n_gpu_layers;",
        "int64_t planted; int32_t n_gpu_layers;",
        ["+field llama_model_params.planted @16: int64_t planted;"],
    ),
    "two enumerators swapped": (
        "TYPE_NONE        = 0,\n        LLAMA_ROPE_SCALING_TYPE_LINEAR      = 1,",
        "TYPE_LINEAR = 0, LLAMA_ROPE_SCALING_TYPE_NONE = 1,",
        [
            "-enum llama_rope_scaling_type.LLAMA_ROPE_SCALING_TYPE_NONE = 0",
            "+enum llama_rope_scaling_type.LLAMA_ROPE_SCALING_TYPE_NONE = 1",
        ],
    ),
    "a leading argument": (
        "llama_max_devices(void)",
        "llama_max_devices(int planted)",
        [
            "-function size_t llama_max_devices(void);",
            "+function size_t llama_max_devices(int planted);",
        ],
    ),
    "a new callback type": (
        "struct llama_vocab;",
        "struct llama_vocab; typedef bool (*llama_planted)(int, void *);",
        ["+typedef bool (*llama_planted)(int, void *);"],
    ),
    "a #define that becomes an enum": (
        "#define LLAMA_DEFAULT_SEED 0xFFFFFFFF",
        "enum { LLAMA_DEFAULT_SEED = 0xFFFFFFFF };",
        ["-constant LLAMA_DEFAULT_SEED = 4294967295", "+enum .LLAMA_DEFAULT_SEED = 4294967295"],
    ),
    "a function that is now deprecated": (
        "LLAMA_API size_t llama_max_devices(void);",
        'DEPRECATED(LLAMA_API size_t llama_max_devices(void), "planted");',
        ["+function size_t llama_max_devices(void); deprecated"],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_stale_lock_is_shown_as_a_difference(build, copy, change):
    old, new, expected = CHANGES[change]
    plant(copy, LLAMA_H, old, new)
    result = build("check", "--llama-cpp", copy)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert [line for line in expected if line not in lines] == []
    assert result.stderr == "headers/api.lock is stale: run `python build_ffi.py lock`\n"


STOPS = {
    "an inline function": (
        "static inline int llama_planted(int x) { return x; }",
        "does not know inline function llama_planted",
    ),
    "a bit-field": ("struct llama_planted { int a : 3; };", "does not know bit-field a"),
    "a packed struct": (
        "struct llama_planted { char a; int b; } __attribute__((packed));",
        "does not know __attribute__((packed))",
    ),
    "what is not C": ("template <typename T> T llama_planted(T);", "template <typename T>"),
    "a broken preprocessor line": ("#if", "#if with no expression"),
    "a length that only C knows": (
        "enum { LLAMA_PLANTED = 3 }; void llama_planted(int (*a)[LLAMA_PLANTED]);",
        "llama_planted has an array of length LLAMA_PLANTED",
    ),
}


@pytest.mark.parametrize("construct", STOPS)
def test_what_is_not_understood_stops_with_a_message(build, copy, tmp_path, construct):
    text, message = STOPS[construct]
    plant(copy, LLAMA_H, "struct llama_vocab;", f"\n{text}\nstruct llama_vocab;")
    result = build("generate", "--out", tmp_path / "out", "--llama-cpp", copy)
    assert result.returncode == 1
    assert result.stderr.startswith("build_ffi.py: ")
    assert message in result.stderr
    assert "llama.h:" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["generate", "check"])
def test_a_wrong_tree_is_one_sentence(build, tmp_path, command):
    out = ["--out", tmp_path / "out"] if command == "generate" else []
    result = build(command, *out, "--llama-cpp", tmp_path / "nothing")
    assert result.returncode == 1
    expected = (
        f"build_ffi.py: {tmp_path}/nothing is not a llama.cpp tree: it has no include/llama.h\n"
    )
    assert result.stderr == expected


def seconds_of_children() -> float:
    """Return the processor time of the programs that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def test_generate_twice(build, llama_cpp, tmp_path):
    """The second time writes nothing; neither takes as long as a build would notice."""
    out = tmp_path / "out"
    start = seconds_of_children()
    first = build("generate", "--out", out, "--llama-cpp", llama_cpp)
    seconds = seconds_of_children() - start
    assert first.returncode == 0, first.stderr
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert {f"wrote {path}" for path in files} == set(first.stdout.splitlines())
    assert len(files) == 14
    second = build("generate", "--out", out, "--llama-cpp", llama_cpp)
    assert (second.returncode, second.stdout) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in files} == files
    within(seconds, 5)


def test_generate_puts_the_python_where_it_is_told(build, llama_cpp, tmp_path):
    out, package = tmp_path / "out", tmp_path / "package"
    build("generate", "--out", out, "--package", package, "--llama-cpp", llama_cpp)
    assert {path.name for path in out.iterdir()} == {
        "_llama.c",
        "guards.cpp",
        "has.h",
        "llamacffi.h",
    }
    assert {path.name for path in package.iterdir()} == {"_llama.pyi", "_generated"}


def test_exports(build, llama_cpp, tmp_path):
    """A core library, a backend, and a function that neither has."""
    functions = {"libllama.so": "llama_decode", "libggml-cpu.so": "ggml_cpu_init"}
    for library, function in functions.items():
        source = tmp_path / f"{library}.c"
        source.write_text(f"void {function}(void) {{}}")
        command = ["cc", "-shared", "-fPIC", source, "-o", tmp_path / library]
        subprocess.run(command, check=True)
    package = tmp_path / "package"
    libraries = [tmp_path / name for name in functions]
    result = build("exports", "--llama-cpp", llama_cpp, "--package", package, *libraries)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("1 functions come with a backend; exported by no library:")
    scope: dict[str, object] = {}
    exec((package / "_generated" / "exports.py").read_text(), scope)
    assert scope["LATE"] == {"ggml_cpu_init": "libggml-cpu"}
    unexported = scope["UNEXPORTED"]
    assert isinstance(unexported, tuple)
    assert "llama_encode" in unexported
    assert "llama_decode" not in unexported


# --- diff -----------------------------------------------------------------------------------------

# What is planted -> the exit code, and what is said.
DIFFERENCES = {
    "nothing": (None, 0, "Nothing changed."),
    "a new function": (
        ("struct llama_vocab;", "LLAMA_API int llama_planted(void); struct llama_vocab;"),
        *(1, "added function llama_planted\n"),
    ),
    "a deprecation": (
        (
            "LLAMA_API size_t llama_max_devices(void);",
            'DEPRECATED(LLAMA_API size_t llama_max_devices(void), "use planted");',
        ),
        *(1, "deprecated function llama_max_devices\n    deprecated: use planted\n"),
    ),
    "a leading argument": (
        ("llama_max_devices(void)", "llama_max_devices(int planted)"),
        *(2, "changed function llama_max_devices\n    argument 1 int planted is new\n"),
    ),
    "a field in the middle of a struct": (
        ("int32_t n_gpu_layers;", "int64_t planted; int32_t n_gpu_layers;"),
        *(2, "added field llama_model_params.planted\n    at offset 16, before n_gpu_layers\n"),
    ),
    "two enumerators swapped": (
        (
            "TYPE_NONE        = 0,\n        LLAMA_ROPE_SCALING_TYPE_LINEAR      = 1,",
            "TYPE_LINEAR = 0, LLAMA_ROPE_SCALING_TYPE_NONE = 1,",
        ),
        *(2, "changed enumerator LLAMA_ROPE_SCALING_TYPE_NONE\n    value 0 is now 1\n"),
    ),
    "a #define that becomes an enum": (
        ("#define LLAMA_DEFAULT_SEED 0xFFFFFFFF", "enum { LLAMA_DEFAULT_SEED = 0xFFFFFFFF };"),
        *(1, "the constant is now the enumerator 4294967295 of an enum without a name"),
    ),
    "an anonymous union": (
        ("int32_t n_gpu_layers;", "union { int32_t n_gpu_layers; float planted; };"),
        *(1, "added field llama_model_params.planted\n    at offset 16, before split_mode\n"),
    ),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_diff(build, copy, difference):
    change, code, said = DIFFERENCES[difference]
    if change:
        plant(copy, LLAMA_H, *change)
    result = build("diff", "pin", copy)
    assert (result.returncode, result.stderr) == (code, "")
    assert said in result.stdout


def test_diff_marks_what_our_code_uses(build, copy):
    plant(copy, LLAMA_H, "llama_max_devices(void)", "llama_max_devices(int planted)")
    told = json.loads(build("diff", "pin", copy, "--json").stdout)
    (change,) = told["changes"]
    assert told["level"] == "breaking"
    files = {use["file"] for use in change["uses"]}
    assert any(name.startswith("llamacffi/") for name in files)
    markdown = build("diff", "pin", copy, "--markdown").stdout
    assert "### Our own code is touched by" in markdown
    assert "`llamacffi/" in markdown
    assert "used in" not in build("diff", "pin", copy, "--no-uses").stdout


def test_diff_of_locks(build, copy, root, tmp_path):
    """A lock, or a directory with one as libraries have it, compares as the tree that it is of."""
    plant(copy, LLAMA_H, "llama_max_devices(void)", "llama_max_devices(int planted)")
    lock = tmp_path / "lib" / "api.lock"
    lock.parent.mkdir()
    build("lock", "--llama-cpp", copy, "--commit", "f" * 40, "--out", lock)
    results = [
        build("diff", "--no-uses", root / "headers" / "api.lock", side).stdout.split("\n", 1)
        for side in (copy, lock, lock.parent)
    ]
    assert results[0][1] == results[1][1] == results[2][1]
    assert f"({'f' * 40})" in results[2][0]


@pytest.mark.parametrize("side", ["nothing", "/etc/hostname", "headers"])
def test_diff_of_what_is_neither(build, side):
    result = build("diff", "pin", side)
    assert result.returncode == 3
    assert result.stderr.startswith("build_ffi.py: ")
    assert "Traceback" not in result.stderr
