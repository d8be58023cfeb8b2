"""``find_package(llamacffi)``: the package as it is installed, and where nobody expected it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import llamacffi
from ffigen.preprocess import INCLUDE_DIRS
from llamacffi import Model, ffi, lib
from tests.interop.builds import check_run

PROJECT = """\
cmake_minimum_required(VERSION 3.26...4.2)
project(user LANGUAGES CXX)
find_package(llamacffi 0.1 REQUIRED)
find_package(llamacffi 0.1 REQUIRED) # twice does no harm
add_executable(user user.cpp)
target_compile_features(user PRIVATE cxx_std_17)
target_link_libraries(user PRIVATE llamacffi::llama llamacffi::mtmd)
message(STATUS "commit ${llamacffi_LLAMA_CPP_COMMIT}")
"""
PROGRAM = """\
#include <cstdio>
#include <cstring>
#include "llama-cpp.h"
#include "llamacffi-build.h"
#include "mtmd.h"

int main(int, char **argv) {
    if (std::strcmp(ggml_commit(), LLAMACFFI_LLAMA_CPP_COMMIT) != 0) return 1;
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    ggml_backend_load_all_from_path(argv[1]);
    llama_model_ptr model{llama_model_load_from_file(argv[2], llama_model_default_params())};
    if (!model) return 2;
    std::printf("%d %s\\n", llama_model_n_embd(model.get()), mtmd_default_marker());
}
"""


@pytest.fixture
def use(tmp_path, demo_path):
    """Build a program against a package, and run it."""

    def build_and_run(*options: str, library_dir: Path) -> str:
        source, build = tmp_path / "user", tmp_path / "user-build"
        source.mkdir()
        (source / "CMakeLists.txt").write_text(PROJECT)
        (source / "user.cpp").write_text(PROGRAM)
        text = check_run("cmake", "-G", "Ninja", "-S", source, "-B", build, *options)
        assert f"commit {ffi.string(lib.llamacffi_built_commit()).decode()}\n" in text
        check_run("cmake", "--build", build)
        return check_run(build / "user", library_dir, demo_path)

    return build_and_run


@pytest.fixture
def expected(demo_path):
    with Model(demo_path) as model:
        return f"{model.n_embd} {ffi.string(lib.mtmd_default_marker()).decode()}\n"


def test_the_package_is_found_by_its_directory(use, expected):
    option = f"-Dllamacffi_DIR={llamacffi.cmake_dir()}"
    assert use(option, library_dir=llamacffi.library_dir()) == expected


def test_the_package_is_found_in_site_packages_and_can_be_moved(root, use, expected, tmp_path):
    builds = [path.parent for path in root.glob("build/cp310-*/cmake_install.cmake")]
    if not builds:
        pytest.skip("needs the build directory of an editable install")
    component = ["--component", "llamacffi"]
    check_run("cmake", "--install", builds[0], "--prefix", tmp_path / "first", *component)
    shutil.move(tmp_path / "first", tmp_path / "second")
    package = tmp_path / "second" / "llamacffi"
    assert {"cmake", "include", "lib"} <= {path.name for path in package.iterdir()}
    # As scikit-build-core says it, for what is installed beside it.
    option = f"-DCMAKE_PREFIX_PATH={tmp_path / 'second'}"
    assert use(option, library_dir=package / "lib") == expected


def test_another_version_is_not_found(tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.26...4.2)\nproject(user LANGUAGES C)\n"
        "find_package(llamacffi 0.99)\n"
        "if(llamacffi_FOUND)\n  message(FATAL_ERROR found)\nendif()\n"
    )
    option = f"-Dllamacffi_DIR={llamacffi.cmake_dir()}"
    text = check_run("cmake", "-G", "Ninja", "-S", tmp_path, "-B", tmp_path / "build", option)
    assert f"version: {llamacffi.__version__}" in text


def test_all_headers_can_be_included(tmp_path):
    """Each alone, as C++; and together as C, as a module of CFFI's does."""
    headers = sorted(path.name for path in llamacffi.include_dir().glob("*.h"))
    assert {"llama.h", "ggml.h", "gguf.h", "llamacffi-all.h", "llamacffi-build.h"} <= set(headers)
    include = f"-I{llamacffi.include_dir()}"
    for name in headers:
        source = tmp_path / f"{name}.cpp"
        source.write_text(f'#include "{name}"\n')
        check_run("c++", "-std=c++17", "-fsyntax-only", include, source)
    source = tmp_path / "all.c"
    source.write_text('#include "llamacffi-all.h"\n')
    check_run("cc", "-fsyntax-only", include, source)


def test_the_headers_are_those_that_the_package_was_built_with(llama_cpp):
    for path in llamacffi.include_dir().glob("*.h"):
        if path.name.startswith("llamacffi"):
            continue
        (original,) = (
            one for folder in INCLUDE_DIRS if (one := llama_cpp / folder / path.name).is_file()
        )
        assert path.read_bytes() == original.read_bytes()
