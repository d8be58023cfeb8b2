"""A model loads, or an error says clearly why it cannot."""

from __future__ import annotations

import os
import shutil

import pytest

from llamacffi import (
    ArgumentError,
    ClosedError,
    Context,
    LoadError,
    Model,
    ModelNotFoundError,
    UnsupportedError,
    demo,
    enums,
)


def notes(error: BaseException) -> str:
    """Return the notes of an exception; on Python 3.10, which has none, its message."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such model file") as caught:
        Model(tmp_path / "none.gguf")
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.filename == str(tmp_path / "none.gguf")


def test_an_empty_name():
    with pytest.raises(ModelNotFoundError):
        Model("")


def test_a_directory(tmp_path):
    with pytest.raises(LoadError, match="directory") as caught:
        Model(tmp_path)
    assert not isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\3\4 a zip", b"ggml", bytes(100)])
def test_a_file_that_is_not_a_gguf(tmp_path, content):
    file = tmp_path / "other.gguf"
    file.write_bytes(content)
    with pytest.raises(LoadError, match="is not a GGUF file") as caught:
        Model(file)
    assert (repr(content[:4]) if content else "it is empty") in str(caught.value)


@pytest.mark.parametrize("size", [4, 8, 100, 20_000, -1])
def test_a_truncated_file(tmp_path, demo_path, size):
    file = tmp_path / "cut.gguf"
    file.write_bytes(demo_path.read_bytes()[:size])
    with pytest.raises(LoadError, match="cannot load") as caught:
        Model(file)
    assert "llama.cpp's log:" in notes(caught.value)
    assert "failed to load model" in notes(caught.value)


def test_a_damaged_header(tmp_path, demo_path):
    data = bytearray(demo_path.read_bytes())
    data[4:8] = b"\xff\xff\xff\x7f"  # the version
    file = tmp_path / "damaged.gguf"
    file.write_bytes(data)
    with pytest.raises(LoadError, match="cannot load"):
        Model(file)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_file_without_read_permission(tmp_path, demo_path):
    file = shutil.copy(demo_path, tmp_path / "secret.gguf")
    os.chmod(file, 0)
    with pytest.raises(LoadError, match="denied"):
        Model(file)


@pytest.mark.parametrize("path", [3, None, 1.5, ["a"]])
def test_a_path_of_another_type(path):
    with pytest.raises(TypeError):
        Model(path)


@pytest.mark.parametrize(
    "name", ["two words.gguf", "Ämter-ラマ-🦙.gguf", 'it\'s "q".gguf', "b\udcff.gguf"]
)
def test_names_of_files(tmp_path, demo_path, name):
    file = tmp_path / name
    shutil.copy(demo_path, file)
    for path in (file, str(file), os.fsencode(file)):
        with Model(path, vocab_only=True) as model:
            assert len(model.vocab) == 514


def test_properties_of_a_model(model, demo_path):
    n = demo.width()
    assert (model.n_embd, model.n_layer, model.n_ctx_train) == (n, 1, demo.N_CTX)
    assert model.n_params == sum(array.size for array in demo.weights().values())
    assert model.size == 4 * model.n_params
    assert model.desc.startswith("llama")
    assert model.chat_template() is None
    assert model.chat_template("tool_use") is None
    assert repr(model).startswith(f"<Model {str(demo_path)!r}: llama ")


def test_metadata_is_a_mapping(demo_path):
    with Model(demo_path, vocab_only=True) as model:
        metadata = model.metadata
    # Read once, so it still works after the model is closed.
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.context_length"] == str(demo.N_CTX)
    assert len(metadata) == len(list(metadata)) == len(dict(metadata)) > 10
    assert "general.name" in metadata
    assert "no.such.key" not in metadata
    assert metadata.get("no.such.key") is None
    with pytest.raises(KeyError):
        metadata["no.such.key"]
    with pytest.raises(TypeError):
        metadata["general.name"] = "other"


def test_progress_rises_to_one(demo_path):
    parts: list[float] = []
    with Model(demo_path, progress=parts.append):
        pass
    assert parts == sorted(parts)
    assert parts[0] >= 0.0
    assert parts[-1] == 1.0


def test_progress_can_stop_the_load(demo_path):
    parts: list[float] = []

    def stop(part: float) -> bool:
        parts.append(part)
        return False

    with pytest.raises(LoadError, match="progress"):
        Model(demo_path, progress=stop)
    assert len(parts) == 1


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_exceptions_of_progress_propagate(demo_path, error):
    def fail(_part: float) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        Model(demo_path, progress=fail)
    assert caught.value is error


def test_parameters_reach_the_loader(demo_path):
    with pytest.raises(
        TypeError, match="unknown parameter 'n_gpu_layer'; did you mean 'n_gpu_layers'"
    ):
        Model(demo_path, n_gpu_layer=3)
    with pytest.raises(TypeError, match="use progress="):
        Model(demo_path, progress_callback=None)
    for mode in (enums.LoadMode.NONE, 0, "none", "mmap"):
        with Model(demo_path, load_mode=mode, n_gpu_layers=0, check_tensors=True) as model:
            assert model.n_layer == 1
    with pytest.raises(ArgumentError, match="load_mode must be one of AUTO, NONE, MMAP"):
        Model(demo_path, load_mode="paper")


@pytest.mark.parametrize(
    "params",
    [{"vocab_only": True}, {"no_alloc": True, "load_mode": "none"}],
    ids=lambda p: next(iter(p)),
)
def test_a_model_without_weights_has_no_context(demo_path, params):
    with Model(demo_path, **params) as model:
        assert model.vocab.tokenize(" llama")
        with pytest.raises(UnsupportedError, match=f"was loaded with {next(iter(params))}=True"):
            Context(model)


def test_closing(demo_path):
    with Model(demo_path) as model:
        assert not model.closed
        _ = model.vocab
    assert model.closed
    model.close()
    assert "closed" in repr(model)
    for use in (
        lambda: model.ptr,
        lambda: model.desc,
        lambda: model.size,
        lambda: model.n_params,
        lambda: model.n_ctx_train,
        lambda: model.n_embd,
        lambda: model.n_layer,
        lambda: model.chat_template(),
        lambda: model.vocab.tokenize("a"),
        lambda: model.metadata,
        lambda: model.__enter__(),
        lambda: Context(model),
    ):
        with pytest.raises(ClosedError, match="Model is closed"):
            use()
