"""The model to files: they are valid, complete, stable, and written only if changed."""

from __future__ import annotations

import ast
import os

import pytest

from ffigen.api import Api
from ffigen.names import py_class
from ffigen.parse import read_api
from ffigen.preprocess import GeneratorError, preprocess
from ffigen.render import (
    generate,
    guarded,
    module_source,
    render,
    typed_params,
    write_if_changed,
)

SURFACE: dict[str, dict[str, str]] = {"names": {}, "aliases": {}, "annotations": {}}
TEXT = '''
// of the "kind" \\ """
enum llama_kind { // the kind
    LLAMA_KIND_A = 1, // of A
    LLAMA_KIND_B,
};
typedef struct { int x; } point;
struct llama_thing_params {
    int32_t n; // how many
    float f;
    bool on;
    enum llama_kind kind;
    void *data;
    bool (*call)(float);
    union { int u1; float u2; };
    point place;
};
struct hidden;
struct odd { int lambda; int plain; };
#define N 3
#define F 1.5
#define S "text"
// of go
DEPRECATED(int go(struct llama_thing_params p, struct hidden *h, const char *s, const int *n,
                  int lambda), "use \\"x\\"");
int printf_like(const char *format, ...);
void unnamed(int, const char *);
'''


@pytest.fixture
def api(read) -> Api:
    return read(TEXT)


@pytest.fixture
def templates(headers):
    return headers / "templates"


def test_cdef(api, templates):
    text = render("cdef.h.j2", api, templates)
    assert "#define N ...\n" in text
    assert "static const double F;\n" in text
    assert "static char *const S;\n" in text
    assert "    LLAMA_KIND_A = ...,\n" in text
    assert "    union { int u1; float u2; };\n    point place;\n    ...;\n};" in text
    assert "\nstruct hidden;\n" in text
    assert "typedef struct  {\n    int x;\n    ...;\n} point;\n" in text
    assert "int printf_like(const char *format, ...);\n" in text


def test_stub(api, templates):
    text = render("_llama.pyi.j2", api, templates)
    tree = ast.parse(text)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    methods = {node.name: node for node in classes["Lib"].body if isinstance(node, ast.FunctionDef)}
    go = methods["go"]
    assert [(one.arg, ast.unparse(one.annotation)) for one in go.args.posonlyargs[1:]] == [
        ("p", "struct_llama_thing_params"),
        ("h", "hidden_p"),
        ("s", "char_p | bytes"),
        ("n", "int_p | Sequence[int]"),
        ("lambda_", "int"),
    ]
    doc = ast.get_docstring(go)
    assert doc is not None
    assert "of go" in doc
    assert 'Deprecated: use \\"x\\"' in doc
    assert "``enum" not in doc
    assert methods["printf_like"].args.vararg is not None
    assert [one.arg for one in methods["unnamed"].args.posonlyargs] == ["self", "arg0", "arg1"]
    fields = [
        node.target.id
        for node in classes["_llama_thing_params_fields"].body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    assert fields == ["n", "f", "on", "kind", "data", "call", "u1", "u2", "place"]
    assert "lambda" not in ast.unparse(classes["_odd_fields"])  # which Python cannot spell


def test_enums(api, templates):
    text = render("enums.py.j2", api, templates)
    (one,) = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef))
    assert one.name == py_class("llama_kind", {}) == "Kind"
    assert 'of the "kind"' in (ast.get_docstring(one) or "")
    values = {"LLAMA_KIND_A": 1, "LLAMA_KIND_B": 2}
    scope = run(text, values)
    assert {member.name: member.value for member in scope["Kind"]} == {"A": 1, "B": 2}


def test_constants(api, templates):
    scope = run(render("constants.py.j2", api, templates), {"N": 3, "F": 1.5, "S": b"text"})
    assert (scope["N"], scope["F"], scope["S"]) == (3, 1.5, "text")


def test_params(api, templates):
    structs = [one for one in api.structs if one.name == "llama_thing_params"]
    scope = run(render("params.py.j2", api, templates, structs=structs), {})
    assert scope["KINDS"]["llama_thing_params"] == {
        "n": "int",
        "f": "float",
        "on": "bool",
        "kind": "Kind",
        "data": "pointer",
        "call": "pointer",
        "u1": "int",
        "u2": "float",
        "place": "struct",
    }
    surface = {"names": {}, "aliases": {structs[0].name: "room.module"}, "annotations": {}}
    typed = run(typed_params(structs[0], api, templates, surface), {})["ThingParams"]
    assert set(typed.__annotations__) == set(scope["KINDS"]["llama_thing_params"])
    assert "enums.Kind | int | str" in str(typed.__annotations__["kind"])
    assert typed.__total__ is False


def test_omitted(api, templates):
    reasons = {"a": 'with "quotes"', "b": "and \\ backslash"}
    scope = run(render("omitted.py.j2", Api(api.declarations, reasons), templates), {})
    assert scope["OMITTED"] == reasons
    assert scope["UNGUARDED"] == ("printf_like",)


def run(text: str, values: dict[str, object]) -> dict[str, object]:
    """Run generated Python, with ``values`` for what the compiled module would have."""
    assert "Do not edit" in text.splitlines()[0]

    class Module:
        string = staticmethod(lambda value: value)

    module = Module()
    vars(module).update(values)
    scope: dict[str, object] = {"lib": module, "ffi": module, "__name__": "generated"}
    lines = text.split("\n")
    exec("\n".join(line for line in lines if not line.startswith("from .._native")), scope)
    return scope


def test_the_guard_is_for_all_but_variadic_functions(api, headers):
    assert [one.name for one in guarded(api)] == ["go", "unnamed"]
    source = module_source(api, headers)
    assert "#define go(...) llamacffi_guarded_go(__VA_ARGS__)" in source
    assert "guarded_printf_like" not in source
    assert "_cffi_f_printf_like" not in source  # CFFI calls it through libffi
    assert "_cffi_f_go" in source


def test_the_guard_is_for_our_own_functions_too(plant, headers, tmp_path):
    tree = plant(tmp_path, "")
    named = {one.name for one in guarded(read_api(preprocess(headers, tree), headers, tree))}
    assert {"llamacffi_chain_sample", "llamacffi_vocab_fault"} <= named
    assert named.isdisjoint({"llamacffi_abort_requested", "llamacffi_log_checkpoint"})


def test_generate_is_deterministic_and_writes_only_what_changed(plant, headers, tmp_path):
    def run(text: str) -> set[str]:
        tree = plant(tmp_path / "tree", text)
        api = read_api(preprocess(headers, tree), headers, tree)
        out = tmp_path / "out"
        return {path.name for path in generate(api, headers, out, out / "package", SURFACE)}

    everything = run(TEXT)
    assert everything == {
        *("_llama.c", "guards.cpp", "has.h", "llamacffi.h", "_llama.pyi", "cdef.h"),
        *("__init__.py", "enums.py", "constants.py", "params.py", "omitted.py"),
    }
    of_cdef = {"_llama.c", "guards.cpp", "_llama.pyi", "cdef.h", "__init__.py"}
    assert run(TEXT) == set()
    assert run(TEXT.replace("// of A", "// of another A")) == {"enums.py"}
    assert run(TEXT) == {"enums.py"}
    assert run(TEXT + "int more(void);") == {*of_cdef, "has.h"}
    assert run(TEXT + "\n#define FLAG") == {*of_cdef, "has.h", "omitted.py"}


def test_the_tree_of_another_path_gives_the_same_text(plant, headers, tmp_path):
    texts = []
    for name in ("a", "b with spaces"):
        tree = plant(tmp_path / name, TEXT)
        api = read_api(preprocess(headers, tree), headers, tree)
        generate(api, headers, tmp_path / name / "out", tmp_path / name / "package", SURFACE)
        files = sorted((tmp_path / name).glob("[op]*/**/*"))
        texts.append([path.read_text() for path in files if path.is_file()])
    assert texts[0] == texts[1]
    assert len(texts[0]) == 11


def test_write_if_changed(tmp_path):
    path = tmp_path / "new" / "file"
    assert write_if_changed(path, "é\n")
    os.utime(path, ns=(1, 1))
    assert not write_if_changed(path, "é\n")
    assert path.stat().st_mtime_ns == 1
    assert write_if_changed(path, "e\n")
    assert path.stat().st_mtime_ns != 1
    assert path.read_text() == "e\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("struct a_params { int lambda; };", "struct a_params.lambda is a keyword"),
        ("enum llama_a { A }; enum A { B };", "enum A and enum llama_a would both be the class A"),
        ("enum { N = 3 }; void f(int (*a)[N]);", "llama.h:7: f has an array of length N"),
        ("enum { N = 3 }; struct s { int (*a)[N + 1]; };", "s has an array of length N + 1"),
        ("enum { N = 3 }; struct s { struct { int a[N]; } in; };", "s has an array of length N"),
        ("enum { N = 3 }; struct s { struct { int a[N]; } in[2]; };", "s has an array of length N"),
        ("enum { N = 3 }; typedef int (*t)[N];", "t has an array of length N"),
        ("void f(int (*a)[sizeof(int)]);", "CFFI does not take what the headers declare"),
    ],
)
def test_what_cannot_be_rendered_stops_by_name(read, headers, tmp_path, text, message):
    with pytest.raises(GeneratorError) as caught:
        generate(read(text), headers, tmp_path, tmp_path, SURFACE)
    assert message in str(caught.value)
    assert not list(tmp_path.glob("*.c"))


def test_a_template_with_a_misspelt_name_is_an_error(api, tmp_path):
    from jinja2 import UndefinedError

    (tmp_path / "bad.j2").write_text("{{ apy.functions }}")
    with pytest.raises(UndefinedError, match="apy"):
        render("bad.j2", api, tmp_path)


def test_a_field_has_the_annotation_of_surface_toml(read, headers, tmp_path):
    text = "struct a_params { const float *split; int n; };"
    surface = {
        "names": {},
        "aliases": {"a_params": "room.param_types"},
        "annotations": {"a_params.split": "types.Split | None"},
    }
    generate(read(text), headers, tmp_path, tmp_path, surface)
    params = (tmp_path / "_generated" / "a_params.py").read_text()
    assert "    from ..room import param_types as types\n" in params
    assert "    split: types.Split | None\n" in params
    assert "    n: int\n" in params


def test_an_annotation_of_a_field_that_is_gone_stops_by_name(read, headers, tmp_path):
    surface = {"names": {}, "aliases": {}, "annotations": {"a_params.split": "int"}}
    with pytest.raises(GeneratorError, match=r"annotates a_params\.split, which no header has"):
        generate(read("struct a_params { int n; };"), headers, tmp_path, tmp_path, surface)
