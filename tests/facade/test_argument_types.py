"""A flag is True or False, and a number a number: no other value counts as one by accident."""

from __future__ import annotations

import inspect
import re
import types

import numpy as np
import pytest

import llamacffi
from llamacffi import (
    ArgumentError,
    Batch,
    Candidates,
    Gguf,
    Imatrix,
    ImatrixCollector,
    SamplerChain,
)

# What is none of a kind, though Python would take it for one: by its truth, or by conversion.
WRONG = {
    "bool": ["no", "", 0, 1, 5, 1.0, [], [1], np.int32(2), np.ones(1, bool), object()],
    "int": ["3", b"3", 1.5, 1.0, True, [1], np.float32(1), np.bool_(True), object()],
    "float": ["0.5", b"1", True, [1.0], 1j, np.bool_(True), np.ones(2), object()],
    "str": [b"a", 3, 1.5, True, ["a"], object()],
    "Path": [3, 1.5, True, ["a"], object()],
    "Callable": [1, "len", [len], object()],
    "Mapping": [1, "ab", [1], object()],
    "Iterable": [1, 1.5, True, "ab", b"ab", object()],
}
WRONG["Sequence"] = WRONG["Iterable"]
PATHS = ("Path", "str | os.PathLike[str]")
# What only this package makes or calls.
INTERNAL = {
    *("BufferType", "Capabilities", "ContextPerf", "DeviceMemory", "GgufTensor", "QuantizeResult"),
    *("SamplerPerf", "Snapshot", "StateInfo", "Token", "demo.Entry", "log.LogLine", "Gguf"),
    *("log.CapturedLog", "hub.Wanted", "rpc.Settings", "Imatrix", "BuildInfo", "Device"),
    *("log.native_error",),
    "Batch.check",
    *("ContextShift.make_room", "Vocab.check_one", "Vocab.warn_of_second_bos"),
    *("log.level_number", "log.recent", "shards.open_all"),
    *("shards.paths_of", "shards.prefix_of", "compute_imatrix.progress"),
}
# Looked up as in a dict: a key of another type is a KeyError too.
LOOKUPS = {
    *("Gguf.is_array", "Gguf.remove_tensor", "Gguf.rename_tensor", "Gguf.replace_tensor"),
    "Gguf.type",
}
# One may stand for several: the name of a device.
ONE_FOR_SEVERAL = {"RpcServer(devices)"}
# What is needed to call the others, with the names of objects that the test makes.
ARRAY = np.ones((1, 4), np.float32)
NEEDED = {
    "AdaptiveP": {"target": 0.5},
    "Batch": {"capacity": 8},
    "Batch.add": {"tokens": [1]},
    "Batch.add_embeddings": {"embeddings": np.zeros((1, 0), np.float32)},
    "Batch.from_tokens": {"tokens": [1]},
    "Batch.set_one": {"token": 1, "pos": 0},
    "Candidates.from_context": {"context": "context"},
    "Context.load_file": {"path": "path"},
    "Context.load_state": {"data": "state"},
    "Context.save_file": {"path": "path"},
    "Context.restore": {"snapshot": "snapshot"},
    "Context.set_sampler": {"chain": None},
    "ControlVector": {"array": ARRAY},
    "ControlVector.from_array": {"array": ARRAY},
    "CustomSampler": {"apply": len},
    "DRY": {"multiplier": 1.0},
    "Gguf.add_tensor": {"name": "a", "data": ARRAY},
    "Gguf.from_file": {"file": "file"},
    "Gguf.open": {"path": "path"},
    "Gguf.set": {"key": "a", "value": 1},
    "Grammar": {"grammar": 'root ::= "a"'},
    "LogitsProcessor": {"function": len},
    "Memory.copy": {"source": 0, "target": 1},
    "Memory.cut": {"seq_id": 0, "p0": 0, "p1": 1},
    "Memory.divide": {"seq_id": 0, "d": 2},
    "Memory.fork": {"source": 0, "target": 1},
    "Memory.shift": {"seq_id": 0, "delta": 1},
    "MinP": {"p": 0.5},
    "Model": {"path": "path"},
    "Model.from_file": {"file": "file"},
    "Model.from_pretrained": {"repo_id": "a/b"},
    "SamplerChain.from_model": {"model": "model"},
    "SamplerChain.sample": {"context": "context"},
    "TempExt": {"t": 1.0},
    "TopP": {"p": 0.5},
    "Typical": {"p": 0.5},
    "Vocab.detokenize": {"tokens": [1]},
    "Vocab.detokenize_batch": {"sequences": [[1]]},
    "Vocab.detokenize_bytes": {"tokens": [1]},
    "Vocab.n_tokens": {"text": "text"},
    "Vocab.piece": {"token": 1},
    "Vocab.tokenize": {"text": "text"},
    "Vocab.tokenize_array": {"text": "text"},
    "Vocab.tokenize_batch": {"texts": ["text"]},
    "Vocab.tokenize_batch_array": {"texts": ["text"]},
    "XTC": {"probability": 0.5},
    "compute_imatrix": {"model": "model", "text": "text"},
    "generate": {"context": "context", "prompt": "text"},
    "merge_lora": {"model": "path", "adapters": {}, "target": "target"},
    "quantize": {"source": "path", "target": "target"},
    "rpc.add_server": {"endpoint": "127.0.0.1:1"},
    "shards.split": {"source": "path", "prefix": "target"},
}


def public():
    """Yield what users call, by name."""
    for name in llamacffi.__all__:
        one = getattr(llamacffi, name)
        if not isinstance(one, types.ModuleType):
            yield from of(name, one)
        elif name not in ("constants", "enums"):
            for inner, function in vars(one).items():
                own = getattr(function, "__module__", None) == one.__name__
                if own and inner not in llamacffi.__all__ and not inner.startswith("_"):
                    yield from of(f"{name}.{inner}", function)


def of(name, one):
    """Yield a function, or a class and what of it is called: the setters of properties too."""
    if inspect.isfunction(one):
        yield name, one
    if not inspect.isclass(one) or issubclass(one, (BaseException, dict)):
        return
    yield name, one
    for inner in dir(one):
        static = inspect.getattr_static(one, inner)
        if inner.startswith("_"):
            continue
        if isinstance(static, property) and static.fset:
            yield f"{name}.{inner}=", static.fset
        elif isinstance(static, (classmethod, staticmethod)) or inspect.isfunction(static):
            yield f"{name}.{inner}", getattr(one, inner)


def parameters():
    """Yield each flag and each number that users give, and whether it may be None."""
    for name, function in public():
        for one in inspect.signature(function).parameters.values():
            kind = kind_of(str(one.annotation).removesuffix(" | None"))
            left_out = {name, f"{name}({one.name})"} & (INTERNAL | LOOKUPS | ONE_FOR_SEVERAL)
            if kind in WRONG and not left_out:
                yield pytest.param(name, function, one.name, kind, id=f"{name}({one.name})")


def kind_of(annotation):
    """Return the key in WRONG of an annotation; of ``Mapping[int, float]`` it is ``Mapping``."""
    if annotation in PATHS:
        return "Path"
    outer, bracket, _ = annotation.partition("[")
    return outer if not bracket or annotation.endswith("]") else annotation


@pytest.fixture(scope="module")
def things(model, demo_path, tmp_path_factory):
    context = llamacffi.Context(model, n_ctx=256, n_seq_max=2, n_threads=1)
    batch = Batch.from_tokens([1, 2])
    context.decode(batch)
    chain = SamplerChain(llamacffi.Greedy(), vocab=model.vocab)
    assert chain.names  # which makes it in C now, and not in one of the tests
    gguf = Gguf.open(demo_path)
    selves = {
        "Batch": Batch(4),
        "Candidates": Candidates(np.ones(4)),
        "Context": context,
        "Gguf": gguf,
        "GgufTensor": gguf.tensors["token_embd.weight"],
        "Imatrix": Imatrix({}),
        "ImatrixCollector": ImatrixCollector(),
        "Memory": context.memory,
        "Model": model,
        "SamplerChain": chain,
        "Vocab": model.vocab,
    }
    snapshot = context.snapshot()
    target = tmp_path_factory.mktemp("target") / "x"
    with open(demo_path, "rb") as file:
        yield selves | {
            **{"context": context, "model": model, "path": demo_path, "file": file},
            **{"target": target, "snapshot": snapshot, "state": context.save_state()},
        }
    context.close()
    chain.close()
    gguf.close()


def call(function, arguments):
    """Call a function; one that makes a context manager does its work when that is entered."""
    parameters = inspect.signature(function).parameters.values()
    by_place = [one.name for one in parameters if one.kind == one.POSITIONAL_ONLY]
    first = [arguments.pop(name) for name in by_place if name in arguments]
    result = function(*first, **arguments)
    if inspect.isgeneratorfunction(inspect.unwrap(function)):
        result.__enter__()


@pytest.mark.parametrize(("name", "function", "parameter", "kind"), list(parameters()))
def test_a_value_of_another_kind(things, name, function, parameter, kind):
    given = dict(NEEDED.get(name, {}))
    for key, value in given.items():
        if isinstance(value, str) and value in things:
            given[key] = things[value]
    first = next(iter(inspect.signature(function).parameters))
    if first == "self" and not inspect.isclass(function):
        given["self"] = things[name.split(".")[0]]
    for wrong in WRONG[kind]:
        with pytest.raises((TypeError, ArgumentError)) as caught:
            call(function, {**given, parameter: wrong})
        assert re.search(rf"\b{parameter}\b", str(caught.value)), (wrong, caught.value)
        assert "missing" not in str(caught.value)


def test_all_is_found():
    assert len(list(parameters())) > 200


@pytest.mark.parametrize(
    ("kind", "given"), [("bool", np.True_), ("int", np.int64(1)), ("float", 1)]
)
def test_values_that_are_of_the_kind(things, kind, given):
    """What numpy has for it is of the kind too."""
    vocab = things["Vocab"]
    if kind == "bool":
        assert vocab.tokenize("The", add_special=given) == vocab.tokenize("The", add_special=True)
    elif kind == "int":
        assert vocab.piece(given) == vocab.piece(1)
    else:
        assert llamacffi.Temp(given) == llamacffi.Temp(np.float32(1)) == llamacffi.Temp(1.0)


BYTES = [bytes, bytearray, memoryview, lambda data: memoryview(data).cast("b")]


@pytest.mark.parametrize("kind", BYTES, ids=["bytes", "bytearray", "memoryview", "chars"])
def test_bytes_are_a_text_and_no_tokens(things, kind):
    """Everywhere: they were ids in some places, and the same text in others."""
    vocab, data = things["Vocab"], kind(b"The")
    assert vocab.tokenize(data) == vocab.tokenize("The")
    assert llamacffi.generate(things["context"], data, max_tokens=1).n_prompt == len(
        vocab.tokenize("The", add_special=False)
    )
    for take in (
        *(Batch.from_tokens, Batch(8).add, vocab.detokenize, vocab.detokenize_bytes, vocab.check),
        *(things["SamplerChain"].accept_prompt, lambda one: vocab.detokenize_batch([one])),
        lambda one: things["context"].save_file(things["target"], one),
        lambda one: llamacffi.generate(things["context"], "The", stop_tokens=one),
    ):
        with pytest.raises(TypeError, match=r"tokens .*(integers|sequence of tokens)"):
            take(data)
    with pytest.raises(TypeError, match=r"not text or bytes.*call tokenize\(\) for text"):
        Batch.from_tokens(data)
    assert not things["target"].exists()


def test_numbers_are_no_text(things):
    with pytest.raises(TypeError, match="text must be str or bytes"):
        things["Vocab"].tokenize(memoryview(np.arange(3, dtype=np.int32)))


def test_flags_among_numbers(things):
    """Of a list numpy makes integers of all."""
    for wrong in ([True, 5], (5, False)):
        for take in (Batch.from_tokens, lambda one: Batch(8).add([1, 2], pos=one)):
            with pytest.raises(TypeError, match="integers, not"):
                take(wrong)
    with pytest.raises(TypeError, match="token must be an integer, not True"):
        llamacffi.compute_imatrix(things["model"], [True], chunk_size=1)


def test_integers_of_too_many_digits_to_print():
    """Python refuses to write them, with a ValueError of its own."""
    huge = 10**5000
    for call in (lambda: llamacffi.TopK(huge), lambda: llamacffi.Temp(huge)):
        with pytest.raises(ArgumentError, match="not int, too long to print"):
            call()
    with pytest.raises(TypeError, match="must be True or False, not int, too long"):
        llamacffi.ImatrixCollector(process_output=huge)
