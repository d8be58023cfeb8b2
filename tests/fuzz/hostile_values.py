"""What hostile.py passes: values that fit a parameter by its name, and values that fit nothing."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import llamacffi
from llamacffi import ffi

if TYPE_CHECKING:
    from hostile import Fuzz

Make = Callable[["Fuzz"], Any]


class Oops(Exception):
    """What callbacks of this program raise."""


def raises(*_args: object) -> object:
    raise Oops


def does_nothing(*_args: object) -> None:
    pass


def agrees(*_args: object) -> bool:
    return True


def among(*values: Any) -> Make:
    """Return what chooses one of values."""
    return lambda f: f.random.choice(values)


def object_of(name: str) -> Make:
    """Return what chooses an object of a class, which may be closed by now."""
    return lambda f: f.one_of(getattr(llamacffi, name))


def files(*names: str) -> Make:
    """Return what chooses one of files."""
    return lambda f: f.random.choice([one for one in names if Path(one).exists()] or ["no.gguf"])


def target(*names: str) -> Make:
    """Return what chooses a file to be written."""
    return lambda f: f.random.choice([*names, f"written-{f.random.randrange(3)}.gguf"])


def floats(f: Fuzz) -> Any:
    """Return an array, in the width of some model or not."""
    width = f.random.choice([1, 3, 64, 96, 64, 96, 192])
    rows = f.random.choice([None, 1, 2, 3])
    shape = width if rows is None else (rows, width)
    return f.random.choice([np.ones, np.zeros, np.empty])(shape, np.float32)  # type: ignore[operator]


def samplers(f: Fuzz) -> Any:
    """Return a description of a sampler."""
    x = f.random.choice([0.0, 0.1, 0.5, 0.95, 1.0, 2.0, 5.0, -1.0])
    n = f.random.choice([0, 1, 2, 3, 20, -1])
    name = f.random.choice(SAMPLERS)
    kinds: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "TopK": ((n,), {}),
        "Dist": ((f.random.choice([None, 0, 7]),), {}),
        "TopP": ((x, n), {}),
        "MinP": ((x, n), {}),
        "Typical": ((x, n), {}),
        "XTC": ((x, 0.1, n), {"seed": 1}),
        "Temp": ((x,), {}),
        "TempExt": ((x, 0.5), {}),
        "TopNSigma": ((x,), {}),
        "Penalties": ((n, 1.1, x, x), {}),
        "DRY": ((x, 1.75, n), {}),
        "LogitBias": (({n: x},), {}),
        "Mirostat": ((1, x), {}),
        "MirostatV2": ((1, x), {}),
        "AdaptiveP": ((x,), {}),
        "MinTokens": ((n,), {}),
        "Grammar": ((f.random.choice(GRAMMARS),), {}),
        "LogitsProcessor": ((callback(f),), {}),
        "CustomSampler": ((callback(f),), {"selects": f.random.random() < 0.5}),
    }
    positional, options = kinds.get(name, ((), {}))
    try:
        return getattr(llamacffi, name)(*positional, **options)
    except (ValueError, TypeError):
        return llamacffi.Greedy()


GRAMMARS = (
    *("root ::= [a-z ]+", 'root ::= "x" root | "y"', "root ::= root", "root ::= ", 'root ::= "a"'),
    *("root ::= [^\n]*", 'root ::= ("a" | "b"){1,3}', "x ::= y", "root ::= [a"),
)
SAMPLERS = (
    *("TopK", "Dist", "TopP", "MinP", "Typical", "XTC", "Temp", "TempExt", "TopNSigma", "Greedy"),
    *("Penalties", "DRY", "LogitBias", "Mirostat", "MirostatV2", "AdaptiveP", "MinTokens"),
    *("Grammar", "Infill", "LogitsProcessor", "CustomSampler"),
)


def callback(f: Fuzz) -> Any:
    """Return a function that does nothing, or raises, or does anything with any object."""
    return f.random.choice([f.nested, f.nested, raises, does_nothing, agrees, len])


def metadata(f: Fuzz) -> Any:
    key = f.random.choice(["llama.context_length", "general.name", "x", "tokenizer.ggml.model"])
    return {key: f.value("value")}


def context_samplers(f: Fuzz) -> Any:
    chain = f.random.choice([f.one_of(llamacffi.SamplerChain), None])
    chain = chain or llamacffi.SamplerChain(*(samplers(f) for _ in range(f.random.randrange(3))))
    return {f.random.choice([0, 0, 1, 5]): chain}


TYPES = among("f32", "f16", "q8_0", "q4_0", "q4_k", "iq2_xxs", "bf16", "tq1_0", 1, 8, 99)
TOKENS = among(0, 1, 5, [1, 2, 3], np.arange(4, dtype=np.int32), 29, [1], [200, 3], [])
PATH = files("demo.gguf", "llama.gguf", "mamba.gguf", "bert.gguf", "t5.gguf", "lfm2.gguf")
ANY_FILE = files(
    *("demo.gguf", "lora.gguf", "demo-lora.gguf", "control.gguf", "written-0.gguf", "state.bin"),
    *("directory", "written-1.gguf", "split-00001-of-00002.gguf", "imatrix.gguf"),
)
SEQ = among(0, 1, 2, -1, 3, (0, 1), [2])
N = among(0, 1, 2, 3, 5, 16, 31, 32, 33, 64, 100)
POS = among(0, 1, 2, 3, 4, 10, 100, -1, [1, 2, 3])
BOOL = among(True, False)
SCALE = among(0.5, -1.0, 0, 1, 2.5)

FITTING: Mapping[str, Make] = {
    "token": TOKENS,
    "tokens": TOKENS,
    "texts": among(["a", b"b"], ["The llama", "", "x" * 500], []),
    "sequences": among([[1, 2], [3]], [[]], []),
    "seq_id": SEQ,
    "seq_ids": among((0,), (0, 1), [2], [-1], [0, 1, 2, 3], ()),
    "keep": among([0], [1, 2], 1, np.arange(5) > 2),
    "which": among([0], [1, 2], np.arange(30) > 2),
    "source": among(0, 1, 2, "demo.gguf", "written-0.gguf"),
    "target": target("out.gguf", "demo-copy.gguf"),
    "pos": POS,
    "positions": POS,
    "p0": among(None, 0, 1, 2),
    "p1": among(None, 1, 3, 4),
    "i": among(-1, 0, 1, 2, 5),
    "n": N,
    "k": N,
    "text": among("The llama", b"The llama", "", "<s>"),
    "prompt": among("The llama", [1, 2], np.arange(3), "", [5]),
    "stop": among(["a"], (), "x"),
    "stop_when": callback,
    "max_tokens": among(None, 0, 3, 8),
    "path": ANY_FILE,
    "paths": lambda f: [PATH(f), ANY_FILE(f)],
    "first": files("split-00001-of-00002.gguf", "demo.gguf", "written-0.gguf"),
    "prefix": among("split", "other-split"),
    "file": lambda f: f.random.choice([io.BytesIO(f.bytes()), f.opened(ANY_FILE(f))]),
    "src": PATH,
    "dst": target("out.gguf"),
    "model": object_of("Model"),
    "context": object_of("Context"),
    "ctx_other": object_of("Context"),
    "batch": object_of("Batch"),
    "sampler": lambda f: f.random.choice([f.one_of(llamacffi.SamplerChain), samplers(f)]),
    "chain": object_of("SamplerChain"),
    "samplers": samplers,
    "candidates": object_of("Candidates"),
    "adapter": object_of("Adapter"),
    "adapters": lambda f: {f.one_of(llamacffi.Adapter): SCALE(f)},
    "control_vector": object_of("ControlVector"),
    "snapshot": object_of("Snapshot"),
    "pool": object_of("Threadpool"),
    "batch_pool": object_of("Threadpool"),
    "gguf": object_of("Gguf"),
    "vocab": object_of("Vocab"),
    "capacity": among(1, 8, 16),
    "n_seq_max": among(1, 2, 3),
    "n_ctx": among(16, 64, 256),
    "n_batch": among(8, 32),
    "n_ubatch": among(4, 8, 32),
    "n_embd": among(0, 64, 96),
    "n_threads": among(1, 2),
    "chunk_size": among(8, 16, 1, 0),
    "max_chunks": among(1, 2, None),
    "n_threads_batch": among(1, 2),
    "nthread": among(1, 2),
    "data": lambda f: f.random.choice([f.bytes(), floats(f), np.arange(64, dtype=np.int32)]),
    "state": lambda f: f.bytes(),
    "array": floats,
    "embeddings": floats,
    "logits": lambda f: f.random.choice(["last", "all", "none", True, [0], floats(f), None]),
    "out": floats,
    "ids": lambda f: np.arange(f.random.choice([1, 3, 64, 96]), dtype=np.int32),
    "layers": among(range(1, 3), range(0), range(5, 2), range(0, 10**9)),
    "scale": SCALE,
    "temp": among(0, 0.7),
    "progress": callback,
    "cb_eval": callback,
    "apply": callback,
    "accept": callback,
    "reset": callback,
    "clone": callback,
    "function": callback,
    "kv_overrides": metadata,
    "key": among("general.name", "general.architecture", "x", "tokenizer.ggml.tokens", "x.y"),
    "value": lambda f: f.random.choice([1, -1, 2.5, "text", True, [1, 2], ["a"], [1.5], 2**63]),
    "name": among("output.weight", "token_embd.weight", "x", "CPU", "f16"),
    "new": among("output.weight", "x", "y" * 63, "z" * 64),
    "type": TYPES,
    "type_k": TYPES,
    "type_v": TYPES,
    "ftype": among("q8_0", "q4_0", "f16", "q4_k_m", "all_f32", "iq1_s", 7, 1000),
    "output_tensor_type": TYPES,
    "token_embedding_type": TYPES,
    "tt_overrides": among({"attn": "q8_0"}, [("ffn.*", "f16")], {"(": "q8_0"}),
    "prune_layers": among([0], [1], [0, 1], [7]),
    "imatrix": lambda f: f.random.choice([f.one_of(llamacffi.Imatrix), {"x": floats(f)}]),
    "other": object_of("Imatrix"),
    "devices": among("none", [], ["CPU"]),
    "tensor_buft_overrides": among({"attn": "CPU"}, [("ffn", "CPU")], {"(": "CPU"}),
    "tensor_split": among([1], [1, 2]),
    "cpus": among([0], [0, 1], []),
    "algorithm": among("sha256", "md5", "shake_128"),
    "delta": among(1, -1, 3, 100),
    "d": among(2, 3, 1),
    "seed": among(None, 0, 1, 2**32 - 1),
    "level": among("debug", 10, 30),
    "max_bytes": among(1000, 100_000),
    "max_tensors": among(1, 3),
    "grammar": among(*GRAMMARS),
    "trigger_patterns": among((), ["a.*"], ["("]),
    "trigger_tokens": among((), [3], [10**6]),
    "pooling_type": among("none", "mean", "last", "cls", "rank"),
    "bias": among({1: 1.0}, {3: float("-inf")}, {10**6: 1.0}),
    "embd": floats,
    "dequantized": floats,
    "tensor": object_of("GgufTensor"),
    # By the name of the function, or class, too.
    "Adapter.source": files("intact/lora.gguf", "intact/demo-lora.gguf", "lora.gguf"),
    "from_file.source": files("control.gguf", "demo.gguf"),
    "quantize.source": PATH,
    "split.source": lambda f: f.random.choice([PATH(f), f.one_of(llamacffi.Gguf)]),
    "state_info.source": lambda f: f.random.choice([f.bytes(), ANY_FILE(f)]),
    "copy_from.source": object_of("SamplerChain"),
    "merge.target": target("merged.gguf"),
    "merge_lora.model": PATH,
    "merge_lora.adapters": lambda f: {f.random.choice(["lora.gguf", "demo-lora.gguf"]): SCALE(f)},
}
# Bool fields, and those that only say how much.
for _name in (
    *("add_special", "parse_special", "remove_special", "unparse_special", "exact", "special"),
    *("partial", "plain", "any_adapters", "kv_unified", "swa_full", "no_perf", "offload_kqv"),
    *("op_offload", "metadata_only", "vocab_only", "check_tensors", "use_extra_bufts", "no_alloc"),
    *("allow_requantize", "quantize_output_tensor", "only_copy", "pure", "keep_split", "dry_run"),
    *("logprobs", "causal", "paused", "strict_cpu", "process_output", "no_tensor_first"),
    *("grammar_first", "forward", "thread", "selects", "load_mtp", "no_host"),
):
    FITTING = {**FITTING, _name: BOOL}

_INTEGERS = (
    *(None, True, False, -1, 0, 1, 7, 127, 128, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(2**63 - 1, 2**63, 2**64, 2**100, -(2**31), -(2**31) - 1, -(2**63), -(2**100)),
)
_FLOATS = (0.0, -0.5, 1.5, 1e38, 1e39, 1e308, float("nan"), float("inf"), -float("inf"), 1j)
_TEXTS = (
    *("", "x", "F16", "x" * 100_000, "\0", "a\0b", "\ud800", "🦙", "-1", "none", "root ::= [a"),
    *(b"", b"\xff\xfe", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 40, b"\0" * 100),
    *(memoryview(b"abc"), bytearray(b"abc"), Path("nowhere.gguf"), Path("directory"), "nowhere/x"),
)
_COLLECTIONS = (
    *((), [], [0], [1, 2, 3], [-1], [2**40], [None], ["x"], [[1]], [1.5], {}, {"a": 1}, {1: 2.0}),
    *({"x": None}, {1, 2}, range(3), range(10**6), object(), object, Ellipsis, {2**40: 1.0}),
)
_ARRAYS = (
    *(np.float32(1), np.int64(-1), np.uint8(255), np.bool_(True), np.array(5)),
    *(np.zeros(0), np.zeros((2, 2)), np.arange(10)[::2], np.full(3, np.nan, np.float32)),
    *(np.zeros(5, np.uint64) + 2**63, np.array([None]), np.array(["a"]), np.ones(3, bool)),
    *(np.zeros((3, 64), np.float32), np.zeros(10**5, np.int32), ffi.NULL, np.zeros((0, 5))),
)
_OTHERS = (
    *(raises, print, len, "general.name", llamacffi.TopK(0), llamacffi.Greedy()),
    *(ffi.new("int[3]"), ffi.cast("void *", 0), slice(None), slice(5, 1, -1), slice(0, 2)),
)

HOSTILE: list[Make] = [
    *(
        (lambda _f, value=value: value)  # type: ignore[misc]
        for value in (*_INTEGERS, *_FLOATS, *_TEXTS, *_COLLECTIONS, *_ARRAYS, *_OTHERS)
    ),
    *[lambda f: f.random.choice(f.objects)] * 4,
    lambda f: iter([1, 2]),
    lambda f: (x for x in "ab"),
    lambda f: f.random.randrange(-(2**33), 2**33),
    lambda f: f.random.randrange(-5, 200),
    lambda f: os.urandom(f.random.randrange(50)),
    lambda f: f.nested,
]
