"""Models built in memory, and saved."""

from __future__ import annotations

import gc
import os
import zlib

import numpy as np
import pytest

from llamacffi import (
    ArgumentError,
    Batch,
    ClosedError,
    Context,
    Gguf,
    GgufTensor,
    LoadError,
    Model,
    UnsupportedError,
    enums,
    ffi,
    lib,
)
from llamacffi._core.ownership import live_objects
from tests.facade.vocabularies import BYTES, write_vocab

KINDS = ["llama", "gpt2", "mamba", "bert", "bert+classifier", "mimo2", "qwen2vl", "lfm2"]


def outputs(model):
    """Return the logits of a model after a few tokens."""
    params = {"n_ctx": 64, "n_threads": 1, "embeddings": True, "pooling_type": "none"}
    with Context(model, **params) as context:
        batch = Batch(8)
        batch.add([1, 5, 9, 70], logits="all")
        if model.architecture == "bert":
            context.encode(batch)
        else:
            context.decode(batch)
        return context.embeddings(2)


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return weights that depend only on the name."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    values = random.standard_normal(shape, np.float32) * np.float32(0.1)
    return -np.abs(values) if name.endswith("ssm_a") else values + (len(shape) == 1)


class Fill:
    """Fills float32 tensors with `numbers` and records the calls."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __call__(self, name: str, array: np.ndarray) -> None:
        assert name not in self.shapes
        assert array.flags.writeable
        assert array.flags.c_contiguous
        assert not array.any()
        self.shapes[name] = array.shape
        array[...] = numbers(name, array.shape)


def tensors_of(model):
    """Return the C tensors of a model."""
    ptr = model.ptr
    found = [lib.llamacffi_model_tensor(ptr, i) for i in range(lib.llamacffi_model_n_tensors(ptr))]
    return {ffi.string(tensor.name).decode(): tensor for tensor in found}


def data_of(tensor):
    """Return the bytes of a tensor."""
    buffer = bytearray(lib.ggml_nbytes(tensor))
    lib.ggml_backend_tensor_get(tensor, ffi.from_buffer(buffer), 0, len(buffer))
    return bytes(buffer)


# With a function


@pytest.mark.parametrize("kind", KINDS)
def test_any_architecture_is_made_and_saved(kind, random_path, tmp_path):
    fill = Fill()
    with Gguf.open(random_path(kind), metadata_only=True) as gguf:
        wanted = {name: tensor.shape for name, tensor in gguf.tensors.items()}
        params = {"load_mtp": True} if kind == "mimo2" else {}
        model = Model.from_gguf(gguf, fill, **params)
    # All tensors of the file, and more that the architecture can have.
    if kind != "mimo2":  # its file has three tensors in one
        assert wanted.items() <= fill.shapes.items()
    for name, tensor in tensors_of(model).items():
        expected = numbers(name, fill.shapes[name])
        assert data_of(tensor) == expected.tobytes(), name
    n_params = sum(int(np.prod(shape)) for shape in fill.shapes.values())
    assert (model.n_params, model.size) == (n_params, 4 * n_params)
    expected = outputs(model)
    assert np.isfinite(expected).all()
    path = tmp_path / "saved.gguf"
    model.save(path)
    model.close()
    assert os.listdir(tmp_path) == ["saved.gguf"]
    with Model(path, **params) as saved:
        assert np.array_equal(outputs(saved), expected)
        assert (saved.n_params, saved.size) == (n_params, 4 * n_params)


def test_a_function_gives_the_same_model_as_a_file(demo_path):
    with Model(demo_path) as model, Gguf.open(demo_path) as gguf:
        expected = outputs(model)

        def fill(name, array):
            if name in gguf.tensors:
                array[...] = gguf.tensors[name].data
            elif "scale" in name or name == "rope_freqs.weight":
                array[...] = 1

        with Model.from_gguf(gguf, fill) as made:
            assert np.array_equal(outputs(made), expected)
            assert made.metadata == model.metadata
            assert made.vocab.tokenize("The") == model.vocab.tokenize("The")
            assert made.path is None


def test_types_are_those_of_the_gguf(demo_path):
    types = {
        "output.weight": enums.GgmlType.Q8_0,
        "token_embd.weight": enums.GgmlType.BF16,
        "blk.0.attn_q.weight": enums.GgmlType.F16,
    }
    seen = {}

    def fill(name, array):
        seen[name] = (array.dtype, array.shape)
        array[...] = gguf.tensors[name].data if name in gguf.tensors else 1

    with Gguf.open(demo_path) as gguf:
        for name, type_ in types.items():
            gguf.replace_tensor(name, gguf.tensors[name].dequantize(), type=type_)
        with Model.from_gguf(gguf, fill) as model:
            found = tensors_of(model)
            for name, type_ in types.items():
                assert found[name].type == type_
                tensor: GgufTensor = gguf.tensors[name]
                assert seen[name] == (tensor.data.dtype, tensor.data.shape)
                assert data_of(found[name]) == tensor.data.tobytes()
            assert np.isfinite(outputs(model)).all()
            rows, width = gguf.tensors["output.weight"].shape
            assert seen["output.weight"] == (np.uint8, (rows, width // 32 * 34))


def test_a_tensor_in_two_places_has_the_same_data(random_path):
    asked = []

    def fill(name, array):
        asked.append(name)
        array[...] = np.random.default_rng().random(array.shape)

    with Gguf.open(random_path("llama")) as gguf, Model.from_gguf(gguf, fill) as model:
        assert len(asked) == len(set(asked))
        n_tensors = lib.llamacffi_model_n_tensors(model.ptr)
        assert n_tensors > len(asked)  # one for each layer
        found = [lib.llamacffi_model_tensor(model.ptr, i) for i in range(n_tensors)]
        ropes = [one for one in found if ffi.string(one.name) == b"rope_freqs.weight"]
        assert len(ropes) > 1
        assert len({data_of(one) for one in ropes}) == 1


def test_arrays_outlive_the_model(demo_path):
    kept = []
    with Gguf.open(demo_path) as gguf:
        Model.from_gguf(gguf, lambda name, array: kept.append(array)).close()
    for array in kept:
        array += 1


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [0, 5])
def test_exceptions_of_fill_propagate(demo_path, kind, after):
    calls, error = [], kind("mine")

    def fill(name, array):
        calls.append(name)
        if len(calls) > after:
            raise error

    with Gguf.open(demo_path) as gguf, pytest.raises(kind) as caught:
        Model.from_gguf(gguf, fill)
    assert caught.value is error
    assert len(calls) == after + 1


def test_errors_leave_nothing_to_the_garbage_collector(demo_path):
    def fail(*_):
        raise ValueError("mine")

    with Gguf.open(demo_path) as gguf:
        gc.collect()
        gc.disable()
        try:
            before, n_failures = live_objects(), 0
            for make in (
                lambda: Model.from_gguf(gguf, fail),
                lambda: Model.from_gguf(gguf, progress=fail),
                lambda: Model(demo_path, progress=fail, kv_overrides={"llama.context_length": 3}),
                lambda: Model(demo_path, kv_overrides={"general.architecture": "none"}),
            ):
                try:  # pytest.raises would keep the exception
                    make()
                except (ValueError, LoadError):
                    n_failures += 1
                assert live_objects() == before
            assert n_failures == 4
        finally:
            gc.enable()


def test_a_function_must_write(demo_path):
    with Gguf.open(demo_path) as gguf:
        with pytest.raises(TypeError, match="it must write to the array"):
            Model.from_gguf(gguf, lambda name, array: array)
        for value in (3, "x", np.zeros(3)):
            with pytest.raises(TypeError, match="fill must be a function"):
                Model.from_gguf(gguf, value)


def test_parameters_for_files_are_refused(demo_path):
    with Gguf.open(demo_path) as gguf:
        for params in (
            {"load_mode": "mmap"},
            {"load_mode": "direct_io"},
            {"lazy_mode": "on"},
            {"check_tensors": True},
            {"use_extra_bufts": True},
        ):
            with pytest.raises(ArgumentError, match=next(iter(params))):
                Model.from_gguf(gguf, Fill(), **params)
        with pytest.raises(TypeError, match="'progress' is for files"):
            Model.from_gguf(gguf, Fill(), progress=print)
        kept = {"load_mode": "none", "lazy_mode": "off", "use_extra_bufts": False}
        Model.from_gguf(gguf, Fill(), **kept).close()


def test_vocab_only_does_not_call_fill(demo_path):
    with Gguf.open(demo_path) as gguf:
        for name in ("vocab_only", "no_alloc"):
            fill = Fill()
            with Model.from_gguf(gguf, fill, **{name: True}) as model:
                assert model.without_weights == name
                assert not fill.shapes


def test_overrides_of_a_model_built_in_memory(demo_path):
    with Gguf.open(demo_path) as gguf:
        overrides = {"llama.context_length": 77}
        with Model.from_gguf(gguf, Fill(), kv_overrides=overrides) as model:
            assert model.n_ctx_train == 77
        with pytest.raises(ArgumentError, match="in the file it is u32"):
            Model.from_gguf(gguf, Fill(), kv_overrides={"llama.context_length": "x"})


def test_metadata_that_describe_no_model(demo_path):
    with Gguf.new() as gguf:
        with pytest.raises(LoadError, match="unknown model architecture: ''"):
            Model.from_gguf(gguf, Fill())
        gguf["general.architecture"] = "llama"
        with pytest.raises(LoadError, match="key not found in model"):
            Model.from_gguf(gguf, Fill())
    with Gguf.open(demo_path) as gguf:
        gguf["llama.embedding_length"] = 0
        with pytest.raises(LoadError):
            Model.from_gguf(gguf, Fill())
    with pytest.raises(ClosedError):
        Model.from_gguf(gguf, Fill())


def test_a_raw_context(demo_path):
    with Gguf.open(demo_path) as gguf:
        ptr = gguf.ptr
        with Model.from_gguf(ptr, Fill()) as model:
            assert np.isfinite(outputs(model)).all()
        with pytest.raises(TypeError, match="without fill="):
            Model.from_gguf(ptr)
    other = [ffi.cast("struct gguf_context *", 0), ffi.new("int *"), demo_path, None, 3, {}]
    for value in other:
        with pytest.raises(TypeError):
            Model.from_gguf(value, Fill())
        with pytest.raises(TypeError):
            Model.from_gguf(value)


# Without one


@pytest.mark.parametrize("kind", [*KINDS, "t5"])
def test_a_gguf_is_a_model(kind, random_path):
    path = random_path(kind)
    params = {"load_mtp": True} if kind == "mimo2" else {}
    with Gguf.open(path) as gguf, Model(path, **params) as model:
        parts: list[float] = []
        made = Model.from_gguf(gguf, progress=parts.append, **params)
        assert parts[-1] == 1.0
        assert {name: data_of(one) for name, one in tensors_of(made).items()} == {
            name: data_of(one) for name, one in tensors_of(model).items()
        }
    if kind != "t5":  # the Gguf is closed
        with Model(path, **params) as model:
            assert np.array_equal(outputs(made), outputs(model))
    made.close()


def test_an_edited_gguf_is_a_model(demo_path):
    with Gguf.open(demo_path) as gguf:
        weights = gguf.tensors["output.weight"].data
        gguf.replace_tensor("output.weight", np.roll(weights, 1, axis=0))
        gguf["general.name"] = "rolled"
        with Model.from_gguf(gguf) as rolled, Model(demo_path) as model:
            assert rolled.metadata["general.name"] == "rolled"
            expected = {**{name: data_of(one) for name, one in tensors_of(model).items()}}
            expected["output.weight"] = np.roll(weights, 1, axis=0).tobytes()
            assert {name: data_of(one) for name, one in tensors_of(rolled).items()} == expected


def test_a_gguf_without_all_tensors(demo_path):
    with Gguf.open(demo_path) as gguf:
        gguf.remove_tensor("output_norm.weight")
        with pytest.raises(LoadError, match=r"tensor 'output_norm\.weight' not found"):
            Model.from_gguf(gguf)
        gguf.add_tensor("output_norm.weight", np.ones(7, np.float32))
        with pytest.raises(LoadError, match=r"tensor 'output_norm\.weight' has wrong shape"):
            Model.from_gguf(gguf)
        for name in list(gguf.tensors):
            gguf.remove_tensor(name)
        with pytest.raises(ArgumentError, match="has no tensors: pass fill="):
            Model.from_gguf(gguf)
        with Model.from_gguf(gguf, vocab_only=True) as model:
            assert model.vocab.tokenize("The")


# Saving


def test_contents_of_a_saved_file(demo_path, tmp_path):
    source, target = tmp_path / "rich.gguf", tmp_path / "saved.gguf"
    texts = {
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.chat_template.tool_use": "{{ tools }}",
        "general.author": "somebody",
        "general.version": "two",
        "general.sampling.sequence": "top_k",
    }
    with Gguf.open(demo_path) as gguf:
        gguf.update(texts)
        gguf.set("general.file_type", 0, type="u32")
        gguf["general.sampling.temp"] = 0.75
        gguf["general.sampling.top_k"] = 40
        gguf.write(source)
    with Model(source) as model:
        target.write_bytes(b"what was there before")
        model.save(target)
        with Model(target) as saved:
            assert np.array_equal(outputs(saved), outputs(model))
            assert saved.chat_templates == model.chat_templates
            assert saved.recommended_sampling == model.recommended_sampling
            assert saved.ftype_name == "all F32"
            assert texts.items() <= saved.metadata.items()
            assert saved.metadata.items() >= model.metadata.items() - {
                (key, value) for key, value in model.metadata.items() if key.startswith("llama.")
            }
            assert (saved.n_ctx_train, saved.n_layer) == (model.n_ctx_train, model.n_layer)
            text = "The llama <s> and"
            assert saved.vocab.tokenize(text) == model.vocab.tokenize(text)
    assert sorted(os.listdir(tmp_path)) == ["rich.gguf", "saved.gguf"]


def test_overridden_metadata_are_saved(demo_path, tmp_path):
    with Model(demo_path, kv_overrides={"llama.context_length": 99}) as model:
        model.save(os.fsencode(tmp_path / "saved.gguf"))
    with Model(tmp_path / "saved.gguf", vocab_only=True) as saved:
        assert saved.metadata["llama.context_length"] == "99"


def with_vocabulary(gguf, vocabulary, path):
    """Write a model with the vocabulary of another model."""
    for key in list(gguf):
        if key.startswith("tokenizer.") or key.endswith("vocab_size"):
            del gguf[key]
    for key in vocabulary:
        if key.startswith("tokenizer.") or key == "general.name":
            gguf.set(key, vocabulary[key], type=vocabulary.type(key))
    n = len(vocabulary["tokenizer.ggml.tokens"])
    for name in ("token_embd.weight", "output.weight"):
        width = gguf.tensors[name].shape[1]
        gguf.replace_tensor(name, np.zeros((n, width), np.float16))
    gguf.write(path)
    return path


SAMPLE = "Été: A <mask> token\n\n<unused7> 1234</s> <|end|> b. <|fim_prefix|>"


def described(vocab):
    """Return all properties of a vocabulary and its tokens."""
    n = len(vocab)
    names = [
        "bos",
        "eos",
        "eot",
        "sep",
        "nl",
        "pad",
        "mask",
        "fim_pre",
        "fim_suf",
        "fim_mid",
        "fim_pad",
        "fim_rep",
        "fim_sep",
    ]
    flags = ["add_bos", "add_eos", "add_sep", "type"]
    return {
        "attributes": [lib.llama_vocab_get_attr(vocab.ptr, i) for i in range(n)],
        "scores": [lib.llama_vocab_get_score(vocab.ptr, i) for i in range(n)],
        "end": [i for i in range(n) if lib.llama_vocab_is_eog(vocab.ptr, i)],
        "special": {name: getattr(vocab, name) for name in names},
        "flags": {name: getattr(vocab, name) for name in flags},
        "tokens": vocab.tokenize(SAMPLE, parse_special=True),
    }


def check_saved_vocabulary(path, target):
    """Return the attributes of the tokens, and check that the saved model has them too."""
    with Model(path, use_extra_bufts=False) as model:
        model.save(target)
        with Model(target, vocab_only=True) as saved:
            expected, got = described(model.vocab), described(saved.vocab)
            for name in expected:
                assert got[name] == expected[name], name
    return [enums.TokenAttr(one) for one in expected["attributes"]]


VOCABULARIES = ("bert-bge", "deepseek-llm", "falcon", "llama-spm", "phi-3", "starcoder")


@pytest.mark.parametrize("name", VOCABULARIES)
def test_tokens_keep_their_types(name, random_path, llama_cpp, tmp_path):
    """llama.cpp writes no type for a token with two attributes, as in Gemma and Phi-3."""
    vocabulary = Gguf.open(llama_cpp / "models" / f"ggml-vocab-{name}.gguf")
    with vocabulary, Gguf.open(random_path("llama")) as gguf:
        path = with_vocabulary(gguf, vocabulary, tmp_path / "model.gguf")
    attributes = check_saved_vocabulary(path, tmp_path / "saved.gguf")
    assert len(set(attributes)) > 1
    of_two = [one for one in attributes if one & enums.TokenAttr.RSTRIP]
    assert len(of_two) == (64 if name == "phi-3" else 0)


TEXTS = (
    *("plain", "<mask>", "<unused7>", "[unused7]", "unused", "</s>", "<|im_end|>", "<|eot_id|>"),
    *("<|end|>", "<|return|>", "<|call|>", "<|channel|>", "<|message|>", "<eos>", "<s>", "<unk>"),
    *("<|endoftext|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<pad>", "<|eom_id|>"),
    *(
        "<unused_end_of_turn>",
        "<|fim_pad|>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<0x41>",
        "a",
        "b",
    ),
)


@pytest.mark.parametrize("shift", range(5))
@pytest.mark.parametrize("name", ["a model", "phi-3 mini"])
def test_tokens_of_any_type_keep_it(random_path, tmp_path, shift, name):
    """Every text with every type; llama.cpp adds attributes to some texts."""
    types = [
        enums.TokenType[one] for one in ("NORMAL", "UNKNOWN", "CONTROL", "USER_DEFINED", "UNUSED")
    ]
    entries = [(text, types[(i + shift) % 5]) for i, text in enumerate(TEXTS)]
    entries += [(one, 6) for one, _ in BYTES if one not in TEXTS]
    write_vocab(
        tmp_path / "vocab.gguf", "llama", entries,
        bos_token_id=14, eos_token_id=5, mask_token_id=1, unknown_token_id=15, add_bos_token=True,
        add_space_prefix=False,
    )  # fmt: skip
    with Gguf.open(tmp_path / "vocab.gguf") as vocabulary, Gguf.open(random_path("llama")) as gguf:
        vocabulary["general.name"] = name
        path = with_vocabulary(gguf, vocabulary, tmp_path / "model.gguf")
    attributes = check_saved_vocabulary(path, tmp_path / "saved.gguf")
    of_two = [one for one in attributes if one & enums.TokenAttr.RSTRIP]
    assert bool(of_two) == (name == "phi-3 mini"), of_two


def test_metadata_and_tensors_that_llama_cpp_does_not_write(demo_path, tmp_path):
    extra = {
        "llama.rope.scaling.alpha": 1.5,
        "llama.attention.shared_kv_layers": 1,
        "tokenizer.ggml.mask_token_id": 7,
        "tokenizer.ggml.normalizer.lowercase": True,
        "tokenizer.huggingface.json": "{}",
    }
    with Gguf.open(demo_path) as gguf:
        gguf.update(extra)
        gguf.write(tmp_path / "rich.gguf")
    with Model(tmp_path / "rich.gguf") as model:
        model.save(tmp_path / "saved.gguf")
    with Gguf.open(tmp_path / "rich.gguf") as rich, Gguf.open(tmp_path / "saved.gguf") as saved:
        for key in extra:
            assert (saved[key], saved.type(key)) == (rich[key], rich.type(key))


@pytest.fixture
def repacked(demo_path):
    """A model with weights in a layout for this CPU, if there is one."""
    with Gguf.open(demo_path) as gguf:
        for name in ("output.weight", "blk.0.attn_q.weight"):
            values = gguf.tensors[name].data[:512]
            if name == "output.weight":
                values = np.concatenate([values, values[:2]])
            gguf.replace_tensor(name, values, type="q4_0")
        data = gguf.to_bytes()
    with Model.from_file(data) as model:
        if set(model.placement) <= {"CPU", "CPU_Mapped"}:
            pytest.skip("this processor takes weights as they are")
    return data


def test_weights_in_a_cpu_layout_cannot_be_saved(repacked, tmp_path):
    path = tmp_path / "saved.gguf"
    with (
        Model.from_file(repacked) as model,
        pytest.raises(UnsupportedError, match="load it with use_extra_bufts=False"),
    ):
        model.save(path)
    assert not path.exists()
    with Model.from_file(repacked, use_extra_bufts=False) as model:
        model.save(path)
        with Model(path, use_extra_bufts=False) as saved:
            assert np.array_equal(outputs(saved), outputs(model))


@pytest.mark.parametrize("kind", ["t5", "eagle3"])
def test_models_that_llama_cpp_cannot_save(kind, random_path, tmp_path):
    with (
        Model(random_path(kind)) as model,
        pytest.raises(UnsupportedError, match=r"can save only models|architecture 't5'"),
    ):
        model.save(tmp_path / "saved.gguf")
    assert os.listdir(tmp_path) == []


def test_a_model_without_weights_cannot_be_saved(demo_path, tmp_path):
    for params in ({"vocab_only": True}, {"no_alloc": True}):
        with (
            Model(demo_path, **params) as model,
            pytest.raises(UnsupportedError, match=f"was loaded with {next(iter(params))}=True"),
        ):
            model.save(tmp_path / "saved.gguf")
    with pytest.raises(ClosedError):
        model.save(tmp_path / "saved.gguf")
    assert os.listdir(tmp_path) == []


def test_paths_that_cannot_be_written(model, tmp_path):
    with pytest.raises(FileNotFoundError):
        model.save(tmp_path / "none" / "saved.gguf")
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        model.save(tmp_path / "directory")
    for path in (3, None, 1.5):
        with pytest.raises(TypeError):
            model.save(path)
    assert os.listdir(tmp_path) == ["directory"]


def test_a_full_disk(run_python, demo_path, tmp_path):
    code = """
        import os, resource, sys
        from llamacffi import Model
        model = Model(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            model.save(sys.argv[2])
        except OSError as error:
            print(error)
        print(os.listdir(os.path.dirname(sys.argv[2])))
    """
    directory = tmp_path / "target"
    directory.mkdir()
    result = run_python(code, demo_path, directory / "saved.gguf")
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result
    assert lines[0] == f"[Errno 27] File too large: '{directory}/saved.gguf'"
    assert lines[-1] == "[]"
