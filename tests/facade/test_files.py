"""What Python can read becomes a FILE * for C, and is as before afterwards."""

from __future__ import annotations

import gzip
import io
import os
import pathlib
import socket
import tempfile

import numpy as np
import pytest

from llamacffi import ArgumentError, LoadError, lib
from llamacffi._core.files import c_file, file_name

CONTENT = bytes(range(256)) * 300  # more than a buffer


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "content.bin"
    file.write_bytes(CONTENT)
    return file


def open_descriptors():
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "source",
    [
        CONTENT,
        bytearray(CONTENT),
        memoryview(CONTENT),
        io.BytesIO(CONTENT),
        np.frombuffer(CONTENT, np.uint8),
        np.frombuffer(CONTENT, np.int32).reshape(-1, 2),
    ],
    ids=lambda source: type(source).__name__,
)
@pytest.mark.parametrize("offset", [None, 0, 1, 70_000, len(CONTENT)])
def test_bytes(source, offset):
    with c_file(source, offset=offset) as file:
        assert file.read(100) == CONTENT[offset or 0 :][:100]
        assert file.size - file.offset == len(CONTENT) - (offset or 0)
        assert file.name == f"<{type(source).__name__}>"


def test_bytes_io_is_read_from_its_position_and_stays_writable():
    stream = io.BytesIO(CONTENT)
    stream.seek(5)
    with c_file(stream) as file:
        assert file.read(3) == CONTENT[5:8]
    assert stream.tell() == 5
    stream.write(b"x" * len(CONTENT))  # no view of it is left


@pytest.mark.parametrize("buffering", [0, -1, 16])
@pytest.mark.parametrize("mode", ["rb", "r+b"])
@pytest.mark.parametrize("read", [0, 1, 10, 9000])
def test_an_open_file_at_its_position(path, buffering, mode, read):
    with open(path, mode, buffering=buffering) as stream:
        stream.read(read)
        before = open_descriptors()
        with c_file(stream) as file:
            assert (file.offset, file.size, file.name) == (read, len(CONTENT), str(path))
            assert file.read(5) == CONTENT[read : read + 5]
        with c_file(stream, offset=3) as file:
            assert file.read(5) == CONTENT[3:8]
        assert open_descriptors() == before
        # It is where it was, and reads on.
        assert stream.tell() == read
        assert stream.read(300) == CONTENT[read : read + 300]


def test_what_was_written_is_there():
    with tempfile.TemporaryFile() as stream:
        stream.write(b"headGGUF")
        stream.seek(0)
        stream.write(b"H")
        with c_file(stream, offset=0) as file:
            assert file.read(8) == b"HeadGGUF"
        assert stream.tell() == 1


def test_a_descriptor(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.lseek(descriptor, 7, os.SEEK_SET)
        with c_file(descriptor) as file:
            assert (file.offset, file.name) == (7, f"<descriptor {descriptor}>")
        with c_file(descriptor, offset=9) as file:
            assert file.read(1) == CONTENT[9:10]
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 7
    finally:
        os.close(descriptor)


def read_in_vain(stream):
    with c_file(stream) as file:
        assert not lib.gguf_init_from_file_ptr(file.ptr, {"no_alloc": True})
        raise LoadError("mine")


def test_the_position_is_put_back_after_an_error(path):
    with open(path, "rb") as stream:
        stream.read(4)
        with pytest.raises(LoadError, match="mine"):
            read_in_vain(stream)
        assert stream.read(4) == CONTENT[4:8]


def test_positions_are_private(path):
    with open(path, "rb") as stream:
        stream.seek(40)
        with c_file(stream, offset=0) as one, c_file(stream, offset=9) as two:
            os.lseek(stream.fileno(), 4000, os.SEEK_SET)  # as another thread may
            assert [os.lseek(file.descriptor, 0, os.SEEK_CUR) for file in (one, two)] == [0, 9]
            assert not lib.gguf_init_from_file_ptr(one.ptr, {"no_alloc": True})  # which reads
            assert os.lseek(two.descriptor, 0, os.SEEK_CUR) == 9
            assert os.lseek(stream.fileno(), 0, os.SEEK_CUR) == 4000


def test_files_without_a_name_are_opened_anew(tmp_path):
    memory = os.memfd_create("content")
    deleted = open(tmp_path / "deleted", "w+b")  # noqa: SIM115
    (tmp_path / "deleted").unlink()
    renamed = open(tmp_path / "old", "w+b")  # noqa: SIM115
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "old").write_bytes(b"another")
    with open(memory, "w+b") as anonymous, deleted, renamed:
        for stream in (anonymous, deleted, renamed):
            stream.write(CONTENT)
            stream.seek(3)
            with c_file(stream) as file:
                assert os.fstat(file.descriptor).st_ino == os.fstat(stream.fileno()).st_ino
                assert file.read(5) == CONTENT[3:8]
            assert stream.tell() == 3


def test_a_file_that_may_not_be_opened_again_is_copied(path, run_python):
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    path.chmod(0o600)
    done = run_python(
        f"""
        import os
        from llamacffi._core.files import c_file
        stream = open({str(path)!r}, "rb")
        stream.seek(7)
        with c_file(stream):  # imports what the other user may not read
            pass
        os.setuid(65534)
        with c_file(stream) as file:
            assert os.fstat(file.descriptor).st_ino != os.fstat(stream.fileno()).st_ino
            assert (file.offset, file.size) == (7, {len(CONTENT)})
            assert file.read(300) == bytes(range(256))[7:] + bytes(range(51))
        assert stream.tell() == 7
        print("copied")
        """
    )
    assert done.stdout.strip() == "copied", done.stderr


def test_what_cannot_be_read(path, tmp_path):
    with (
        open(path) as stream,
        pytest.raises(TypeError, match="text file: open it in binary mode"),
    ):
        c_file(stream).__enter__()
    with open(path, "rb") as stream:
        pass
    with pytest.raises(ArgumentError, match="is closed"):
        c_file(stream).__enter__()
    with (
        open(tmp_path / "new", "wb") as stream,
        pytest.raises(ArgumentError, match="open for writing only"),
    ):
        c_file(stream).__enter__()
    for what in (str(path), path):
        with pytest.raises(TypeError, match="is a path"):
            c_file(what).__enter__()
    for what in (None, 1.5, [1], True, io.StringIO("x"), lambda: 0):
        with pytest.raises(TypeError):
            c_file(what).__enter__()
    for descriptor in (-1, 10**6):
        with pytest.raises(ArgumentError, match="descriptor"):
            c_file(descriptor).__enter__()
    with pytest.raises(ArgumentError, match="not contiguous"):
        c_file(np.zeros(10, np.uint8)[::2]).__enter__()


def test_what_is_no_regular_file(tmp_path):
    reader, writer = os.pipe()
    here, there = socket.socketpair()
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        for descriptor, kind in (
            (reader, "a pipe"),
            (here.fileno(), "a socket"),
            (directory, "a directory"),
        ):
            with pytest.raises(ArgumentError, match=kind):
                c_file(descriptor).__enter__()
        with (
            open(reader, "rb", closefd=False) as stream,
            pytest.raises(ArgumentError, match="a pipe"),
        ):
            c_file(stream).__enter__()
        with (
            open("/dev/zero", "rb") as stream,
            pytest.raises(ArgumentError, match="a character device"),
        ):
            c_file(stream).__enter__()
    finally:
        for descriptor in (reader, writer, directory):
            os.close(descriptor)
        here.close()
        there.close()


def test_a_file_that_decompresses_has_the_descriptor_of_the_compressed_one(path, tmp_path):
    packed = tmp_path / "content.gz"
    packed.write_bytes(gzip.compress(CONTENT))
    with gzip.open(packed) as stream, c_file(stream) as file:
        assert file.read(2) == b"\x1f\x8b"  # so what needs a GGUF says that this is none


@pytest.mark.parametrize("offset", [-1, 2**63])
def test_offsets_that_are_none(path, offset):
    with open(path, "rb") as stream, pytest.raises(ArgumentError, match="offset must be"):
        c_file(stream, offset=offset).__enter__()


def test_offsets_behind_the_end(path):
    with (
        open(path, "rb") as stream,
        pytest.raises(ArgumentError, match=f"beyond the end of .*, which has {len(CONTENT)} bytes"),
    ):
        c_file(stream, offset=len(CONTENT) + 1).__enter__()
    with pytest.raises(ArgumentError, match=f"beyond the end of the {len(CONTENT)} bytes"):
        c_file(CONTENT, offset=len(CONTENT) + 1).__enter__()
    for offset in ("1", 1.0):
        with pytest.raises(TypeError, match="offset must be an integer"):
            c_file(CONTENT, offset=offset).__enter__()


def test_no_descriptor_is_left_after_errors(path):
    before = open_descriptors()
    for offset in (0, 10**9):
        with (
            open(path, "rb") as stream,
            pytest.raises((ArgumentError, LoadError)),
            c_file(stream, offset=offset),
        ):
            raise LoadError("x")
    assert open_descriptors() == before


def test_names():
    assert file_name(b"") == "<bytes>"
    assert file_name(3) == "<descriptor 3>"
    with open(os.devnull, "rb") as stream:
        assert file_name(stream) == os.devnull
    with open(os.fsencode(os.devnull), "rb") as stream:
        assert file_name(stream) == os.devnull
    with tempfile.TemporaryFile() as stream:
        assert file_name(stream) == f"<descriptor {stream.fileno()}>"
    assert file_name(pathlib.Path("x")) == "x"
