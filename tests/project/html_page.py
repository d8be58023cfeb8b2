"""The anchors, links and table rows of a page, as a browser sees them."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser


class Page(HTMLParser):
    """The anchors, links and the rows of tables of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors = re.findall(r"\{: #(\S+) \}$", text, re.MULTILINE)
        self.links: list[str] = []
        self.rows: dict[str, list[str]] = {}
        self.cells: list[str] | None = None
        self.tags: Counter[str] = Counter()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags[tag] += 1
        if "id" in given:
            self.anchors.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        if tag == "tr":
            self.cells = []
            self.rows[given.get("id", "")] = self.cells
        if tag == "td" and self.cells is not None:
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr":
            self.cells = None
