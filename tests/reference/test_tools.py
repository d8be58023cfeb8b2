"""Files of upstream's own tools, built from the same tree by ``make reference``."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from llamacffi import Gguf, Imatrix, Model, compute_imatrix, demo, quantize, shards
from tests.timing import HANGS

TEXT = demo.TEXT * 2
CHUNK = 64


@pytest.fixture(scope="session")
def tool(root):
    """Run one of the programs; it is skipped if that is not built."""

    def run(name, *args):
        found = sorted(root.glob(f"build/cp*/bin/llama-{name}"))
        if not found:
            pytest.skip(f"llama-{name} is not built: run `make reference`")
        command = [str(found[0]), *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, check=False)
        assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def path(random_model):
    return random_model("llama", "llama-spm")


@pytest.fixture(scope="module")
def matrices(tool, path, tmp_path_factory):
    """The importance matrix of upstream's tool and ours, as files."""
    directory = tmp_path_factory.mktemp("imatrix")
    (directory / "text").write_text(TEXT)
    theirs, ours = directory / "their.gguf", directory / "our.gguf"
    options = ("-m", path, "-f", directory / "text", "-o", theirs, "-c", CHUNK, "-b", CHUNK)
    tool("imatrix", *options, "-t", 1, "--no-ppl", "--process-output", "-lv", 0)
    with Model(path) as model:
        compute_imatrix(
            model, TEXT, chunk_size=CHUNK, process_output=True, dataset=str(directory / "text")
        ).save(ours)
    return theirs, ours


def content(path):
    """All metadata and the hashes of all tensors."""
    with Gguf.open(path) as gguf:
        values = {key: (gguf.type(key), np.asarray(gguf[key]).tolist()) for key in gguf}
        return values, {name: (t.type, t.shape, t.hash()) for name, t in gguf.tensors.items()}


@pytest.mark.parametrize("ftype", ["Q8_0", "Q4_K_M", "F16"])
def test_quantize(tool, path, tmp_path, ftype):
    tool("quantize", path, tmp_path / "their.gguf", ftype, 1)
    quantize(path, tmp_path / "our.gguf", ftype)
    assert (tmp_path / "our.gguf").read_bytes() == (tmp_path / "their.gguf").read_bytes()


def test_imatrix(matrices):
    theirs, ours = map(Imatrix.open, matrices)
    assert set(ours) == set(theirs)
    assert len(ours) > 14
    assert (ours.chunk_count, ours.chunk_size) == (theirs.chunk_count, CHUNK)
    assert ours.chunk_count > 5
    assert ours.datasets == theirs.datasets
    for name in theirs:
        assert np.array_equal(ours.squares[name].counts, theirs.squares[name].counts)
        assert np.allclose(ours[name], theirs[name], rtol=1e-3)
    first, second = (content(file) for file in matrices)
    assert first[0] == second[0]
    assert [one[:2] for one in first[1].values()] == [one[:2] for one in second[1].values()]
    assert list(first[1]) == list(second[1])


def test_quantize_with_an_imatrix(tool, path, matrices, tmp_path):
    """Each with the files of the other."""
    for i, file in enumerate(matrices):
        theirs, ours = tmp_path / f"their{i}.gguf", tmp_path / f"our{i}.gguf"
        tool("quantize", "--imatrix", file, path, theirs, "Q4_K_M", 1)
        quantize(path, ours, "Q4_K_M", imatrix=file)
        assert content(ours) == content(theirs)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["--split-max-tensors", 5], {"max_tensors": 5}),
        (["--split-max-size", "2M"], {"max_bytes": 2_000_000}),
        (["--split-max-tensors", 9, "--no-tensor-first-split"], {"max_tensors": 9}),
    ],
)
def test_split(tool, path, tmp_path, theirs, ours):
    (tmp_path / "their").mkdir()
    (tmp_path / "our").mkdir()
    if "--no-tensor-first-split" in theirs:
        ours = ours | {"no_tensor_first": True}
    with Gguf.open(path) as gguf:  # the tool fails if the first tensor is larger than the limit
        small = gguf.copy()
        for name in list(small.tensors):
            if small.tensors[name].nbytes > 2_000_000:
                small.remove_tensor(name)
        small.write(tmp_path / "small.gguf")
        small.close()
    tool("gguf-split", *theirs, tmp_path / "small.gguf", tmp_path / "their" / "x")
    paths = shards.split(tmp_path / "small.gguf", tmp_path / "our" / "x", **ours)
    expected = sorted((tmp_path / "their").iterdir())
    assert [one.name for one in paths] == [one.name for one in expected]
    for one, other in zip(paths, expected, strict=True):
        assert content(one) == content(other)
        assert list(content(one)[1]) == list(content(other)[1])
    tool("gguf-split", "--merge", paths[0], tmp_path / "merged.gguf")
    shards.merge(expected[0], tmp_path / "our.gguf")
    assert content(tmp_path / "merged.gguf")[1] == content(tmp_path / "our.gguf")[1]
    assert (tmp_path / "our.gguf").read_bytes() == (tmp_path / "small.gguf").read_bytes()
