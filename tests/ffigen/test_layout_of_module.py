"""The installed module against a C program that is compiled from the headers alone."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest

from ffigen.preprocess import bound_headers
from llamacffi import ffi, lib


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "cc"))


def records() -> dict[str, list[str]]:
    """Return each struct and union whose fields are public, with the paths of its fields."""
    typedefs, structs, unions = ffi.list_types()
    names = [f"struct {name}" for name in structs] + [f"union {name}" for name in unions]
    names += [name for name in typedefs if ffi.typeof(name).kind in ("struct", "union")]
    return {name: list(paths(ffi.typeof(name))) for name in names if is_complete(name)}


def is_complete(name: str) -> bool:
    """Tell whether a struct is not opaque; CFFI 2.1 aborts if an opaque one is asked for fields."""
    try:
        return ffi.sizeof(name) >= 0 and "$" not in name
    except ffi.error:
        return False


def paths(ctype, prefix: str = ""):
    """Yield the fields of a struct, and the fields of those."""
    for name, field in ctype.fields:
        yield prefix + name
        if field.type.kind in ("struct", "union"):
            yield from paths(field.type, f"{prefix}{name}.")


def enumerators() -> dict[str, int]:
    """Return the integers among the attributes of `lib`."""
    values = {name: getattr(lib, name) for name in dir(lib)}
    return {name: value for name, value in values.items() if isinstance(value, int)}


@pytest.fixture(scope="module")
def facts(tmp_path_factory, root, llama_cpp) -> dict[str, int]:
    lines = [bound_headers(root / "headers"), "#include <stdio.h>", "int main(void) {"]
    for name, fields in records().items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        lines.append(f'printf("align {name} %zu\\n", _Alignof({name}));')
        lines += [
            f'printf("{name}.{field} %zu\\n", offsetof({name}, {field}));' for field in fields
        ]
    lines += [f'printf("{name} %lld\\n", (long long) ({name}));' for name in enumerators()]
    directory = tmp_path_factory.mktemp("facts")
    (directory / "facts.c").write_text("\n".join([*lines, "return 0; }"]))
    folders = [
        root / "headers",
        *(llama_cpp / name for name in ("include", "ggml/include", "tools/mtmd")),
    ]
    include = [f"-I{folder}" for folder in folders]
    command = [*compiler(), "-w", "-O0", *include, "facts.c", "-o", "facts"]
    subprocess.run(command, cwd=directory, check=True)
    output = subprocess.run([directory / "facts"], capture_output=True, text=True, check=True)
    pairs = (line.rsplit(" ", 1) for line in output.stdout.splitlines())
    return {key: int(value) for key, value in pairs}


def test_sizes_and_alignments(facts):
    for name in records():
        assert (ffi.sizeof(name), ffi.alignof(name)) == (facts[name], facts[f"align {name}"]), name


def test_offsets(facts):
    checked = 0
    for name, fields in records().items():
        for field in fields:
            assert ffi.offsetof(name, *field.split(".")) == facts[f"{name}.{field}"], (name, field)
            checked += 1
    assert checked > 300


def test_integers(facts):
    values = enumerators()
    assert len(values) > 450
    for name, value in values.items():
        assert value == facts[name] or value == facts[name] + 2**64, name
