"""All constructs that are carried through, compiled for real and compared with a C program.

One module is made of headers in miniature, as `_llama` is made of llama.cpp's.  The layouts and
values that CFFI then has are compared with those that a separate program prints.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import subprocess
import sysconfig
from types import ModuleType

import cffi
import pytest

from ffigen.layout import measure
from ffigen.parse import read_api
from ffigen.preprocess import bound_headers, include_paths, preprocess
from ffigen.render import render

HEADER = r"""
enum { ANONYMOUS_A = 3, ANONYMOUS_B };
enum { ANONYMOUS_C = 30 };
typedef enum { BY_TYPEDEF_A = 7, BY_TYPEDEF_B } by_typedef, *by_typedef_p;
enum with_tag { TAG_A = -1, TAG_B = 0x7fffffff };
enum same_name { SAME_A = 5 };
enum large { LARGE_A = 0xFFFFFFFFu };
enum huge { HUGE_A = 0xFFFFFFFFFFFFFFFFull, HUGE_B = 1 };
#define LENGTH 7
enum computed { COMPUTED_A = LENGTH, COMPUTED_B = COMPUTED_A + 2, COMPUTED_C = 'x', LENGTH_2 };

#define FLOAT_1 1.5f
#define FLOAT_2 -2.5e3
#define FLOAT_3 (1.0f / 3)
#define INT_1 -5
#define INT_2 (1 << 4 | 3)
#define INT_CHAR 'a'
#define INT_MAX_64 0xFFFFFFFFFFFFFFFFull
#define INT_MIN_64 (-9223372036854775807LL - 1)
#define INT_32 0x80000000
#define INT_SIZE ((size_t) -1)
#define INT_ALIAS TAG_A
#define STRING_1 "abc" "def"
#define STRING_2 "q\"uo\\te\n*/ /* é ✓ ''' \"\"\""
#define STRING_3 STRING_1 "!"
#define STRING_4 ""
static const int STATIC_1 = -3;
static const double STATIC_2 = 2.25;
static const uint64_t STATIC_3 = 0xFFFFFFFFFFFFFFFFull;

struct anonymous {
    char a;
    union {
        struct { int b; double c; };
        struct { union { char d[LENGTH * 2 + 1]; short e; }; };
    };
    int f;
};
struct inline_named { char a; struct { char b[LENGTH + 2]; double c; } in; char d; };
struct inline_array { char a; struct { short b; char c; } in[3]; char d; };
struct inline_pointer { struct { char a; double b; } *p; };
struct holder { char a; struct held { char b; double c; } in; enum held_enum { HELD = 9 } e; };
struct deep { char a; union { struct held_deep { long b; } *in; char z[LENGTH]; } u; };
struct deep_anonymous { char a; union { struct held in; int z[2]; }; char b; };
struct arrays {
    char a[LENGTH];
    float b[3][4];
    int (*c)[LENGTH];
    void (*d[2])(int);
    char e[LENGTH_2];
    char f[sizeof(int) * 3];
};
struct flexible { int n; double d[]; };
struct numbers {
    unsigned a; long unsigned int b; long double c; signed char d; unsigned short int e; bool f;
    int long long g; volatile int h; const char *const *i; uint8_t j; size_t k; ptrdiff_t l;
};
struct self { struct self *next; struct never_shown *other; };
union either { char a; double b; int c[5]; };
typedef union { int a; char b[9]; } either_2;
typedef struct { char a; double b; } no_tag, *no_tag_p;
typedef struct tag { char a; long b; } tag_t, *tag_p;
typedef struct { char a[LENGTH]; int b; } *only_pointer;
typedef float matrix[4][LENGTH];
typedef struct opaque opaque_t;
typedef int callback(int, const char *);
struct with_typedefs {
    char a; matrix b; no_tag c; tag_t *d; callback *e; either_2 f; by_typedef g;
};
struct same_name_2 { char a; int b; };

int same_name(enum same_name a);
int same_name_2(struct same_name_2 *a);
int (*returns_pointer(int a))(double);
int pointer_to_array(int (*a)[LENGTH]);
float sum(float a[3][4]);
int keywords(int lambda, int None, int self);
int unnamed(int, int);
int call(callback *a, callback b);
unsigned long spelled(long unsigned int a, int long b);
volatile int *volatile_pointer(volatile int *a);
DEPRECATED(int old(int a,
                   int b), "use \"new\" \\ "
                           "instead");
no_tag by_value(no_tag a, struct held b);
only_pointer through(only_pointer a);
size_t length(const char *const a[], matrix b);
int variadic(const char *format, ...);
"""

SOURCE = r"""
#include <stdarg.h>
int same_name(enum same_name a) { return a + 1; }
int same_name_2(struct same_name_2 *a) { return a->b; }
static int twice(double a) { return (int) (2 * a); }
int (*returns_pointer(int a))(double) { return a ? twice : 0; }
int pointer_to_array(int (*a)[LENGTH]) { return (*a)[LENGTH - 1]; }
float sum(float a[3][4]) { return a[0][0] + a[2][3]; }
int keywords(int lambda, int None, int self) { return lambda + 10 * None + 100 * self; }
int unnamed(int a, int b) { return a - b; }
int call(callback *a, callback b) { return a(1, "x") + b(2, "y"); }
unsigned long spelled(long unsigned int a, int long b) { return a + b; }
volatile int *volatile_pointer(volatile int *a) { return a; }
int old(int a, int b) { return a * b; }
no_tag by_value(no_tag a, struct held b) { a.b += b.c; return a; }
only_pointer through(only_pointer a) { a->b += 1; return a; }
size_t length(const char *const a[], matrix b) { return sizeof(matrix) + a[1][0]; }
int variadic(const char *format, ...) {
    va_list list; va_start(list, format); int a = va_arg(list, int); va_end(list); return a;
}
"""

STRUCTS = {
    "struct anonymous": "a b c d e f",
    "struct inline_named": "a in in.b in.c d",
    "struct inline_array": "a in d",
    "struct holder": "a in in.b in.c e",
    "struct held": "b c",
    "struct deep": "a u u.in u.z",
    "struct deep_anonymous": "a in in.b in.c z b",
    "struct held_deep": "b",
    "struct arrays": "a b c d e f",
    "struct flexible": "n d",
    "struct numbers": "a b c d e f g h i j k l",
    "struct self": "next other",
    "union either": "a b c",
    "either_2": "a b",
    "no_tag": "a b",
    "struct tag": "a b",
    "struct with_typedefs": "a b c c.b d e f g",
    "struct same_name_2": "a b",
    "matrix": "",
    "by_typedef": "",
    "callback *": "",
}
ENUMERATORS = (
    *("ANONYMOUS_A", "ANONYMOUS_B", "ANONYMOUS_C", "BY_TYPEDEF_A", "BY_TYPEDEF_B", "TAG_A"),
    *("TAG_B", "SAME_A", "LARGE_A", "HUGE_A", "HUGE_B", "COMPUTED_A", "COMPUTED_B", "COMPUTED_C"),
    *("LENGTH_2", "HELD"),
)
INTEGERS = (
    *("LENGTH", "INT_1", "INT_2", "INT_CHAR", "INT_MAX_64", "INT_MIN_64", "INT_32", "INT_SIZE"),
    *("INT_ALIAS", "STATIC_1", "STATIC_3"),
)
FLOATS = ("FLOAT_1", "FLOAT_2", "FLOAT_3", "STATIC_2")
STRINGS = ("STRING_1", "STRING_2", "STRING_3", "STRING_4")


def program() -> str:
    """Write the C program that prints what must come out."""
    lines = ['#include "upstream.h"', "#include <stdio.h>", "int main(void) {"]
    for name, fields in STRUCTS.items():
        lines.append(f'printf("{name}\\t%zu\\n", sizeof({name}));')
        lines += [
            f'printf("{name} {field}\\t%zu\\n", offsetof({name}, {field}));'
            for field in fields.split()
        ]
    for name in ENUMERATORS + INTEGERS:
        lines.append(f'if (({name}) > 0) printf("{name}\\t%llu\\n", 0ull + ({name}));')
        lines.append(f'else printf("{name}\\t%lld\\n", 0ll + ({name}));')
    lines += [f'printf("{name}\\t%a\\n", (double) ({name}));' for name in FLOATS]
    for name in STRINGS:
        lines.append(f'printf("{name}\\t");')
        lines.append(f'for (const char *p = {name}; *p; ++p) printf("%02x", (unsigned char) *p);')
        lines.append('puts("");')
    return "\n".join([*lines, "}"])


@pytest.fixture(scope="module")
def directory(tmp_path_factory, plant, headers):
    """The tree in miniature, with the program's output and the module next to it."""
    directory = tmp_path_factory.mktemp("compiled with spaces")
    tree = plant(directory / "tree", HEADER)
    include = [headers, *include_paths(tree)]
    (directory / "program.c").write_text(program())
    command = ["cc", "-w", *(f"-I{path}" for path in include), "program.c", "-o", "program"]
    subprocess.run(command, cwd=directory, check=True)
    return directory


@pytest.fixture(scope="module")
def api(directory, headers):
    tree = directory / "tree"
    return read_api(preprocess(headers, tree), headers, tree)


@pytest.fixture(scope="module")
def expected(directory) -> dict[str, str]:
    output = subprocess.run([directory / "program"], capture_output=True, text=True, check=True)
    return dict(line.split("\t") for line in output.stdout.split("\n") if line)


@pytest.fixture(scope="module")
def module(directory, headers, api) -> ModuleType:
    builder = cffi.FFI()
    builder.cdef(without_our_functions(api, headers))
    builder.set_source("mini", bound_headers(headers) + SOURCE)
    builder.emit_c_code(str(directory / "mini.c"))
    python = sysconfig.get_path("include")
    include = [f"-I{path}" for path in (python, headers, *include_paths(directory / "tree"))]
    command = ["cc", "-w", "-O0", "-shared", "-fPIC", *include, "mini.c", "-o", "mini.so"]
    subprocess.run(command, cwd=directory, check=True)
    spec = importlib.util.spec_from_file_location("mini", directory / "mini.so")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_our_functions(api, headers) -> str:
    """Write the cdef; our own headers are always read, but native/ is not linked here."""
    kept = tuple(one for one in api.declarations if not one.name.startswith("llamacffi_"))
    return render("cdef.h.j2", type(api)(kept), headers / "templates")


def test_sizes_and_offsets(module, expected):
    ffi = module.ffi
    found = {}
    for name, fields in STRUCTS.items():
        found[name] = str(ffi.sizeof(name))
        for field in fields.split():
            found[f"{name} {field}"] = str(ffi.offsetof(name, *field.split(".")))
    assert found == {key: value for key, value in expected.items() if key in found}
    assert len(found) > 70


def test_sizes_behind_pointers(module):
    ffi = module.ffi
    pointed = ffi.typeof("struct inline_pointer").fields[0][1].type.item
    assert [(name, field.offset) for name, field in pointed.fields] == [("a", 0), ("b", 8)]
    assert ffi.sizeof(ffi.typeof("only_pointer").item) == 12
    assert ffi.typeof("no_tag_p").item is ffi.typeof("no_tag")
    assert ffi.typeof("tag_p").item is ffi.typeof("tag_t") is ffi.typeof("struct tag")
    assert ffi.typeof("by_typedef_p").item is ffi.typeof("by_typedef")


def test_values(module, expected):
    lib, ffi = module.lib, module.ffi
    for name in ENUMERATORS + INTEGERS:
        assert str(getattr(lib, name)) == expected[name], name
    for name in FLOATS:
        assert getattr(lib, name) == float.fromhex(expected[name]), name
    for name in STRINGS:
        assert ffi.string(getattr(lib, name)).hex() == expected[name], name


def test_the_lock_has_the_same_facts(api, headers, directory, expected):
    values = measure(api, headers, directory / "tree")
    for name in ENUMERATORS + INTEGERS:
        assert values[name] == expected[name], name
    for name in FLOATS:
        assert float(values[name]) == float.fromhex(expected[name]), name
    for name in STRINGS:
        text = values[name][1:-1]
        assert text.isascii()
        assert text.encode().decode("unicode_escape").encode("latin-1").hex() == expected[name]
    for name, fields in STRUCTS.items():
        bare = name.removeprefix("struct ").removeprefix("union ")
        assert values.get(name, expected[name]) == expected[name]
        for field in fields.split():
            key = f"{bare}.{field}"
            assert values.get(key, "inner" if "." in field else None) in (
                expected[f"{name} {field}"],
                "inner",
            )


def test_functions_can_be_called(module):
    lib, ffi = module.lib, module.ffi
    assert lib.same_name(lib.SAME_A) == 6
    assert lib.same_name_2(ffi.new("struct same_name_2 *", {"b": 4})) == 4
    assert lib.returns_pointer(1)(3.5) == 7
    assert lib.pointer_to_array(ffi.new("int(*)[7]", [1, 2, 3, 4, 5, 6, 70])) == 70
    assert lib.sum(ffi.new("float[3][4]", [[1, 0, 0, 0], [0] * 4, [0, 0, 0, 2]])) == 3
    assert lib.keywords(1, 2, 3) == 321
    assert lib.unnamed(5, 3) == 2
    callback = ffi.callback("callback *", lambda a, b: 10 * a + len(ffi.string(b)))
    assert lib.call(callback, callback) == 32
    assert lib.spelled(2**64 - 1, 0) == 2**64 - 1
    cell = ffi.new("int *", 8)
    assert lib.volatile_pointer(cell) == cell
    assert lib.old(6, 7) == 42
    result = lib.by_value({"a": b"x", "b": 0.5}, {"b": b"y", "c": 0.25})
    assert (result.a, result.b) == (b"x", 0.75)
    assert lib.through(ffi.new(ffi.typeof("only_pointer"), {"b": 1})).b == 2
    texts = [ffi.new("char[]", b"a"), ffi.new("char[]", b"\x05")]
    assert lib.length(texts, ffi.new("matrix")) == 4 * 4 * 7 + 5
    assert lib.variadic(b"", ffi.cast("int", 9)) == 9


def test_the_stub_names_what_the_module_has(api, headers):
    """Every class that an annotation of the stub uses is defined in it."""
    stub = render("_llama.pyi.j2", api, headers / "templates")
    tree = ast.parse(stub)
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    imported = {
        alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    known = defined | imported | set(dir(builtins)) | {"_T", "_CData", "_CType"}
    annotations = [getattr(node, "annotation", None) for node in ast.walk(tree)]
    annotations += [getattr(node, "returns", None) for node in ast.walk(tree)]
    parts = [part for one in annotations if one is not None for part in ast.walk(one)]
    used = {part.id for part in parts if isinstance(part, ast.Name)}
    assert used - known == set()
    assert {"struct_no_tag", "int_p", "FunctionPointer"} <= used
