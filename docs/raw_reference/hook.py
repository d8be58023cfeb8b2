"""The reference of the raw layer in the site: pages generated from the headers, without files.

They contain upstream's text, and so are never written into the repository.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.append(str(Path(__file__).parents[2]))  # for `mkdocs` without ``python -m``

from docs.raw_reference.places import DIRECTORY
from docs.raw_reference.site import pages, reference

INDEX = f"{DIRECTORY}/index.md"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, and put them where the navigation names the first one."""
    made = pages(reference(filtered(config)))
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    children = [{"Overview": INDEX}, *(name for name in made if name != INDEX)]
    config.nav = [
        {title: children} if target == INDEX else {title: target}
        for one in config.nav
        for title, target in one.items()
    ]
    return files


def filtered(config: Any) -> Any:
    """Return what tells whether mkdocstrings shows a member of that name."""
    handlers = config.plugins["mkdocstrings"].config["handlers"]
    hidden = [re.compile(one.removeprefix("!")) for one in handlers["python"]["options"]["filters"]]
    return lambda name: not any(one.search(name) for one in hidden)
