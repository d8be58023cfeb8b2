"""Whether the C of the module compiles against a llama.cpp tree: asked without a build."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .preprocess import GeneratorError, compiler_command, include_paths
from .project import Project, macros_without

# What native/internals/ includes beside the public headers.
PRIVATE_DIRS = ("src", "ggml/src")
# What CMake says to the compiler beside the directories; any value will do here.
BUILD_MACROS = (
    "LLAMACFFI_BUILT_COMMIT",
    "LLAMACFFI_BUILT_GGML_VERSION",
    "LLAMACFFI_BUILT_LLAMA_VERSION",
    "LLAMACFFI_BUILT_VERSION",
)
LAYOUT = '#define LLAMACFFI_BUILT_LAYOUT ""\n'


class CompileError(GeneratorError):
    """The module's C does not compile; the text has the errors, each with file and line."""


def failing_parts(project: Project, tree: Path) -> dict[str, str]:
    """Return the parts of native/ that do not compile against a tree, each with the first error."""
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="llamacffi-") as scratch:
        out = Path(scratch)
        generate_into(project, tree, out, ())
        sources = [project.internals / f"{part}.cpp" for part in project.parts]
        for source, errors in compile_all(project, tree, out, sources, ()):
            if errors:
                failed[source.stem] = errors.splitlines()[0]
    return failed


def check_module(project: Project, tree: Path, without: Collection[str] = ()) -> None:
    """Compile all of the module's C and C++, but for the parts ``without``; nothing is kept.

    Raises:
        GeneratorError: The module cannot be generated.
        CompileError: Something does not compile.
    """
    with tempfile.TemporaryDirectory(prefix="llamacffi-") as scratch:
        out = Path(scratch)
        generate_into(project, tree, out, without)
        internals = [one for one in project.internals.glob("*.cpp") if one.stem not in without]
        native = sorted([*project.native.glob("*.c*"), *internals])
        sources = [out / "_llama.c", out / "guards.cpp", *native]
        compiled = compile_all(project, tree, out, sources, without)
    if failed := [f"{one.name} does not compile:\n{errors}" for one, errors in compiled if errors]:
        raise CompileError("\n".join(failed))


def generate_into(project: Project, tree: Path, out: Path, without: Collection[str]) -> None:
    """Generate what is compiled."""
    project.generate(tree, out, out / "package", without)
    (out / "layout.h").write_text(LAYOUT, encoding="utf-8")


def compile_all(
    project: Project, tree: Path, out: Path, sources: Sequence[Path], without: Collection[str]
) -> list[tuple[Path, str]]:
    """Compile files, as many at once as there are processors; return each with what is wrong."""

    def errors(source: Path) -> tuple[Path, str]:
        return source, compile_errors(project, tree, out, source, without)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(errors, sources))


def compile_errors(
    project: Project, tree: Path, out: Path, source: Path, without: Collection[str]
) -> str:
    """Compile one file; return the lines that say what is wrong, empty if nothing is."""
    include = [project.headers, project.native, out, *include_paths(tree)]
    include.append(Path(sysconfig.get_path("include")))
    if source.parent == project.internals:
        include += [tree / directory for directory in PRIVATE_DIRS]
    macros = [*macros_without(without), *(f'{name}=""' for name in BUILD_MACROS)]
    language = [*compiler_command()] if source.suffix == ".c" else [*cxx_command(), "-std=c++17"]
    command = [*language, "-fsyntax-only", "-w", *(f"-D{one}" for one in macros)]
    command += [*(f"-I{path}" for path in include), str(source)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode == 0:
        return ""
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    return "\n".join(errors) or done.stderr.strip() or "the compiler failed without a message"


def cxx_command() -> list[str]:
    """Return the C++ compiler to run: ``$CXX``, which may have arguments, or ``c++``."""
    compiler = os.environ.get("CXX", "c++")
    return [compiler] if shutil.which(compiler) else shlex.split(compiler)
