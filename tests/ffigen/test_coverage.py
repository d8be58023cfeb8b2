"""Nothing of the pinned headers is missing: counted here without the generator's parser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import llamacffi
from ffigen.preprocess import own_headers
from llamacffi import constants, enums, ffi, lib
from llamacffi._generated.omitted import OMITTED, UNGUARDED

# Conditions that do not hold where the tests run.
ELSEWHERE = ("__cplusplus", "__CUDACC__", "__HIPCC__", "_WIN32", "_MSC_VER", "__MINGW32__")
MACRO_WRAPPERS = {"DEPRECATED", "GGML_DEPRECATED", "GGML_ATTRIBUTE_FORMAT", "__attribute__"}


def read_header(path: Path) -> str:
    """Return a header without its comments and the parts for C++."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", path.read_text(encoding="utf-8"), flags=re.S)
    text = text.replace("\\\n", " ")
    kept: list[str] = []
    conditions: list[bool] = []
    for line in text.split("\n"):
        words = line.replace("#", "# ").split()
        if words[:1] == ["#"] and words[1].startswith("if"):
            needed = re.sub(r"!\s*defined\(\w+\)", "", line).split()
            named = any(mark in word for word in needed for mark in ELSEWHERE)
            conditions.append(not named or words[1] == "ifndef")
        elif words[:2] == ["#", "endif"]:
            conditions.pop()
        elif words[:2] == ["#", "else"]:
            conditions[-1] = True
        elif all(conditions):
            kept.append(line)
    return "\n".join(kept)


@pytest.fixture(scope="module")
def texts(root, llama_cpp) -> dict[str, str]:
    umbrella = (root / "headers" / "upstream.h").read_text(encoding="utf-8")
    names = [*re.findall(r'#include "(.*)"', umbrella), *own_headers(root / "headers")]
    folders = [llama_cpp / "include", llama_cpp / "ggml" / "include", llama_cpp / "tools" / "mtmd"]
    found = {}
    for name in names:
        (path,) = (
            folder / name for folder in (*folders, root / "headers") if (folder / name).exists()
        )
        found[name] = read_header(path)
    return found


@pytest.fixture(scope="module")
def code(texts) -> str:
    """All headers without their preprocessor lines."""
    lines = "\n".join(texts.values()).split("\n")
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))


@pytest.fixture(scope="module")
def defines(texts) -> dict[str, tuple[bool, str]]:
    """Macro -> whether it takes parameters, and its text."""
    found = re.findall(r"^[ \t]*#[ \t]*define[ \t]+(\w+)(\(?)(.*)", "\n".join(texts.values()), re.M)
    return {name: (bool(parenthesis), body.strip()) for name, parenthesis, body in found}


@pytest.fixture(scope="module")
def bodies(code) -> list[tuple[str, str, str, str]]:
    """Keyword, tag, innermost text between braces, and what follows, of each struct and enum."""
    return re.findall(r"(struct|union|enum)\s*(\w*)\s*\{([^{}]*)\}\s*(\w*)", code)


def functions_of(code: str) -> list[str]:
    """Return the names that stand before a parenthesis at file level."""
    while re.search(r"\{[^{}]*\}", code):
        code = re.sub(r"\{[^{}]*\}", " ", code)
    names = []
    for statement in code.replace('extern "C" {', "").split(";"):
        if statement.split()[:1] == ["typedef"] or "static_assert" in statement:
            continue
        candidates = re.findall(r"\b(\w+)\s*\(", statement.split("=")[0])
        names += [name for name in candidates if name not in MACRO_WRAPPERS][:1]
    return names


def test_every_function_is_there(code):
    names = set(functions_of(code))
    assert len(names) > 950
    assert names - set(dir(lib)) - set(OMITTED) == set()
    for name in names - set(UNGUARDED):
        assert "built-in" in repr(getattr(lib, name)) or "function" in repr(getattr(lib, name))


def test_every_struct_is_there(code, bodies):
    tags = {(kind, tag) for kind, tag, _, _ in bodies if tag and kind != "enum"}
    plain = re.findall(r"\b(struct)\s+(\w+)\s*\{", code)
    assert len(tags) > 40
    for kind, tag in {*tags, *plain}:
        assert ffi.typeof(f"{kind} {tag}").fields is not None, tag
    opaque = set(re.findall(r"\bstruct\s+(\w+)", code))
    for tag in opaque:
        assert ffi.typeof(f"struct {tag}").kind == "struct"


def test_every_field_is_there(bodies):
    """The last word before each semicolon, for the structs that have no braces in them."""
    counted = 0
    for kind, tag, body, typedef in bodies:
        if kind != "struct" or not (tag or typedef) or "(" in body:
            continue
        try:
            fields = dict(ffi.typeof(f"struct {tag}" if tag else typedef).fields)
        except ffi.error:
            continue  # what follows is the name of a field
        for declaration in filter(None, map(str.strip, body.split(";"))):
            for part in declaration.split(","):
                name = re.findall(r"\w+", re.sub(r"\[[^]]*\]", "", part))[-1]
                assert name in fields, (tag, name)
                counted += 1
    assert counted > 200


def test_every_enumerator_is_there(code, bodies):
    found = [(tag or typedef, body) for kind, tag, body, typedef in bodies if kind == "enum"]
    assert len(found) == len(re.findall(r"\benum\s*\w*\s*\{", code)) > 40
    names = set()
    for _, body in found:
        plain = re.sub(r"^\s*#.*", "", body, flags=re.M)
        names |= {part.split("=")[0].strip() for part in plain.split(",")} - {""}
    assert len(names) > 400
    assert names - set(dir(lib)) == set()
    in_classes = sum(len(one.__members__) for one in enums.ENUMS.values())
    assert in_classes == len(names)
    assert len(enums.ENUMS) == len(found)


def test_enum_classes_have_the_values_of_c():
    for one in enums.ENUMS.values():
        c_name = (one.__doc__ or "").split("``")[1]
        c_values = ffi.typeof(c_name).relements
        assert sorted(member.value for member in one.__members__.values()) == sorted(
            c_values.values()
        )
        for name, member in one.__members__.items():
            (full,) = {key for key in c_values if key.endswith(name.lstrip("_"))} & {
                key for key, value in c_values.items() if value == member.value
            }
            assert getattr(lib, full) == member.value


def test_every_define_is_there_or_has_a_reason(defines):
    assert len(defines) > 60
    for name, (has_parameters, body) in defines.items():
        if name in OMITTED:
            assert OMITTED[name]
            if re.fullmatch(r"\(?-?(0x)?[0-9a-fA-F.]+[fuUlL]*\)?", body) and not has_parameters:
                pytest.fail(f"{name} is {body} and left out")
        elif not has_parameters and body:
            assert hasattr(lib, name), name
            assert hasattr(constants, name), name


def test_values_of_plain_defines(defines):
    checked = 0
    for name, (has_parameters, body) in defines.items():
        if has_parameters or not hasattr(constants, name):
            continue
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)[uUlL]*", body):
            assert getattr(constants, name) == int(body.rstrip("uUlL"), 0), name
            checked += 1
        elif re.fullmatch(r'"[^"\\]*"', body):
            assert getattr(constants, name) == body[1:-1], name
            checked += 1
    assert checked > 30


def test_constants_of_the_compiler_are_there(code):
    names = re.findall(r"\bstatic\s+const\s[^=;]*?(\w+)\s*=", code)
    assert names == ["GGML_TENSOR_SIZE"]
    assert ffi.sizeof("struct ggml_tensor") == llamacffi.lib.GGML_TENSOR_SIZE


def test_typedefs_are_there(code):
    names = set(re.findall(r"\btypedef\s[^;{}()]*?\b(\w+)\s*;", code))
    names |= set(re.findall(r"\btypedef\b[^;{}]*\(\s*\*\s*(\w+)\s*\)", code))
    assert len(names) > 60
    known = set(ffi.list_types()[0])
    for name in names - known:
        ffi.typeof(name)  # raises if unknown


def test_lib_has_nothing_from_elsewhere(code, texts, defines):
    """What is in `lib` and in no header is our own callbacks."""
    words = set(re.findall(r"\w+", code)) | set(defines)
    assert {name for name in dir(lib) if name not in words} == {
        name for name in dir(lib) if name.startswith("llamacffi_on_")
    }


def test_the_stub_declares_the_same_names():
    import ast

    stub = Path(llamacffi.__file__).with_name("_llama.pyi").read_text(encoding="utf-8")
    (cls,) = (one for one in ast.parse(stub).body if getattr(one, "name", "") == "Lib")
    assert isinstance(cls, ast.ClassDef)
    names = {one.name for one in cls.body if isinstance(one, ast.FunctionDef)}
    names |= {one.target.id for one in cls.body if isinstance(one, ast.AnnAssign)}  # type: ignore[union-attr]
    assert names == set(dir(lib))
