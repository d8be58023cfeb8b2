"""Where the pages describe each name of the API, and C code as HTML with links to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup, escape

from ffigen.api import Api, Constant, Declaration, Enum, Struct, Typedef
from ffigen.parse import tags_of

DIRECTORY = "headers"
CALLBACKS = "callbacks.h"
OWN_PAGE = "llamacffi.h"
INCLUDE = re.compile(r'^#include "(.+)"', re.MULTILINE)
WORD = re.compile(r"([A-Za-z_]\w*)")
ADDRESS = re.compile(r"(https?://[^\s<>\"')\]]*[^\s<>\"')\].,;:])")


@dataclass(frozen=True, slots=True)
class Place:
    """An anchor of a page."""

    page: str
    """The header that the page describes."""
    anchor: str

    def seen_from(self, page: str) -> str:
        """Return the address, relative to a page; pages are directories (``llama.h/``)."""
        return f"#{self.anchor}" if page == self.page else f"../{self.page}/#{self.anchor}"

    def of_part(self, name: str) -> Place:
        """Return the place of a field of this struct."""
        return Place(self.page, f"{self.anchor}.{name}")


class Places:
    """The places of the declarations of one API.

    Every declaration is at the anchor of its name.  A struct and the typedef of the same name are
    one entry, and a struct or enum that has the name of a function is at ``struct_NAME``.
    """

    def __init__(self, api: Api, upstream: str) -> None:
        """Give each declaration its place.

        Args:
            api: The API.
            upstream: The text of headers/upstream.h, which has the headers in order.
        """
        self.api = api
        self.functions: dict[str, Place] = {}
        self.types: dict[str, Place] = {}
        self.values: dict[str, Place] = {}
        names = {one.name for one in api.functions}
        homes = mentions(api)
        for one in api.declarations:
            page = page_of(one) or homes[one.name]
            match one:
                case Struct() | Enum():
                    anchor = one.c_name.replace(" ", "_") if one.name in names else one.name
                    self.types[one.name] = Place(page, anchor)
                case Typedef():
                    anchor = f"typedef_{one.name}" if one.name in names else one.name
                    self.types.setdefault(one.name, Place(page, anchor))
                case Constant():
                    self.values[one.name] = Place(page, one.name)
                case _:
                    self.functions[one.name] = Place(page, one.name)
            for member in one.members if isinstance(one, Enum) else ():
                self.values[member.name] = Place(page, member.name)
        # If a function and a struct share a name, the function's.
        self.all: Mapping[str, Place] = self.types | self.values | self.functions
        found = dict.fromkeys(place.page for place in (*self.types.values(), *self.all.values()))
        included = [page for page in INCLUDE.findall(upstream) if page in found]
        self.pages = tuple(dict.fromkeys([*included, *found]))

    def of(self, one: Declaration) -> Place:
        """Return the place of a declaration."""
        is_type = isinstance(one, Struct | Enum | Typedef)
        return self.types[one.name] if is_type else self.all[one.name]

    def entries(self, page: str, kind: type[Declaration]) -> list[Declaration]:
        """Return the declarations of a kind on a page; structs include typedefs of their name."""
        shapes = {one.name for one in self.api.declarations if isinstance(one, Struct | Enum)}
        return [
            one
            for one in self.api.declarations
            if not (isinstance(one, Typedef) and one.name in shapes)
            if self.of(one).page == page and isinstance(one, kind)
        ]


def page_of(one: Declaration) -> str:
    """Return the page that describes a declaration; empty if no header declares it."""
    return OWN_PAGE if one.origin.is_own else one.origin.header


def mentions(api: Api) -> dict[str, str]:
    """Return the header that first mentions each tag, the page of tags that no header declares."""
    homes: dict[str, str] = {}
    for one in api.declarations:
        for tag in tags_of(one):
            homes.setdefault(tag.name, page_of(one))
    return homes


class Writer:
    """Writes HTML for one page."""

    def __init__(self, places: Places, page: str) -> None:
        self.places = places
        self.page = page

    def link(self, place: Place | None, text: str) -> Markup:
        """Return ``text`` as a link, or unchanged without a target."""
        if place is None:
            return escape(text)
        return Markup('<a href="{}">{}</a>').format(place.seen_from(self.page), text)

    def c(self, code: str, own: str = "") -> Markup:
        """Return C, or a Python signature of the stub, with links to its types.

        Args:
            code: The code.
            own: The name that is declared here, which gets no link.
        """

        def linked(word: str) -> Markup:
            bare = word.removeprefix("struct_").removesuffix("_p")
            place = self.places.types.get(word) or self.places.types.get(bare)
            return self.link(None if word == own else place, word)

        return Markup().join(map(linked, WORD.split(code)))

    def text(self, text: str, own: str = "") -> Markup:
        """Return text of a header, with links to the names and addresses in it.

        Args:
            text: The text.
            own: The name that is described, which leads nowhere.
        """
        known = self.places.all
        parts = []
        for i, part in enumerate(ADDRESS.split(text)):
            if i % 2:
                parts.append(Markup('<a href="{0}">{0}</a>').format(part))
            else:
                words = WORD.split(part)
                parts += [self.link(None if w == own else known.get(w), w) for w in words]
        return Markup().join(parts)

    def comment(self, text: str, own: str = "") -> Markup:
        """Return a comment as a block: its lines stay lines.

        What is aligned in columns, or drawn, gets letters of one width.
        """
        if not text:
            return Markup()
        kind = "upstream drawn" if "  " in text else "upstream"
        return Markup('<div class="{}">{}</div>').format(kind, self.text(text, own))
