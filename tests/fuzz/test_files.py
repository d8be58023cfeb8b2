"""Damaged and hostile files: the beginning of `make fuzz-files`, and what it has found once."""

from __future__ import annotations

import itertools
import os

import pytest

from llamacffi import GgufError, NativeError
from tests.fuzz.files import seeds
from tests.fuzz.files.campaign import by_chance, corpus
from tests.fuzz.files.layout import Layout
from tests.fuzz.files.pool import Pool
from tests.fuzz.files.recipe import Recipe, make

# More for a longer hunt, or another: make fuzz-files
SEED, COUNT = 9, int(os.environ.get("LLAMACFFI_FUZZ_FILES", "400"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz-files")


@pytest.fixture(scope="module")
def files(directory):
    return seeds.write(directory)


@pytest.fixture
def pool(directory, files):
    return Pool(directory, files, jobs=1)


def test_valid_files_are_used(pool, files):
    """Else all that follows would test nothing."""
    recipes = [Recipe(seed.name, use, ()) for seed in files.values() for use in set(seed.uses)]
    assert list(pool.run(iter(recipes))) == []
    assert pool.n_done == len(recipes)
    assert pool.n_refused == 0


def test_what_failed_once(pool):
    recipes = corpus()
    assert len(recipes) >= 15
    assert list(pool.run(iter(recipes))) == []
    assert pool.n_done == len(recipes)


def test_changed_files(pool, files):
    assert list(pool.run(by_chance(files, SEED, 0, COUNT))) == []
    assert pool.n_done == COUNT
    assert COUNT / 4 < pool.n_refused < COUNT  # some are odd, and valid


def test_a_death_is_found_and_the_others_go_on(pool, files, monkeypatch):
    """The processes are forks: they do what this test has made of a use."""
    from tests.fuzz.files import use

    def kill(world, path, detail):
        os.kill(os.getpid(), 11)

    def break_(world, path, detail):
        raise KeyError(detail)

    def throw(world, path, detail):
        raise NativeError("which the package should have prevented", "llama_decode")

    def refuse(world, path, detail):
        raise GgufError("which is documented")

    uses = {"kill": kill, "break": break_, "throw": throw, "refuse": refuse}
    for name, one in uses.items():
        monkeypatch.setitem(use.USES, name, one)
    order = ("vocab", "kill", "refuse", "break", "vocab", "throw", "kill")
    found = list(pool.run(Recipe("spm", one, ()) for one in order))
    assert [(one.recipe.use, one.what.split()[0]) for one in found] == [
        ("kill", "SIGSEGV"),
        ("break", "KeyError:"),
        ("throw", "NativeError:"),
        ("kill", "SIGSEGV"),
    ]
    assert pool.n_done == len(order)


def test_a_changed_file_can_be_made_again(files):
    """By its number, and by its recipe."""
    some = list(by_chance(files, 1, 0, 200))
    assert some == [*by_chance(files, 1, 0, 50), *by_chance(files, 1, 50, 200)]
    assert some != list(by_chance(files, 2, 0, 200))
    for recipe in some:
        assert Recipe.parse(str(recipe)) == recipe
        data = files[recipe.seed].data
        assert make(data, recipe.edits) == make(data, Recipe.parse(str(recipe)).edits)
    different = [make(files[one.seed].data, one.edits) for one in some]
    assert len(set(different)) > 150


def test_the_layout_is_all_of_a_file(files):
    """Its parts, one after the other, are the description of the file."""
    for seed in files.values():
        data = seed.data
        if not data.startswith(b"GGUF"):
            continue
        layout = Layout(data)
        parts = sorted(
            (part.start, part.end)
            for part in layout.parts.values()
            if part.kind not in ("entry", "data")
        )
        for (_, end), (start, _) in itertools.pairwise(parts):
            assert start == end
        assert (parts[0][0], parts[-1][1]) == (0, layout.head)
