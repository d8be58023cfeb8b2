"""Which files are made: by chance, and those that have failed once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from .mutate import mutate
from .recipe import Recipe
from .seeds import Seed

CORPUS = Path(__file__).with_name("corpus.jsonl")


def by_chance(files: dict[str, Seed], seed: int, first: int, last: int) -> Iterator[Recipe]:
    """Yield the changed files ``first`` to ``last - 1`` of a seed; each follows from its number."""
    names = sorted(files)
    for i in range(first, last):
        chance = random.Random(f"{seed}:{i}")
        name = chance.choice(names)
        use = chance.choice(files[name].uses)
        yield Recipe(name, use, mutate(chance, files[name].data))


def corpus() -> list[Recipe]:
    """Return the files that have failed once."""
    lines = CORPUS.read_text().splitlines() if CORPUS.exists() else []
    return [Recipe.parse(line) for line in lines if line]
