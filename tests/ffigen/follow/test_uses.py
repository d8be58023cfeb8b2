"""Where our own code uses what changed: whole words, and members of a struct."""

from __future__ import annotations

from pathlib import Path

import pytest

from ffigen.follow.changes import Change, Use
from ffigen.follow.uses import mark_uses
from ffigen.lock import read_lock
from ffigen.project import Project

FACTS = read_lock("""\
struct llama_thing_params size 8
field llama_thing_params.n @0: int n;
field llama_thing_params.kind @4: enum llama_kind kind;
enum llama_kind.LLAMA_KIND_NONE = 0
enum llama_kind.LLAMA_KIND_SOME = 1
constant LLAMA_LIMIT = 3
function int llama_go(struct llama_thing_params params);
function struct llama_thing_params llama_thing_default_params(void);
function void llama_stop(void);
""")

FILES = {
    "llamacffi/thing.py": '''\
"""The thing.  Source: ``llama_go``."""
from ._generated.enums import Kind
from ._ffi import lib

def go(**params):  # llama_stop in a comment is no use
    struct = lib.llama_thing_default_params()
    struct.n = params.get("n", lib.LLAMA_LIMIT)
    struct.kind = Kind.SOME
    return lib.llama_go(struct)
''',
    "llamacffi/other.py": "n = 1\nprint(n.n)  # of something else\n",
    "llamacffi/prose.py": "# There are n of llama_thing_params, at most n.\n",
    "llamacffi/_generated/enums.py": "lib.LLAMA_KIND_SOME\n",
    "native/go.cpp": """\
// llama_stop
#include "llama.h"
#define LIMIT (LLAMA_LIMIT + 1)
struct Outer { template <typename T> int go(llama_thing_params params) {
    params.n = 1; const char *text = "llama_stop";
    return llama_go(params); } };
""",
    "tests/test_thing.py": "from llamacffi import Thing\n\nThing(n=3)\nlib.llama_go(1)\n",
    "docs/thing.md": """\
# llama_stop

A thing is made by `lib.llama_go`,
which sees `LLAMA_LIMIT`.

```python
from llamacffi import lib

lib.llama_go()
```
""",
    "headers/surface.toml": '[annotations]\n"llama_thing_params.n" = "int"\n',
}


@pytest.fixture
def source_tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def uses(tree: Path, *changes: Change) -> list[tuple[str, int]]:
    marked = mark_uses(changes, tree, (FACTS, FACTS), {})
    return [(use.file, use.line) for one in marked for use in one.uses]


def gone(name: str, what: str = "function") -> Change:
    return Change("removed", what, name, True)  # type: ignore[arg-type]


def test_a_function(source_tree):
    assert uses(source_tree, gone("llama_go")) == [
        ("docs/thing.md", 3),
        ("docs/thing.md", 9),
        ("llamacffi/thing.py", 1),
        ("llamacffi/thing.py", 9),
        ("native/go.cpp", 6),
        ("tests/test_thing.py", 4),
    ]


def test_comments_and_texts_count_too(source_tree):
    assert uses(source_tree, gone("llama_stop")) == [
        ("docs/thing.md", 1),
        ("llamacffi/thing.py", 5),
        ("native/go.cpp", 1),
        ("native/go.cpp", 5),
    ]


def test_parts_of_words_are_no_uses(source_tree):
    assert uses(source_tree, gone("llama_sto")) == []
    assert uses(source_tree, gone("LIMIT", "constant")) == [("native/go.cpp", 3)]


def test_a_field_counts_where_its_struct_does(source_tree):
    assert uses(source_tree, gone("llama_thing_params.n", "field")) == [
        ("llamacffi/thing.py", 7),
        ("headers/surface.toml", 2),
        ("native/go.cpp", 5),
        ("tests/test_thing.py", 3),
    ]


def test_an_enumerator_by_its_python_name(source_tree):
    change = Change("changed", "enumerator", "LLAMA_KIND_SOME", True)
    assert uses(source_tree, change) == [("llamacffi/thing.py", 8)]


def test_a_constant_in_a_macro(source_tree):
    assert ("native/go.cpp", 3) in uses(source_tree, gone("LLAMA_LIMIT", "constant"))


def test_what_is_new_is_not_used_yet(source_tree):
    assert uses(source_tree, Change("added", "function", "llama_go", False)) == []


def test_both_names_of_a_rename_count(source_tree):
    change = Change("renamed", "function", "llama_stop", True, new_name="llama_go")
    assert ("native/go.cpp", 6) in uses(source_tree, change)


def test_our_own_code(root):
    """The functions that decode and penalise are used where they are known to be."""
    project = Project(root)
    sides = project.pinned, project.pinned
    marked = mark_uses(
        [gone("llama_decode"), gone("llama_sampler_init_penalties")],
        *(root, sides, project.surface["names"]),
    )
    files = [{use.file for use in one.uses} for one in marked]
    assert "llamacffi/batch/arrays.py" in files[0]
    samplers = "llamacffi/sampling/token_samplers.py"
    assert samplers in files[1]
    lines = {use.line for use in marked[1].uses if use.file == samplers}
    text = (root / samplers).read_text().splitlines()
    assert all("llama_sampler_init_penalties" in text[line - 1] for line in lines)


def test_kinds_of_places(source_tree):
    (one,) = mark_uses([gone("llama_go")], source_tree, (FACTS, FACTS), {})
    assert {use.kind for use in one.uses} == {"facade", "native", "tests", "docs"}
    assert Use("native", "native/go.cpp", 6) in one.uses
