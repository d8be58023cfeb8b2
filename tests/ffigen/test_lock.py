"""A lock says all that a comparison needs, and is read back as it was written."""

from __future__ import annotations

import pytest

from ffigen.api import Api, flat_fields
from ffigen.layout import measure
from ffigen.lock import Facts, LockError, read_lock
from ffigen.project import Project
from ffigen.render import render

TEXT = r"""
typedef struct point { int x; double y; } point_t;
typedef struct { point_t a[3]; } untagged;
typedef enum { BY_TYPEDEF } by_typedef;
enum numbers { ONE = 1, TWO, LAST = -5 };
enum { NAMELESS = 7 };
struct hidden;
struct same;
struct many {
    union { struct { int b; double c; }; char d[ONE + 5]; };
    struct { short e; } in;
    int (*call)(struct many *, const char *const *);
    by_typedef f;
    struct same *g;
};
typedef bool (*callback)(struct many *many, untagged *);
typedef callback table[4];
struct same *same(struct same *same, untagged by_value, float a[3]);
int variadic(const char *format, ...);
DEPRECATED(void old(FILE *), "use new");
#define TEXT "a \"b\" ; { c"
#define NUMBER (3 + 4)
#define REAL 0.1
"""


@pytest.fixture
def written(plant, headers, tmp_path, root) -> tuple[Api, Facts]:
    """What the headers of a tree in miniature say, and what comes back from its lock."""
    tree = plant(tmp_path / "tree", TEXT)
    api = Project(root).api(tree)
    text = render("api.lock.j2", api, headers / "templates", values=measure(api, headers, tree))
    return api, read_lock(text)


def test_functions_come_back(written):
    api, facts = written
    assert {one.name: one.type for one in api.functions} == {
        name: one.type for name, one in facts.functions.items()
    }
    assert facts.functions["old"].deprecated
    assert not facts.functions["variadic"].deprecated


def test_typedefs_come_back(written):
    api, facts = written
    expected = {one.name: one.type for one in api.typedefs}
    assert {name: one.type for name, one in facts.typedefs.items()} == expected


def test_structs_come_back(written):
    api, facts = written
    for one in api.structs:
        fact = facts.records[one.name]
        assert fact.kind == one.record.kind
        assert (fact.size is None) == (one.record.fields is None)
        fields = list(flat_fields(one.record.fields))
        assert [(f.name, f.type) for f in fields] == [(f.name, f.type) for f in fact.fields]
    many = facts.records["many"]
    assert many.size == 48
    assert [one.offset for one in many.fields] == [0, 8, 0, 16, 24, 32, 40]


def test_values_come_back(written):
    _, facts = written
    assert {
        name: one.value for name, one in facts.constants.items() if "LLAMACFFI" not in name
    } == {
        "TEXT": r'"a \"b\" ; { c"',
        "NUMBER": "7",
        "REAL": "0.10000000000000001",
    }
    assert [(one.enum, one.name, one.value) for one in facts.enumerators.values()] == [
        ("by_typedef", "BY_TYPEDEF", "0"),
        ("numbers", "ONE", "1"),
        ("numbers", "TWO", "2"),
        ("numbers", "LAST", "-5"),
        ("", "NAMELESS", "7"),
    ]


def test_the_committed_lock_is_read(root):
    facts = Project(root).pinned
    lines = [
        line
        for line in (root / "headers" / "api.lock").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert len(list(facts.names())) == len(lines)
    assert facts.functions["llama_decode"].text.startswith("int32_t llama_decode(")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no function"),
        ("<html>", "x:1: not a fact of an api.lock: <html>"),
        ("function int f(void);\nsomething else", "x:2: not a fact"),
        ("function int f(unknown_type);", "unknown_type"),
        ("function int f(;", "not understood"),
    ],
)
def test_what_is_no_lock(text, said):
    with pytest.raises(LockError, match=said.replace("(", r"\(")):
        read_lock(text, "x")
