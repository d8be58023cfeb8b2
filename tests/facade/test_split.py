"""Splitting models into several files, and merging them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamacffi import (
    ArgumentError,
    Batch,
    Context,
    Gguf,
    GgufError,
    Model,
    ModelNotFoundError,
    shards,
)
from llamacffi.gguf.shards import paths_of
from tests.facade.oracle import close_to, logits_after


@pytest.fixture
def files(demo_path, tmp_path):
    return shards.split(demo_path, tmp_path / "model", max_tensors=5)


def same(one, other):
    """Compare two files, except for the keys of the split."""
    with Gguf.open(one) as one, Gguf.open(other) as other:
        assert [key for key in one if not key.startswith("split.")] == list(other)
        assert one.hash() == other.hash()
        assert list(one.tensors) == list(other.tensors)
    return True


def test_a_model_in_three_files(files, tmp_path):
    names = [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert [path.name for path in files] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    with Model(files[0]) as model, Context(model, n_ctx=64, n_threads=1) as context:
        batch = Batch(1)
        batch.add([5])
        context.decode(batch)
        assert context.logits() == close_to(logits_after([5])[0])


def test_the_content_of_each_file(files, demo_path):
    with Gguf.open(demo_path) as whole:
        names = list(whole.tensors)
        for i, path in enumerate(files):
            with Gguf.open(path) as part:
                assert list(part.tensors) == names[5 * i : 5 * i + 5]
                assert (part["split.no"], part["split.count"]) == (i, 3)
                assert part["split.tensors.count"] == len(names)
                types = [part.type(key).name for key in part if key.startswith("split.")]
                assert types == ["UINT16", "UINT16", "INT32"]
                assert len(part) == 3 + (len(whole) if i == 0 else 0)


def test_merged_again(files, demo_path, tmp_path):
    shards.merge(files[0], tmp_path / "merged.gguf")
    assert same(tmp_path / "merged.gguf", demo_path)
    assert (tmp_path / "merged.gguf").read_bytes() == demo_path.read_bytes()


def test_by_size(demo_path, tmp_path):
    limit = 100_000
    for i, path in enumerate(shards.split(demo_path, tmp_path / "x", max_bytes=limit)):
        with Gguf.open(path) as part:
            assert part["split.no"] == i
            size = sum(tensor.nbytes for tensor in part.tensors.values())
            assert size <= limit or len(part.tensors) == 1
    shards.merge(tmp_path / f"x-00001-of-{i + 1:05}.gguf", tmp_path / "merged.gguf")
    assert same(tmp_path / "merged.gguf", demo_path)


def test_a_first_file_without_tensors(demo_path, tmp_path):
    paths = shards.split(demo_path, tmp_path / "x", max_tensors=100, no_tensor_first=True)
    assert len(paths) == 2
    with Gguf.open(paths[0]) as first:
        assert not first.tensors
    with Model(paths[0]) as model:
        assert model.n_params > 0


def test_the_reference_reads_them(files):
    """The number of tensors and the types of the keys are those of its own writer."""
    import gguf

    fields = gguf.GGUFReader(files[1]).fields
    keys = {gguf.Keys.Split.LLM_KV_SPLIT_NO, gguf.Keys.Split.LLM_KV_SPLIT_COUNT}
    assert {key: fields[key].types[0] for key in keys} == dict.fromkeys(
        keys, gguf.GGUFValueType.UINT16
    )
    count = fields[gguf.Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT]
    assert count.types[0] == gguf.GGUFValueType.INT32


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 50), max_size=8),
    st.one_of(st.none(), st.integers(1, 4)),
    st.one_of(st.none(), st.integers(1, 400)),
    st.booleans(),
    st.sampled_from([8, 32, 64]),
)
def test_any_model_there_and_back(
    tmp_path_factory, sizes, max_tensors, max_bytes, no_tensor_first, alignment
):
    if max_tensors is None and max_bytes is None:
        max_tensors = 3
    directory = tmp_path_factory.mktemp("split")
    with Gguf.new() as gguf:
        gguf["general.alignment"] = alignment
        gguf["some.text"] = "x"
        for i, n in enumerate(sizes):
            gguf.add_tensor(f"t{i}", np.full(n, i, np.float32))
        paths = shards.split(
            gguf,
            directory / "m",
            max_tensors=max_tensors,
            max_bytes=max_bytes,
            no_tensor_first=no_tensor_first,
        )
        shards.merge(paths[0], directory / "whole.gguf")
        with Gguf.open(directory / "whole.gguf") as whole:
            assert whole.to_bytes() == gguf.to_bytes()
    for path in paths[1:]:
        with Gguf.open(path) as part:
            assert max_tensors is None or len(part.tensors) <= max_tensors
            assert part.tensors


@pytest.mark.parametrize(
    "options", [{}, {"max_tensors": 0}, {"max_bytes": -1}, {"max_tensors": 1, "max_bytes": 0}]
)
def test_limits(demo_path, tmp_path, options):
    with pytest.raises(ArgumentError, match="max_"):
        shards.split(demo_path, tmp_path / "x", **options)
    assert not list(tmp_path.iterdir())


def test_too_many_files(tmp_path):
    with pytest.raises(ArgumentError, match="65535"):
        paths_of(tmp_path / "x", 65536)
    assert paths_of(tmp_path / "x", 65535)[-1].name == "x-65535-of-65535.gguf"


def test_models_that_cannot_be_split_or_merged(files, demo_path, tmp_path):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(GgufError, match="merge them first"):
        shards.split(files[0], tmp_path / "x", max_tensors=1)
    with pytest.raises(GgufError, match="not the first of 3"):
        shards.merge(files[1], tmp_path / "x")
    with pytest.raises(GgufError, match="not one of several"):
        shards.merge(demo_path, tmp_path / "x")
    with pytest.raises(ArgumentError, match="both input and output"):
        shards.merge(files[0], files[2])
    with pytest.raises(OSError, match="no/x"):
        shards.merge(files[0], tmp_path / "no" / "x")
    with pytest.raises(OSError, match="no/"):
        shards.split(demo_path, tmp_path / "no" / "x", max_tensors=1)
    assert sorted(tmp_path.iterdir()) == before


def test_files_that_are_missing_or_wrong(files, tmp_path):
    away = tmp_path / "away.gguf"
    files[1].rename(away)
    with pytest.raises(ModelNotFoundError, match="00002-of-00003"):
        shards.merge(files[0], tmp_path / "x")
    shutil.copy(files[2], files[1])
    with pytest.raises(GgufError, match="file 1 of 3"):
        shards.merge(files[0], tmp_path / "x")
    with Gguf.open(files[1]) as wrong:
        wrong.set("split.no", 1, type="u16")
        wrong.write(files[1])
    with pytest.raises(GgufError, match="two of the files"):
        shards.merge(files[0], tmp_path / "x")
    with Gguf.open(away) as wrong:
        wrong.remove_tensor(next(iter(wrong.tensors)))
        wrong.write(files[1])
    with pytest.raises(GgufError, match="has 12 tensors, but its files have 11"):
        shards.merge(files[0], tmp_path / "x")
    files[0].rename(tmp_path / "first.gguf")
    with pytest.raises(GgufError, match=r"the first of 3 files, so its name must be like"):
        shards.merge(tmp_path / "first.gguf", tmp_path / "x")


@pytest.mark.parametrize("count", [2**32 - 1, 2**16, -2])
def test_an_impossible_count(demo_path, tmp_path, count):
    path = shards.split(demo_path, tmp_path / "x", max_tensors=8)[0]
    with Gguf.open(path) as gguf:
        gguf.set("split.count", count, type="i64")
        gguf.write(path)
    with pytest.raises(GgufError, match=f"'split.count'.*, not {count}"):
        shards.merge(path, tmp_path / "y")


def test_a_full_disk_leaves_nothing(demo_path, tmp_path, run_python):
    code = """
        import resource, sys
        from pathlib import Path
        from llamacffi import shards
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            shards.split(sys.argv[1], "x", max_tensors=1)
        except OSError:
            print(list(Path().iterdir()))
    """
    assert run_python(code, demo_path).stdout == "[]\n"


def test_hashes(demo_path):
    import hashlib

    with Gguf.open(demo_path) as gguf:
        tensors = list(gguf.tensors.values())
        expected = hashlib.sha256(tensors[0].data.tobytes()).hexdigest()
        assert tensors[0].hash() == expected
        whole = hashlib.md5(b"".join(tensor.data.tobytes() for tensor in tensors))
        assert gguf.hash("md5") == whole.hexdigest()
        gguf["general.name"] = "other"
        assert gguf.hash("md5") == whole.hexdigest()
        with pytest.raises(ValueError, match="nonsense"):
            gguf.hash("nonsense")
