"""C to the model: each construct is carried through, or stops the build by name."""

from __future__ import annotations

import pytest

from ffigen.api import Callback, Constant, Enum, Function, Struct, Typedef, declare, flat_fields
from ffigen.nodes import UnknownDeclarationError
from ffigen.parse import read_api
from ffigen.preprocess import preprocess


def shown(api) -> list[str]:
    """Write each declaration in a line."""
    lines = []
    for one in api.declarations:
        match one:
            case Function(name=name, type=type_, deprecated=hint):
                lines.append(declare(type_, name) + (f" // {hint}" if hint is not None else ""))
            case Struct(record=record):
                fields = [declare(field.type, field.name) for field in flat_fields(record.fields)]
                body = f" {{ {'; '.join(fields)} }}" if record.fields is not None else ""
                lines.append(one.c_name + body)
            case Enum(members=members):
                names = ", ".join(member.name for member in members)
                lines.append(f"{' '.join(one.c_name.split()) or 'enum'} {{ {names} }}")
            case Typedef(name=name, type=type_):
                lines.append("typedef " + declare(type_, name))
            case Constant(name=name, kind=kind):
                lines.append(f"{kind} constant {name}")
    return lines


# C -> what becomes of it.  What the compiler makes of these is in test_compiled.py.
CARRIED = {
    # structs
    "struct s { int a, *b, c[3]; };": ["struct s { int a; int *b; int c[3] }"],
    "struct s { int a; union { int b; double c; }; };": ["struct s { int a; int b; double c }"],
    "struct s { union { struct { int b; }; struct { union { char d; }; }; }; };": [
        "struct s { int b; char d }"
    ],
    "struct s { struct { int b; } in; };": ["struct s { struct { int b; } in }"],
    "struct s { struct t { int b; } in; };": ["struct t { int b }", "struct s { struct t in }"],
    "struct s { struct t { int b; } *in[2]; };": [
        "struct t { int b }",
        "struct s { struct t *in[2] }",
    ],
    "struct s { union { struct t { int b; } in; int z; }; };": [
        "struct t { int b }",
        "struct s { struct t in; int z }",
    ],
    "struct s { enum e { A, B = 5 } k; };": ["enum e { A, B }", "struct s { enum e k }"],
    "struct s { enum { A, B }; int x; };": ["enum { A, B }", "struct s { int x }"],
    "struct s { int n; float d[]; };": ["struct s { int n; float d[] }"],
    "struct s { struct s *next; };": ["struct s { struct s *next }"],
    'struct s { int a; _Static_assert(1, "x"); int b; };': ["struct s { int a; int b }"],
    "union u { int a; double b; };": ["union u { int a; double b }"],
    "struct s; struct s { int a; }; struct s;": ["struct s { int a }"],
    "void f(struct s *x);": ["struct s", "void f(struct s *x)"],
    "struct f { int a; }; int f(struct f *x);": ["struct f { int a }", "int f(struct f *x)"],
    "struct s { volatile int a; };": ["struct s { int a }"],
    "struct s { const char *const *names; char *const x; const int k; };": [
        "struct s { const char *const *names; char *const x; const int k }"
    ],
    "#define FIELDS int a; int b;\nstruct s { FIELDS };": ["struct s { int a; int b }"],
    # typedefs
    "typedef struct { int a; } s;": ["s { int a }"],
    "typedef struct { int a; } s, *sp, s2;": ["s { int a }", "typedef s *sp", "typedef s s2"],
    "typedef struct t { int a; } s, *sp;": [
        "struct t { int a }",
        "typedef struct t s",
        "typedef struct t *sp",
    ],
    "typedef struct t { int a; } *sp;": ["struct t { int a }", "typedef struct t *sp"],
    "typedef struct s s; typedef struct t *t_p;": [
        "struct s",
        "struct t",
        "typedef struct s s",
        "typedef struct t *t_p",
    ],
    "typedef union { int a; char c; } u;": ["u { int a; char c }"],
    "typedef int t; typedef int t;": ["typedef int t"],
    "typedef int fn(int, const char *);": ["typedef int fn(int, const char *)"],
    "typedef const struct s cs;": ["struct s", "typedef const struct s cs"],
    "typedef float m[4][4];": ["typedef float m[4][4]"],
    # enums
    "enum { A = 3, B };": ["enum { A, B }"],
    "enum { A }; enum { B };": ["enum { A }", "enum { B }"],
    "typedef enum { A } e, *ep;": ["e { A }", "typedef e *ep"],
    "typedef enum t { A } e;": ["enum t { A }", "typedef enum t e"],
    "enum e; enum e { A };": ["enum e { A }"],
    "#define L(X) X(A) X(B)\n#define M(x) E_##x,\nenum e { L(M) };": ["enum e { E_A, E_B }"],
    # functions
    "int f();": ["int f(void)"],
    "int f(int), g(int);": ["int f(int)", "int g(int)"],
    "int (*f(int a))(double);": ["int (*f(int a))(double)"],
    "void f(int (*a)[4]);": ["void f(int (*a)[4])"],
    "void f(float m[3][4], int a[], const char *c[]);": [
        "void f(float (*m)[4], int *a, const char **c)"
    ],
    "void f(int cb(int), void (*)(void));": ["void f(int cb(int), void (*)(void))"],
    "void f(const int *const *const p);": ["void f(const int *const *const p)"],
    "int f(const char *fmt, ...);": ["int f(const char *fmt, ...)"],
    "void f(int *restrict p, int *__restrict q);": ["void f(int *p, int *q)"],
    "int f(int lambda, int None, int self);": ["int f(int lambda, int None, int self)"],
    "unsigned f(long unsigned int a, int long b, long int long c, short unsigned d);": [
        "unsigned int f(unsigned long a, long b, long long c, unsigned short d)"
    ],
    "long double f(signed a, signed char b, char unsigned c, signed long long d);": [
        "long double f(int a, signed char b, unsigned char c, long long d)"
    ],
    "bool f(_Bool b, FILE *c);": ["bool f(_Bool b, FILE *c)"],
    '_Static_assert(sizeof(int) == 4, "x"); int f(void);;': ["int f(void)"],
    "_Noreturn void f(void);": ["void f(void)"],
    '__attribute__((visibility("default"))) int f(int);': ["int f(int)"],
    "int f(const char *a, ...) __attribute__((format(printf, 1, 2)));": [
        "int f(const char *a, ...)"
    ],
    # deprecation
    'DEPRECATED(int f(int a,\n    int b),\n  "use " \n "g()");': ["int f(int a, int b) // use g()"],
    'int f(int) __attribute__((__deprecated__("x")));': ["int f(int) // x"],
    'int f(int) __attribute__((visibility("default"), deprecated("x")));': ["int f(int) // x"],
    'int f(int); DEPRECATED(int f(int), "no");': ["int f(int) // no"],
    'DEPRECATED(int f(int), "a \\"b\\" c");': ['int f(int) // a \\"b\\" c'],
    # constants
    "static const int A = 3; const static double B = 2.5;": ["int constant A", "float constant B"],
    "typedef float t; static const t A = 2.5f;": ["typedef float t", "float constant A"],
    "enum e { X }; static const enum e A = X;": ["enum e { X }", "int constant A"],
    "#define A A\nenum e { A };": ["enum e { A }"],
}


@pytest.mark.parametrize("text", CARRIED)
def test_carried_through(read, text):
    assert shown(read(text)) == CARRIED[text]


# A value -> its kind, or the reason why it is left out.
MACROS = {
    **dict.fromkeys(("1", "-5", "0xFFFFFFFFFFFFFFFFull", "(1 << 4 | 3)", "'a'"), "int"),
    **dict.fromkeys(("sizeof(int)", "((size_t) -1)", "(2 > 1 ? 3 : 4)", "1.5 > 1"), "int"),
    **dict.fromkeys(("true", "((int32_t) 3.7)", "AN_ENUMERATOR", "AN_ENUMERATOR + 1"), "int"),
    **dict.fromkeys(("sizeof(struct a_struct)", "(int) 1.5", "'\"'", "!0", "~0u"), "int"),
    **dict.fromkeys(("1.5f", "-2.5e3", "(1.0f / 3)", "0x1p-3", "(1 ? 2.0 : 1)"), "float"),
    **dict.fromkeys(("((float) 1)", "((a_float) 1)", "A_DOUBLE * 2", "1.0L"), "float"),
    **dict.fromkeys(('"a"', '"a" "b"', '("a")', '((const char *) "a")', '""', '"/*"'), "str"),
    '"\\"*/\\\\"': "str",
    "": "macro without a value",
    **dict.fromkeys(("{1, 2}", "int a;", "do { } while (0)", ";"), "not an expression"),
    **dict.fromkeys(("a_float", "struct a_struct", "extern", "restrict"), "not an expression"),
    "a_function": "another name of a_function",
    "a_function(3)": "not a constant",
    "a_struct": "macro for a_struct, which is not a constant",
    "((void *) 0)": "macro for a pointer",
    "NULL": "macro for a pointer",
    'L"wide"': "not of char",
    '"a"[0]': "not a constant",
    '-"a"': "computes with a string",
}


def test_macros(read):
    declared = (
        "typedef float a_float; struct a_struct { int a; }; enum an_enum { AN_ENUMERATOR };"
        "int a_function(int); static const double A_DOUBLE = 2;\n"
    )
    defines = "".join(f"#define M{i} {value}\n" for i, value in enumerate(MACROS))
    api = read(declared + defines)
    kinds = {one.name: one.kind for one in api.constants}
    for i, (value, expected) in enumerate(MACROS.items()):
        found = kinds.get(f"M{i}") or api.omitted[f"M{i}"]
        assert found == expected or (expected in found and " " in expected), value


def test_macros_of_macros(read):
    api = read("#define B A\n#define A 1.5\n#define F(x) x\n#define C F(2)\n")
    assert {one.name: one.kind for one in api.constants} == {"B": "float", "A": "float", "C": "int"}
    assert api.omitted == {"F": "function-like macro"}


# C -> what the message has to say; every one names llama.h and the line.
STOPPED = {
    "struct s { int a : 3; };": "bit-field a",
    "struct s { int : 3; };": "bit-field",
    "static inline int f(int x) { return x; }": "inline function f",
    "inline int f(int x) { return x; }": "inline function f",
    "extern inline int f(int x);": "inline function f",
    "static int f(int x);": "static or inline function f",
    "extern int v;": "variable v",
    "extern const char *const v[];": "variable v",
    "extern _Thread_local int v;": "variable v",
    "int v = 3;": "variable v",
    "struct s { int a; } v;": "variable v",
    "typedef int fn(int); fn f;": "variable f",
    'static const char *const s = "x";': "constant s that is not a number",
    "typedef struct { int a; } t; static const t x = { 1 };": "constant x that is not a number",
    "struct s { int a; struct t { int b; }; };": "t, defined in a struct without being a field",
    "struct s { enum { A } k; };": "enum without a name, defined in this place",
    "typedef enum { A } *ep;": "enum without a name, defined in this place",
    "int f(struct t { int a; } *p);": "struct t, defined in this place",
    "struct t { int a; } f(void);": "struct t, defined in this place",
    "struct s { struct t { int a; } (*f)(void); };": "struct t, defined in this place",
    "struct t { int a; }; struct s { union { struct t b; } in; };": "in, a struct without a tag",
    "typedef struct { int a; } t; struct s { struct { t b[2]; } in; };": "in, a struct without",
    "struct t { int a; }; struct s { struct { union { struct t b; }; } in; };": "in, a struct",
    "struct s { struct { struct { int a; }; } in; };": "in, a struct without a tag",
    "struct s { char c; _Alignas(16) int a; };": "_Alignas of a",
    "#pragma pack(push, 1)\nstruct s { char c; int a; };": "#pragma pack(push, 1)",
    "struct s {\n#pragma pack(1)\nint a; };": "#pragma pack(1)",
    "struct s { _Atomic int a; };": "_Atomic",
    "__int128 f(void);": "the type __int128",
    "double _Complex f(void);": "the type double _Complex",
    "typedef int t; typedef long t;": "t is declared twice, differently",
    "int f(void) = 3;": "initializer of a function",
    # pycparser shows the line
    '__attribute__((deprecated("x"))) int f(int a);': "int f(int a);",
    '[[deprecated("x")]] int f(void);': "int f(void);",
    "__declspec(dllexport) int f(void);": "int f(void);",
    'int f(void) __asm__("g");': '__asm__("g")',
    "__typeof__(int) f(void);": "__typeof__(int) f(void);",
    "UNKNOWN_API int f(void);": "UNKNOWN_API int f(void);",
    "unknown_t f(void);": "unknown_t f(void);",
}


@pytest.mark.parametrize("text", STOPPED)
def test_stopped_by_name(read, text):
    with pytest.raises(UnknownDeclarationError) as caught:
        read(text)
    message = str(caught.value)
    assert STOPPED[text] in message
    assert any(f"llama.h:{line}:" in message for line in (7, 8))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("static inline int bad(int x) { return x; }", "bad"),
        ("struct bad { int a : 3; };", "bad"),
        ("extern int bad;", "bad"),
        ("int bad(void);", "bad"),
        ("#define bad 1", "bad"),
        ("enum bad { A };", "bad"),
    ],
)
def test_what_surface_toml_omits_is_reported(plant, headers, tmp_path, text, name):
    tree = plant(tmp_path, text + "\nint good(void);")
    api = read_api(preprocess(headers, tree), headers, tree, {name: "for a reason"})
    assert api.omitted[name] == "for a reason"
    names = {one.name for one in api.declarations}
    assert "bad" not in names
    assert "good" in names


def test_an_omitted_struct_stays_known_as_a_pointer(plant, headers, tmp_path):
    tree = plant(tmp_path, "struct bad { int a : 3; };\nint f(struct bad *x);")
    api = read_api(preprocess(headers, tree), headers, tree, {"bad": "it has a bit-field"})
    (struct,) = (one for one in api.structs if one.name == "bad")
    assert struct.record.fields is None


DOCUMENTED = '''
/* far away */

int none(int a);
// of one
int one(int a); // beside one
/* of "two" \\back """ \'\'\' \\n */
DEPRECATED(int two(int a,
                   int b),
    "hint");
#define TEXT "/* not a comment */" // of TEXT
int three(int a);
// of s
struct s {
    // of a
    int a;
    int b; // of b
    // of u
    union {
        int c; // of c
    };
};
// of E
enum e {
    // of A
    A,
    B, // of B é ✓
};
// of t
typedef int t;
'''


def test_comments_belong_to_what_they_stand_at(read):
    api = read(DOCUMENTED)
    docs = {one.name: one.origin.doc for one in api.declarations}
    assert docs == {
        "none": "",
        "one": "of one\nbeside one",
        "two": 'of "two" \\back """ \'\'\' \\n',
        "TEXT": "of TEXT",
        "three": "",
        "s": "of s",
        "e": "of E",
        "t": "of t",
    }
    (struct,) = api.structs
    fields = {one.name: one.doc for one in flat_fields(struct.record.fields)}
    assert fields == {"a": "of a", "b": "of b", "c": "of c"}
    (enum,) = api.enums
    assert {one.name: one.doc for one in enum.members} == {"A": "of A", "B": "of B é ✓"}


def test_flags_are_enums_with_a_shift(read):
    api = read("enum a { A = 1 << 0, B = 1 << 1 }; enum b { C = 1, D = 2 };")
    assert [one.flags for one in api.enums] == [True, False]


def test_trampolines_are_read(root, headers, llama_cpp):
    api = read_api(preprocess(headers, llama_cpp), headers, llama_cpp)
    names = {one.name for one in api.declarations if isinstance(one, Callback)}
    declared = (headers / "callbacks.h").read_text().split('extern "Python"')[1:]
    assert len(names) == len(declared) > 0
    assert all(any(f"{name}(" in text for text in declared) for name in names)
