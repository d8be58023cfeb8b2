"""The built-in model is the bigram model that it claims to be."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

import llamacffi
from llamacffi import Batch, LoadError, demo
from tests.facade.oracle import close_to, logits_after
from tests.timing import limited


def test_logits_of_every_state(context):
    states = {entry.state: i for i, entry in enumerate(demo.vocabulary())}
    assert len(states) == len(demo.log_probabilities())
    tokens = list(states.values())
    batch = Batch(len(tokens))
    batch.add(tokens, logits="all")
    context.decode(batch)
    for i, expected in enumerate(logits_after(tokens)):
        assert context.logits(i) == close_to(expected)


def test_rows_are_probabilities():
    assert np.exp(demo.log_probabilities()).sum(axis=1) == close_to(1)


def test_the_file_is_small_and_quick(tmp_path):
    with limited(2):  # about 0.1 s
        demo.write(tmp_path / "demo.gguf")
    assert (tmp_path / "demo.gguf").stat().st_size < 4 * 2**20
    assert [file.name for file in tmp_path.iterdir()] == ["demo.gguf"]


def test_the_same_each_time(tmp_path, demo_path):
    demo.write(tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == demo_path.read_bytes()


def test_path_is_in_the_users_cache(tmp_path, monkeypatch):
    if sys.platform != "linux":
        return
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = demo.path()
    assert file.parent == tmp_path / "cache" / "llamacffi"
    written = file.stat().st_mtime_ns
    assert demo.path() == file
    assert file.stat().st_mtime_ns == written
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert demo.cache_dir() == tmp_path / ".cache" / "llamacffi"


def test_an_interrupted_write_leaves_nothing(run_python, tmp_path):
    """The disk fills up after 100 kB."""
    code = """
        import resource
        from pathlib import Path
        from llamacffi import demo
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        Path("there").mkdir()
        try:
            demo.write(Path("there/demo.gguf"))
        except OSError as error:
            print(error, list(Path("there").iterdir()))
    """
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "[]" in result.stdout


def test_processes_at_once(tmp_path):
    code = "from llamacffi import demo, Model; print(len(Model(demo.path()).vocab))"
    environment = {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path), "PATH": ""}
    sanitizer = ("LD_PRELOAD", "ASAN_OPTIONS")
    environment |= {key: os.environ[key] for key in sanitizer if key in os.environ}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    assert [process.communicate()[0] for process in processes] == [b"514\n"] * 3
    assert len(list((tmp_path / "llamacffi").iterdir())) == 1


def test_generated_words_are_from_the_text(context, chain):
    sampler = chain(llamacffi.TopP(0.99), llamacffi.Dist(seed=1))
    text = llamacffi.generate(context, " The", sampler=sampler, max_tokens=100).text()
    words = {word.strip() for word in demo.words()}
    spaced = text.replace(".", " . ").replace(",", " , ").split()
    assert len(spaced) > 20
    assert set(spaced) <= words


def test_a_damaged_file_in_the_cache_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    good = demo.path()
    content = good.read_bytes()
    good.write_bytes(content[:-1])
    assert demo.path().read_bytes() == content


def test_another_file_of_the_same_size_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    good = demo.path()
    content = good.read_bytes()
    other = bytearray(content)
    other[-5] ^= 1
    good.write_bytes(other)
    with open(good, "rb") as reader:
        assert demo.path() == good
        assert good.read_bytes() == content
        assert reader.read() == other  # a reader that had it open keeps the old content
    good.write_bytes(bytes(len(content)))
    assert demo.path().read_bytes() == content
    assert [file.name for file in good.parent.iterdir()] == [good.name]


def test_a_link_in_the_cache_is_replaced(tmp_path, monkeypatch):
    """But not its target."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    good = demo.path()
    content = good.read_bytes()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    good.unlink()
    good.symlink_to(precious)
    assert demo.path().read_bytes() == content
    assert not good.is_symlink()
    assert precious.read_text() == "mine"
    good.unlink()
    os.mkfifo(good)
    assert demo.path().read_bytes() == content


def test_the_hash_matches_the_model(demo_path):
    assert hashlib.sha256(demo_path.read_bytes()).hexdigest() == demo.SHA256


def test_a_model_with_another_hash_is_compared(tmp_path, monkeypatch):
    """As on a machine that rounds logarithms differently."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "SHA256", "of another machine")
    good = demo.path()
    content, status = good.read_bytes(), good.stat()
    assert demo.path() == good
    assert good.stat() == status
    good.write_bytes(content + b"x")
    assert demo.path().read_bytes() == content


def test_a_read_only_cache_is_named(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(LoadError, match="built-in model") as caught:
        demo.path()
    assert str(blocked) in str(caught.value)


def test_a_relative_cache_is_ignored(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert demo.cache_dir().is_absolute()
