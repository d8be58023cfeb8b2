"""Headers to plain C: macros, comments, attributes, and odd files."""

from __future__ import annotations

from pathlib import Path

import pytest

from ffigen.parse import read_api
from ffigen.preprocess import (
    Comment,
    PreprocessError,
    bound_headers,
    find_comments,
    located_lines,
    own_headers,
    preprocess,
    read_define,
)


def test_macros_come_with_their_place(plant, headers, tmp_path):
    text = "#define A 1\n#define F(x) x\n#define A2 \\\n  A\n#define GONE 1\n#undef GONE"
    tree = plant(tmp_path, text)
    source = preprocess(headers, tree)
    found = {one.name: one for one in source.macros if one.path.name == "llama.h"}
    assert list(found) == ["DEPRECATED", "A", "F", "A2"]
    assert (found["A"].line, found["A"].body, found["A"].has_parameters) == (7, "1", False)
    assert (found["F"].line, found["F"].has_parameters) == (8, True)
    assert (found["A2"].line, found["A2"].body) == (9, "A")
    assert "#define" not in source.text


def test_only_public_headers_are_read(llama_cpp, headers):
    names = [path.name for path in preprocess(headers, llama_cpp).headers]
    lines = (headers / "upstream.h").read_text(encoding="utf-8").splitlines()
    included = [line.split('"')[1] for line in lines if line.startswith("#include")]
    own = [path.name for path in (headers / "llamacffi").iterdir()]
    assert sorted(names) == sorted([*included, *own, "upstream.h"])


def test_our_own_headers_come_last_and_in_order(llama_cpp, headers):
    """No list says so: a new part is found by its file."""
    named = own_headers(headers)
    assert named == sorted(f"llamacffi/{path.name}" for path in (headers / "llamacffi").iterdir())
    assert bound_headers(headers).splitlines() == [
        f'#include "{name}"' for name in ["upstream.h", *named]
    ]
    functions = read_api(preprocess(headers, llama_cpp), headers, llama_cpp).functions
    seen = list(dict.fromkeys(one.origin.header for one in functions if one.origin.is_own))
    assert sorted(seen) == named


def test_a_macro_that_is_defined_again_has_its_last_value(plant, headers, tmp_path):
    tree = plant(tmp_path, "#define A 1\n#undef A\n#define A 2")
    macros = {one.name: one.body for one in preprocess(headers, tree).macros}
    assert macros["A"] == "2"


@pytest.mark.parametrize("name", ["a b", "été ✓", "it's"])
def test_any_path_will_do(read, headers, plant, tmp_path, name):
    from ffigen.layout import measure

    tree = plant(tmp_path / name, "// doc\nint f(int a);\n#define A 5")
    api = read_api(preprocess(headers, tree), headers, tree)
    (function,) = (one for one in api.functions if one.name == "f")
    assert function.origin.doc == "doc"
    assert measure(api, headers, tree)["A"] == "5"


def test_windows_line_ends(plant, headers, tmp_path):

    text = (
        '// one\r\n// two\r\nDEPRECATED(int f(int a,\r\n    int b),\r\n  "use g");\r\n'
        "/* block\r\n * more */\r\n#define A \\\r\n  3\r\nint g(int a); // beside\r\n"
    )
    tree = plant(tmp_path, text.encode())
    api = read_api(preprocess(headers, tree), headers, tree)
    functions = {one.name: one for one in api.functions}
    assert (functions["f"].origin.doc, functions["f"].deprecated) == ("one\ntwo", "use g")
    assert functions["g"].origin.doc == "beside"
    assert {one.name: one.origin.doc for one in api.constants}["A"] == "block\nmore"


def test_bytes_that_are_no_utf8_are_replaced(plant, headers, tmp_path):
    from ffigen.layout import measure

    tree = plant(tmp_path, b'// caf\xe9\n#define A "\xe9"\nint f(void);')
    api = read_api(preprocess(headers, tree), headers, tree)
    assert {one.name: one.origin.doc for one in api.constants}["A"] == "caf\ufffd"
    assert measure(api, headers, tree)["A"] == '"\\351"'


def test_a_form_feed_is_no_line_end(read):
    (function,) = read("#define A 1\n\x0c\n// doc \u2028 of f\nint f(void);").functions
    assert (function.origin.line, function.origin.doc) == (10, "doc \u2028 of f")


@pytest.mark.parametrize(
    ("declaration", "attribute"),
    [
        ("struct s { char c; int a; } __attribute__((packed));", "packed"),
        ("struct __attribute__((__packed__)) s { char c; int a; };", "__packed__"),
        ("struct s { char c; int a __attribute__((aligned(8))); };", "aligned"),
        ("int f(void) __attribute__((nonnull(1)));", "nonnull"),
        ("int f(void) __attribute((cold));", "cold"),
        ('int f(void) __attribute__((visibility("default"), hot));', "hot"),
        ("int f(void) __attribute__((deprecated));", "deprecated"),
        ("struct s { int a; __attribute__((vector_size(16))) float v; };", "vector_size"),
    ],
)
def test_an_attribute_without_a_rule_stops_by_name(read, declaration, attribute):
    with pytest.raises(PreprocessError) as caught:
        read("\n" + declaration)
    expected = f"llama.h:8: the generator does not know __attribute__(({attribute}))"
    assert expected in str(caught.value)


def test_an_attribute_that_nobody_uses_is_no_matter(read):
    api = read("#define PACKED __attribute__((packed))\nint f(void);")
    assert [one.name for one in api.functions] == ["f"]
    assert "PACKED" in api.omitted


def test_a_directory_without_llama_cpp(headers, tmp_path):
    with pytest.raises(PreprocessError, match=r"is not a llama\.cpp tree: it has no include/"):
        preprocess(headers, tmp_path)


def test_what_the_compiler_says_is_passed_on(plant, headers, tmp_path):
    with pytest.raises(PreprocessError, match=r"(?s)preprocessor failed:.*llama\.h:7:.*broken"):
        preprocess(headers, plant(tmp_path, "#error broken"))


def test_no_compiler(llama_cpp, headers, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(PreprocessError, match="'no-such-compiler' not found; install gcc or clang"):
        preprocess(headers, llama_cpp)


def test_the_compiler_may_have_arguments(plant, headers, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "cc -DPLANTED=41")
    tree = plant(tmp_path, "#ifdef PLANTED\nint f(int a[PLANTED]);\n#endif")
    assert "int f(int a[41]);" in preprocess(headers, tree).text


def test_located_lines():
    text = '# 1 "/a.h" 1\nint a;\n\n# 7 "/b \\303\\251.h" 2\nint b;'
    lines = [(str(where), number) for line, where, number in located_lines(text) if "int" in line]
    assert lines == [("/a.h", 1), ("/b é.h", 7)]


def test_read_define():
    path = Path("/a.h")
    macro = read_define("#define F(a, b) a + b", path, 3)
    assert (macro.name, macro.has_parameters, macro.path, macro.line) == ("F", True, path, 3)
    macro = read_define("#define E", path, 1)
    assert (macro.name, macro.has_parameters, macro.body) == ("E", False, "")
    assert not read_define("#define P (1)", path, 1).has_parameters


COMMENTS = {
    "/* one */": [Comment(1, 1, "one", True)],
    "int a; // beside": [Comment(1, 1, "beside", False)],
    "int a; ///< doxygen": [Comment(1, 1, "doxygen", False)],
    "// one\n// two\n\n// three": [Comment(1, 2, "one\ntwo", True), Comment(4, 4, "three", True)],
    "/**\n * one\n * two\n */": [Comment(1, 4, "one\ntwo", True)],
    "// one\n//   - two\n// three": [Comment(1, 3, "one\n  - two\nthree", True)],
    "/* one:\n *   two\n *\n * three */": [Comment(1, 4, "one:\n  two\n\nthree", True)],
    "/*\n   one\n     two\n*/": [Comment(1, 4, "one\n  two", True)],
    "int a; // one\n       // two\nint b;": [Comment(1, 2, "one\ntwo", False)],
    "int a; // one\n// two\nint b;": [Comment(1, 1, "one", False), Comment(2, 2, "two", True)],
    '"/* no */" /* yes */': [Comment(1, 1, "yes", False)],
    r'"\"/* no */" // yes': [Comment(1, 1, "yes", False)],
    "'\"' // yes": [Comment(1, 1, "yes", False)],
    "'\\'' // yes": [Comment(1, 1, "yes", False)],
    "// it's\nint a; // b": [Comment(1, 1, "it's", True), Comment(2, 2, "b", False)],
    '/* "open */ int a; // b': [Comment(1, 1, '"open', True), Comment(1, 1, "b", False)],
    "// goes on \\\nhere\nint a;": [Comment(1, 2, "goes on \\\nhere", True)],
    "// /* no block\nint a; // b": [
        Comment(1, 1, "/* no block", True),
        Comment(2, 2, "b", False),
    ],
    "/* // */ int a;": [Comment(1, 1, "//", True)],
    "/* never closed": [Comment(1, 1, "never closed", True)],
    "#error it's\n// b": [Comment(2, 2, "b", True)],
    '// é ✓ \\n """': [Comment(1, 1, 'é ✓ \\n """', True)],
}


@pytest.mark.parametrize("text", COMMENTS)
def test_find_comments(text):
    assert find_comments(text) == COMMENTS[text]
