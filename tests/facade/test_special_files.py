"""All that writes files: what is no regular file stays, links are followed, modes are kept."""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from llamacffi import Context, Gguf, Model, demo, quantize, shards
from llamacffi._core.atomic import replacing
from llamacffi.gguf.shards import paths_of
from llamacffi.tools.imatrix import Imatrix, Squares
from llamacffi.tools.merge_lora import merge_lora
from tests.facade.loras import write_lora

MASK = 0o027


@pytest.fixture(scope="module")
def writers(tmp_path_factory):
    """The functions that write one file, by name; each takes its path."""
    directory = tmp_path_factory.mktemp("sources")
    path = directory / "model.gguf"
    demo.write(path)
    parts = shards.split(path, directory / "part", max_tensors=8)
    lora = write_lora(
        directory / "lora.gguf", {"blk.0.attn_output.weight": (demo.width(), demo.width())}
    )
    imatrix = Imatrix({"blk.0.attn_q.weight": Squares(np.ones((1, 32)), np.array([3]))})
    with Model(path, n_gpu_layers=0) as model, Context(model, n_ctx=64, n_threads=1) as context:
        yield {
            "Gguf.write": lambda target: Gguf.open(path).write(target),
            "demo.write": demo.write,
            "quantize": lambda target: quantize(path, target, "Q8_0"),
            "Model.save": model.save,
            "save_file": context.save_file,
            "save_file_plain": lambda target: context.save_file(target, plain=True),
            "Imatrix.save": imatrix.save,
            "shards.merge": lambda target: shards.merge(parts[0], target),
            "merge_lora": lambda target: merge_lora(path, {lora: 1.0}, target),
        }


WRITERS = (
    *("Gguf.write", "demo.write", "quantize", "Model.save", "save_file", "save_file_plain"),
    *("Imatrix.save", "shards.merge", "merge_lora"),
)


@pytest.fixture(params=WRITERS)
def write(request, writers):
    before = os.umask(MASK)
    yield writers[request.param]
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_no_regular_file_stays(write, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(tmp_path / "socket"))
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "loop").symlink_to("loop")
    before = {path: os.lstat(path) for path in tmp_path.iterdir()}
    for name in ("fifo", "socket", "directory", "link", "loop", "directory/", "new/", "."):
        target = f"{tmp_path}/{name}"
        with pytest.raises((OSError, ValueError), match=r"pipe|socket|directory|links") as caught:
            write(target)
        assert str(tmp_path) in str(caught.value)
    for target in ("/dev/null", "/dev/zero"):
        with pytest.raises(OSError, match=f"character device.*{target}"):
            write(target)
    after = {path: os.lstat(path) for path in tmp_path.iterdir()}
    assert {path: one.st_ino for path, one in after.items()} == {
        path: one.st_ino for path, one in before.items()
    }
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_links_are_followed(write, tmp_path):
    (tmp_path / "there").mkdir()
    target = tmp_path / "there/target"
    target.write_bytes(b"before")
    target.chmod(0o600)
    (tmp_path / "link").symlink_to("there/target")
    (tmp_path / "dangling").symlink_to(tmp_path / "there/new")
    (tmp_path / "second").symlink_to("link")
    new = tmp_path / "there/new"
    for name, reached in (("link", target), ("dangling", new), ("second", target)):
        write(tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert reached.stat().st_size > 10
    assert mode(target) == 0o600
    assert mode(new) == 0o666 & ~MASK
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["new", "target"]
    assert len(list(tmp_path.iterdir())) == 4
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing/new")
    with pytest.raises(FileNotFoundError, match="missing"):
        write(tmp_path / "nowhere")


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o666, 0o755])
def test_the_mode_and_the_owner_of_a_file_are_kept(write, tmp_path, kept):
    target = tmp_path / "file"
    target.write_bytes(b"before")
    if os.geteuid() == 0:
        os.chown(target, 12345, 54321)
    target.chmod(kept)
    before = target.stat()
    write(target)
    after = target.stat()
    assert after.st_size != len(b"before")
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    write(tmp_path / "new")
    assert mode(tmp_path / "new") == 0o666 & ~MASK


@pytest.mark.parametrize("character", ["a", "ä", "文", "🦙"], ids=["1", "2", "3", "4"])
def test_names_as_long_as_can_be(write, tmp_path, character):
    name = "".ljust(255 // len(os.fsencode(character)), character)
    try:
        (tmp_path / name).write_bytes(b"")
    except OSError:
        pytest.skip("this file system has no such names")
    write(tmp_path / name)
    assert (tmp_path / name).stat().st_size > 10
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OSError, match="too long") as caught:
        write(tmp_path / f"{name}{character}")
    assert caught.value.errno == errno.ENAMETOOLONG


@pytest.fixture
def as_another(tmp_path_factory):
    """Be somebody who may write nothing but what the test allows; return a directory of theirs."""
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory
        os.seteuid(0)
        os.setegid(0)


def test_what_may_not_be_written(as_another):
    gguf = Gguf.new()
    gguf["a"] = 1
    protected, mine, group = (as_another / name for name in ("protected", "mine", "group"))
    for path in (protected, mine, group):
        path.write_bytes(b"before")
    mine.chmod(0o666)
    group.chmod(0o660)
    os.chown(group, 65534, 54321)
    os.setegid(65534)
    os.seteuid(65534)
    with pytest.raises(PermissionError, match=r"write-protected.*protected"):
        gguf.write(protected)
    with pytest.raises(PermissionError, match="no file can be created in") as caught:
        gguf.write(mine)  # it could be written, but not at once
    assert caught.value.filename == str(mine)
    with pytest.raises(PermissionError, match="new"):
        gguf.write(as_another / "new")
    with pytest.raises(PermissionError, match="new"):
        save_imatrix(as_another / "new")
    os.seteuid(0)
    as_another.chmod(0o777)
    os.seteuid(65534)
    gguf.write(mine)
    gguf.write(group)
    # The group of a file that others may not give away: what it could do, nobody else can.
    assert (mode(mine), mode(group)) == (0o666, 0o600)
    assert sorted(path.name for path in as_another.iterdir()) == ["group", "mine", "protected"]
    assert protected.read_bytes() == b"before"


def save_imatrix(target):
    Imatrix({"blk.0.attn_q.weight": Squares(np.ones((1, 32)), np.array([3]))}).save(target)


def test_a_deleted_file_has_no_name(tmp_path):
    with open(tmp_path / "deleted", "w+b") as file:
        (tmp_path / "deleted").unlink()
        with pytest.raises(OSError, match="a deleted or unnamed file"), Gguf.new() as gguf:
            gguf.write(f"/proc/self/fd/{file.fileno()}")
    assert list(tmp_path.iterdir()) == []


def test_several_files_are_like_those_that_were_there(tmp_path):
    path = tmp_path / "model.gguf"
    demo.write(path)
    (tmp_path / "elsewhere").mkdir()
    elsewhere = tmp_path / "elsewhere/first"
    elsewhere.write_bytes(b"before")
    elsewhere.chmod(0o600)
    for name in ("a", "b" * 230, "文" * 75):
        first, *others = paths_of(tmp_path / name, 2)
        first.symlink_to(elsewhere)
        os.mkfifo(others[0])
        with pytest.raises(OSError, match="a pipe"):
            shards.split(path, tmp_path / name, max_tensors=8)
        assert elsewhere.read_bytes() == b"before"
        others[0].unlink()
        assert shards.split(path, tmp_path / name, max_tensors=8) == [first, *others]
        assert (first.is_symlink(), mode(elsewhere)) == (True, 0o600)
        size = elsewhere.stat().st_size
        assert size > 1000
        target = tmp_path / f"q{name[:-1]}"
        quantized = paths_of(target, 2)
        quantized[0].symlink_to(elsewhere)
        quantized[1].write_bytes(b"before")
        quantized[1].chmod(0o640)
        copies = shards.split(path, tmp_path / "copy", max_tensors=8)
        quantize(copies[0], target, "Q8_0", keep_split=True)
        assert (quantized[0].is_symlink(), mode(elsewhere)) == (True, 0o600)
        assert elsewhere.stat().st_size < size
        assert mode(quantized[1]) == 0o640
        with Model(quantized[0], vocab_only=True):
            pass
        elsewhere.write_bytes(b"before")
    assert not list(tmp_path.glob(".*"))


def test_an_error_of_the_system_names_the_file(tmp_path, run_python):
    demo.write(tmp_path / "model.gguf")
    code = """
        import os, resource
        from llamacffi import Gguf, Model, demo, quantize, shards
        from llamacffi.tools.merge_lora import merge_lora
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        os.mkdir("t")
        with Model("model.gguf", n_gpu_layers=0) as model:
            for write in (
                Gguf.open("model.gguf").write, model.save,
                lambda path: quantize("model.gguf", path, "F16"),
                lambda path: merge_lora("model.gguf", {}, path),
                demo.write,
            ):
                try:
                    write("t/x.gguf")
                except OSError as error:
                    print(error.filename, error.errno, os.listdir("t"))
    """
    done = run_python(code)
    assert done.stdout == f"t/x.gguf {errno.EFBIG} []\n" * 5, done


def test_many_who_write_one_file_at_once(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([i]) * 100_000 for i in range(4)]

    def write(content):
        for _ in range(50):
            with replacing(path) as file:
                file.write(content)

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(write, contents))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]
