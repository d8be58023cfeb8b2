"""The table of raw functions that the guard cannot save: it holds, and it is whole."""

from __future__ import annotations

import fnmatch
import random
import sys
from types import BuiltinFunctionType, SimpleNamespace

import pytest

import llamacffi
from llamacffi import lib
from tests.fuzz.raw import page, table
from tests.fuzz.raw.bad import NULL
from tests.fuzz.raw.facade import CHECKS, Things, entry_of, facade_of, used
from tests.fuzz.raw.runner import run
from tests.fuzz.raw.signatures import functions, not_called

SEED = 1
N_SAMPLE = 120  # functions that are called with a few bad values
N_DYING = 8  # and of those that die, with all

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def forks(test):
    """Mark a test that makes the calls, in forked children with Linux's limits."""
    return pytest.mark.no_asan(pytest.mark.skipif(sys.platform != "linux", reason="forks")(test))


@pytest.fixture(scope="module")
def known():
    found = table.load()
    if found.llama_cpp != table.commit():
        pytest.skip(f"the table is of llama.cpp {found.llama_cpp}, not {table.commit()}")
    return found


def test_the_table_is_of_the_pinned_llama_cpp(root):
    pin = tomllib.loads((root / "vendor" / "llama.toml").read_text())
    assert pin["commit"] == table.load().llama_cpp, "run make fuzz"


@forks
def test_what_dies_is_in_the_table(known):
    """A sample of the functions, each with a few values; ``make fuzz`` takes all of both."""
    names = sorted(random.Random(SEED).sample(sorted(functions()), N_SAMPLE))
    found = table.tabulate(run(names, jobs=2, few=True))
    assert sum(one.function in names for one in known.fatal) > 0
    assert {one for one in found.fatal_places if one not in known.fatal_places} == set()


@forks
def test_what_is_in_the_table_dies(known):
    certain = sorted({name for name, _, kind in known.fatal_places if kind != NULL})
    names = random.Random(SEED).sample(certain, N_DYING)
    found = table.tabulate(run(names, jobs=2)).fatal_places
    assert {one for one in known.fatal_places if one[0] in names} - found == set()


def test_the_table_names_what_exists(known):
    there = functions()
    for name, place, _ in known.fatal_places:
        parameter = place.split(".")[0].split("[")[0]
        assert parameter in {one.name for one in there[name].parameters}, (name, place)
    assert known.left_out == not_called()
    assert len(known.missing) < 60
    for name, places in known.missing.items():
        assert set(places) <= {one.name for one in there[name].parameters}


def test_every_function_is_called_or_left_out_for_a_reason():
    there = {name for name in dir(lib) if isinstance(getattr(lib, name), BuiltinFunctionType)}
    there = {name for name in there if not name.startswith("llamacffi_")}
    assert functions().keys() == there - not_called().keys()
    assert len(not_called()) < 5


def test_the_page_is_that_of_the_table(known):
    assert page.PATH.read_text(encoding="utf-8") == page.render(known)


def test_what_the_checks_name_exists():
    there = functions()
    for check in CHECKS:
        for pattern in check.functions.split():
            assert fnmatch.filter(there, pattern), pattern
        name, _, member = check.public.partition(".")
        assert not member or hasattr(getattr(llamacffi, name), member), check.public


def test_the_facade_has_an_answer_to_each_number_of_its_functions(known):
    places = {(one.function, one.place) for one in known.fatal if one.function in used()}
    assert {one for one in places if entry_of(*one) is None} == set()
    assert "" not in {facade_of(*one) for one in places}


@pytest.mark.parametrize("check", CHECKS, ids=lambda one: f"{one.functions} {one.place}")
def test_the_facade_checks_first(check, demo_path, tmp_path):
    model = llamacffi.Model(demo_path)
    context = llamacffi.Context(model, n_ctx=64, n_batch=8, n_seq_max=2)
    with pytest.raises(check.error) as caught:
        check.call(Things(model, context, demo_path, tmp_path))
    assert type(caught.value) is check.error


@pytest.mark.parametrize(
    "call",
    [
        lambda of: of.context.decode(of.batch),
        lambda of: of.context.memory.clear(),
        lambda of: of.context.save_state(),
        lambda of: of.chain.sample(of.context),
        lambda of: of.chain.reset(),
        lambda of: of.model.vocab.tokenize("text"),
        lambda of: of.model.desc,
        lambda of: of.gguf.write("written.gguf"),
        lambda of: of.context.attach_threadpool(of.pool),
    ],
)
def test_the_facade_has_no_pointer_to_what_is_closed(call, demo_path):
    """Where C would be given NULL, or what was freed."""
    model = llamacffi.Model(demo_path)
    of = SimpleNamespace(
        model=model,
        context=llamacffi.Context(model, n_ctx=64),
        batch=llamacffi.Batch.from_tokens([1]),
        chain=llamacffi.SamplerChain(llamacffi.Greedy()),
        gguf=llamacffi.Gguf.new(),
        pool=llamacffi.Threadpool(1),
    )
    for one in (of.pool, of.gguf, of.chain, of.model):
        one.close()
    with pytest.raises(llamacffi.ClosedError):
        call(of)
