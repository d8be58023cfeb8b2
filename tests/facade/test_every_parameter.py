"""Every accepted parameter changes something that one can see, or raises.

Each field of each struct of parameters is in one of the tables here: seen, refused, or listed with
the reason why nothing can be seen of it on any processor; what it is set to reaches C then.  The
fields are those of llama.cpp's structs: a new one fails these tests by its name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamacffi import (
    Batch,
    Context,
    Dist,
    Gguf,
    Greedy,
    LlamaError,
    Model,
    SamplerChain,
    Threadpool,
    capture_logs,
    device,
    ffi,
    quantize,
    shards,
)
from llamacffi._generated.params import KINDS
from llamacffi.backend import threads
from llamacffi.context import params as context_params
from llamacffi.context.handle import params_of
from llamacffi.model import params as model_params
from llamacffi.tools.quantize_params import quantize_params
from tests.facade.gguf_models import edited, write_llama
from tests.facade.test_context_params import CHANGES_LOGITS, TEXT, TOLD, logits
from tests.facade.test_model_files import nans

Look = Callable[["World", dict[str, Any]], object]


@dataclass
class World:
    """What is needed to look."""

    model: Callable[..., Model]
    """Load a model by its kind, with parameters."""
    directory: Path
    demo: Path

    def context(self, kind: str, **params: Any) -> Context:
        model = self.model(kind, **({"load_mtp": True} if kind == "mimo2" else {}))
        return Context(model, **{"n_ctx": 256, "n_threads": 1, **params})

    def quantizable(self) -> Path:
        """Return a llama whose rows are whole blocks."""
        path = self.directory / "f32.gguf"
        return path if path.exists() else write_llama(path)


@pytest.fixture
def world(random_path, demo_path, tmp_path):
    made: list[Model] = []

    def model(kind: str, **params: Any) -> Model:
        path = demo_path if kind == "demo" else random_path(kind)
        made.append(Model(path, **params))
        return made[-1]

    yield World(model, tmp_path, demo_path)
    for one in made:
        one.close()


@dataclass
class Seen:
    """What looks otherwise with other parameters."""

    look: Look
    before: dict[str, Any]
    after: dict[str, Any]


def failure(make: Callable[[], object]) -> str:
    """Return what an attempt ends with: an error, or nothing."""
    try:
        make()
    except LlamaError as error:
        return type(error).__name__
    return "none"


# Contexts


def look_at_logits(world: World, params: dict[str, Any]) -> object:
    return logits(world.context("llama", **params)).tobytes()


def look_at(attribute: str, kind: str = "llama") -> Look:
    return lambda world, params: getattr(world.context(kind, **params), attribute)


def look_at_what_is_read(world: World, params: dict[str, Any]) -> object:
    """A context of a draft model wants hidden states too."""
    context = world.context("mimo2", **params)
    batch = Batch(1)
    batch.add([1])
    return failure(lambda: context.decode(batch))


def look_at_the_target(world: World, params: dict[str, Any]) -> object:
    if params:
        params = {"ctx_other": world.context("llama", embeddings=True)}
    return failure(lambda: world.context("eagle3", **params))


def look_at_the_graph(world: World, params: dict[str, Any]) -> object:
    seen: list[str] = []

    def look(tensor: Any, ask: bool) -> bool:
        seen.append(tensor.name)
        return False

    logits(world.context("llama", **({"cb_eval": look} if params else {})))
    return bool(seen)


def look_at_the_time(world: World, params: dict[str, Any]) -> object:
    context = world.context("llama", **params)
    logits(context)
    return failure(context.perf)  # nothing was measured


def look_at_the_window(world: World, params: dict[str, Any]) -> object:
    context = world.context("mimo2", n_ubatch=16, n_ctx=1024, **params)
    batch = Batch(600)
    batch.add(TEXT * 15)
    context.decode(batch)
    return context.memory.pos_min()


def look_at_sampled(world: World, params: dict[str, Any]) -> object:
    """Decode a token of a sequence that is sampled in the graph, or is not."""
    with SamplerChain(Greedy()) as chain:
        context = world.context("llama", **({"samplers": {0: chain}} if params else {}))
        batch = Batch(1)
        batch.add([7])
        context.decode(batch)
        return context.sampled_token() is None


def look_at_outputs(world: World, params: dict[str, Any]) -> object:
    """Decode three outputs of a sequence that is sampled in the graph."""
    with SamplerChain(Greedy()) as chain:
        context = world.context("llama", samplers={0: chain}, **params)
        batch = Batch(3)
        batch.add([7, 8, 9], logits="all")
        return failure(lambda: context.decode(batch))


CONTEXT: Mapping[str, Seen] = {
    **{
        name: Seen(look_at_logits, others, {**others, name: value})
        for name, (others, value) in CHANGES_LOGITS.items()
    },
    **{name: Seen(look_at(told), {}, {name: value}) for name, (value, told, _) in TOLD.items()},
    "n_threads": Seen(look_at("n_threads"), {"n_threads": 1}, {"n_threads": 2}),
    "n_rs_seq": Seen(look_at("n_rs_seq", "lfm2"), {}, {"n_rs_seq": 3}),
    "ctx_type": Seen(look_at_what_is_read, {}, {"ctx_type": "mtp"}),
    "ctx_other": Seen(look_at_the_target, {}, {"ctx_other": "a target"}),
    "cb_eval": Seen(look_at_the_graph, {}, {"cb_eval": "a function"}),
    "no_perf": Seen(look_at_the_time, {"no_perf": True}, {"no_perf": False}),
    "swa_full": Seen(look_at_the_window, {"swa_full": True}, {"swa_full": False}),
    "samplers": Seen(look_at_sampled, {}, {"samplers": "a chain"}),
    "n_outputs_max_per_seq": Seen(look_at_outputs, {}, {"n_outputs_max_per_seq": 3}),
}

# Models


def look_at_placement(world: World, params: dict[str, Any]) -> object:
    with Model(world.demo, **params) as model:
        return dict(model.placement)


def look_at_layouts(world: World, params: dict[str, Any]) -> object:
    """Weights of 4 bits have another layout on processors that are faster with it."""
    path = write_llama(world.directory / "q4_0.gguf", dtype="q4_0")
    with Model(path, **params) as model:
        return dict(model.placement)


def look_at_overrides(world: World, params: dict[str, Any]) -> object:
    """On a processor alone every place is the same one, but the log tells of each override."""
    with capture_logs() as log, Model(world.demo, **params):
        pass
    return log.text.count("overridden to CPU")


def look_at_model(attribute: str, kind: str = "demo") -> Look:
    return lambda world, params: getattr(world.model(kind, **params), attribute)


def look_at_devices(world: World, params: dict[str, Any]) -> object:
    array = ffi.new("ggml_backend_dev_t[]", [device("CPU").ptr, ffi.NULL])
    return world.model("demo", **({"devices": array} if params else {})).devices


def look_at_what_is_no_number(world: World, params: dict[str, Any]) -> object:
    broken = edited(world.demo.read_bytes(), nans)
    return failure(lambda: Model.from_file(broken, **params).close())


def look_at_alignment(world: World, params: dict[str, Any]) -> object:
    """Tensors are read when they are needed only from a file that can be mapped."""
    data = b"x" + world.demo.read_bytes()
    path = world.directory / "unaligned"
    path.write_bytes(data)
    with open(path, "rb") as file:
        file.seek(1)
        return failure(lambda: Model.from_file(file, **params).close())


MODEL: Mapping[str, Seen] = {
    "devices": Seen(look_at_devices, {}, {"devices": "the processor"}),
    "tensor_buft_overrides": Seen(look_at_overrides, {}, {"tensor_buft_overrides": {"ffn": "CPU"}}),
    "load_mode": Seen(look_at_placement, {"load_mode": "mmap"}, {"load_mode": "none"}),
    "lazy_mode": Seen(look_at_alignment, {"lazy_mode": "off"}, {"lazy_mode": "on"}),
    "kv_overrides": Seen(
        look_at_model("n_ctx_train"), {}, {"kv_overrides": {"llama.context_length": 77}}
    ),
    "vocab_only": Seen(look_at_model("without_weights"), {}, {"vocab_only": True}),
    "no_alloc": Seen(look_at_model("without_weights"), {}, {"no_alloc": True}),
    "check_tensors": Seen(look_at_what_is_no_number, {}, {"check_tensors": True}),
    "use_extra_bufts": Seen(look_at_layouts, {"use_extra_bufts": True}, {"use_extra_bufts": False}),
    "load_mtp": Seen(look_at_model("placement", "mimo2"), {}, {"load_mtp": True}),
}

# Quantization


def look_at_the_file(world: World, params: dict[str, Any]) -> object:
    """Return a hash of what was made."""
    path = world.directory / "out.gguf"
    params = {"ftype": "Q4_K_M", "nthread": 1, **params}
    ftype = params.pop("ftype")
    quantize(world.quantizable(), path, None if params.get("only_copy") else ftype, **params)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def look_at_requantized(world: World, params: dict[str, Any]) -> object:
    half = world.directory / "q8_0.gguf"
    quantize(world.quantizable(), half, "Q8_0", nthread=1)
    out = world.directory / "again.gguf"
    return failure(lambda: quantize(half, out, "Q4_0", nthread=1, **params))


def look_for_files(world: World, params: dict[str, Any]) -> object:
    """Return the names of what was made of several files."""
    shards.split(world.quantizable(), world.directory / "part", max_tensors=8)
    source = sorted(world.directory.glob("part-*"))[0]
    target = world.directory / "made"
    target.mkdir(exist_ok=True)
    for one in target.iterdir():
        one.unlink()
    quantize(source, target / "out.gguf", "Q8_0", nthread=1, **params)
    return sorted(os.listdir(target))


def columns(world: World) -> dict[str, Any]:
    weights = np.full(256, 1e-4, np.float32)
    weights[::4] = 1
    return {"blk.0.ffn_up.weight": weights}


def look_at_columns(world: World, params: dict[str, Any]) -> object:
    return look_at_the_file(world, {"imatrix": columns(world)} if params else {})


QUANTIZE: Mapping[str, Seen] = {
    "ftype": Seen(look_at_the_file, {"ftype": "Q4_0"}, {"ftype": "Q8_0"}),
    "output_tensor_type": Seen(look_at_the_file, {}, {"output_tensor_type": "f16"}),
    "token_embedding_type": Seen(look_at_the_file, {}, {"token_embedding_type": "f16"}),
    "allow_requantize": Seen(look_at_requantized, {}, {"allow_requantize": True}),
    "quantize_output_tensor": Seen(look_at_the_file, {}, {"quantize_output_tensor": False}),
    "only_copy": Seen(look_at_the_file, {}, {"only_copy": True}),
    "pure": Seen(look_at_the_file, {}, {"pure": True}),
    "keep_split": Seen(look_for_files, {}, {"keep_split": True}),
    "dry_run": Seen(look_for_files, {}, {"dry_run": True}),
    "imatrix": Seen(look_at_columns, {}, {"imatrix": "weights"}),
    "kv_overrides": Seen(look_at_the_file, {}, {"kv_overrides": {"general.name": "x"}}),
    "tt_overrides": Seen(look_at_the_file, {}, {"tt_overrides": {"ffn_up": "q8_0"}}),
    "prune_layers": Seen(look_at_the_file, {}, {"prune_layers": [1]}),
}

# Thread pools and chains of samplers


def look_at_pool(attribute: str) -> Look:
    def look(_: World, params: dict[str, Any]) -> object:
        with Threadpool(**{"n_threads": 1, **params}) as pool:
            return getattr(pool, attribute)

    return look


def look_at_seconds(_: World, params: dict[str, Any]) -> object:
    with SamplerChain(Dist(1), **params) as chain:
        return chain.perf().t_sample_ms is None


POOL: Mapping[str, Seen] = {
    "n_threads": Seen(look_at_pool("n_threads"), {}, {"n_threads": 2}),
    "cpumask": Seen(look_at_pool("cpus"), {}, {"cpus": [min(os.sched_getaffinity(0))]}),
    "prio": Seen(look_at_pool("placement"), {}, {"priority": "low"}),
}
CHAIN: Mapping[str, Seen] = {"no_perf": Seen(look_at_seconds, {}, {"no_perf": False})}

SEEN = {
    "llama_context_params": CONTEXT,
    "llama_model_params": MODEL,
    "llama_model_quantize_params": QUANTIZE,
    "ggml_threadpool_params": POOL,
    "llama_sampler_chain_params": CHAIN,
}

# What changes only what an accelerator does, or how long it takes; with two values, and the
# function that makes the struct for C.


def model_struct(_: World, params: dict[str, Any]) -> Any:
    array = ffi.new("ggml_backend_dev_t[]", [device("CPU").ptr, device("CPU").ptr, ffi.NULL])
    struct, keep = model_params.model_params({**params, "devices": array}, warning=False)
    return struct, keep, array


def context_struct(world: World, params: dict[str, Any]) -> Any:
    return params_of(world.context("llama", **params)), None


def quantize_struct(world: World, params: dict[str, Any]) -> Any:
    with Gguf.open(world.quantizable()) as file:
        return quantize_params({"ftype": "Q8_0", **params}, [file])


def pool_struct(_: World, params: dict[str, Any]) -> Any:
    cpus = frozenset(range(4))
    return threads._struct({"n_threads": 2, **params}, cpus), None


UNSEEN: Mapping[tuple[str, str], tuple[Callable[..., Any], dict[str, Any], Any, Any]] = {
    ("llama_context_params", "offload_kqv"): (context_struct, {}, True, False),
    ("llama_context_params", "op_offload"): (context_struct, {}, True, False),
    ("llama_model_params", "n_gpu_layers"): (model_struct, {}, 1, 2),
    ("llama_model_params", "split_mode"): (model_struct, {}, 0, 1),
    ("llama_model_params", "main_gpu"): (model_struct, {"split_mode": "none"}, 0, 1),
    ("llama_model_params", "tensor_split"): (model_struct, {}, [1.0, 2.0], [2.0, 1.0]),
    ("llama_model_params", "no_host"): (model_struct, {}, True, False),
    # How long it takes, alone.
    ("llama_model_quantize_params", "nthread"): (quantize_struct, {}, 1, 2),
    ("llama_model_quantize_params", "max_buf_size"): (quantize_struct, {}, 1, 1 << 20),
    ("ggml_threadpool_params", "poll"): (pool_struct, {}, 0, 100),
    ("ggml_threadpool_params", "strict_cpu"): (pool_struct, {}, True, False),
    ("ggml_threadpool_params", "paused"): (pool_struct, {}, True, False),
}

# What the facade fills itself.
OWNED: Mapping[str, Mapping[str, str]] = {
    "llama_context_params": context_params.OWNED,
    "llama_model_params": model_params.OWNED,
}
# Structs whose fields are no parameters of the facade.
NOT_TAKEN = {
    *("ggml_init_params", "gguf_init_params"),
    *("ggml_opt_params", "ggml_opt_optimizer_params", "llama_opt_params"),
    *("mtmd_context_params", "mtmd_helper_video_init_params"),
}


def entries(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(struct, field) for struct, fields in table.items() for field in fields]


def test_every_struct_is_taken_or_not():
    assert {*SEEN, *NOT_TAKEN} == set(KINDS)


@pytest.mark.parametrize("struct", SEEN)
def test_every_field_is_in_one_table(struct):
    unseen = [field for one, field in UNSEEN if one == struct]
    found = sorted([*SEEN[struct], *unseen, *OWNED.get(struct, ())])
    assert found == sorted(KINDS[struct])


@pytest.mark.parametrize(("struct", "field"), entries(SEEN))
def test_it_changes_what_is_seen(world, struct, field):
    one = SEEN[struct][field]
    assert one.look(world, dict(one.before)) != one.look(world, dict(one.after))


@pytest.mark.parametrize(("struct", "field"), entries(OWNED))
def test_it_is_refused(world, struct, field):
    make = world.context if struct == "llama_context_params" else world.model
    with pytest.raises(TypeError, match=f"'{field}' cannot be given: "):
        make("llama", **{field: 0.5})


@pytest.mark.parametrize(("struct", "field"), UNSEEN)
def test_it_reaches_c(world, struct, field):
    make, others, *values = UNSEEN[struct, field]
    for value in values:
        made, *keep = make(world, {**others, field: value})
        found = getattr(made, field)
        if isinstance(value, list):
            found = ffi.unpack(found, len(value))
        assert found == value
        assert keep
