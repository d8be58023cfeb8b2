"""The register of workarounds: which comments belong to it, and which a new llama.cpp touches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ffigen.follow.quirks import comments, missing_names, read_quirks, to_review
from ffigen.follow.report import Side
from ffigen.follow.sides import Source, compare_sides, read_tree
from ffigen.preprocess import GeneratorError
from ffigen.project import Project

FILES = {
    "llamacffi/thing.py": '''\
"""Things.

upstream: src/thing.cpp MAX_THINGS, "at most %d: things": it stops there,
and so we count.

More about things.
"""

x = 1  # upstream: src/thing.cpp n_things: trailing
# upstream: src/thing.cpp MAX_THINGS,
# n_things: the names of one run over two lines,
# and so does the text.
# upstream: src/gone.cpp x: another
y = 2
''',
    "native/thing.cpp": """\
// upstream: src/thing.cpp n_things: C++
// goes on
int x;
/* upstream: ggml/thing.c thing_t: a block
 * goes on */
int y; // not a part of it
""",
    "llamacffi/_generated/enums.py": "# upstream: nonsense\n",
    "headers/llamacffi.h": '#include "upstream.h" // what upstream: has\n',
}


@pytest.fixture
def source_tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_every_kind_of_comment_is_read(source_tree):
    found = [
        (one.file, one.line, one.path, one.names, one.text) for one in read_quirks(source_tree)
    ]
    thing, python, native = "src/thing.cpp", "llamacffi/thing.py", "native/thing.cpp"
    assert found == [
        (python, 3, thing, ("MAX_THINGS", '"at most %d: things"'),
         "it stops there, and so we count."),
        (python, 9, thing, ("n_things",), "trailing"),
        (python, 10, thing, ("MAX_THINGS", "n_things"),
         "the names of one run over two lines, and so does the text."),
        (python, 13, "src/gone.cpp", ("x",), "another"),
        (native, 1, thing, ("n_things",), "C++ goes on"),
        (native, 4, "ggml/thing.c", ("thing_t",), "a block goes on"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "comment",
    [
        "# upstream: src/thing.cpp: no name",
        "# upstream: src/thing.cpp MAX_THINGS it has no colon",
        "# upstream: src/thing.cpp MAX_THINGS:",
        "# upstream: MAX_THINGS: no path",
        "# upstream: src/thing.cpp MAX_THINGS n_things: no comma",
        "# upstream: it just tells something",
        "# Upstream: src/thing.cpp MAX_THINGS: a capital letter",
        "#upstream: src/thing.cpp MAX_THINGS: no space",
        "# As we know, upstream: src/thing.cpp MAX_THINGS: in the middle",
        "# upstream : src/thing.cpp MAX_THINGS: a space too many",
        '"""Upstream: src/thing.cpp MAX_THINGS: a docstring."""',
    ],
)
def test_what_only_looks_like_it_is_an_error(source_tree, comment):
    path = source_tree / "llamacffi" / "other.py"
    path.write_text(f"x = 1\n{comment}\n")
    with pytest.raises(GeneratorError, match=r"llamacffi/other\.py:2: "):
        read_quirks(source_tree)


def test_words_about_upstream_are_not_of_the_register():
    lines = ["# Following upstream: what changed", "upstream = 1", 'include "upstream.h"']
    assert list(comments(lines)) == []


def test_names_are_whole_words_and_literals_are_exact(source_tree):
    quirk = read_quirks(source_tree)[0]
    assert missing_names(quirk, 'MAX_THINGS "at most %d: things"') == []
    assert missing_names(quirk, "MAX_THINGS_MORE at most %d:  things") == list(quirk.names)


def test_what_a_change_of_llama_cpp_touches(source_tree):
    quirks = read_quirks(source_tree)
    before = 'MAX_THINGS, n_things, "at most %d: things"'
    old = {"src/thing.cpp": before, "src/gone.cpp": "x", "ggml/thing.c": "thing_t"}
    assert to_review(quirks, old, old) == []
    new = {"src/thing.cpp": before.replace("MAX_", "MOST_"), "ggml/thing.c": "thing_t"}
    reviews = [(one.quirk.line, one.quirk.path, one.reason) for one in to_review(quirks, old, new)]
    assert reviews == [
        (13, "src/gone.cpp", "the file is gone"),
        (3, "src/thing.cpp", "no longer contains MAX_THINGS"),
        (10, "src/thing.cpp", "no longer contains MAX_THINGS"),
        (9, "src/thing.cpp", "the file changed"),
        (1, "src/thing.cpp", "the file changed"),
    ]


def test_what_was_not_there_before_is_not_news(source_tree):
    """A tree whose files are only headers, or a name that this llama.cpp does not have yet."""
    quirks = read_quirks(source_tree)
    assert to_review(quirks, {}, {"src/thing.cpp": ""}) == []
    reviews = to_review(quirks, {"src/gone.cpp": ""}, {"src/gone.cpp": "y"})
    assert [one.reason for one in reviews] == ["the file changed"]


@pytest.fixture
def sides(root: Path, plant, tmp_path: Path) -> tuple[Source, Source]:
    """Two trees, of which the second lacks a name and a file that we work around."""
    project, read = Project(root), []
    for label in ("old", "new"):
        tree = plant(tmp_path / label, "")
        (tree / "src").mkdir(exist_ok=True)
        name = "MAX_REPETITION_THRESHOLD" if label == "old" else "MAX_REPETITIONS"
        (tree / "src" / "llama-grammar.cpp").write_text(f"#define {name} 2000\n")
        if label == "old":
            (tree / "src" / "llama-adapter.cpp").write_text("is_token_embd\n")
        read.append(read_tree(project, tree, Side(label, label * 8)))
    return read[0], read[1]


def test_the_report_of_two_trees_names_our_workarounds(root, sides):
    report = compare_sides(*sides, Project(root), uses=False)
    text = report.render("diff.txt.j2", Project(root).templates)
    assert "Nothing changed." in text  # in the headers
    found = (
        "src/llama-grammar.cpp: no longer contains MAX_REPETITION_THRESHOLD\n    llamacffi/sampl"
    )
    assert found in text
    assert "src/llama-adapter.cpp: the file is gone\n    llamacffi/adapter/" in text
    markdown = report.render("diff.md.j2", Project(root).templates)
    assert "| `src/llama-adapter.cpp`: the file is gone | `llamacffi/adapter/" in markdown
    told = json.loads(report.json())["workarounds"]
    assert {one["reason"] for one in told} >= {"the file is gone"}
    assert {"file", "line", "path", "names", "text"} <= set(told[0]["quirk"])


def test_a_lock_knows_nothing_of_workarounds(root, sides):
    lock = Source(Side("lock", "l"), sides[0].facts, {})
    report = compare_sides(lock, sides[1], Project(root), uses=False)
    assert report.reviews is None
    assert "Workarounds" not in report.render("diff.txt.j2", Project(root).templates)
