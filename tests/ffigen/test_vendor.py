"""Tests of the pin.  They need no network: pip and git are real, what they fetch from is local."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffigen import vendor
from ffigen.vendor import Pin, VendorError
from tests.timing import HANGS

needs_pip = pytest.mark.skipif(
    importlib.util.find_spec("pip") is None, reason="this Python has no pip"
)
needs_git = pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")

TREE = {
    "CMakeLists.txt": "project(llama)\n",
    "LICENSE": "MIT\n",
    "include/llama.h": "int llama_a(void);\n",
    "ggml/include/ggml.h": "int ggml_a(void);\n",
    "src/llama.cpp": "int a;\n",
    "tools/mtmd/mtmd.h": "int mtmd_a(void);\n",
    "models/ggml-vocab-a.gguf.inp": "a\n",
    "models/templates/a.jinja": "{{ a }}\n",
}
LEFT_OUT = {
    ".git": "gitdir: ../../.git/modules/vendor/llama.cpp\n",
    ".github/workflows/build.yml": "on: push\n",
    "README.md": "# llama.cpp\n",
    "docs/build.md": "# Build\n",
    "ggml/.gitignore": "build\n",
    "models/.editorconfig": "root = true\n",
    "tools/ui/package.json": "{}\n",
}
# A build backend in the package itself, so that pip needs nothing else to get its metadata.
PACKAGE = {
    "PKG-INFO": "Metadata-Version: 2.1\nName: tinyllama\nVersion: 1.0\n",
    "pyproject.toml": (
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    ),
    "backend.py": (
        "import pathlib\n"
        "def prepare_metadata_for_build_wheel(directory, config_settings=None):\n"
        "    info = pathlib.Path(directory, 'tinyllama-1.0.dist-info')\n"
        "    info.mkdir()\n"
        "    text = pathlib.Path('PKG-INFO').read_text()\n"
        "    (info / 'METADATA').write_text(text)\n"
        "    return info.name\n"
        "def build_wheel(directory, config_settings=None, metadata_directory=None):\n"
        "    raise NotImplementedError\n"
    ),
}


def make_tar(path: Path, files: Mapping[str, str], *special: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            info.mode = 0o755 if name.endswith(".sh") else 0o644
            tar.addfile(info, io.BytesIO(text.encode()))
        for info in special:
            tar.addfile(info)
    return path


def write_files(directory: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def read_files(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): path.read_text()
        for path in directory.rglob("*")
        if path.is_file() and path.name != vendor.STAMP
    }


def prefixed(prefix: str, files: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}/{name}": text for name, text in files.items()}


def sdist_files(tree: Mapping[str, str]) -> dict[str, str]:
    return prefixed("tinyllama-1.0", {**PACKAGE, **prefixed("vendor/llama.cpp", tree)})


def write_pin(root: Path, pin: Pin) -> Path:
    file = root / "vendor" / "llama.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f'commit = "{pin.commit}"\n'
        f'[package]\nname = "{pin.package}"\nversion = "{pin.version}"\n'
        f'sha256 = "{pin.sha256}"\npath = "{pin.inner_path}"\n'
        f"[git]\nurl = '{pin.git_url}'\n"
    )
    return file


class Site:
    """A source tree of ours, and the index that its pin leads to."""

    def __init__(self, directory: Path) -> None:
        self.index = directory / "index"
        self.index.mkdir()
        self.root = directory / "root"
        archive = make_tar(self.index / "tinyllama-1.0.tar.gz", sdist_files({**TREE, **LEFT_OUT}))
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        nowhere = str(directory / "nowhere.git")
        self.archive = archive
        self.echoed: list[str] = []
        self.pin = Pin("1" * 40, "tinyllama", "1.0", digest, "vendor/llama.cpp", nowhere)
        self.set_pin()

    def set_pin(self, **changes: str) -> None:
        self.pin = replace(self.pin, **changes)
        write_pin(self.root, self.pin)

    @property
    def target(self) -> Path:
        return self.root / "vendor" / "llama.cpp"

    def ensure(self, **environ: str) -> vendor.Tree:
        return vendor.ensure_tree(self.root, environ=environ, echo=self.echoed.append)

    def beside(self) -> set[str]:
        """Return what is in vendor/ that a run should not leave there."""
        names = {path.name for path in (self.root / "vendor").iterdir()}
        return names - {"llama.toml", "llama.cpp", ".llama.cpp.lock"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    site = Site(tmp_path)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(site.index))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    return site


@pytest.fixture
def without_pip(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Like ``site``, but the package comes from the local index without running pip."""

    def download(name: str, version: str, sha256: str | None, directory: Path) -> Path:
        return Path(shutil.copy(site.index / f"{name}-{version}.tar.gz", directory))

    monkeypatch.setattr(vendor, "download_package", download)
    return site


def git(directory: Path, *command: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(directory), *who, *command], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def make_repository(directory: Path) -> str:
    left_out = {name: text for name, text in LEFT_OUT.items() if name != ".git"}
    write_files(directory, {**TREE, **left_out})
    git(directory, "init", "--quiet")
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--message=a")
    return git(directory, "rev-parse", "HEAD")


# The pin


def test_pin_of_this_project_is_readable() -> None:
    pin = vendor.read_pin(Path(__file__).parents[2])
    assert (len(pin.commit), len(pin.sha256)) == (40, 64)
    assert pin.inner_path == "vendor/llama.cpp"


def test_pin_round_trip(site: Site) -> None:
    assert vendor.read_pin(site.root) == site.pin


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("[package]", "[package"), "line"),
        (lambda text: text.replace("1" * 40, "main"), "commit is 'main'"),
        (lambda text: text.replace("sha256 =", "sha512 ="), "'sha256' is missing"),
        (lambda text: text.replace("[git]", "[svn]"), "'git' is missing"),
        (lambda text: text.replace('version = "1.0"', "version = 1.0"), "version is 1.0"),
        (lambda text: text.replace('name = "', 'name = "--pre '), "name is '--pre"),
    ],
)
def test_bad_pin_says_what_is_wrong(site: Site, change: Callable[[str], str], said: str) -> None:
    file = site.root / "vendor" / "llama.toml"
    file.write_text(change(file.read_text()))
    with pytest.raises(VendorError, match="restore the file") as caught:
        site.ensure()
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


def test_missing_pin_says_where_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(VendorError, match=r"llama\.toml"):
        vendor.read_pin(tmp_path)


# The package, through the real pip


@needs_pip
def test_fetch_with_pip_then_nothing_to_do(site: Site) -> None:
    tree = site.ensure()
    assert tree == vendor.Tree(site.target.resolve(), site.pin.commit)
    assert read_files(site.target) == TREE
    assert site.beside() == set()
    assert "tinyllama 1.0" in site.echoed[0]
    assert f"{len(TREE)} files" in site.echoed[-1]

    site.echoed.clear()
    before = site.target.stat()
    shutil.rmtree(site.index)
    assert site.ensure() == tree
    assert site.echoed == []
    assert site.target.stat() == before


@needs_pip
def test_wrong_hash_is_refused_by_pip_and_does_not_fall_back(site: Site) -> None:
    right, wrong = site.pin.sha256, "0" * 64
    site.set_pin(sha256=wrong)
    with pytest.raises(VendorError, match="wrong sha256") as caught:
        site.ensure()
    assert right in str(caught.value)
    assert wrong in str(caught.value)
    assert "git" not in " ".join(site.echoed)
    assert not site.target.exists()
    assert site.beside() == set()


@needs_pip
def test_download_without_hash_and_with_no_such_version(site: Site, tmp_path: Path) -> None:
    archive = vendor.download_package("tinyllama", "1.0", None, tmp_path)
    assert archive == tmp_path / "tinyllama-1.0.tar.gz"
    assert archive.read_bytes() == site.archive.read_bytes()
    with pytest.raises(VendorError, match=r"tinyllama==2\.0.*Connect to the network"):
        vendor.download_package("tinyllama", "2.0", None, tmp_path)
    assert not list(tmp_path.glob(".pip-*"))


@needs_pip
def test_hash_is_verified_without_trust_in_pip(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pip that is satisfied with anything is not believed."""
    pip = write_files(
        site.root / "stub",
        {
            "pip/__init__.py": "",
            "pip/__main__.py": (
                "import pathlib, sys\n"
                "out = pathlib.Path(sys.argv[sys.argv.index('-d') + 1])\n"
                "out.mkdir()\n"
                "(out / 'tinyllama-1.0.tar.gz').write_text('evil')\n"
            ),
        },
    )
    monkeypatch.setenv("PYTHONPATH", str(pip))
    with pytest.raises(VendorError, match="wrong sha256") as caught:
        site.ensure()
    assert hashlib.sha256(b"evil").hexdigest() in str(caught.value)
    assert not site.target.exists()


@needs_pip
@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("ERROR: No matching distribution found for a==1\n", "No matching distribution"),
        ("error: metadata-failed\n\nhint: See above.\n", "metadata-failed"),
        ("ERROR: Exception:\nTraceback\nKeyError: 'a'\n", "KeyError: 'a'"),
        ("", "nothing"),
    ],
)
def test_pip_is_quoted_with_the_line_that_says_most(
    site: Site, monkeypatch: pytest.MonkeyPatch, stderr: str, said: str
) -> None:
    main = f"import sys\nsys.stderr.write({stderr!r})\nsys.exit(1)\n"
    stub = write_files(site.root / "stub", {"pip/__init__.py": "", "pip/__main__.py": main})
    monkeypatch.setenv("PYTHONPATH", str(stub))
    with pytest.raises(VendorError, match=f"pip said: {said}"):
        vendor.download_package("a", "1", None, site.index)


# Git


@needs_git
def test_git_is_asked_if_there_is_no_pip(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = make_repository(tmp_path / "upstream")
    site.set_pin(commit=commit, git_url=(tmp_path / "upstream").as_uri())
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert site.ensure().commit == commit
    assert read_files(site.target) == TREE
    assert "ensurepip" in site.echoed[1]
    assert site.beside() == set()


@needs_pip
@needs_git
def test_no_network_names_both_failures_and_a_remedy(site: Site) -> None:
    site.archive.unlink()
    with pytest.raises(VendorError) as caught:
        site.ensure()
    said = str(caught.value)
    assert said.startswith("cannot fetch llama.cpp 1111111: pip said: No matching distribution")
    assert "git said: fatal:" in said
    assert said.endswith("or set LLAMACFFI_LLAMA_CPP to a llama.cpp checkout.")
    assert "\n" not in said
    assert not site.target.exists()
    assert site.beside() == set()


@needs_git
def test_git_without_the_pinned_commit_is_an_error(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_repository(tmp_path / "upstream")
    site.set_pin(git_url=(tmp_path / "upstream").as_uri())
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(VendorError, match="git said: "):
        site.ensure()
    assert not site.target.exists()


# Replacing a tree


def test_stamped_tree_of_another_pin_is_replaced(without_pip: Site) -> None:
    without_pip.ensure()
    (without_pip.target / "include" / "gone.h").write_text("")
    without_pip.set_pin(commit="2" * 40)
    assert without_pip.ensure().commit == "2" * 40
    assert read_files(without_pip.target) == TREE
    assert without_pip.beside() == set()


def test_tree_without_stamp_is_left_alone(without_pip: Site) -> None:
    write_files(without_pip.target, {"mine.txt": "precious"})
    with pytest.raises(VendorError, match="move it away, or set LLAMACFFI_LLAMA_CPP"):
        without_pip.ensure()
    assert read_files(without_pip.target) == {"mine.txt": "precious"}
    assert without_pip.echoed == []


def fail_after(n_calls: int, error: BaseException) -> Callable[..., None]:
    """Return a copyfileobj that fails in its call after ``n_calls``."""
    copy, n_done = shutil.copyfileobj, 0

    def copyfileobj(source: Any, file: Any) -> None:
        nonlocal n_done
        if n_done == n_calls:
            raise error
        n_done += 1
        copy(source, file)

    return copyfileobj


@pytest.mark.parametrize("n_calls", [0, 3])
def test_interrupted_unpack_keeps_the_old_tree(
    without_pip: Site, monkeypatch: pytest.MonkeyPatch, n_calls: int
) -> None:
    old = without_pip.ensure()
    old_pin = without_pip.pin
    without_pip.set_pin(commit="2" * 40)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", fail_after(n_calls, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            without_pip.ensure()
    assert without_pip.beside() == set()
    write_pin(without_pip.root, old_pin)
    without_pip.echoed.clear()
    assert without_pip.ensure() == old
    assert without_pip.echoed == []

    write_pin(without_pip.root, without_pip.pin)
    assert without_pip.ensure().commit == "2" * 40


def test_failed_swap_puts_the_old_tree_back(
    without_pip: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = without_pip.ensure()
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "tree":
            raise PermissionError(errno.EACCES, "Permission denied", str(target))
        return rename(self, target)

    without_pip.set_pin(commit="2" * 40)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(VendorError, match="make it writable"):
            without_pip.ensure()
    assert read_files(old.path) == TREE


def test_leftovers_of_a_killed_run_are_removed(without_pip: Site) -> None:
    write_files(without_pip.root / "vendor" / ".llama.cpp.killed", {"tree/CMakeLists.txt": ""})
    without_pip.ensure()
    assert without_pip.beside() == set()


def test_full_disk_says_how_much_to_free(
    without_pip: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(shutil, "copyfileobj", fail_after(1, full))
    with pytest.raises(VendorError, match=r"no space left on .*: free \d+ MB and run") as caught:
        without_pip.ensure()
    assert str(without_pip.root.resolve() / "vendor") in str(caught.value)
    assert without_pip.beside() == set()


@needs_pip
def test_full_disk_under_pip_is_no_reason_to_ask_git(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = "import sys\nsys.exit('ERROR: [Errno 28] No space left on device')\n"
    stub = write_files(site.root / "stub", {"pip/__init__.py": "", "pip/__main__.py": main})
    monkeypatch.setenv("PYTHONPATH", str(stub))
    with pytest.raises(VendorError, match="no space left on"):
        site.ensure()
    assert len(site.echoed) == 1


def test_second_run_waits_for_the_first(without_pip: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    download, entered, may_go_on = vendor.download_package, threading.Event(), threading.Event()

    def slow(name: str, version: str, sha256: str | None, directory: Path) -> Path:
        entered.set()
        assert may_go_on.wait(HANGS)
        return download(name, version, sha256, directory)

    def let_go_on(line: str) -> None:
        heard.append(line)
        may_go_on.set()

    heard: list[str] = []
    monkeypatch.setattr(vendor, "download_package", slow)
    first = threading.Thread(target=without_pip.ensure)
    first.start()
    assert entered.wait(HANGS)
    tree = vendor.ensure_tree(without_pip.root, environ={}, echo=let_go_on)
    first.join(HANGS)
    assert len(heard) == 1
    assert "waiting" in heard[0]
    assert read_files(tree.path) == TREE


# Unpacking


def test_unpack_keeps_what_the_build_needs(tmp_path: Path) -> None:
    files = {**TREE, **LEFT_OUT, "src/run.sh": "#!/bin/sh\n"}
    archive = make_tar(tmp_path / "a.tar.gz", prefixed("a-1/vendor/llama.cpp", files))
    vendor.unpack_tree(archive, "vendor/llama.cpp", tmp_path / "new" / "tree")
    assert read_files(tmp_path / "new" / "tree") == {**TREE, "src/run.sh": "#!/bin/sh\n"}
    assert os.access(tmp_path / "new" / "tree" / "src" / "run.sh", os.X_OK)


def link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "name",
    [
        "a/src/../../../evil.cpp",
        "../evil.cpp",
        "/evil.cpp",
        "a/docs/../../evil.md",
        "a\\..\\..\\evil.cpp",
        "C:/evil.cpp",
        "a/src/evil.cpp:stream",
    ],
)
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    archive = make_tar(tmp_path / "a.tar.gz", {**prefixed("a", TREE), name: "evil"})
    with pytest.raises(VendorError, match="a path outside of it"):
        vendor.unpack_tree(archive, ".", tmp_path / "tree")
    assert list((tmp_path / "tree").iterdir()) == []


@pytest.mark.parametrize(
    "member",
    [
        link("a/src/evil", tarfile.SYMTYPE, "/etc"),
        link("a/src/evil", tarfile.SYMTYPE, "llama.cpp"),
        link("a/src/evil", tarfile.LNKTYPE, "../../etc/passwd"),
        link("a/src/evil", tarfile.CHRTYPE, ""),
        link("a/src/evil", tarfile.FIFOTYPE, ""),
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    archive = make_tar(tmp_path / "a.tar.gz", prefixed("a", TREE), member)
    with pytest.raises(VendorError, match="not a regular file"):
        vendor.unpack_tree(archive, ".", tmp_path / "tree")
    assert list((tmp_path / "tree").iterdir()) == []


def test_links_in_what_is_left_out_do_no_harm(tmp_path: Path) -> None:
    member = link("a/docs/readme", tarfile.SYMTYPE, "/etc/passwd")
    archive = make_tar(tmp_path / "a.tar.gz", prefixed("a", TREE), member)
    vendor.unpack_tree(archive, ".", tmp_path / "tree")
    assert read_files(tmp_path / "tree") == TREE


segments = st.sampled_from(["..", ".", "", "src", "include", "docs", "models", "a", "b.gguf", "~"])
names = st.lists(segments, min_size=1, max_size=5).map("/".join).filter(lambda name: name != "")


@settings(max_examples=60, deadline=None)
@given(st.lists(names, max_size=4))
def test_nothing_is_written_outside(added: list[str]) -> None:
    """Whatever its names, an archive fills the destination, or nothing at all."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch, "x", "y")
        directory.mkdir(parents=True)
        files = {**prefixed("top", TREE), **dict.fromkeys(added, "a")}
        archive = make_tar(directory / "a.tar.gz", files)
        try:
            vendor.unpack_tree(archive, ".", directory / "tree")
        except VendorError:
            pass
        else:
            assert read_files(directory / "tree").keys() >= TREE.keys()
        outside = {
            path for path in Path(scratch).rglob("*") if directory / "tree" not in path.parents
        }
        assert outside == {directory.parent, directory, archive, directory / "tree"}


@pytest.mark.parametrize("missing", ["include/llama.h", "ggml/include/ggml.h", "CMakeLists.txt"])
def test_archive_without_a_tree_is_refused(tmp_path: Path, missing: str) -> None:
    files = {name: text for name, text in TREE.items() if name != missing}
    archive = make_tar(tmp_path / "a.tar.gz", prefixed("a", files))
    with pytest.raises(VendorError, match=f"no llama.cpp tree at .*{missing} is missing"):
        vendor.unpack_tree(archive, ".", tmp_path / "tree")


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    noise = "".join(str(hashlib.sha256(bytes([i])).digest()) for i in range(200))
    whole = make_tar(tmp_path / "a.tar.gz", prefixed("a", {**TREE, "src/noise.cpp": noise}))
    data = whole.read_bytes()
    flipped = data[: len(data) // 2] + b"\xff" * 40 + data[len(data) // 2 + 40 :]
    for i, damaged in enumerate([b"", b"no tar", data[: len(data) // 2], flipped]):
        archive = tmp_path / f"{i}.tar.gz"
        archive.write_bytes(damaged)
        with pytest.raises(VendorError, match="is damaged: delete it"):
            vendor.unpack_tree(archive, ".", tmp_path / f"tree{i}")
        assert not read_files(tmp_path / f"tree{i}")


def test_checksum_at_the_end_of_an_archive_counts(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar.gz", prefixed("a", TREE))
    data = bytearray(archive.read_bytes())
    data[-8] ^= 1
    archive.write_bytes(data)
    with pytest.raises(VendorError, match="is damaged"):
        vendor.unpack_tree(archive, ".", tmp_path / "tree")
    assert not read_files(tmp_path / "tree")


def test_unpack_into_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar.gz", prefixed("a", TREE))
    write_files(tmp_path / "tree", {"mine.txt": "precious"})
    with pytest.raises(VendorError, match="is not empty"):
        vendor.unpack_tree(archive, ".", tmp_path / "tree")
    assert read_files(tmp_path / "tree") == {"mine.txt": "precious"}


# A checkout of the user's


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in directory.rglob("*")
    }


@pytest.mark.parametrize("missing", ["include/llama.h", "ggml/include/ggml.h", "src", None])
def test_path_that_is_no_tree_is_named(site: Site, tmp_path: Path, missing: str | None) -> None:
    path = tmp_path / "checkout"
    if missing:
        write_files(path, {n: t for n, t in TREE.items() if not n.startswith(missing)})
    with pytest.raises(VendorError, match=f"{missing or 'include/llama.h'} is missing") as caught:
        site.ensure(LLAMACFFI_LLAMA_CPP=str(path))
    assert f"LLAMACFFI_LLAMA_CPP={path}" in str(caught.value)


def test_checkout_wins_over_a_broken_pin(tmp_path: Path) -> None:
    checkout = write_files(tmp_path / "checkout", TREE)
    before = snapshot(checkout)
    echoed: list[str] = []
    environ = {"LLAMACFFI_LLAMA_CPP": str(checkout)}
    tree = vendor.ensure_tree(tmp_path, environ=environ, echo=echoed.append)
    assert tree.path == checkout.resolve()
    assert echoed == []
    assert snapshot(checkout) == before


@needs_git
def test_commit_of_a_git_checkout(site: Site, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    commit = make_repository(checkout)
    before = snapshot(checkout)
    environ = {"LLAMACFFI_LLAMA_CPP": str(checkout)}
    assert site.ensure(**environ).commit == commit
    assert snapshot(checkout) == before
    (checkout / "LICENSE").write_text("not bound\n")
    assert site.ensure(**environ).commit == commit
    (checkout / "include" / "llama.h").write_text("int llama_b(void);\n")
    assert site.ensure(**environ).commit == f"{commit}-dirty"


def test_commit_of_a_fetched_tree(without_pip: Site) -> None:
    tree = without_pip.ensure()
    assert without_pip.ensure(LLAMACFFI_LLAMA_CPP=str(tree.path)) == tree


@needs_git
@pytest.mark.parametrize("stamp", ["{", "[]", json.dumps({"version": "1"}), None])
def test_commit_of_a_mere_directory_is_a_hash_of_its_headers(
    site: Site, tmp_path: Path, stamp: str | None
) -> None:
    """Even below a git repository, which is not its own."""
    outer = tmp_path / "outer"
    make_repository(outer)
    commits = []
    for name in ("a", "b"):
        checkout = write_files(outer / name, TREE)
        if stamp:
            (checkout / vendor.STAMP).write_text(stamp)
        commits.append(site.ensure(LLAMACFFI_LLAMA_CPP=str(checkout)).commit)
    assert commits[0] == commits[1]
    assert commits[0].startswith("tree-")
    assert len(commits[0]) == len("tree-") + 12
    (outer / "b" / "tools" / "mtmd" / "mtmd.h").write_text("int mtmd_b(void);\n")
    assert site.ensure(LLAMACFFI_LLAMA_CPP=str(outer / "b")).commit != commits[0]


def test_progress_goes_to_stderr_by_default(
    without_pip: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    vendor.ensure_tree(without_pip.root, environ={})
    out, err = capsys.readouterr()
    assert out == ""
    assert "unpacking tinyllama-1.0.tar.gz" in err
