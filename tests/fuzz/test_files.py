"""Damaged and hostile files: the beginning of `make fuzz-files`, and what it has found once."""

from __future__ import annotations

import itertools
import os

import pytest

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
    assert list(pool.run(iter(corpus()))) == []


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

    monkeypatch.setitem(use.USES, "kill", kill)
    monkeypatch.setitem(use.USES, "break", break_)
    recipes = [Recipe("spm", one, ()) for one in ("vocab", "kill", "break", "vocab", "kill")]
    found = list(pool.run(iter(recipes)))
    assert [one.recipe.use for one in found] == ["kill", "break", "kill"]
    assert [one.what.split()[0] for one in found] == ["SIGSEGV", "KeyError:", "SIGSEGV"]
    assert pool.n_done == 5


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
