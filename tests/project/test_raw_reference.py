"""The pages of the raw layer describe the whole API correctly, each name once."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from docs.raw_reference.pages import WIDTH, Reference, c_declaration
from docs.raw_reference.site import facade_names, pages, read, reference
from ffigen.api import Enum, Inline, declare, flat_fields
from tests.project.html_page import Page


@pytest.fixture(scope="module")
def real() -> Reference:
    """The reference of the pinned llama.cpp."""
    return reference(lambda name: not name.startswith("_"))


@pytest.fixture(scope="module")
def texts(real) -> dict[str, str]:
    """The text of its pages."""
    return pages(real)


@pytest.fixture(scope="module")
def parsed(texts) -> dict[str, Page]:
    """The parsed pages."""
    return {name.removeprefix("headers/").removesuffix(".md"): Page(texts[name]) for name in texts}


def test_each_declaration_has_one_anchor(real, parsed):
    anchors = Counter((name, anchor) for name, page in parsed.items() for anchor in page.anchors)
    assert [anchor for anchor, n in anchors.items() if n > 1] == []
    places = real.places
    for one in real.facts.api.declarations:
        place = places.of(one)
        assert anchors[place.page, place.anchor] == 1, one.name
        assert sum(anchor == place.anchor for _, anchor in anchors) == 1, one.name
        for member in one.members if isinstance(one, Enum) else ():
            assert member.name in parsed[place.page].rows


def test_the_pages_say_what_the_lock_says(root, real, parsed):
    """Each value, offset and type."""
    api = real.facts.api
    where = {one.name: parsed[real.places.types[one.name].page] for one in api.structs}
    everything = {name: row for page in parsed.values() for name, row in page.rows.items()}
    fields = {
        f"{struct.name}.{one.name}": one
        for struct in api.structs
        for one in flat_fields(struct.record.fields)
    }
    checked: Counter[str] = Counter()
    for line in (root / "headers" / "api.lock").read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind in ("constant", "enum"):
            path, _, value = rest.partition(" = ")
            assert everything[path.rpartition(".")[2]][1] == value
        elif kind == "field":
            path, offset, declared = re.fullmatch(r"(\S+) @(\d+): (.*);", rest).groups()
            one = fields[path]
            row = where[path.partition(".")[0]].rows[path]
            assert row[0] == one.name
            assert row[2] == offset
            assert declare(one.type, one.name) == declared
            assert row[1] == (
                one.type.record.kind if isinstance(one.type, Inline) else declare(one.type)
            )
        checked[kind] += 1
    assert min(checked["constant"], checked["enum"], checked["field"]) > 50


def test_declarations_are_those_of_the_lock(root, real, texts):
    lock = (root / "headers" / "api.lock").read_text().splitlines()
    shown = "\n".join(re.sub(r"<[^>]+>", "", text) for text in texts.values())
    for line in lock:
        if line.startswith("function "):
            declared = line.removeprefix("function ").removesuffix(" deprecated")
            name = re.search(r"(\w+)\(", declared)[1]
            (one,) = (each for each in real.facts.api.functions if each.name == name)
            code = c_declaration(one)
            assert re.sub(r"\s", "", code) == re.sub(r"\s", "", declared)
            assert len(code.partition("\n")[0]) <= WIDTH + 1
            assert f"\n{code}\n" in shown


def test_what_is_left_out_is_listed(real, parsed):
    omitted = real.facts.api.omitted
    assert {name: row[1] for name, row in parsed["index"].rows.items() if name} == omitted
    assert "GGML_ASSERT" in omitted


def test_functions_that_no_library_has_are_told(real, texts):
    assert real.facts.unexported
    for name in real.facts.unexported:
        page = texts[f"headers/{real.places.functions[name].page}.md"]
        assert "In no library" in page.partition(f"### `{name}`")[2].partition("### ")[0]
    late = texts["headers/ggml-cpu.h.md"].partition("### `ggml_graph_compute`")[2]
    assert "In libggml-cpu" in late.partition("### ")[0]


def test_links_lead_to_anchors(parsed):
    for name, page in parsed.items():
        for link in page.links:
            if not link.startswith("http"):
                target, _, anchor = link.partition("#")
                target = target.removeprefix("../").removesuffix("/") or name
                assert anchor in parsed[target].anchors, link


def test_no_two_entries_of_the_navigation_are_one(texts):
    assert len(texts) == len({name.lower() for name in texts})
    assert next(iter(texts)) == "headers/index.md"
    order = list(texts)
    assert order.index("headers/ggml.h.md") < order.index("headers/llama.h.md")


def test_defaults_are_those_of_llama_cpp(parsed, texts):
    from llamacffi import lib

    text = texts["headers/params.md"].partition("`llama_context_params`")[2].partition("\n## ")[0]
    cells = re.findall(r"<tr><td>.*?>(\w+)</a></code></td><td><code>(.*?)</code>", text)
    found = dict(cells)
    made = lib.llama_context_default_params()
    assert found["n_ctx"] == str(made.n_ctx)
    assert found["rope_freq_base"] == str(made.rope_freq_base)
    assert found["offload_kqv"] == str(made.offload_kqv)
    assert found["pooling_type"] == "UNSPECIFIED"
    assert found["cb_eval"] == "NULL"
    assert set(dir(made)) == set(found)


def test_the_real_uses(real):
    assert "Context.decode" in real.facts.uses["llama_decode"]
    assert "Context" in real.facts.uses["llama_init_from_model"]
    names = {name.partition(".")[0] for found in real.facts.uses.values() for name in found}
    assert names <= {name.partition(".")[0] for name in facade_names()}
    functions = {one.name for one in read()[0].functions}
    assert len(set(real.facts.uses) & functions) > 100
