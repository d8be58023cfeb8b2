"""What the compiler is asked: sizes, offsets and values."""

from __future__ import annotations

import pytest

from ffigen.layout import layouts, measure
from ffigen.parse import read_api
from ffigen.preprocess import PreprocessError, preprocess

TEXT = """
struct s { char a; union { double b; int c; }; int d[3]; };
struct opaque;
enum e { A = -2, B = 0x7fffffff };
#define TEXT "tab\\t newline\\n quote\\" \\\\ é"
#define BIG 0xFFFFFFFFFFFFFFFFull
#define RATIO 0.1f
"""


def test_measure(plant, headers, tmp_path):
    tree = plant(tmp_path, TEXT)
    values = measure(read_api(preprocess(headers, tree), headers, tree), headers, tree)
    assert {key: value for key, value in values.items() if "llamacffi" not in key.lower()} == {
        "struct s": "32",
        "s.a": "0",
        "s.b": "8",
        "s.c": "8",
        "s.d": "16",
        "A": "-2",
        "B": "2147483647",
        "TEXT": '"tab\\011 newline\\012 quote\\" \\\\ \\303\\251"',
        "BIG": "18446744073709551615",
        "RATIO": "0.10000000149011612",
    }


def test_an_inserted_field_moves_those_behind_it(plant, headers, tmp_path):
    def offsets(name: str, text: str) -> dict[str, str]:
        tree = plant(tmp_path / name, text)
        values = measure(read_api(preprocess(headers, tree), headers, tree), headers, tree)
        return {key: value for key, value in values.items() if key.startswith("s.")}

    before = offsets("before", "struct s { int a; int b; };")
    after = offsets("after", "struct s { int a; double x; int b; };")
    assert (before, after) == ({"s.a": "0", "s.b": "4"}, {"s.a": "0", "s.x": "8", "s.b": "16"})


def test_opaque_structs_are_not_measured(read):
    structs = layouts(read(TEXT + "struct empty { };"))
    assert [struct.name for struct, _ in structs] == ["s", "empty"]
    assert [field.name for field in structs[0][1]] == ["a", "b", "c", "d"]


def test_a_probe_that_does_not_compile_says_so(plant, headers, tmp_path):
    tree = plant(tmp_path, "int f(const void);")
    api = read_api(preprocess(headers, tree), headers, tree)
    with pytest.raises(PreprocessError, match=r"(?s)probe does not compile:.*llama\.h:7"):
        measure(api, headers, tree)
