"""Valid objects by the type of their pointer, of several kinds each.

Made once, by C functions only (the facade's objects refuse to work in a forked child), with one
thread (others do not survive a fork), and never freed: a child may do to them what it likes.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from llamacffi import Gguf, backend, demo, ffi, lib
from tests.facade import loras, random_models

from . import projector
from .pages import Pages

N_CTX, N_BATCH, N_SEQ = 64, 16, 2
TENSORS = 4  # of each kind
ROOM = 16 << 20  # in a ggml_context
GRAMMAR = b'root ::= "a" | " llama"'

Kinds = dict[str, Any]

_fmemopen = ctypes.CDLL(None).fmemopen
_fmemopen.restype = ctypes.c_void_p
_fmemopen.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


class World:
    """The objects: `objects` has those of a type by the name of their kind.

    A kind is one object, or a list of as many as a function may want of it at once.
    """

    def __init__(self, directory: Path) -> None:
        """Make them, with the files that some need in a directory."""
        self.directory = directory
        self.pages = Pages()
        self.keep: list[Any] = []
        self.objects: dict[str, Kinds] = {}
        backend.load()
        for make in MAKERS:
            for name, kinds in make(self).items():
                made = {kind: one for kind, one in kinds.items() if _is_there(one)}
                self.objects.setdefault(f"struct {name} *", {}).update(made)
        self.lasting = self.pages, self.keep
        self.files = {one.name: (one.read_bytes(), _state(one)) for one in directory.glob("*.gguf")}
        model = self.first("llama_model")
        self.numbers = {"n_embd": lib.llama_model_n_embd(model)}
        self.n_vocab: int = lib.llama_vocab_n_tokens(self.first("llama_vocab"))

    def first(self, name: str) -> Any:
        """Return an object of a struct's name, of the first kind."""
        kind = next(iter(self.objects[f"struct {name} *"].values()))
        return kind[0] if isinstance(kind, list) else kind

    def renew(self) -> None:
        """Let go of the buffers that were made for one function: mappings make forks slower."""
        self.pages, self.keep = Pages(), []

    def file(self, name: str) -> Any:
        """Return a ``FILE *`` that is in memory: forks would share the place in a real one."""
        content = (self.directory / name).read_bytes()
        memory = self.pages.text(content)
        address = _fmemopen(int(ffi.cast("uintptr_t", memory)), len(content), b"r+b")
        return ffi.cast("FILE *", address)

    def restore(self) -> None:
        """Write the files anew that a call has changed."""
        for name, (content, state) in self.files.items():
            path = self.directory / name
            if _state(path) != state:
                path.unlink(missing_ok=True)
                path.write_bytes(content)
                self.files[name] = content, _state(path)

    def path(self, name: str) -> bytes:
        """Return the path of a file for C."""
        return str(self.directory / name).encode()


def _state(path: Path) -> tuple[int, int] | None:
    if not path.is_file():
        return None
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _is_there(one: Any) -> bool:
    return all(one) if isinstance(one, list) else one != ffi.NULL


def _models(world: World) -> dict[str, Kinds]:
    demo.write(world.directory / "demo.gguf")
    _adapter_file(world.directory / "lora.gguf")
    params = lib.llama_model_default_params()
    params.load_mode = lib.LLAMA_LOAD_MODE_NONE  # not mapped: a child may write to the file
    path = world.path("demo.gguf")
    model = lib.llama_model_load_from_file(path, params)
    params.vocab_only = True
    vocab_only = lib.llama_model_load_from_file(path, params)
    adapters = [lib.llama_adapter_lora_init(model, world.path("lora.gguf")) for _ in range(2)]
    params.vocab_only = False
    random_models.write(world.directory / "t5.gguf", "t5")
    t5 = lib.llama_model_load_from_file(world.path("t5.gguf"), params)
    return {
        "llama_model": {"with weights": model, "vocabulary only": vocab_only, "with encoder": t5},
        "llama_vocab": {"of the model": lib.llama_model_get_vocab(model)},
        "llama_adapter_lora": {"an adapter": adapters},
    }


def _adapter_file(path: Path) -> None:
    with Gguf.open(path.with_name("demo.gguf")) as gguf:
        shape = gguf.tensors["blk.0.attn_q.weight"].shape
    loras.write_lora(path, {"blk.0.attn_q.weight": (shape[0], shape[1])}, alpha=1.0)


def _contexts(world: World) -> dict[str, Kinds]:
    model = world.first("llama_model")
    used, fresh, embedding = (_context(model, embeddings=one) for one in (False, False, True))
    encoder = _context(world.objects["struct llama_model *"]["with encoder"], n_seq=1)
    for context in (used, embedding):
        tokens = ffi.new("llama_token[]", [1, 2, 3])
        assert lib.llama_decode(context, lib.llama_batch_get_one(tokens, 3)) == 0
    extended = lib.llama_batch_ext_init(used)
    lib.llama_batch_ext_add_token(extended, 0, 5)
    lib.llama_batch_ext_set_pos(extended, 0, [3] * 4)
    lib.llama_batch_ext_set_output_logits(extended, 0, True)
    kinds = {"in use": used, "not used yet": fresh, "of embeddings": embedding}
    kinds["of a model with encoder"] = encoder
    return {
        "llama_context": kinds,
        "llama_memory_i": {"in use": lib.llama_get_memory(used)},
        "llama_batch_ext": {"of one token": extended, "empty": lib.llama_batch_ext_init(used)},
    }


def _context(model: Any, embeddings: bool = False, n_seq: int = N_SEQ) -> Any:
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = N_CTX, N_BATCH, N_BATCH
    params.n_seq_max, params.n_threads, params.n_threads_batch = n_seq, 1, 1
    params.embeddings = embeddings
    return lib.llama_init_from_model(model, params)


def _samplers(world: World) -> dict[str, Kinds]:
    vocab = world.first("llama_vocab")
    n_vocab = lib.llama_vocab_n_tokens(vocab)
    bias = ffi.new("struct llama_logit_bias *", {"token": 1, "bias": 1.0})
    breakers = [ffi.new("char[]", b"x")]
    world.keep += breakers

    def chain() -> Any:
        made = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        lib.llama_sampler_chain_add(made, lib.llama_sampler_init_top_k(5))
        lib.llama_sampler_chain_add(made, lib.llama_sampler_init_dist(1))
        return made

    return {
        "llama_sampler": {
            "chain": [chain(), chain()],
            "empty chain": lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params()),
            "greedy": lib.llama_sampler_init_greedy(),
            "dist": lib.llama_sampler_init_dist(1),
            "top_k": lib.llama_sampler_init_top_k(3),
            "top_p": lib.llama_sampler_init_top_p(0.9, 1),
            "min_p": lib.llama_sampler_init_min_p(0.1, 1),
            "typical": lib.llama_sampler_init_typical(0.9, 1),
            "temp": lib.llama_sampler_init_temp(0.7),
            "temp_ext": lib.llama_sampler_init_temp_ext(0.7, 0.1, 1),
            "xtc": lib.llama_sampler_init_xtc(1, 0.1, 1, 1),
            "top_n_sigma": lib.llama_sampler_init_top_n_sigma(1),
            "mirostat": lib.llama_sampler_init_mirostat(n_vocab, 1, 5, 0.1, 100),
            "mirostat_v2": lib.llama_sampler_init_mirostat_v2(1, 5, 0.1),
            "grammar": lib.llama_sampler_init_grammar(vocab, GRAMMAR, b"root"),
            "penalties": lib.llama_sampler_init_penalties(n_vocab, 8, 1.1, 0, 0),
            "dry": lib.llama_sampler_init_dry(vocab, 1, 1.75, 2, 8, breakers, 1),
            "adaptive_p": lib.llama_sampler_init_adaptive_p(0.5, 0.9, 1),
            "logit_bias": lib.llama_sampler_init_logit_bias(n_vocab, 1, bias),
            "infill": lib.llama_sampler_init_infill(vocab),
        }
    }


def _ggml(world: World) -> dict[str, Kinds]:
    def context(no_alloc: bool = False, room: int = ROOM) -> Any:
        return lib.ggml_init(
            ffi.new("struct ggml_init_params *", {"mem_size": room, "no_alloc": no_alloc})[0]
        )

    with_room, without_data, full = context(), context(no_alloc=True), context(room=512)
    kinds = {"with room": with_room, "without data": without_data, "full": full}
    tensors = _tensors(with_room, without_data)
    return {"ggml_context": kinds, "ggml_tensor": tensors | _nodes(with_room, tensors)}


NO_DATA = "f32 4x4 without data"
SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "f32 4x4": ("F32", (4, 4)),
    "i32 4": ("I32", (4,)),
    "f32 4": ("F32", (4,)),
    "f32 4x4x4x4": ("F32", (4, 4, 4, 4)),
    "f32 32x4": ("F32", (32, 4)),
    "f16 4x4": ("F16", (4, 4)),
    "q8_0 32x4": ("Q8_0", (32, 4)),
    "f32 1": ("F32", (1,)),
    "f32 4x1x4": ("F32", (4, 1, 4)),
    "i32 4x4": ("I32", (4, 4)),
    "i64 4": ("I64", (4,)),
    "f16 4x4x4x4": ("F16", (4, 4, 4, 4)),
    "f32 2": ("F32", (2,)),
    "f32 7": ("F32", (7,)),
}


def _tensors(with_room: Any, without_data: Any) -> Kinds:
    def tensor(context: Any, kind: str) -> Any:
        type_, shape = SHAPES[kind]
        made = lib.ggml_new_tensor(context, getattr(lib, f"GGML_TYPE_{type_}"), len(shape), shape)
        if context == with_room:
            lib.ggml_set_zero(made)
            if type_ == "F32":
                lib.ggml_set_f32(made, 1)
        return made

    kinds: Kinds = {kind: [tensor(with_room, kind) for _ in range(TENSORS)] for kind in SHAPES}
    lib.ggml_set_name(kinds["f32 4x4"][0], b"output.weight")
    for one in kinds["f32 7"]:
        lib.ggml_set_param(one)
    return {"f32 4x4": kinds.pop("f32 4x4"), NO_DATA: tensor(without_data, "f32 4x4")} | kinds


def _nodes(context: Any, tensors: Kinds) -> Kinds:
    """Return results of operations that some functions ask for."""
    f32, small = tensors["f32 4x4"], tensors["f16 4x4"][0]
    attention = lib.ggml_flash_attn_ext(
        context, f32[0], small, tensors["f16 4x4"][1], ffi.NULL, 1.0, 0.0, 0.0
    )
    wide, positions = tensors["f32 4x4x4x4"][0], tensors["i32 4"][0]
    return {
        "a product": lib.ggml_mul_mat(context, f32[0], f32[1]),
        "a softmax": lib.ggml_soft_max(context, f32[0]),
        "a relu": lib.ggml_relu(context, f32[0]),
        "a swiglu": lib.ggml_swiglu(context, f32[0]),
        "a rope": lib.ggml_rope(context, wide, positions, 4, 0),
        "attention": attention,
    }


def _graphs(world: World) -> dict[str, Kinds]:
    context = world.first("ggml_context")
    a, b = world.objects["struct ggml_tensor *"]["f32 4x4"][:2]
    weight = lib.ggml_new_tensor_2d(context, lib.GGML_TYPE_F32, 4, 4)
    lib.ggml_set_f32(weight, 1)
    lib.ggml_set_param(weight)

    def graph(*, grads: bool) -> Any:
        made = lib.ggml_new_graph_custom(context, 64, grads)
        loss = lib.ggml_sum(context, lib.ggml_mul(context, lib.ggml_add(context, a, b), weight))
        lib.ggml_set_loss(loss)
        lib.ggml_build_forward_expand(made, loss)
        if grads:
            lib.ggml_build_backward_expand(context, made, ffi.NULL)
        return made

    return {
        "ggml_cgraph": {
            "of additions": [graph(grads=False), graph(grads=False)],
            "with gradients": [graph(grads=True), graph(grads=True)],
            "empty": lib.ggml_new_graph(context),
        }
    }


def _gguf(world: World) -> dict[str, Kinds]:
    def gguf() -> Any:
        made = lib.gguf_init_empty()
        lib.gguf_set_val_u32(made, b"number", 7)
        lib.gguf_set_val_str(made, b"text", b"a text")
        lib.gguf_set_arr_data(made, b"array", lib.GGUF_TYPE_INT32, ffi.new("int[3]"), 3)
        lib.gguf_set_arr_str(made, b"texts", [ffi.new("char[]", b"x")], 1)
        return made

    no_data = ffi.new("struct gguf_init_params *", {"no_alloc": True})[0]
    model = lib.gguf_init_from_file(world.path("demo.gguf"), no_data)
    kinds: Kinds = {"of four keys": [gguf(), gguf()], "of a model": model}
    for type_ in ("u8", "i8", "u16", "i16", "i32", "f32", "u64", "i64", "f64", "bool"):
        kinds[f"of a {type_}"] = lib.gguf_init_empty()
        getattr(lib, f"gguf_set_val_{type_}")(kinds[f"of a {type_}"], b"number", 1)
    return {"gguf_context": kinds | {"empty": lib.gguf_init_empty()}}


def _machine(world: World) -> dict[str, Kinds]:
    cpu = lib.ggml_backend_init_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU, ffi.NULL)
    lib.ggml_backend_cpu_set_n_threads(cpu, 1)
    device = lib.ggml_backend_get_device(cpu)
    buft = lib.ggml_backend_get_default_buffer_type(cpu)
    buffers = [lib.ggml_backend_alloc_buffer(cpu, 1 << 16) for _ in range(2)]
    backends = ffi.new("ggml_backend_t[]", [cpu])
    sched = lib.ggml_backend_sched_new(backends, ffi.NULL, 1, 64, False, False)
    pools = [lib.ggml_threadpool_new(_new(lib.ggml_threadpool_params_default(1))) for _ in range(2)]
    unallocated = world.objects["struct ggml_context *"]["without data"]
    placed = lib.ggml_new_tensor_2d(unallocated, lib.GGML_TYPE_F32, 4, 4)
    third = lib.ggml_backend_alloc_buffer(cpu, 1 << 16)
    lib.ggml_backend_tensor_alloc(third, placed, lib.ggml_backend_buffer_get_base(third))
    world.objects["struct ggml_tensor *"]["f32 4x4 in a buffer"] = placed
    return {
        "ggml_backend": {"cpu": cpu},
        "ggml_backend_device": {"cpu": device},
        "ggml_backend_reg": {"cpu": lib.ggml_backend_dev_backend_reg(device)},
        "ggml_backend_buffer_type": {"cpu": buft},
        "ggml_backend_buffer": {"of 64 KiB": buffers},
        "ggml_backend_sched": {"cpu": sched},
        "ggml_gallocr": {"cpu": lib.ggml_gallocr_new(buft)},
        "ggml_threadpool": {"of one thread": pools},
    }


def _new(value: Any) -> Any:
    return ffi.new(ffi.getctype(ffi.typeof(value), "*"), value)


def _training(world: World) -> dict[str, Kinds]:
    sched = world.first("ggml_backend_sched")
    f32 = lib.GGML_TYPE_F32

    def dataset() -> Any:
        made = lib.ggml_opt_dataset_init(f32, f32, 4, 4, 8, 2)
        lib.ggml_set_f32(lib.ggml_opt_dataset_data(made), 1)
        lib.ggml_set_f32(lib.ggml_opt_dataset_labels(made), 1)
        return made

    return {
        "ggml_opt_dataset": {"of 8 points": dataset()},
        "ggml_opt_result": {"empty": [lib.ggml_opt_result_init() for _ in range(2)]},
        "ggml_opt_context": {"of a sum": _optimizer(world, sched)},
    }


def _optimizer(world: World, sched: Any) -> Any:
    context = lib.ggml_init(
        ffi.new("struct ggml_init_params *", {"mem_size": 1 << 20, "no_alloc": True})[0]
    )
    tensors = [lib.ggml_new_tensor_2d(context, lib.GGML_TYPE_F32, 4, n) for n in (2, 4)]
    lib.ggml_set_input(tensors[0])
    lib.ggml_set_param(tensors[1])
    cpu = world.first("ggml_backend")
    world.keep.append(lib.ggml_backend_alloc_ctx_tensors(context, cpu))
    compute = lib.ggml_init(
        ffi.new("struct ggml_init_params *", {"mem_size": 1 << 20, "no_alloc": True})[0]
    )
    params = lib.ggml_opt_default_params(sched, lib.GGML_OPT_LOSS_TYPE_MEAN_SQUARED_ERROR)
    params.ctx_compute, params.inputs = compute, tensors[0]
    params.outputs = lib.ggml_mul_mat(compute, tensors[1], tensors[0])
    return lib.ggml_opt_init(params)


MAKERS = (
    _models,
    _contexts,
    _samplers,
    _ggml,
    _graphs,
    _gguf,
    _machine,
    _training,
    projector.objects,
)
