"""What changed between two APIs: nothing is missed, and nothing invented."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffigen.follow.changes import Change, level_of
from ffigen.follow.diff import compare
from ffigen.follow.renames import likely_renames, similarity
from ffigen.follow.report import Report, Side, grouped
from ffigen.lock import Facts, read_lock
from ffigen.project import Project

BASE = """\
struct ctx opaque
struct params size 16
field params.n @0: int32_t n;
field params.f @4: float f;
field params.data @8: void *data;
union either size 8
field either.a @0: int a;
field either.b @0: double b;
typedef bool (*callback)(int a, void *data);
typedef int32_t token;
enum kind.KIND_NONE = 0
enum kind.KIND_FIRST = 1
enum kind.KIND_SECOND = 2
enum kind.KIND_COUNT = 3
constant MAX_SIZE = 64
constant DEFAULT_NAME = "model"
function int32_t ctx_decode(struct ctx *ctx, int32_t n, const token *tokens);
function void ctx_free(struct ctx *ctx);
function struct ctx *ctx_load_file(const char *path);
function float ctx_score(const struct ctx *ctx) deprecated
""".replace(") deprecated", "); deprecated")

# What is done to the lock -> what the comparison says, one line a change.
PLANTED = {
    "a function is new": (
        [("function void ctx_free", "function int more(void);\nfunction void ctx_free")],
        ["added function more"],
    ),
    "a function is gone": (
        [("function void ctx_free(struct ctx *ctx);\n", "")],
        ["! removed function ctx_free"],
    ),
    "a leading argument": (
        [("ctx_free(struct ctx *ctx)", "ctx_free(int flags, struct ctx *ctx)")],
        ["! changed function ctx_free: argument 1 int flags is new"],
    ),
    "an argument at the end is gone, and the result another": (
        [("int32_t ctx_decode(struct ctx *ctx, int32_t n, const token *tokens)",
          "void ctx_decode(struct ctx *ctx, int32_t n)")],
        ["! changed function ctx_decode: it returned int32_t and returns void; "
         "argument 3 const token *tokens is gone"],
    ),
    "an argument of another type": (
        [("int32_t n, const token", "int64_t n, const token")],
        ["! changed function ctx_decode: argument 2 int32_t n is now int64_t n"],
    ),
    "an argument of the same type by another name": (
        [("int32_t n, const token", "int n, const token")],
        ["changed function ctx_decode: argument 2 int32_t n is now int n"],
    ),
    "an argument is called otherwise": (
        [("int32_t n, const token", "int32_t n_tokens, const token")],
        ["changed function ctx_decode: argument 2 int32_t n is now called n_tokens"],
    ),
    "an argument takes more": (
        [("ctx_free(struct ctx *ctx)", "ctx_free(const struct ctx *ctx)")],
        ["changed function ctx_free: "
         "argument 1 struct ctx *ctx is now const struct ctx *ctx"],
    ),
    "an argument takes less": (
        [("ctx_score(const struct", "ctx_score(struct")],
        ["! changed function ctx_score: "
         "argument 1 const struct ctx *ctx is now struct ctx *ctx"],
    ),
    "a function is variadic now": (
        [("ctx_load_file(const char *path)", "ctx_load_file(const char *path, ...)")],
        ["! changed function ctx_load_file: it is variadic now"],
    ),
    "a callback takes more": (
        [("(*callback)(int a, void *data)", "(*callback)(int a, const void *data)")],
        ["! changed typedef callback: argument 2 void *data is now const void *data"],
    ),
    "deprecations": (
        [("ctx_free(struct ctx *ctx);", "ctx_free(struct ctx *ctx); deprecated"),
         ("ctx_score(const struct ctx *ctx); deprecated", "ctx_score(const struct ctx *ctx);")],
        ["deprecated function ctx_free", "no longer deprecated function ctx_score"],
    ),
    "a likely rename": (
        [("ctx_load_file(", "ctx_load_from_file(")],
        ["! renamed function ctx_load_file -> ctx_load_from_file"],
    ),
    "one goes and another one comes": (
        [("void ctx_free(struct ctx *ctx)", "void print_usage(struct ctx *ctx)")],
        ["! removed function ctx_free", "added function print_usage"],
    ),
    "a field in the middle": (
        [("size 16", "size 24"),
         ("field params.f @4", "field params.extra @4: int32_t extra;\nfield params.f @8"),
         ("params.data @8", "params.data @16")],
        ["added field params.extra: at offset 4, before f",
         "! changed struct params: 16 bytes are now 24; "
         "f (offset 4 is now 8) moved by +4 bytes; data (offset 8 is now 16) moved by +8 bytes"],
    ),
    "a field in a gap at the end": (
        [("field params.data @8: void *data;",
          "field params.data @8: void *data;\nfield params.last @16: char last;")],
        ["added field params.last: at offset 16, at the end"],
    ),
    "two fields swapped": (
        [("field params.n @0: int32_t n;\nfield params.f @4: float f;",
          "field params.f @0: float f;\nfield params.n @4: int32_t n;")],
        ["! changed struct params: the order of its fields is another; "
         "n (offset 0 is now 4) moved by +4 bytes; f (offset 4 is now 0) moved by -4 bytes"],
    ),
    "a field of another type": (
        [("@4: float f;", "@4: int f;")],
        ["! changed field params.f: type float is now int"],
    ),
    "a field by another name": (
        [("params.data @8: void *data;", "params.user_data @8: void *user_data;")],
        ["! renamed field params.data -> params.user_data"],
    ),
    "a struct is no longer opaque": (
        [("struct ctx opaque", "struct ctx size 4\nfield ctx.n @0: int n;")],
        ["changed struct ctx: its fields are public now"],
    ),
    "a struct is opaque now": (
        [("union either size 8\nfield either.a @0: int a;\nfield either.b @0: double b;\n",
          "union either opaque\n")],
        ["! changed union either: its fields are not public now"],
    ),
    "two enumerators swapped": (
        [("KIND_FIRST = 1", "KIND_FIRST = 2"), ("KIND_SECOND = 2", "KIND_SECOND = 1")],
        ["! changed enumerator KIND_FIRST: value 1 is now 2",
         "! changed enumerator KIND_SECOND: value 2 is now 1"],
    ),
    "an enumerator in the middle": (
        [("enum kind.KIND_FIRST = 1", "enum kind.KIND_NEW = 1\nenum kind.KIND_FIRST = 2"),
         ("KIND_SECOND = 2", "KIND_SECOND = 3"), ("KIND_COUNT = 3", "KIND_COUNT = 4")],
        ["added enumerator KIND_NEW",
         "! changed enumerator KIND_FIRST: value 1 is now 2",
         "! changed enumerator KIND_SECOND: value 2 is now 3",
         "! changed enumerator KIND_COUNT: value 3 is now 4"],
    ),
    "a constant of another value": (
        [("MAX_SIZE = 64", "MAX_SIZE = 128")],
        ["! changed constant MAX_SIZE: value 64 is now 128"],
    ),
    "a constant becomes an enumerator": (
        [("constant MAX_SIZE = 64", "enum limits.MAX_SIZE = 64")],
        ["changed enumerator MAX_SIZE: "
         "the constant is now the enumerator 64 of enum limits"],
    ),
    "and has another value": (
        [("constant MAX_SIZE = 64", "enum limits.MAX_SIZE = 65")],
        ["! changed enumerator MAX_SIZE: "
         "the constant is now the enumerator 65 of enum limits"],
    ),
    "a function becomes a constant": (
        [("function void ctx_free(struct ctx *ctx);", "constant ctx_free = 1")],
        ["! changed constant ctx_free: the function is now the constant 1"],
    ),
    "an enum by another name": (
        [("enum kind.", "enum sort.")],
        [f"changed enumerator KIND_{name}: it is in another enum"
         for name in ("NONE", "FIRST", "SECOND", "COUNT")],
    ),
    "a typedef of another type": (
        [("typedef int32_t token;", "typedef int64_t token;")],
        ["! changed typedef token: type int32_t is now int64_t"],
    ),
}  # fmt: skip


def said(one: Change) -> str:
    """Write a change as the table has it."""
    name = f"{one.name} -> {one.new_name}" if one.new_name else one.name
    text = f"{'! ' * one.breaking}{one.action} {one.what} {name}"
    return ": ".join(filter(None, (text, "; ".join(one.details))))


@pytest.mark.parametrize("planted", PLANTED)
def test_planted(planted):
    edits, expected = PLANTED[planted]
    text = BASE
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    changes = compare(read_lock(BASE), read_lock(text))
    assert [said(one) for one in changes] == expected


@pytest.fixture(scope="module")
def lock(root) -> str:
    return (root / "headers" / "api.lock").read_text()


def test_nothing_changed(lock):
    assert compare(read_lock(lock), read_lock(lock)) == []


def test_the_other_way_round(lock):
    """What is added one way is removed the other way, and the rest is a change both ways."""
    other = lock.replace("function int32_t llama_decode(", "function int32_t llama_compute(")
    other = re.sub(r"^constant LLAMA_SESSION_VERSION.*\n", "", other, flags=re.MULTILINE)
    there, back = (
        compare(*sides)
        for sides in (
            (read_lock(lock), read_lock(other)),
            (read_lock(other), read_lock(lock)),
        )
    )
    assert {(one.action, one.name) for one in there} == {
        ("removed", "llama_decode"),
        ("added", "llama_compute"),
        ("removed", "LLAMA_SESSION_VERSION"),
    }
    opposite = {"removed": "added", "added": "removed"}
    assert {(opposite[one.action], one.name) for one in back} == {
        (one.action, one.name) for one in there
    }


LINES = BASE.splitlines()
# Facts that can go alone: others need the rest of them.
SINGLE = [line for line in LINES if line.startswith(("constant", "enum", "function"))]


@settings(deadline=None)
@given(st.sets(st.sampled_from(SINGLE), max_size=6), st.sets(st.sampled_from(SINGLE), max_size=6))
def test_what_is_left_out_is_found(left_out, put_in):
    """Of facts that only one side has, each is told once, by its name, in the right direction."""
    sides = [
        read_lock(
            "\n".join(line for line in LINES if line not in missing) + "\nfunction int f(void);"
        )
        for missing in (put_in, left_out)
    ]
    gone, come = (set(sides[i].names()) - set(sides[1 - i].names()) for i in (0, 1))
    told_gone, told_come = set(), set()
    for one in compare(*sides):
        assert one.action in ("added", "removed", "renamed")
        if one.action != "added":
            told_gone.add(one.name)
        if one.action != "removed":
            told_come.add(one.new_name or one.name)
    assert (told_gone, told_come) == (gone, come)


def test_hints_of_the_new_headers():
    new = read_lock(
        BASE.replace("ctx_free(struct ctx *ctx);", "ctx_free(struct ctx *ctx); deprecated")
    )
    (change,) = compare(read_lock(BASE), new, {"ctx_free": "use nothing"})
    assert said(change) == "deprecated function ctx_free: deprecated: use nothing"


def test_levels():
    harmless = Change("added", "function", "f", False)
    assert level_of([]) == "nothing"
    assert level_of([harmless]) == "compatible"
    assert level_of([harmless, Change("removed", "function", "g", True)]) == "breaking"


@pytest.mark.parametrize(
    ("old", "new", "is_rename"),
    [
        # Renames that llama.cpp has made.
        ("llama_load_model_from_file", "llama_model_load_from_file", True),
        ("llama_apply_adapter_cvec", "llama_set_adapter_cvec", True),
        ("llama_kv_cache_seq_rm", "llama_kv_self_seq_rm", True),
        ("flash_attn", "flash_attn_type", True),
        ("llama_sampler_init_softmax", "llama_sampler_init_greedy", False),
        ("GGML_OP_REPEAT", "GGML_OP_FILL", False),
        ("llama_free", "llama_print_timings", False),
    ],
)
def test_names_that_are_alike(old, new, is_rename):
    assert bool(likely_renames({old: 0}, {new: 0}, lambda a, b: True)) is is_rename


@given(st.text("abc_", min_size=1), st.text("abc_", min_size=1))
def test_similarity(one, other):
    assert 0 <= similarity(one, other) <= 1
    assert similarity(one, one) == 1


def test_a_name_is_renamed_once():
    old, new = dict.fromkeys(["a_b_c", "a_b_d"], 0), dict.fromkeys(["a_b_c_x"], 0)
    renames = likely_renames(old, new, lambda a, b: True)
    assert renames == {"a_b_c": "a_b_c_x"}


# --- Reports --------------------------------------------------------------------------------------


def shifted(facts: str, distance: int) -> Facts:
    return read_lock(re.sub(r"(KIND_\w+ = )(\d)", lambda m: f"{m[1]}{int(m[2]) + distance}", facts))


def test_shifted_values_are_one_line_of_a_report():
    changes = compare(read_lock(BASE), shifted(BASE, 2))
    assert len(changes) == 4
    (one,) = grouped(changes)
    assert said(one) == (
        "! changed enumerator kind: 4 values shifted by +2, "
        "from KIND_NONE (value 0 is now 2) to KIND_COUNT (value 3 is now 5)"
    )


def test_reports(root):
    templates = Project(root).templates
    text = BASE.replace("MAX_SIZE = 64", "MAX_SIZE = 1").replace("ctx_load_file", "ctx_load_a_file")
    changes = compare(read_lock(BASE), read_lock(text))
    report = Report(Side("1.0", "a" * 40), Side("2.0", "b" * 40), changes)
    plain = report.render("diff.txt.j2", templates)
    assert "renamed function ctx_load_file -> ctx_load_a_file (likely)" in plain
    assert "    value 64 is now 1\n" in plain
    markdown = report.render("diff.md.j2", templates)
    assert "- changed constant `MAX_SIZE`: value 64 is now 1" in markdown
    assert '"new_name": "ctx_load_a_file"' in report.json()


def test_a_report_of_nothing(root):
    report = Report(Side("1.0", "a"), Side("1.1", "b"), [])
    for template in ("diff.txt.j2", "diff.md.j2"):
        assert "Nothing changed" in report.render(template, Project(root).templates)
    assert report.level == "nothing"
