"""C names to Python names."""

from __future__ import annotations

import keyword

import pytest

from ffigen.api import Enum, Enumerator, Origin
from ffigen.names import py_class, py_member
from ffigen.typing import docstring, parameter_name


def enum(name: str, *members: str) -> Enum:
    return Enum(name, tuple(Enumerator(one) for one in members), Origin("llama.h", 1))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama_vocab_type", "VocabType"),
        ("ggml_type", "GgmlType"),
        ("gguf_type", "GgufType"),
        ("mtmd_input_chunk_type", "MtmdInputChunkType"),
        ("llama_context_params", "ContextParams"),
        ("llama_2d", "2d"),
        ("given", "Chosen"),
    ],
)
def test_classes(name, expected):
    assert py_class(name, {"given": "Chosen"}) == expected


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (enum("ggml_type", "GGML_TYPE_F32", "GGML_TYPE_Q4_0"), ["F32", "Q4_0"]),
        (
            enum("llama_ftype", "LLAMA_FTYPE_ALL_F32", "LLAMA_FTYPE_MOSTLY_F16"),
            ["ALL_F32", "MOSTLY_F16"],
        ),
        (enum("other", "SHARED_WORDS_A", "SHARED_WORDS_B"), ["A", "B"]),
        (enum("other", "SHARED_A", "DIFFERENT_B"), ["SHARED_A", "DIFFERENT_B"]),
        (enum("other", "ALONE_A"), ["ALONE_A"]),
        (enum("kind", "KIND_1D", "KIND_None"), ["_1D", "_None"]),
        (enum("kind", "KIND_", "KIND_A"), ["KIND_", "A"]),
        (enum("", "WORD_A", "WORD_B"), ["A", "B"]),
    ],
)
def test_members(one, expected):
    assert [py_member(member.name, one) for member in one.members] == expected


def test_members_of_an_enum_stay_distinct(llama_cpp):
    from llamacffi import enums, lib

    for one in enums.ENUMS.values():
        names = list(one.__members__)
        assert len(names) == len(set(names)) > 0
        assert all(name.isidentifier() and not keyword.iskeyword(name) for name in names)
        assert all(isinstance(member.value, int) for member in one)
    assert enums.GgmlType.Q4_0 == lib.GGML_TYPE_Q4_0


@pytest.mark.parametrize(
    ("name", "expected"),
    [("n", "n"), ("", "arg2"), ("lambda", "lambda_"), ("None", "None_"), ("self", "self_")],
)
def test_parameters(name, expected):
    assert parameter_name(name, 2) == expected


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        'ends with "quotes"',
        '"begins and ends"',
        '""" three """ and four """"',
        "back\\slash \\n \\",
        "''' three",
        "é ✓ \u2028 \x0c",
        "one\n\n  two\nthree",
        "",
    ],
)
def test_docstrings_are_python(text):
    import ast
    import inspect

    code = f"class A:\n    {docstring(text, 4)}\n"
    node = ast.parse(code).body[0]
    assert isinstance(node, ast.ClassDef)
    read = ast.get_docstring(node, clean=False) or ""
    expected = text.replace('"""', "'''")
    assert inspect.cleandoc(read).split() == inspect.cleandoc(expected).split()
    assert not any(line != line.rstrip(" ") for line in code.split("\n"))
