"""The project's own files, and what the generator makes of a llama.cpp tree with them."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from .api import Api
from .layout import measure
from .lock import Facts, read_lock
from .parse import read_api
from .preprocess import GeneratorError, Source, preprocess
from .render import generate, render
from .signatures import compare_types

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True)
class Missing:
    """A name that the package was written for, but cannot use with a llama.cpp."""

    name: str
    reason: str


class Project:
    """A source tree of llamacffi."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.headers = root / "headers"
        self.native = root / "native"
        self.internals = self.native / "internals"
        self.templates = self.headers / "templates"
        self.lock = self.headers / "api.lock"

    @cached_property
    def surface(self) -> dict[str, Any]:
        """What headers/surface.toml says."""
        text = (self.headers / "surface.toml").read_text(encoding="utf-8")
        surface: dict[str, Any] = tomllib.loads(text)
        return surface

    @cached_property
    def parts(self) -> dict[str, str]:
        """The parts of native/ that use llama.cpp's C++, each with what it is for.

        They may not compile against another llama.cpp than the pinned one.

        Raises:
            GeneratorError: A file does not say what it is for.
        """
        return {path.stem: purpose_of(path) for path in sorted(self.internals.glob("*.cpp"))}

    @cached_property
    def pinned(self) -> Facts:
        """The facts of headers/api.lock: what the package was written for."""
        return read_lock(self.lock.read_text(encoding="utf-8"), "headers/api.lock")

    def api(self, tree: Path, without: Collection[str] = ()) -> Api:
        """Parse the headers of a tree, and our own but for the parts ``without``."""
        source = preprocess(self.headers, tree, macros_without(without))
        return _read_once(source, self.headers, tree, tuple(self.surface["omit"].items()))

    def lock_text(self, tree: Path) -> str:
        """Return what headers/api.lock should say for a tree."""
        api = self.api(tree)
        values = measure(api, self.headers, tree)
        return render("api.lock.j2", api, self.templates, values=values)

    def generate(
        self, tree: Path, out: Path, package: Path, without: Collection[str] = ()
    ) -> list[Path]:
        """Write every generated file; return those whose text changed.

        Args:
            tree: The llama.cpp tree.
            out: Directory for what is compiled.
            package: Directory for the Python that is generated into the package.
            without: Parts to leave out.
        """
        api = self.api(tree, without)
        missing = self.missing(api, without)
        return generate(
            *(api, self.headers, out, package, self.surface), pinned=self.pinned, missing=missing
        )

    def missing(self, api: Api, without: Collection[str]) -> list[Missing]:
        """Return the names that the package was written for and ``api`` lacks, or has otherwise."""
        lacking = [self.parts[part] for part in without]
        reason = "the llama.cpp that llamacffi was built with does not have it"
        own = "the llama.cpp that llamacffi was built with is too different to " + ", or to ".join(
            lacking
        )
        there = api.names()
        facts = self.pinned
        wanted = (*facts.functions, *facts.enumerators, *facts.constants)
        lacks = [
            Missing(name, own if name.lower().startswith("llamacffi_") else reason)
            for name in wanted
            if name not in there
        ]
        return [*lacks, *self.changed(api)]

    def changed(self, api: Api) -> Iterator[Missing]:
        """Yield the functions that the package would call wrongly."""
        for one in api.functions:
            if pinned := self.pinned.functions.get(one.name):
                details, breaking = compare_types(pinned.type, one.type, called=True)
                if breaking:
                    text = "; ".join(details)
                    reason = f"in the llama.cpp that llamacffi was built with it is another: {text}"
                    yield Missing(one.name, reason)


PURPOSE = re.compile(r"^// Without this file, llamacffi cannot (.+)\.$", re.MULTILINE)


def purpose_of(part: Path) -> str:
    """Return what a part of native/ is for, as its first lines say."""
    found = PURPOSE.search(part.read_text(encoding="utf-8"))
    if not found:
        raise GeneratorError(
            f"{part} must say what it is for: // Without this file, llamacffi cannot ..."
        )
    return found[1]


@lru_cache(maxsize=4)  # a comparison asks for both of its sides several times
def _read_once(source: Source, headers: Path, tree: Path, omit: tuple[tuple[str, str], ...]) -> Api:
    return read_api(source, headers, tree, dict(omit))


def macros_without(parts: Collection[str]) -> list[str]:
    """Return the macros that leave parts out of the headers in headers/llamacffi/."""
    return [f"LLAMACFFI_WITHOUT_{part.upper()}" for part in sorted(parts)]
