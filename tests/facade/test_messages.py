"""Messages name the argument and what would work."""

from __future__ import annotations

import inspect
import os
import re
from array import array

import numpy as np
import pytest

from llamacffi import (
    Adapter,
    AdapterError,
    ArgumentError,
    Batch,
    Candidates,
    Context,
    ContextShift,
    ControlVector,
    CustomSampler,
    Gguf,
    GgufError,
    Grammar,
    Imatrix,
    LibraryNotFoundError,
    LlamaError,
    LoadError,
    Model,
    ModelNotFoundError,
    QuantizeError,
    SamplerChain,
    Threadpool,
    UnsupportedError,
    backend,
    compute_imatrix,
    generate,
    merge_lora,
    quantize,
    shards,
    state_info,
)
from llamacffi._core.hints import HINTS, OWNERS
from llamacffi._generated.params import KINDS
from tests.facade import loras


class Wrong:
    """Of a type that fits nothing."""

    def __repr__(self):
        return "<wrong>"


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("path", lambda o, w: Model(w)),
        ("paths", lambda o, w: Model.from_splits(w)),
        ("paths", lambda o, w: Model.from_splits([w])),
        ("path", lambda o, w: Gguf.open(w)),
        ("data", lambda o, w: Gguf.from_bytes(w)),
        ("algorithm", lambda o, w: Gguf.new().hash(w)),
        ("path", lambda o, w: o.model.save(w)),
        ("batch", lambda o, w: o.decode(w)),
        ("seq_id", lambda o, w: o.memory.pos_max(w)),
        ("seq_id", lambda o, w: o.memory.remove(w)),
        ("p0", lambda o, w: o.memory.remove(0, w)),
        ("p1", lambda o, w: o.memory.remove(0, 0, w)),
        ("source", lambda o, w: o.memory.copy(w, 0)),
        ("target", lambda o, w: o.memory.fork(0, w)),
        ("delta", lambda o, w: o.memory.shift(0, w)),
        ("d", lambda o, w: o.memory.divide(0, w)),
        ("n_threads", lambda o, w: setattr(o, "n_threads", w)),
        ("i", lambda o, w: o.logits(w)),
        ("seq_id", lambda o, w: o.embeddings_seq(w)),
        ("prompt", lambda o, w: generate(o, w)),
        ("max_tokens", lambda o, w: generate(o, "a", max_tokens=w)),
        ("stop", lambda o, w: generate(o, "a", stop=w)),
        ("stop", lambda o, w: generate(o, "a", stop=["x", w])),
        ("stop_when", lambda o, w: generate(o, "a", stop_when=w)),
        ("seq_id", lambda o, w: generate(o, "a", seq_id=w)),
        ("top_logprobs", lambda o, w: generate(o, "a", top_logprobs=w)),
        ("overflow", lambda o, w: generate(o, "a", overflow=w)),
        ("sampler", lambda o, w: generate(o, "a", sampler=w)),
        ("n_keep", lambda o, w: ContextShift(w)),
        ("n_discard", lambda o, w: ContextShift(n_discard=w)),
        ("capacity", lambda o, w: Batch(w)),
        ("n", lambda o, w: Batch(2).truncate(w)),
        ("pos", lambda o, w: Batch(2).add([1], w)),
        ("seq_ids", lambda o, w: Batch(2).add([1], 0, w)),
        ("seq_ids", lambda o, w: Batch.from_tokens([1], 0, [w])),
        ("cpus", lambda o, w: Threadpool(cpus=w)),
        ("cpus", lambda o, w: Threadpool(cpus=[w])),
        ("n_threads", lambda o, w: Threadpool(w)),
        ("tokens", lambda o, w: o.model.vocab.detokenize(w)),
        ("sequences", lambda o, w: o.model.vocab.detokenize_batch(w)),
        ("texts", lambda o, w: o.model.vocab.tokenize_batch(w)),
        ("n_threads", lambda o, w: o.model.vocab.tokenize_batch(["a"], n_threads=w)),
        ("lstrip", lambda o, w: o.model.vocab.piece(5, lstrip=w)),
        ("tokens", lambda o, w: SamplerChain.default().accept_prompt(w)),
        ("trigger_tokens", lambda o, w: Grammar('root ::= "a"', trigger_tokens=w)),
        ("trigger_patterns", lambda o, w: Grammar('root ::= "a"', trigger_patterns=w)),
        ("array", lambda o, w: ControlVector(w)),
        ("text", lambda o, w: compute_imatrix(o.model, w)),
        ("source", lambda o, w: quantize(w, "x.gguf")),
        ("target", lambda o, w: quantize(o.model.path, w)),
        ("model", lambda o, w: merge_lora(w, {}, "x.gguf")),
        ("target", lambda o, w: merge_lora(o.model.path, {}, w)),
        ("adapters", lambda o, w: merge_lora(o.model.path, {w: 1.0}, "x.gguf")),
        ("data", lambda o, w: state_info(w)),
        ("data", lambda o, w: o.load_state(w)),
        ("path", lambda o, w: o.load_file(w)),
        ("offset", lambda o, w: Model.from_file(b"GGUF", offset=w)),
    ],
)
def test_a_value_of_a_wrong_type(context, argument, call):
    with pytest.raises(TypeError, match=rf"^{argument}\b.*<wrong>"):
        call(context, Wrong())


@pytest.mark.parametrize("value", ["5", 1.5, True, [5]])
def test_max_tokens_is_an_integer(context, value):
    with pytest.raises(TypeError, match="max_tokens must be an integer, not "):
        generate(context, "The llama", max_tokens=value)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (["a"], r"prompt must be one text or .*, not several texts, \['a'\]: .* its own seq_id"),
        ((b"a",), "prompt must be one text or one sequence of tokens, not several texts"),
        ([{"role": "user", "content": "hi"}], r"not \[\{'role'.* Model.chat_template\(\) with a"),
        ({"role": "user", "content": "hi"}, r"not \{'role'.* chat messages"),
        (5, "prompt must be a sequence of tokens, or a text, not 5"),
        ([1, "a"], "prompt: token must be an integer, not 'a'"),
        ([[1, 2]], r"prompt: token must be an integer, not \[1, 2\]"),
        (np.array(["a"]), "prompt: tokens must be a one-dimensional array of integers"),
    ],
)
def test_a_prompt_that_is_neither_text_nor_tokens(context, prompt, message):
    with pytest.raises(TypeError, match=message):
        generate(context, prompt)


def test_a_prompt_that_is_not_in_the_vocabulary(context):
    with pytest.raises(ArgumentError, match=r"^prompt: token 9999 is not in the vocabulary"):
        generate(context, [5, 9999])


def test_bytes_in_a_view_are_no_numbers(context):
    for call in (
        lambda view: context.model.vocab.detokenize(view),
        lambda view: Batch(4).add(view),
        lambda view: Batch(4).add([1], 0, view),
    ):
        for data in (b"ab", bytearray(b"ab"), memoryview(b"ab")):
            with pytest.raises(TypeError):
                call(data)
    assert context.model.vocab.detokenize(memoryview(array("i", [5, 6])))


def test_stop_may_be_none(context):
    assert generate(context, "The llama", stop=None, max_tokens=2).text()


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("https://huggingface.co/own-er/re.po", "Model.from_pretrained('own-er/re.po')"),
        ("http://hf.co/a/b/blob/main/c/d.gguf", "Model.from_pretrained('a/b', 'c/d.gguf')"),
        ("huggingface.co/a/b/resolve/v2/d.gguf?download=true", "'d.gguf', revision='v2')"),
        ("https://example.com/m.gguf", "it is a URL: download the file"),
        ("https:/example.com/m.gguf", "it is a URL: download the file"),  # out of a Path
        ("s3://bucket/m.gguf", "it is a URL: download the file"),
        ("own-er/re.po", "Model.from_pretrained('own-er/re.po')"),
        ("owner/repo:Q4_K_M", "Model.from_pretrained('owner/repo:Q4_K_M')"),
        ("hf://owner/repo", "Model.from_pretrained('owner/repo')"),
        ("owner/repo/sub/m.gguf", "Model.from_pretrained('owner/repo', 'sub/m.gguf')"),
        ("~/models/m.gguf", "os.path.expanduser('~/models/m.gguf')"),
        ("~somebody/m.gguf", "os.path.expanduser"),
        ("$HOME/m.gguf", "os.path.expandvars('$HOME/m.gguf')"),
        ("file:///tmp/m.gguf", "without 'file:'"),
        ("tiny-model", "did you mean 'tiny-model.gguf'?"),
        ("tiny-modle.gguf", "did you mean 'tiny-model.gguf'?"),
        ("here/m.gguf", "did you mean 'here/M.gguf'?"),
        ("nowhere/m.gguf", "the directory 'nowhere' does not exist"),
    ],
)
def test_a_path_where_there_is_no_file(path, remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-model.gguf").touch()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "M.gguf").touch()
    for opened in (Model, Gguf.open):
        with pytest.raises(ModelNotFoundError) as caught:
            opened(path)
        assert remedy in str(caught.value)
        assert caught.value.filename == path


def test_nothing_is_made_up_for_other_paths(tmp_path):
    (tmp_path / "other").touch()
    with pytest.raises(ModelNotFoundError) as caught:
        Model(tmp_path / "m.gguf")
    assert caught.value.strerror == "no such model file"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("verbose", "logging.getLogger('llamacffi')"),
        ("seed", "SamplerChain.default(seed=...)"),
        ("lora_path", "Adapter(model, path)"),
        ("temperature", "SamplerChain.default(temp=...)"),
        ("use_mmap", "load_mode='mmap'"),
        ("chat_format", "Model.chat_template()"),
    ],
)
def test_parameters_of_other_programs(context, demo_path, name, remedy):
    for call in (
        lambda: Model(demo_path, **{name: 1}),
        lambda: Context(context.model, **{name: 1}),
        lambda: generate(context, "a", **{name: 1}),
    ):
        with pytest.raises(TypeError, match=f"unknown parameter '{name}'") as caught:
            call()
        assert remedy in str(caught.value)


def test_parameters_of_something_else(context, demo_path):
    model = context.model
    for call, message in (
        (lambda: Model(demo_path, n_threads_batch=2), "'n_threads_batch'; it is .* of Context"),
        (lambda: Model(demo_path, max_tokens=2), "max_tokens= of generate"),
        (lambda: Context(model, n_gpu_layers=2), "'n_gpu_layers'; it is a parameter of Model"),
        (lambda: Context(model, context_length=2), "did you mean 'n_ctx'"),
        (lambda: Context(model, threads=2), "did you mean 'n_threads'"),
        (lambda: generate(context, "a", n_ctx=2), "'n_ctx'; it is a parameter of Context"),
        (lambda: generate(context, "a", max_new_tokens=2), "did you mean 'max_tokens'"),
        (lambda: generate(context, "a", max_tokns=2), "did you mean 'max_tokens'"),
        (lambda: generate(context, "a", xyz=2), "the parameters are .*stop_when"),
        (lambda: SamplerChain.from_model(model, temperature=2), "did you mean 'temp'"),
        (lambda: SamplerChain.default(temperature=2), "did you mean 'temp'"),
        (lambda: SamplerChain.default(top_k=2), r"use sampler=SamplerChain\(TopK\(k\)"),
        (lambda: Threadpool(threads=2), "did you mean 'n_threads'"),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_the_hints_name_what_exists():
    known = set(inspect.signature(generate).parameters) | {"path"}
    known |= {name for struct in OWNERS for name in KINDS[struct]}
    known |= set(inspect.signature(SamplerChain.default).parameters) | {
        "top_k",
        "top_p",
        "min_p",
        "mirostat",
    }
    known |= {"penalty_repeat", "penalty_last_n", "mirostat_tau", "mirostat_eta"}
    assert {ours for ours, _ in HINTS.values() if ours} <= known
    # What exists everywhere needs no hint.
    assert not any(
        name in KINDS[struct] and not HINTS[name][0] for struct in OWNERS for name in HINTS
    )


def test_a_path_as_bytes_is_one(demo_path):
    with Model(os.fsencode(demo_path)) as model:
        assert model.path == str(demo_path)


def test_a_prefix_without_the_beginning_of_a_name(demo_path, tmp_path):
    with pytest.raises(ArgumentError, match="prefix='' must end with the beginning of a file name"):
        shards.split(demo_path, "", max_tensors=3)
    with pytest.raises(ArgumentError, match="must end with the beginning of a file name"):
        shards.split(demo_path, f"{tmp_path}/", max_tensors=3)


def test_what_is_no_importance_matrix_is_told_by_its_size(tmp_path):
    (tmp_path / "x").write_bytes(b"root:x:0:0")
    with pytest.raises(GgufError, match="or is truncated at 10 bytes"):
        Imatrix.open(tmp_path / "x")


def test_a_long_value_is_not_repeated_in_whole():
    with pytest.raises(TypeError) as caught:
        SamplerChain([Grammar(f'root ::= "{"a" * 1000}"')])
    assert len(str(caught.value)) < 200


RAGGED = [[1.0, 2.0], [3.0]]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("'a'", lambda o, v: Gguf.new().add_tensor("a", v)),
        (
            "imatrix",
            lambda o, v: Gguf.new().add_tensor("a", np.ones((2, 32)), type="q8_0", imatrix=v),
        ),
        (
            r"imatrix\['output.weight'\]",
            lambda o, v: quantize(o, "x", imatrix={"output.weight": v}),
        ),
        ("array", lambda o, v: ControlVector(v)),
        ("logits", lambda o, v: Candidates(v)),
        ("tokens", lambda o, v: Batch(4).add(v)),
        ("pos", lambda o, v: Batch(4).add([1, 2], v)),
        ("logits", lambda o, v: Batch(4).add([1, 2], logits=v)),
        ("embeddings", lambda o, v: Batch(4, n_embd=2).add_embeddings(v)),
    ],
)
def test_rows_of_different_lengths(demo_path, name, call):
    with pytest.raises(ArgumentError, match=f"^{name} must have rows of one length.*3.0"):
        call(demo_path, RAGGED)


def test_integers_that_are_too_large_for_any_array():
    for call in (lambda v: Batch(4).add(v), lambda v: Batch(4).add([1], v)):
        with pytest.raises(ArgumentError, match=r"must fit 32 bits, not 10{20} to 10{20}$"):
            call([10**20])


@pytest.mark.parametrize(
    ("name", "call"),
    [
        (r"the key 'a.' of kv_overrides", lambda o, t: Model(o, kv_overrides={t: 1})),
        (
            r"kv_overrides\['general.name'\]",
            lambda o, t: Model(o, kv_overrides={"general.name": t}),
        ),
        ("the key 'a.' of kv_overrides", lambda o, t: quantize(o, "x", kv_overrides={t: 1})),
        ("the pattern 'a.'", lambda o, t: Model(o, tensor_buft_overrides={t: "CPU"})),
        ("the pattern 'a.'", lambda o, t: quantize(o, "x", tt_overrides={t: "q8_0"})),
        ("the name 'a.' in imatrix", lambda o, t: quantize(o, "x", imatrix=importance(t))),
        ("a key, 'a.',", lambda o, t: Gguf.new().update({t: 1})),
        ("the value of 'b'", lambda o, t: Gguf.new().update({"b": t})),
        ("an element of 'b'", lambda o, t: Gguf.new().update({"b": ["c", t]})),
        ("the name of a tensor, 'a.',", lambda o, t: Gguf.new().add_tensor(t, [1.0])),
        ("grammar", lambda o, t: Grammar(t)),
        ("trigger_patterns", lambda o, t: Grammar('root ::= "a"', trigger_patterns=[t])),
        ("name", lambda o, t: CustomSampler(print, name=t)),
    ],
)
def test_text_that_c_cannot_have(demo_path, name, call):
    """It is what both the facade's errors and the builtin `ValueError` stand for."""
    for text, why in (("a\ud800", "a lone surrogate"), ("a\0", "a NUL character")):
        name_there = name.replace("'a.'", re.escape(repr(text)))
        with pytest.raises(ValueError, match=f"^{name_there} has {why} at index 1, ") as caught:
            call(demo_path, text)
        assert isinstance(caught.value, LlamaError)


def importance(name):
    return {name: [1.0], "output.weight": [1.0]}


@pytest.fixture
def files(demo_path, context, tmp_path):
    """A file of each kind, by name."""
    lora = {"blk.0.attn_q.weight": (96, 96)}
    vector = {1: np.ones(96, np.float32)}
    importance = tmp_path / "importance.gguf"
    compute_imatrix(context.model, "The llama is an animal. " * 60).save(importance)
    return {
        "a model": demo_path,
        "a LoRA adapter": loras.write_lora(tmp_path / "lora.gguf", lora),
        "a control vector": loras.write_control_vector(tmp_path / "vector.gguf", vector),
        "an importance matrix": importance,
    }


def test_a_file_of_another_kind_is_called_what_it_is(context, files, demo_path, tmp_path):
    model, lora, target = context.model, files["a LoRA adapter"], tmp_path / "new.gguf"
    readers = {
        "a model": [
            (LoadError, Model),
            (LoadError, lambda path: Model.from_gguf(Gguf.open(path))),
            (LoadError, lambda path: Model.from_gguf(Gguf.open(path), lambda name, array: None)),
            (QuantizeError, lambda path: quantize(path, target, "q8_0")),
            (AdapterError, lambda path: merge_lora(path, {lora: 1.0}, target)),
        ],
        "a LoRA adapter": [
            (AdapterError, lambda path: Adapter(model, path)),
            (AdapterError, lambda path: merge_lora(demo_path, {path: 1.0}, target)),
        ],
        "a control vector": [(AdapterError, ControlVector.from_file)],
        "an importance matrix": [
            (GgufError, Imatrix.open),
            (GgufError, lambda path: quantize(demo_path, target, "q4_0", imatrix=path)),
        ],
    }
    assert readers.keys() == files.keys()
    for wanted, calls in readers.items():
        for error, call in calls:
            for kind, path in files.items():
                if kind != wanted:
                    with pytest.raises(error, match=f"{path.name}'.*: it is {kind}: ") as caught:
                        call(path)
                    assert "FileIO" not in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", "is not a GGUF file: it is empty$"),
        (b"version https://git-lfs", r"b'vers', like a Git LFS pointer: .*`git lfs pull`"),
        (b"<!DOCTYPE html>", "like a web page: download the file itself"),
        (b"tjgg", "like a model in a format older than GGUF"),
        (b"hello", "begins with b'hell'$"),
    ],
)
def test_a_file_that_is_not_a_gguf(start, message, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(start)
    for load in (Model, lambda path: Model.from_file(path.read_bytes())):
        with pytest.raises(LoadError, match=message):
            load(path)


@pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="only Linux has O_PATH")
def test_errors_of_the_system_name_the_file(context, demo_path):
    descriptor = os.open(demo_path, os.O_PATH)
    try:
        for read in (
            Model.from_file,
            lambda file: Adapter(context.model, file),
            read_gguf,
        ):
            with pytest.raises(ArgumentError, match=r"descriptor \d+>' is open for its path only"):
                read(descriptor)
    finally:
        os.close(descriptor)
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        with pytest.raises(LoadError, match="/proc/self/mem") as caught:
            Model.from_file(memory)
        assert caught.value.filename == "/proc/self/mem"


def read_gguf(descriptor):
    with os.fdopen(os.dup(descriptor), "rb") as file:
        return Gguf.from_file(file)


def test_a_text_file_given_to_gguf(tmp_path):
    (tmp_path / "x").write_text("GGUF")
    with open(tmp_path / "x") as file, pytest.raises(TypeError, match=r"'.*x' is a text file"):
        Gguf.from_file(file)


def test_a_model_that_llama_cpp_cannot_save(demo_path, random_path, tmp_path):
    path, target = tmp_path / "charsmap.gguf", tmp_path / "saved.gguf"
    with Gguf.open(demo_path) as gguf:
        gguf["tokenizer.ggml.model"] = "t5"
        data = bytes([0, 4, 0, 0]) + bytes(1024) + b"a\0"
        gguf["tokenizer.ggml.precompiled_charsmap"] = np.frombuffer(data, np.uint8)
        gguf.write(path)
    for source, message in (
        (path, "vocabulary has a precompiled_charsmap, .*: copy its file instead, or"),
        (random_path("t5"), "a model of the architecture 't5': copy its file instead, or"),
    ):
        with Model(source) as model, pytest.raises(UnsupportedError, match=message):
            model.save(target)
    assert not target.exists()


@pytest.mark.parametrize("algorithm", ["sha-0", "", "a\ud800", "a\0", "shake_128"])
def test_an_unknown_hash_algorithm(demo_path, algorithm):
    with Gguf.open(demo_path) as gguf:
        for call in (gguf.hash, gguf.tensors["output.weight"].hash):
            with pytest.raises(ArgumentError, match=r"^algorithm must be one of .*sha256.*, not '"):
                call(algorithm)


def test_loading_a_backend_from_a_missing_file(tmp_path):
    with pytest.raises(TypeError, match=r"^path must be a path"):
        backend.load_library(5)
    with pytest.raises(LibraryNotFoundError, match=r"there is no such file: '.*none'") as caught:
        backend.load_library(tmp_path / "none")
    assert caught.value.filename == str(tmp_path / "none")
