"""Models from open files, bytes and split files; and errors for files that are not models."""

from __future__ import annotations

import io
import os
import socket
import struct
import tempfile
import threading

import numpy as np
import pytest

from llamacffi import (
    Adapter,
    ArgumentError,
    Batch,
    Context,
    Gguf,
    Imatrix,
    LoadError,
    Model,
    ModelNotFoundError,
    lib,
    quantize,
)
from tests.facade.gguf_models import edited
from tests.facade.loras import write_lora

ALIGNMENT = lib.ggml_backend_buft_get_alignment(lib.ggml_backend_cpu_buffer_type())


def logits(model, tokens=(1, 5, 9, 70)):
    """Return the logits of a model; with one thread they are always the same."""
    with Context(model, n_ctx=64, n_threads=1) as context:
        context.decode(Batch.from_tokens(tokens))
        return context.logits()


@pytest.fixture(scope="module")
def expected(model):
    return logits(model)


@pytest.fixture(scope="module")
def data(demo_path):
    return demo_path.read_bytes()


def notes(error):
    """Return the notes of an exception; on Python 3.10, which has none, its message."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


# An open file


@pytest.mark.parametrize("buffering", [0, -1])
def test_loads_from_one_open_file_do_not_disturb_each_other_nor_the_file(
    demo_path, expected, buffering
):
    def load(**params):
        with Model.from_file(file, offset=0, load_mode="none", **params) as model:
            return logits(model)

    def progress(_fraction):  # what other threads may do during a load
        if not moved:
            file.seek(1234)
            moved.append(load())
            assert file.tell() == os.lseek(file.fileno(), 0, os.SEEK_CUR) == 1234
            moved.append(file.read(5))
            file.seek(77)

    moved = []
    with open(demo_path, "rb", buffering=buffering) as file:
        got = load(progress=progress)
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 77
        assert np.array_equal(got, expected)
        assert np.array_equal(moved[0], expected)
        assert len(moved[1]) == 5


def test_many_threads_read_one_open_file(model, demo_path, expected, tmp_path):
    """Models, adapters and metadata, while another thread keeps reading."""
    lora = write_lora(
        tmp_path / "lora.gguf", {"blk.0.attn_output.weight": (model.n_embd,) * 2}, alpha=8.0
    )
    weights = demo_path.read_bytes()
    path = tmp_path / "both.bin"
    path.write_bytes(weights + lora.read_bytes())
    right, done = [], threading.Event()

    def read_on():
        while not done.is_set():
            models.seek(3)
            right.append(models.read(8) == weights[3:11])

    def load():
        for _ in range(3):
            with Model.from_file(models, offset=0, load_mode="none") as one:
                right.append(np.array_equal(logits(one), expected))
            with Adapter(model, adapters) as one, Gguf.from_file(adapters) as gguf:
                right.append(one.alpha == gguf["adapter.lora.alpha"] == 8.0)

    with open(path, "rb", buffering=0) as models, open(path, "rb") as adapters:
        adapters.seek(len(weights))
        threads = [threading.Thread(target=load) for _ in range(3)]
        reader = threading.Thread(target=read_on)
        for thread in (reader, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        done.set()
        reader.join()
    assert all(right)
    assert len(right) > 18


@pytest.mark.parametrize("offset", [0, ALIGNMENT, 4096, 7, ALIGNMENT + 1])
@pytest.mark.parametrize("buffering", [0, -1])
def test_a_gguf_anywhere_in_a_file(tmp_path, data, expected, offset, buffering):
    path = tmp_path / "archive.bin"
    path.write_bytes(b"\1" * offset + data + b"what follows")
    with open(path, "rb", buffering=buffering) as file:
        file.seek(offset)
        with Model.from_file(file) as model:
            assert np.array_equal(logits(model), expected)
            # A file that cannot be mapped is read.
            assert list(model.placement) == ["CPU" if offset % ALIGNMENT else "CPU_Mapped"]
            assert model.path is None
            assert repr(path.name)[1:-1] in repr(model)
        assert file.tell() == offset
        assert file.read(4) == b"GGUF"
        file.seek(3)
        with Model.from_file(file, offset=offset) as model:
            assert np.array_equal(logits(model), expected)
        assert file.tell() == 3
    # The model does not need the file.
    with open(path, "rb") as file:
        model = Model.from_file(file, offset=offset)
    path.unlink()
    assert np.array_equal(logits(model), expected)
    model.close()


def test_an_unaligned_gguf_is_not_mapped(tmp_path, data):
    path = tmp_path / "archive.bin"
    path.write_bytes(b"\1" * 9 + data)
    with open(path, "rb") as file:
        file.seek(9)
        for params, remedy in (
            ({"load_mode": "mmap"}, "load_mode='none'"),
            ({"load_mode": "mmap_mlock"}, "load_mode='none'"),
            ({"lazy_mode": "on"}, "use lazy_mode='off'"),
        ):
            with pytest.raises(ArgumentError, match=rf"at byte 9 of .*{remedy}"):
                Model.from_file(file, **params)
        for mode in ("none", "mlock"):
            Model.from_file(file, load_mode=mode, lazy_mode="auto").close()
        with pytest.raises(ArgumentError, match=r"direct_io.* needs a path"):
            Model.from_file(file, load_mode="direct_io")


@pytest.mark.parametrize("length", range(4))
def test_a_gguf_with_a_smaller_alignment(tmp_path, demo_path, expected, length):
    path = tmp_path / "model.gguf"
    with Gguf.open(demo_path) as gguf:
        gguf["general.alignment"] = 8
        gguf["general.author"] = "x" * 8 * length
        gguf.write(path)
    with Gguf.open(path) as gguf:
        aligned = gguf.data_offset % ALIGNMENT == 0
    with open(path, "rb") as file:
        for load, source in ((Model, path), (Model.from_file, file), (Model.from_splits, [path])):
            parts: list[float] = []
            with load(source, progress=parts.append) as model:
                assert np.array_equal(logits(model), expected)
                assert list(model.placement) == ["CPU_Mapped" if aligned else "CPU"]
            assert parts == sorted(parts)
            if not aligned:
                with pytest.raises(ArgumentError, match="use load_mode='none'"):
                    load(source, load_mode="mmap")


def test_a_descriptor(demo_path, expected):
    descriptor = os.open(demo_path, os.O_RDONLY)
    try:
        with Model.from_file(descriptor) as model:
            assert np.array_equal(logits(model), expected)
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0
    finally:
        os.close(descriptor)


def test_a_file_without_a_name(data, expected):
    with tempfile.TemporaryFile() as file:
        file.write(b"12345678" + data)
        model = Model.from_file(file, offset=8)
        assert np.array_equal(logits(model), expected)
        model.close()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_bytes(kind, data, expected):
    with Model.from_file(kind(data)) as model:
        assert np.array_equal(logits(model), expected)
        assert list(model.placement) == ["CPU_Mapped"]  # no second copy
    with Model.from_file(kind(b"123" + data), offset=3) as model:
        assert np.array_equal(logits(model), expected)


def test_bytes_may_change_afterwards(data, expected):
    changing = bytearray(data)
    with Model.from_file(changing) as model:
        changing[:] = bytes(len(changing))
        assert np.array_equal(logits(model), expected)


def test_progress_and_parameters_of_an_open_file(demo_path):
    parts: list[float] = []
    with open(demo_path, "rb") as file:
        Model.from_file(file, progress=parts.append, vocab_only=False).close()
        assert parts[-1] == 1.0
        with pytest.raises(LoadError, match="progress returned False"):
            Model.from_file(file, progress=lambda _: False)
        with pytest.raises(TypeError, match="unknown parameter 'n_gpu_layer'"):
            Model.from_file(file, n_gpu_layer=1)
        with Model.from_file(file, vocab_only=True) as model:
            assert model.without_weights == "vocab_only"


def test_files_that_cannot_be_loaded_from(demo_path, tmp_path):
    with open(demo_path) as file, pytest.raises(TypeError, match="text file"):
        Model.from_file(file)
    with pytest.raises(ArgumentError, match="closed"):
        Model.from_file(file.buffer)
    for path in (demo_path, str(demo_path)):
        with pytest.raises(TypeError, match="is a path"):
            Model.from_file(path)
    with open(tmp_path / "new", "wb") as file, pytest.raises(ArgumentError, match="writing only"):
        Model.from_file(file)
    here, there = socket.socketpair()
    with here, there, pytest.raises(ArgumentError, match="a socket"):
        Model.from_file(here.fileno())
    for content in (b"", b"GGU", b"PK\3\4 zip"):
        with pytest.raises(LoadError, match=r"'<bytes>' is not a GGUF file: it (begins with|is e)"):
            Model.from_file(content)
    with open(demo_path, "rb") as file:
        file.seek(10)
        with pytest.raises(LoadError, match="is not a GGUF file"):
            Model.from_file(file)
        size = file.seek(0, os.SEEK_END)
        with pytest.raises(LoadError, match=f"at its end, byte {size}: seek to the start"):
            Model.from_file(file)
        with pytest.raises(ArgumentError, match="beyond the end"):
            Model.from_file(file, offset=10**9)


def test_files_leave_no_descriptor(demo_path, data):
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with open(demo_path, "rb") as file:
            Model.from_file(file).close()
            with pytest.raises(LoadError):
                Model.from_file(file, progress=lambda _: False)
        Model.from_file(data).close()
        with pytest.raises(LoadError):
            Model.from_file(data[:1000])
    assert sorted(os.listdir("/proc/self/fd")) == before


# Several files


@pytest.fixture
def shards(demo_path, tmp_path):
    """Split the model into three files, as llama.cpp's own tool does."""
    paths = [tmp_path / f"demo-{no:05}-of-00003.gguf" for no in (1, 2, 3)]
    with Gguf.open(demo_path) as whole:
        tensors = list(whole.tensors)
        for no, path in enumerate(paths):
            with Gguf.new() as part:
                if no == 0:
                    part.update(whole)
                part.set("split.no", no, type="u16")
                part.set("split.count", len(paths), type="u16")
                part.set("split.tensors.count", len(tensors), type="i32")
                for name in tensors[no::3]:
                    part.add_tensor(name, whole.tensors[name])
                part.write(path)
    return paths


def test_the_first_of_several_files(shards, expected):
    with Model(shards[0]) as model:
        assert np.array_equal(logits(model), expected)


def test_files_by_their_own_names(shards, tmp_path, expected):
    paths = [
        shard.rename(tmp_path / f"{name}.bin") for shard, name in zip(shards, "xay", strict=True)
    ]
    for given in (paths, [os.fsencode(path) for path in paths], tuple(map(str, paths))):
        with Model.from_splits(given, load_mode="mmap") as model:
            assert np.array_equal(logits(model), expected)
            assert model.path == str(paths[0])
    with pytest.raises(LoadError, match=r"file 1 of 3, but its name .* Model.from_splits"):
        Model(paths[0])


def test_a_list_of_one_file(demo_path, expected):
    with Model.from_splits([demo_path]) as model:
        assert np.array_equal(logits(model), expected)


def test_a_file_is_missing(shards):
    shards[1].unlink()
    with pytest.raises(ModelNotFoundError, match="file 2 of the 3") as caught:
        Model(shards[0])
    assert caught.value.filename == str(shards[1])
    with pytest.raises(ModelNotFoundError) as caught:
        Model.from_splits(shards)
    assert caught.value.filename == str(shards[1])


def test_a_file_that_is_not_the_first(shards):
    with pytest.raises(LoadError, match=f"file 3 of 3: load the first one, '{shards[0]}'"):
        Model(shards[2])


def test_files_that_are_not_a_model(shards, demo_path):
    a, b, c = shards
    for paths, match in (
        ([], "at least one"),
        ([a, b], "belongs to a model in 3 files, but 2 were given"),
        ([a, b, c, c], "belongs to a model in 3 files, but 4 were given"),
        ([a, c, b], f"'{c}' is file 3 of 3, but was given as file 2"),
        ([b, a, c], f"'{b}' is file 2 of 3, but was given as file 1"),
        ([a, b, b], "is file 2 of 3, but was given as file 3"),
        ([a, demo_path, c], "is file 1 of 1, but was given as file 2"),
        ([demo_path, b], "belongs to a model in 1 files, but 2 were given"),
    ):
        with pytest.raises(ArgumentError, match=match):
            Model.from_splits(paths)
    for paths in (str(a), a, os.fsencode(a), 3, [3], None):
        with pytest.raises(TypeError):
            Model.from_splits(paths)
    b.write_bytes(b.read_bytes()[:30])
    with pytest.raises(LoadError, match=f"cannot load '{b}'"):
        Model.from_splits(shards)


# Files that llama.cpp cannot load


def nans(gguf):
    tensor = gguf.tensors["blk.0.ffn_down.weight"]
    gguf.replace_tensor(tensor.name, np.full(tensor.shape, np.nan, np.float32))


DAMAGES = {
    "version": (lambda d: d[:4] + struct.pack("<I", 9) + d[8:], "version 9 .* up to version 3"),
    "old version": (lambda d: d[:4] + struct.pack("<I", 1) + d[8:], "GGUFv1 is no longer"),
    "endianness": (lambda d: d[:4] + struct.pack(">I", 3) + d[8:], "endianness"),
    "magic alone": (lambda d: d[:4], "failed to read header; the file is damaged or cut off"),
    "header alone": (lambda d: d[:100], "failed to read key-value pairs; the file is damaged"),
    "one byte less": (lambda d: d[:-1], "tensor 'output.weight' data is not within the file"),
    "architecture": (
        lambda d: edited(d, lambda g: g.set("general.architecture", "xyz")),
        r"unknown model architecture: 'xyz'; this is llama.cpp \d.*, a newer version may",
    ),
    "no tensor": (
        lambda d: edited(d, lambda g: g.remove_tensor("blk.0.ffn_down.weight")),
        r"cannot load '.*': tensor 'blk.0.ffn_down.weight' not found(\n|$)",
    ),
    "tensor": (
        lambda d: edited(d, lambda g: g.add_tensor("x", np.ones(3, np.float32))),
        "wrong number of tensors; expected 13, got 12",
    ),
    "shape": (
        lambda d: edited(d, lambda g: g.replace_tensor("output_norm.weight", np.ones(7, "f4"))),
        "tensor 'output_norm.weight' has wrong shape",
    ),
    "no key": (
        lambda d: edited(d, lambda g: g.pop("llama.context_length")),
        "key not found in model: llama.context_length",
    ),
    "type of a key": (
        lambda d: edited(d, lambda g: g.set("llama.context_length", "many", type="str")),
        "key llama.context_length has wrong type str but expected type u32",
    ),
    "an assertion": (
        lambda d: edited(d, lambda g: g.set("llama.block_count", 513)),
        r"GGML_ASSERT\(hparams.n_layer_all > 0",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_load_error_says_what_is_wrong(damage, data, tmp_path):
    change, match = DAMAGES[damage]
    path = tmp_path / "model.gguf"
    path.write_bytes(change(data))
    with pytest.raises(LoadError, match=match) as caught:
        Model(path)
    assert f"cannot load {str(path)!r}: " in str(caught.value)
    assert "llama.cpp's log:" in notes(caught.value)
    with pytest.raises(LoadError, match=match), open(path, "rb") as file:
        Model.from_file(file)


def test_weights_that_are_nan(data, capfd):
    broken = edited(data, nans)
    Model.from_file(broken).close()
    with pytest.raises(LoadError, match=r"'blk\.0\.ffn_down\.weight' has invalid data"):
        Model.from_file(broken, check_tensors=True)
    assert "found nan" in capfd.readouterr().err  # llama.cpp prints that


def test_a_path_that_is_not_a_regular_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(LoadError, match="not a regular file"):
        Model(pipe)  # and does not block on the pipe
    for opened in (Gguf.open, Imatrix.open, lambda path: quantize(path, tmp_path / "new", "Q8_0")):
        with pytest.raises(ArgumentError, match="is a pipe"):
            opened(pipe)
    with pytest.raises(LoadError, match="not a regular file"):
        Model("/dev/null")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(LoadError, match="symbolic links"):
        Model(loop)
    with pytest.raises(ModelNotFoundError):
        Model(tmp_path / "file" / "below.gguf")


def test_failures_print_nothing(run_python, demo_path):
    code = """
        import sys
        from llamacffi import Model, LoadError
        n_failures = 0
        for make in (
            lambda: Model(sys.argv[1], progress=lambda part: False),
            lambda: Model(sys.argv[1] + "x"),
            lambda: Model(sys.argv[1], unknown=3),
            lambda: Model.from_file(b"GGUF"),
            lambda: Model.from_gguf(3),
            lambda: Model.__new__(Model),
        ):
            try:
                model = make()
            except (LoadError, TypeError):
                n_failures += 1
        print(n_failures)  # the last one is not attempted
    """
    result = run_python(code, demo_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "5\n", "")


# One model for many


def test_one_model_for_many_threads(model, expected):
    results: list[object] = []

    def work() -> None:
        for _ in range(3):
            results.append(np.array_equal(logits(model), expected))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 18


@pytest.mark.no_asan
def test_contexts_share_the_weights(run_python, tmp_path):
    """Eight contexts of a model of 64 MiB need a fraction of the memory of a second model."""
    code = """
        import sys
        import numpy as np
        from llamacffi import Batch, Context, Gguf, Model, demo

        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096

        with Gguf.open(demo.path()) as gguf:
            width = gguf["llama.embedding_length"]
            for kind, shape in (("gate", (80_000, width)), ("up", (80_000, width)),
                                ("down", (width, 80_000))):
                gguf.replace_tensor(f"blk.0.ffn_{kind}.weight", np.zeros(shape, np.float32))
            gguf["llama.feed_forward_length"] = 80_000
            gguf.write(sys.argv[1])
        del gguf
        model = Model(sys.argv[1], load_mode="none")
        assert model.size > 60 << 20
        contexts = [Context(model, n_ctx=64, n_threads=1, n_batch=8, n_ubatch=8)]
        contexts[0].decode(Batch.from_tokens([1]))
        before = resident()
        for _ in range(7):
            contexts.append(Context(model, n_ctx=64, n_threads=1, n_batch=8, n_ubatch=8))
            contexts[-1].decode(Batch.from_tokens([1]))
            assert np.array_equal(contexts[-1].logits(), contexts[0].logits())
        grown = resident() - before
        assert grown < model.size / 2, (grown, model.size)
        print("ok")
    """
    result = run_python(code, tmp_path / "large.gguf")
    assert (result.returncode, result.stdout) == (0, "ok\n"), result


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.type": "adapter"}, r"a LoRA adapter: .* Adapter\(model, path\)"),
        ({"general.architecture": "controlvector"}, "a control vector: .* ControlVector"),
        ({"general.type": "imatrix"}, "an importance matrix: .* Imatrix"),
        ({"general.architecture": "clip", "general.type": "mmproj"}, "an image or audio projector"),
    ],
)
def test_a_file_that_is_not_a_model_is_named_for_what_it_is(tmp_path, metadata, message):
    path = tmp_path / "other.gguf"
    with Gguf.new() as gguf:
        gguf["general.architecture"] = "llama"
        gguf.update(metadata)
        gguf.add_tensor("blk.0.attn_q.weight.lora_a", np.ones((4, 4), np.float32))
        gguf.write(path)
        for load in (
            lambda: Model(path),
            lambda: Model(path, vocab_only=True),
            lambda: Model.from_file(path.read_bytes()),
            lambda: Model.from_splits([path]),
            lambda: Model.from_gguf(gguf),
            lambda: Model.from_gguf(gguf, lambda _name, _array: None),
        ):
            with pytest.raises(LoadError, match=f"as a model: it is {message}"):
                load()
