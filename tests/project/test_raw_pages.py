"""How the pages of the raw layer are generated, shown on a small API with planted comments."""

from __future__ import annotations

import re

import markdown
import pytest

from docs.raw_reference.pages import Facts, Reference, c_declaration, rows
from docs.raw_reference.params import Python, tables, type_aliases
from docs.raw_reference.places import Places, Writer
from docs.raw_reference.uses import Package, reference_names, uses
from ffigen.api import (
    Api,
    Constant,
    Enum,
    Enumerator,
    Field,
    Function,
    FunctionType,
    Inline,
    Name,
    Origin,
    Parameter,
    Pointer,
    Record,
    Struct,
    Tag,
    Typedef,
)
from tests.project.html_page import Page

UPSTREAM = '#include "b.h"\n#include "a.h"\n'
NASTY = """\
<b>bold</b> & `code` *stars* _lines_ [text](http://example.com/a_b) {{ jinja }} ](x
  | table | cell |
  |---|---|
    - indented
# heading
<script>alert("f")</script> ``` --- f_of_b"""


def function(name: str, *parameters: Parameter, header: str = "a.h", **more: object) -> Function:
    return Function(name, FunctionType(Name("int"), parameters), Origin(header, 1, NASTY), **more)


A_PARAMS = Struct(
    "a_params",
    Record(
        "struct",
        (
            Field("n", Name("int"), "count"),
            Field(
                "", Inline(Record("union", (Field("x", Name("float")), Field("y", Name("int")))))
            ),
            Field("in", Inline(Record("struct", (Field("deep", Name("bool"), "below"),)))),
            Field("e", Tag("enum", "a_kind")),
            Field("f", Name("float")),
            Field("data", Pointer(Name("void"))),
        ),
    ),
    Origin("a.h", 1, NASTY),
)
A_KIND = Enum(
    "a_kind", (Enumerator("A_KIND_ONE", NASTY), Enumerator("A_KIND_TWO")), Origin("a.h", 2)
)
DEFAULTS = Function("a_defaults", FunctionType(Tag("struct", "a_params"), ()), Origin("a.h", 9))
F_OF_B = function(
    "f_of_b", Parameter("p", Pointer(Tag("struct", "hidden"))), header="b.h", deprecated="<use> f"
)
MINIATURE = Api(
    (
        Struct("hidden", Record("struct", None), Origin("", 0)),
        Constant("A_MAX", "int", Origin("a.h", 3, NASTY)),
        A_PARAMS,
        A_KIND,
        Typedef("a_params", Tag("struct", "a_params"), Origin("a.h", 4)),
        Typedef("a_t", Pointer(Tag("struct", "a_params")), Origin("a.h", 5)),
        function("a_kind"),  # the name of an enum too
        F_OF_B,
        DEFAULTS,
        function("llamacffi_own", header="llamacffi.h"),
    ),
    {"A_MACRO": "it <is> a | macro"},
)
VALUES = {"A_MAX": "7", "A_KIND_ONE": "1", "A_KIND_TWO": "2"} | {
    "struct a_params": "32",
    **{f"a_params.{name}": str(4 * i) for i, name in enumerate(("n", "x", "y", "in", "e", "f"))},
    "a_params.data": "24",
}


@pytest.fixture
def miniature() -> Reference:
    """The reference of a small API with planted comments."""
    uses = {"f_of_b": ["Thing", "Thing.do"]}
    return Reference(Facts(MINIATURE, UPSTREAM, VALUES, uses=uses))


def test_pages_are_in_the_order_of_the_umbrella(miniature):
    assert miniature.places.pages == ("b.h", "a.h", "llamacffi.h")


def test_what_no_header_declares_is_where_it_is_mentioned(miniature):
    assert miniature.places.types["hidden"].page == "b.h"
    assert "Its fields are not public." in miniature.page("b.h")


@pytest.mark.parametrize("header", ["a.h", "b.h"])
def test_comments_are_escaped(miniature, header):
    """Comments are plain text, except for the links that the page adds."""
    text = miniature.page(header)
    page = Page(text)
    assert page.tags["script"] == page.tags["b"] == 0
    assert "<use>" not in text
    assert page.tags["div"] == text.count("</div>")
    for comment in re.findall(r'<div class="upstream.*?</div>', text, re.DOTALL):
        plain = re.sub(r"<[^>]+>", "", comment)
        if "bold" in plain:
            assert (
                plain.replace("&#34;", '"')
                .replace("&lt;", "<")
                .replace("&gt;", ">")
                .replace("&amp;", "&")
                == NASTY
            )
    inside = re.sub(r"<div.*?</div>\n|<table>.*?</table>", "", text, flags=re.DOTALL)
    assert "bold" not in inside  # outside of HTML, where Markdown would see it


def test_markdown_takes_the_blocks_for_html(miniature):
    """Python-Markdown, which MkDocs uses, leaves the comments alone."""
    html = markdown.markdown(
        miniature.page("a.h"), extensions=["attr_list", "tables", "toc", "fenced_code"]
    )
    page = Page(html)
    for tag in ("script", "b", "em", "strong", "li", "h4"):
        assert page.tags[tag] == 0, tag
    assert page.tags["h1"] == 1
    assert page.tags["table"] == 3
    assert html.count("    - indented") == 4  # a constant, a struct, an enumerator, a function
    assert page.anchors.count("a_params") == 1


def test_names_and_addresses_in_comments_are_links(miniature):
    links = Page(miniature.page("a.h")).links
    assert "../b.h/#f_of_b" in links
    assert "http://example.com/a_b" in links
    own = miniature.page("b.h").partition("### `f_of_b`")[2]
    assert 'href="#f_of_b"' not in own


def test_a_function_and_an_enum_of_one_name(miniature):
    text = miniature.page("a.h")
    assert "### `a_kind` {: #a_kind }" in text
    assert "### `a_kind` {: #enum_a_kind }" in text
    assert miniature.places.of(A_KIND).anchor == "enum_a_kind"


def test_a_struct_and_its_typedef_are_one_entry(miniature):
    text = miniature.page("a.h")
    assert text.count("### `a_params`") == 1
    assert "typedef struct" in text  # of a_t


def test_fields_of_anonymous_unions_and_inner_structs_have_rows(miniature):
    found = [(row.name, row.type) for row in rows(A_PARAMS.record.fields)]
    assert found[1:5] == [("x", "float"), ("y", "int"), ("in", "struct"), ("in.deep", "bool")]
    row = Page(miniature.page("a.h")).rows["a_params.in.deep"]
    assert row[-1] == "below"


def test_users_are_linked(miniature):
    assert (
        "Used by [`Thing`][llamacffi.Thing], [`Thing.do`][llamacffi.Thing.do]."
        in miniature.page("b.h")
    )


def test_deprecation(miniature):
    text = miniature.page("b.h")
    assert '<p class="admonition-title">Deprecated</p><p>&lt;use&gt; f</p>' in text


def test_the_python_signature_is_that_of_the_stub(miniature):
    assert miniature.py_signature(F_OF_B) == "lib.f_of_b(p: hidden_p, /) -> int"
    assert miniature.py_signature(DEFAULTS) == "lib.a_defaults() -> struct_a_params"


def test_long_declarations_have_a_line_for_each_parameter():
    many = [Parameter(f"parameter_{i}", Name("int")) for i in range(5)]
    lines = c_declaration(function("f", *many)).splitlines()
    assert lines == ["int f(", *(f"    int parameter_{i}," for i in range(4)), *lines[5:]]
    assert lines[5:] == ["    int parameter_4", ");"]
    callback = Typedef("cb", Pointer(FunctionType(Name("void"), tuple(many))), Origin("a.h", 1))
    assert c_declaration(callback).startswith("typedef void (*cb)(\n    int parameter_0,\n")
    assert c_declaration(function("g")) == "int g(void);"


def test_types_in_declarations_are_links():
    writer = Writer(Places(MINIATURE, UPSTREAM), "b.h")
    assert str(writer.c("a_t f(struct hidden *p)", "f")) == (
        '<a href="../a.h/#a_t">a_t</a> f(struct <a href="#hidden">hidden</a> *p)'
    )
    assert str(writer.c("a_params_p & int")) == (
        '<a href="../a.h/#a_params">a_params_p</a> &amp; int'
    )


def test_the_tables_of_parameters(miniature):
    class Made:
        n, x, y, e, f, data = 3, 0.5, 1, 2, 0.10000000149, 0

        def __getattr__(self, name: str) -> object:
            return object()

    python = Python(
        annotations={"a_params.data": "types.Data | None"},
        aliases={"Data": "bytes | str"},
        instead={"a_params.n": "use m="},
        public={"AParams"}.__contains__,
    )
    (table,) = tables(MINIATURE, VALUES, python, {"a_defaults": Made()}.__getitem__)
    assert (table.function, table.public) == ("a_defaults", "AParams")
    by_name = {row.name: row for row in table.rows}
    assert by_name["n"].instead == "use m="
    assert (by_name["f"].default, by_name["f"].kind) == ("0.1", "float")
    assert (by_name["e"].default, by_name["e"].kind) == ("TWO", "AKind")
    assert (by_name["data"].default, by_name["data"].takes) == ("NULL", "bytes | str | None")
    assert by_name["in"].default == "{...}"
    text = miniature.params([table])
    assert "[`AParams`][llamacffi.AParams]" in text
    assert "Nothing: use m=." in text


def test_type_aliases():
    text = "if X:\n    A: TypeAlias = int | str\n    b: int = 3\n"
    assert type_aliases(text) == {"A": "int | str"}


BASE = '''
class Base:
    def plain(self):
        """Do.

        Source: ``c_one``,
        ``c_two``.
        """

    def make(self):
        """Do.

        Source: ``c_make``.
        """
'''
PUBLIC = '''
class Thing(Base, Generic[T]):
    """A thing.

    Source: ``c_new``.
    """

def run():
    """Run, as ``c_no`` does.

    Source: ``c_one``.
    """
'''


def test_uses_come_from_docstrings(tmp_path):
    (tmp_path / "_parts").mkdir()
    (tmp_path / "_parts" / "base.py").write_text(BASE)
    (tmp_path / "thing.py").write_text(PUBLIC)
    (tmp_path / "more.py").write_text(PUBLIC)
    described = Package(tmp_path).described(
        ["Thing", "more", "more.run", "gone"], {"Thing": "thing"}
    )
    assert uses(described, shown=lambda name: name != "make") == {
        "c_new": ["Thing"],
        "c_one": ["Thing.plain", "more.run"],
        "c_two": ["Thing.plain"],
        "c_make": ["Thing"],
    }


def test_the_names_of_the_reference():
    text = "::: llamacffi.Model\n::: llamacffi.rpc\n    options:\n      members: [add, get]\n"
    assert reference_names(text) == ["Model", "rpc", "rpc.add", "rpc.get"]
