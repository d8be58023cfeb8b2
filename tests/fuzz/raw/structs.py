"""Valid structs with public fields, by value or behind a pointer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

from llamacffi import NativeError, ffi, lib

from .signatures import defined_structs, functions
from .world import World

# Public in a header, but made by functions alone: objects and not parameters.
OBJECTS = {"struct ggml_tensor", "struct ggml_object", "struct llama_sampler"}
N_TOKENS = 2
N_CANDIDATES = 8


def is_transparent(type_: Any) -> bool:
    """Tell whether a struct is one of parameters, whose fields a user sets."""
    if type_.kind != "struct":
        return False
    return type_.cname in defined_structs() and type_.cname not in OBJECTS


@cache
def _defaults() -> dict[str, str]:
    """Return, by type, the functions without arguments that return a struct."""
    found = [one for one in functions().values() if not one.parameters]
    return {one.result.cname: one.name for one in found if one.result.kind == "struct"}


def fill(world: World, start: Any, count: int) -> None:
    """Set structs to what llama.cpp has as the default, and what it must have besides."""
    cname = ffi.typeof(start).item.cname
    for i in range(count):
        if cname in _defaults():
            start[i] = getattr(lib, _defaults()[cname])()
        if cname in FILLERS:
            FILLERS[cname](world, start[i])


def _batch(world: World, batch: Any) -> None:
    pages = world.pages
    batch.n_tokens = N_TOKENS
    batch.token = pages.array(ffi.typeof("llama_token *"))
    batch.pos = pages.array(ffi.typeof("llama_pos *"))
    batch.n_seq_id = pages.array(ffi.typeof("int32_t *"))
    batch.logits = pages.array(ffi.typeof("int8_t *"))
    batch.seq_id = pages.struct(ffi.typeof("llama_seq_id **"), None, N_TOKENS)
    for i in range(N_TOKENS):
        batch.pos[i] = 3 + i  # the context in use has three tokens
        batch.seq_id[i] = pages.array(ffi.typeof("llama_seq_id *"), 0)


def _candidates(world: World, candidates: Any) -> None:
    candidates.data = world.pages.struct(
        ffi.typeof("struct llama_token_data *"), {"id": 1, "logit": 1, "p": 0.1}, N_CANDIDATES
    )
    for i in range(N_CANDIDATES):
        candidates.data[i].id = i
    candidates.size = N_CANDIDATES


def _embd(world: World, embd: Any) -> None:
    model = world.first("llama_model")
    embd.data = world.pages.array(ffi.typeof("float *"))
    embd.n_rows, embd.n_embd = 1, lib.llama_model_n_embd(model)


def _plan(world: World, plan: Any) -> None:
    made = lib.ggml_graph_plan(world.first("ggml_cgraph"), 1, ffi.NULL)
    plan.work_size, plan.n_threads = made.work_size, made.n_threads
    plan.work_data = ffi.cast("uint8_t *", world.pages.new())


def _message(world: World, message: Any) -> None:
    message.role, message.content = world.pages.text(b"user"), world.pages.text(b"hello")


def _text(world: World, text: Any) -> None:
    content = b"a llama " + ffi.string(lib.mtmd_default_marker())
    text.text, text.text_len = world.pages.text(content), len(content)


def _part(world: World, part: Any) -> None:
    part.text = world.pages.struct(ffi.typeof("struct mtmd_input_text *"))
    fill(world, part.text, 1)


def _mtmd_params(_: World, params: Any) -> None:
    params.n_threads, params.use_gpu, params.warmup = 1, False, False


def _room(_: World, params: Any) -> None:
    params.mem_size = 1 << 20


def _model_params(_: World, params: Any) -> None:
    params.load_mode = lib.LLAMA_LOAD_MODE_NONE


def _context_params(_: World, params: Any) -> None:
    params.n_ctx, params.n_batch, params.n_ubatch = 64, 16, 16
    params.n_threads = params.n_threads_batch = 1


def _one_thread(_: World, params: Any) -> None:
    params.n_threads = 1


def _quantize(_: World, params: Any) -> None:
    params.nthread = 1


def _opt(world: World, params: Any) -> None:
    sched = world.first("ggml_backend_sched")
    default = lib.ggml_opt_default_params(sched, lib.GGML_OPT_LOSS_TYPE_SUM)
    for field, _ in ffi.typeof(params).fields:
        setattr(params, field, getattr(default, field))


def _llama_opt(_: World, params: Any) -> None:
    params.param_filter = ffi.addressof(lib, "llama_opt_param_filter_all")
    params.get_opt_pars = ffi.addressof(lib, "ggml_opt_get_default_optimizer_params")


def _tallocr(world: World, allocator: Any) -> None:
    made = lib.ggml_tallocr_new(world.first("ggml_backend_buffer"))
    for field, _ in ffi.typeof(made).fields:
        setattr(allocator, field, getattr(made, field))


def _graph_copy(world: World, copy: Any) -> None:
    cpu, graph = world.first("ggml_backend"), world.first("ggml_cgraph")
    with suppress(NativeError):  # for graphs in a backend's memory alone
        made = lib.ggml_backend_graph_copy(cpu, graph)
        for field, _ in ffi.typeof(made).fields:
            setattr(copy, field, getattr(made, field))


FILLERS: dict[str, Callable[[World, Any], None]] = {
    "struct llama_batch": _batch,
    "struct llama_token_data_array": _candidates,
    "struct llama_embd": _embd,
    "struct ggml_cplan": _plan,
    "struct llama_chat_message": _message,
    "struct mtmd_input_text": _text,
    "struct mtmd_input_part": _part,
    "struct ggml_init_params": _room,
    "struct llama_model_params": _model_params,
    "struct llama_context_params": _context_params,
    "struct mtmd_context_params": _mtmd_params,
    "struct llama_model_quantize_params": _quantize,
    "struct ggml_threadpool_params": _one_thread,
    "struct ggml_opt_params": _opt,
    "struct llama_opt_params": _llama_opt,
    "struct ggml_tallocr": _tallocr,
    "struct ggml_backend_graph_copy": _graph_copy,
}
