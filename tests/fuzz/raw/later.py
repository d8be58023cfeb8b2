"""What a program would do next: use the result, and use the arguments once more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from llamacffi import NativeError, ffi, lib

from .signatures import Function
from .world import World

N_CANDIDATES = 8
# What a function with such a name leaves behind is not used again.
ENDS = ("free", "unload", "_remove", "backend_cpu_buffer_from_ptr")


def use(world: World, function: Function, arguments: list[Any], result: Any) -> None:
    """Use what a call returned, and what it was given."""
    if any(word in function.name for word in ENDS):
        return
    values = [result, *arguments]
    for value in values:
        if not isinstance(value, ffi.CData) or value == ffi.NULL:
            continue
        type_ = ffi.typeof(value)
        if type_.kind == "pointer" and type_.cname in USES:
            with suppress(NativeError, OverflowError):
                USES[type_.cname](world, value)
    if (
        isinstance(result, ffi.CData)
        and ffi.typeof(result).kind == "pointer"
        and result != ffi.NULL
    ):
        _read(world, function, result)


def _read(world: World, function: Function, result: Any) -> None:
    type_ = ffi.typeof(result)
    if type_.cname == "char *" and not isinstance(result, bytes):
        ffi.string(result, 1000)
    elif type_.item.kind == "primitive" and "buffer" not in function.name:
        result[0]
    elif type_.cname == "struct ggml_tensor *":
        with suppress(NativeError):
            compute(world, result)


def compute(world: World, tensor: Any) -> None:
    """Compute a tensor, if it and what it is made of have memory."""
    seen = {tensor}
    waiting = [tensor]
    while waiting:
        one = waiting.pop()
        if one.data == ffi.NULL:
            return
        sources = [source for source in one.src if source != ffi.NULL]
        waiting += [source for source in sources if source not in seen]
        seen.update(sources)
    context = world.first("ggml_context")
    graph = lib.ggml_new_graph(context)
    lib.ggml_build_forward_expand(graph, tensor)
    lib.ggml_graph_compute_with_ctx(context, graph, 1)


def _context(_: World, context: Any) -> None:
    memory = lib.llama_get_memory(context)
    pos = lib.llama_memory_seq_pos_max(memory, 0) + 1
    batch = lib.llama_batch_get_one(ffi.new("llama_token[]", [5]), 1)
    lib.llama_decode(context, batch)
    lib.llama_get_logits_ith(context, -1)
    lib.llama_get_logits_ith(context, pos)
    lib.llama_state_get_size(context)


def _sampler(_: World, sampler: Any) -> None:
    data = ffi.new("struct llama_token_data[]", [(i, 1.0 + i, 0) for i in range(N_CANDIDATES)])
    candidates = ffi.new("struct llama_token_data_array *", (data, N_CANDIDATES, -1, False))
    lib.llama_sampler_apply(sampler, candidates)
    with suppress(NativeError):
        lib.llama_sampler_accept(sampler, 5)
    lib.llama_sampler_apply(sampler, candidates)
    lib.llama_sampler_name(sampler)
    clone = lib.llama_sampler_clone(sampler)
    lib.llama_sampler_reset(sampler)
    lib.llama_sampler_free(clone)


def _gguf(_: World, gguf: Any) -> None:
    size = lib.gguf_get_meta_size(gguf)
    if 0 < size < 1 << 20:
        lib.gguf_get_meta_data(gguf, ffi.new("char[]", size))


def _tensor(_: World, tensor: Any) -> None:
    lib.ggml_nbytes(tensor)
    ffi.string(lib.ggml_get_name(tensor))


def _buffer(_: World, buffer: Any) -> None:
    lib.ggml_backend_buffer_get_size(buffer)
    lib.ggml_backend_buffer_clear(buffer, 0)


def _sched(world: World, sched: Any) -> None:
    graph = world.first("ggml_cgraph")
    lib.ggml_backend_sched_reset(sched)
    lib.ggml_backend_sched_alloc_graph(sched, graph)
    lib.ggml_backend_sched_graph_compute(sched, graph)


def _model(_: World, model: Any) -> None:
    vocab = lib.llama_model_get_vocab(model)
    lib.llama_vocab_get_text(vocab, 5)


def _batch_ext(world: World, batch: Any) -> None:
    lib.llama_process(world.first("llama_context"), lib.LLAMA_PROCESS_TYPE_DECODE, batch)


def _bitmap(_: World, bitmap: Any) -> None:
    size = lib.mtmd_bitmap_get_n_bytes(bitmap)
    data = lib.mtmd_bitmap_get_data(bitmap)
    if size and data != ffi.NULL:
        data[size - 1]


USES: dict[str, Callable[[World, Any], None]] = {
    "struct llama_context *": _context,
    "struct llama_sampler *": _sampler,
    "struct gguf_context *": _gguf,
    "struct ggml_tensor *": _tensor,
    "struct ggml_backend_buffer *": _buffer,
    "struct ggml_backend_sched *": _sched,
    "struct llama_model *": _model,
    "struct llama_batch_ext *": _batch_ext,
    "struct mtmd_bitmap *": _bitmap,
}
