"""What no file can be called is refused by name, wherever a path is taken; nothing is written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import llamacffi
from llamacffi import (
    Adapter,
    ArgumentError,
    Context,
    ControlVector,
    Gguf,
    Imatrix,
    LlamaError,
    Model,
    demo,
    merge_lora,
    quantize,
)
from llamacffi.gguf import shards as split_files

BAD = {
    "a NUL": "a\0b",
    "a lone surrogate": "\ud800",
    "below a directory": Path("x") / "\ud800.gguf",
}

CALLS = {
    "Model": lambda c, path, bad: Model(bad),
    "Model.from_splits": lambda c, path, bad: Model.from_splits([bad]),
    "Model.save": lambda c, path, bad: c.model.save(bad),
    "Gguf.open": lambda c, path, bad: Gguf.open(bad),
    "Gguf.write": lambda c, path, bad: Gguf.new().write(bad),
    "demo.write": lambda c, path, bad: demo.write(bad),
    "state_info": lambda c, path, bad: llamacffi.state_info(bad),
    "Context.save_file": lambda c, path, bad: c.save_file(bad),
    "Context.save_file, plain": lambda c, path, bad: c.save_file(bad, plain=True),
    "Context.load_file": lambda c, path, bad: c.load_file(bad),
    "Adapter": lambda c, path, bad: Adapter(c.model, bad),
    "ControlVector.from_file": lambda c, path, bad: ControlVector.from_file(bad),
    "Imatrix.open": lambda c, path, bad: Imatrix.open(bad),
    "quantize, from": lambda c, path, bad: quantize(bad, "new.gguf", "Q8_0"),
    "quantize, to": lambda c, path, bad: quantize(path, bad, "Q8_0"),
    "merge_lora, of": lambda c, path, bad: merge_lora(path, {bad: 1.0}, "new.gguf"),
    "merge_lora, to": lambda c, path, bad: merge_lora(path, {path: 1.0}, bad),
    "shards.split, from": lambda c, path, bad: split_files.split(bad, "new", max_tensors=1),
    "shards.split, to": lambda c, path, bad: split_files.split(path, bad, max_tensors=1),
    "shards.open_all": lambda c, path, bad: split_files.open_all(bad),
    "shards.merge, from": lambda c, path, bad: split_files.merge(bad, "new.gguf"),
    "shards.merge, to": lambda c, path, bad: split_files.merge(path, bad),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("call", CALLS)
def test_no_file_can_be_called_so(
    context: Context, demo_path: Path, tmp_path: Path, monkeypatch, call: str, bad: str | Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    with pytest.raises(ArgumentError) as caught:
        CALLS[call](context, demo_path, bad)
    assert f"invalid path {os.fspath(bad)!r}" in str(caught.value)
    assert isinstance(caught.value, LlamaError)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(sys.platform == "darwin", reason="all names are UTF-8 there")
def test_names_that_are_not_utf8(context: Context, demo_path: Path, tmp_path: Path) -> None:
    """What `os.fsdecode` makes of them names the same file in C."""
    path = tmp_path / os.fsdecode(b"\xff\xfe.gguf")
    path.write_bytes(demo_path.read_bytes())
    with Model(path) as model:
        assert model.n_params == context.model.n_params
    parts = split_files.split(path, tmp_path / os.fsdecode(b"\xff"), max_tensors=20)
    assert os.fsencode(parts[0]).startswith(os.fsencode(tmp_path) + b"/\xff-00001-of-")
    with Model(parts[0]) as model:
        assert model.n_params == context.model.n_params
