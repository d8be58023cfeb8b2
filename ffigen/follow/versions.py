"""The versions of the pin's package, each with the llama.cpp tree that it carries."""

from __future__ import annotations

import re
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..fetch import VendorError, download_package, last_words, run, sha256_of, unpack_tree
from ..vendor import Pin, commit_of, read_pin, stamp

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HISTORY = Path("vendor", "history.toml")
NUMBER = re.compile(r"\d+(\.\d+)*")
# git keeps what a submodule has checked out here, and the package has it still.
HEAD = ".git/modules/{}/HEAD"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of the package."""

    number: str
    commit: str
    """Of llama.cpp, as `Tree` has it."""
    sha256: str
    """Of the package's archive."""


def read_history(root: Path) -> dict[str, Version]:
    """Read the versions that vendor/history.toml knows, the oldest first."""
    data = tomllib.loads((root / HISTORY).read_text(encoding="utf-8"))
    return {
        number: Version(number, one["commit"], one["sha256"])
        for number, one in sorted(data.items(), key=lambda item: version_key(item[0]))
    }


def format_history(versions: dict[str, Version]) -> str:
    """Write the text of vendor/history.toml."""
    parts = [
        "# The versions of the pin's package that the generator is proved with, each with the\n"
        "# commit of llama.cpp that it carries.  Written by `build_ffi.py history` and `bump`.\n"
    ]
    for one in sorted(versions.values(), key=lambda version: version_key(version.number)):
        parts.append(f'["{one.number}"]\ncommit = "{one.commit}"\nsha256 = "{one.sha256}"\n')
    return "\n".join(parts)


def version_key(number: str) -> tuple[int, ...]:
    """Return what versions are sorted by."""
    return tuple(map(int, number.split(".")))


def is_version(text: str) -> bool:
    """Tell whether a text is the number of a version."""
    return NUMBER.fullmatch(text) is not None


def available_versions(root: Path) -> list[str]:
    """Ask the package index for all versions, the newest first; not for those before a release.

    Raises:
        VendorError: It cannot be asked.
    """
    pin = read_pin(root)
    ask = [sys.executable, "-m", "pip", "index", "versions", pin.package, "--no-input"]
    with tempfile.TemporaryDirectory() as empty:
        asked = run(*ask, cwd=empty)
    found = re.search(r"^Available versions: (.+)$", asked.stdout, re.MULTILINE)
    if asked.returncode or not found:
        raise VendorError(
            f"cannot learn the versions of {pin.package}: pip said: {last_words(asked.stderr)}; "
            "connect to the network, or name a version."
        )
    return [one for one in found[1].split(", ") if is_version(one)]


def fetch_version(
    root: Path,
    number: str,
    tree: Path,
    *,
    sha256: str | None = None,
    echo: Callable[[str], None] = lambda line: None,
) -> Version:
    """Fetch a version of the pin's package and unpack the llama.cpp in it.

    Args:
        root: The top directory of our sources.
        number: The version.
        tree: The directory to fill.
        sha256: Of the archive; by default what the pin or vendor/history.toml knows.  A version
            without a known hash is taken as pip gets it.
        echo: Is told what is done.

    Raises:
        VendorError: It cannot be had, or is not what was expected.
    """
    pin = read_pin(root)
    known = {pin.version: pin.sha256} | {
        one.number: one.sha256 for one in read_history(root).values()
    }
    wanted = sha256 or known.get(number)
    echo(f"fetching {pin.package} {number}{'' if wanted else ', whose hash is not known yet'}")
    with tempfile.TemporaryDirectory(prefix="llamacffi-") as scratch:
        archive = download_package(pin.package, number, wanted, Path(scratch))
        unpack_tree(archive, pin.inner_path, tree)
        commit = read_commit(archive, pin) or commit_of(tree)
        return Version(number, commit, wanted or sha256_of(archive))


def read_commit(archive: Path, pin: Pin) -> str | None:
    """Return the commit of the llama.cpp in an archive; None if that does not tell."""
    inside = PurePosixPath(HEAD.format(pin.inner_path))
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            if PurePosixPath(*PurePosixPath(member.name).parts[1:]) == inside:
                file = tar.extractfile(member)
                text = file.read().decode(errors="replace").strip() if file else ""
                if re.fullmatch(r"[0-9a-f]{40}", text):
                    return text
    return None


@contextmanager
def version_tree(
    root: Path, number: str, echo: Callable[[str], None] = lambda line: None
) -> Iterator[tuple[Path, Version]]:
    """Yield the tree of a version, which is gone after the ``with``."""
    with tempfile.TemporaryDirectory(prefix="llamacffi-") as scratch:
        tree = Path(scratch, "llama.cpp")
        version = fetch_version(root, number, tree, echo=echo)
        stamp(tree, version.commit)
        yield tree, version
