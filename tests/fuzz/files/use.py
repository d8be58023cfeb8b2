"""What is done with a changed file: what a program would do with a valid one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llamacffi import (
    Adapter,
    Batch,
    Context,
    ControlVector,
    Gguf,
    LlamaError,
    Model,
    NativeError,
    ffi,
    lib,
    quantize,
    shards,
    state_info,
)
from llamacffi.tools.imatrix import Imatrix
from llamacffi.tools.merge_lora import merge_lora

from .seeds import CONTEXT, TOKENS, base

# What all of the package raises, and what Python does without memory.
DOCUMENTED = (LlamaError, MemoryError)
SAMPLE = "ab <s>a b</s>\n é中 \N{LLAMA} 12 <mark>"


CONTEXTS: dict[str, dict[str, Any]] = {
    "2": {"n_threads": 2, "n_threads_batch": 2},
    "embeddings": {"embeddings": True, "pooling_type": "mean"},
    "small": {"type_k": "q8_0", "type_v": "q8_0", "flash_attn_type": "enabled"},
    "apart": {"kv_unified": False, "swa_full": False, "flash_attn_type": "disabled"},
}


class World:
    """What the files of a process are used with."""

    def __init__(self, directory: Path, work: Path) -> None:
        """Load the models that additions are for."""
        self.directory, self.work = directory, work
        self.models: dict[str, Model] = {}
        self.contexts: dict[str, Context] = {}
        for name in ("demo", "mamba", "llama"):
            path = base(directory) if name == "demo" else directory / f"model-{name}.gguf"
            self.models[name] = Model(path, n_gpu_layers=0, use_extra_bufts=False)
            self.contexts[name] = Context(self.models[name], **CONTEXT)

    def use(self, use: str, seed: Path, data: bytes) -> str | None:
        """Use a changed file; return how that failed, None if it did not.

        Raises:
            Exception: One that is not documented.
        """
        kind, _, detail = use.partition(" ")
        path = self.work / f"changed{seed.suffix}"
        if kind == "split":
            path = self._place(seed)
        path.write_bytes(data)
        try:
            USES[kind](self, path, detail)
        except DOCUMENTED as error:
            _check(error)
            return f"{type(error).__name__}: {error}"
        return None

    def _place(self, seed: Path) -> Path:
        """Put the other files of a model beside the changed one."""
        for one in self.directory.glob("split-*.gguf"):
            shutil.copy(one, self.work)
        return self.work / seed.name


def _model(world: World, path: Path, detail: str) -> None:
    params: dict[str, Any] = {"n_gpu_layers": 0}
    if detail == "read":
        params |= {"load_mode": "none", "use_extra_bufts": False}
    with Model(path, **params) as model:
        _describe(model)
        if lib.llama_vocab_type(model.vocab.ptr):
            _try(lambda: _tokenize(model))
        with Context(model, **CONTEXT | CONTEXTS.get(detail, {})) as context:
            _compute(model, context)


def _describe(model: Model) -> None:
    str((repr(model), model.metadata, model.architecture))
    for name in ("desc", "size", "n_ctx_train", "n_layer", "chat_templates"):
        _try(lambda name=name: getattr(model, name))
    _try(model.chat_template)


def _tokenize(model: Model) -> None:
    vocab = model.vocab
    ids: list[int] = []
    for special in (False, True):
        ids = vocab.tokenize(SAMPLE, parse_special=special, add_special=special)
        vocab.detokenize_bytes(ids)
    for token in (*ids[:8], *range(min(len(vocab), 24)), len(vocab) - 1):
        vocab.piece(token, special=True)
        vocab.attr(token)
        vocab.is_eog(token)


def _compute(model: Model, context: Context) -> None:
    n_vocab = len(model.vocab)
    tokens = [token % n_vocab for token in TOKENS] if n_vocab else TOKENS
    batch = Batch.from_tokens(tokens, logits="all")
    if lib.llama_model_has_encoder(model.ptr):
        context.encode(batch)
    if not lib.llama_model_has_decoder(model.ptr):
        return
    context.decode(batch)
    _try(lambda: np.argmax(context.logits()))
    _try(lambda: context.embeddings_seq(0))
    if lib.llama_get_memory(context.ptr) == ffi.NULL:
        return
    context.decode(Batch.from_tokens(tokens[:1], len(tokens)))
    _try(lambda: context.load_state(context.save_state()))
    _try(lambda: context.memory.remove(0, 1, 2))
    _try(lambda: context.memory.shift(0, 2, None, -1))
    context.decode(Batch.from_tokens(tokens[:1], context.memory.next_pos(0)))


def _vocab(world: World, path: Path, detail: str) -> None:
    with Model(path, vocab_only=True) as model:
        _describe(model)
        _tokenize(model)


def _gguf(world: World, path: Path, detail: str) -> None:
    with Gguf.open(path) as gguf:
        for key in gguf:
            str(gguf[key])
        for tensor in gguf.tensors.values():
            _try(tensor.dequantize)
            tensor.hash()
        gguf["general.name"] = "changed"
        gguf.write(world.work / "written.gguf")
    Gguf.open(world.work / "written.gguf").close()


def _quantize(world: World, path: Path, detail: str) -> None:
    quantize(path, world.work / "quantized.gguf", "Q4_K_M", allow_requantize=True, nthread=1)


def _lora(world: World, path: Path, detail: str) -> None:
    context = world.contexts["demo"]
    with Adapter(world.models["demo"], path) as adapter:
        str(adapter.metadata)
        adapter.invocation_start(TOKENS)
        try:
            context.adapters = {adapter: 1.0}
            _decode(context)
        finally:
            context.adapters = {}


def _merge(world: World, path: Path, detail: str) -> None:
    merge_lora(base(world.directory), {path: 1.0}, world.work / "merged.gguf")


def _control(world: World, path: Path, detail: str) -> None:
    vector = ControlVector.from_file(path)
    context = world.contexts["llama"]
    try:
        context.control_vector = 0.5 * vector + vector
        _decode(context)
    finally:
        context.control_vector = None


def _imatrix(world: World, path: Path, detail: str) -> None:
    matrix = Imatrix.open(path)
    for name in matrix:
        matrix[name]
    matrix.merge(matrix).save(world.work / "saved.gguf")
    quantize(base(world.directory), world.work / "q.gguf", "Q4_K_M", imatrix=matrix, nthread=1)


def _state(world: World, path: Path, detail: str) -> None:
    context = world.contexts[detail]
    _try(lambda: state_info(path))
    context.memory.clear()
    _decode(context)
    before = context.memory.pos_max(0)
    for seq_id in (None, 0):
        try:
            context.load_file(path, seq_id=seq_id, any_adapters=True)
        except DOCUMENTED as error:
            _check(error)
            assert context.memory.pos_max(0) == before, "a failed load has changed the memory"
        else:
            context.decode(Batch.from_tokens([5], context.memory.next_pos(0)))
            context.memory.clear()
            _decode(context)


def _split(world: World, path: Path, detail: str) -> None:
    first = sorted(world.work.glob("split-*.gguf"))[0]
    _try(lambda: _model(world, first, ""))
    shards.merge(first, world.work / "merged.gguf")


def _decode(context: Context) -> None:
    context.memory.clear()
    context.decode(Batch.from_tokens(TOKENS))
    context.logits()


def _try(call: Callable[[], Any]) -> None:
    """Call what may fail, and go on."""
    try:
        call()
    except DOCUMENTED as error:
        _check(error)


def _check(error: Exception) -> None:
    """Raise an error that C was the first to notice: the package looks before C does."""
    if isinstance(error, NativeError):
        raise error


USES: dict[str, Callable[[World, Path, str], None]] = {
    "model": _model,
    "vocab": _vocab,
    "gguf": _gguf,
    "quantize": _quantize,
    "lora": _lora,
    "merge": _merge,
    "control": _control,
    "imatrix": _imatrix,
    "state": _state,
    "split": _split,
}
