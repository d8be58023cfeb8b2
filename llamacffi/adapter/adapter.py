"""LoRA adapters: small changes to a model's weights that contexts can switch on and off."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .._core.ownership import Handle, make, own
from .._core.text import read_metadata
from .._core.tokens import token_array
from .._core.values import check_object
from .._native import ffi, lib
from ..backend import registry as backend
from ..errors import AdapterError, GgufError, NativeError
from ..gguf.open_files import gguf_of, opened, sample_digest
from ..log import drain, with_log
from ..model.info import check_weights
from ..model.weights import weight_shapes
from .lora import EMBEDDING, INVOCATION, alpha_of, check_kind, weight_changes

if TYPE_CHECKING:
    from .._core import types as types
    from .._core.files import OpenFile
    from .._core.ownership import Made
    from .._core.tokens import Tokens
    from ..gguf.gguf import Gguf, GgufTensor
    from ..model.model import Model


class Adapter(Handle):
    """A LoRA adapter, loaded for one model.

    It owns the ``struct llama_adapter_lora`` and keeps the model's weights alive.  Any number of
    contexts of the model can use it at once, each with its own scale: see `Context.adapters`.
    Closing the model closes it.  A context that uses the adapter keeps the C object until it gets
    other adapters, so an adapter can be closed while it is in use.  Any thread can load and close
    adapters while other threads compute.
    """

    _instead = (
        "any number of contexts of its Model can share it; in another process, load the file again"
    )

    __slots__ = (
        "_digest",
        "_metadata",
        "_name",
        "alpha",
        "invocation_tokens",
        "model",
    )

    model: Model
    """The model that it was loaded for."""
    alpha: float | None
    """The product of its matrices is scaled by ``alpha / rank``; None for a scale of 1."""
    invocation_tokens: tuple[int, ...]
    """The tokens that activate an activated LoRA (aLoRA); empty for other adapters."""

    def __init__(self, model: Model, source: str | os.PathLike[str] | types.FileSource) -> None:
        """Load an adapter from a GGUF file.

        Args:
            model: The model that the adapter was trained for.
            source: A path, an open binary file (read from its current position), a descriptor, or
                bytes.

        Raises:
            ModelNotFoundError: The file does not exist.
            LoadError: The file cannot be read.
            AdapterError: The file is not an adapter, is damaged, or does not fit the model.
            UnsupportedError: The model was loaded without its weights.

        Source: ``llama_adapter_lora_init_from_file_ptr``.
        """
        check_object("model", model, "Model")
        model_ptr = model.ptr
        check_weights(model)
        with opened(source) as file:
            self._name = file.name
            self.alpha = _check(file, model)
            self._digest = sample_digest(file.descriptor, file.offset, file.size)
            owner = own(_load(model_ptr, file))
        super().__init__(owner)
        self.model = model
        self._metadata: Mapping[str, str] | None = None
        n = lib.llama_adapter_get_alora_n_invocation_tokens(owner)
        tokens = lib.llama_adapter_get_alora_invocation_tokens(owner)
        self.invocation_tokens = tuple(ffi.unpack(tokens, n)) if n else ()
        self._join(model)
        drain()

    def __repr__(self) -> str:
        return f"<Adapter {self._name!r}{' closed' if self.closed else ''}>"

    @property
    def metadata(self) -> Mapping[str, str]:
        """The scalar metadata of the file, as text.

        Source: ``llama_adapter_meta_key_by_index``, ``llama_adapter_meta_val_str_by_index``.
        """
        if self._metadata is None:
            values = read_metadata(
                self.ptr,
                lib.llama_adapter_meta_count,
                lib.llama_adapter_meta_key_by_index,
                lib.llama_adapter_meta_val_str_by_index,
            )
            self._metadata = MappingProxyType(values)
        return self._metadata

    @property
    def task_name(self) -> str | None:
        """The task that it was trained for, if its file names one."""
        # upstream: src/llama-arch.cpp LLM_KV_ADAPTER_LORA_TASK_NAME,
        # LLM_KV_ADAPTER_LORA_PROMPT_PREFIX: this key and the next.
        return self.metadata.get("adapter.lora.task_name")

    @property
    def prompt_prefix(self) -> str | None:
        """The text that a prompt should begin with, if its file gives one."""
        return self.metadata.get("adapter.lora.prompt_prefix")

    def invocation_start(self, tokens: Tokens) -> int | None:
        """Return where an activated LoRA (aLoRA) takes effect in a prompt.

        The tokens before that index are decoded without the adapter, so other adapters and the base
        model can reuse their memory; the tokens from that index on are decoded with it::

            start = adapter.invocation_start(tokens)
            context.adapters = {}
            ...  # decode tokens[:start]
            context.adapters = {adapter: 1.0}
            ...  # decode tokens[start:]

        upstream: tools/server/server-context.cpp alora_invocation_start: llama.cpp's server starts
        one token earlier.

        Returns:
            The index of the last occurrence of `invocation_tokens`; None if they do not occur or
            the adapter has none.
        """
        import numpy as np

        wanted = np.array(self.invocation_tokens, np.int32)
        array, n = token_array(tokens, len(self.model.vocab))
        if not 0 < len(wanted) <= n:
            return None
        given = np.frombuffer(ffi.buffer(array), np.int32)
        windows = np.lib.stride_tricks.sliding_window_view(given, len(wanted))
        found = np.flatnonzero((windows == wanted).all(axis=1))
        return int(found[-1]) if len(found) else None


def digest_of(adapter: Adapter) -> str:
    """Return a hash of a sample of the adapter's file."""
    return adapter._digest


def _load(model_ptr: Any, file: OpenFile) -> Made:
    """Load an adapter; `own` takes the result."""
    failure = f"cannot load the adapter {file.name!r}"
    drain()
    try:
        # upstream: src/llama-model.h loras: freeing a model frees its adapters too, and so this one
        # keeps the model until it is freed.
        keep = (model_ptr,)
        made = make(
            lib.llamacffi_adapter_free, keep, lib.llamacffi_adapter_load, model_ptr, file.ptr
        )
    except NativeError as error:
        raise with_log(AdapterError(f"{failure}: {error}")) from error
    if made[1] == ffi.NULL:
        raise with_log(AdapterError(failure))
    return made


def _check(file: OpenFile, model: Model) -> float | None:
    """Raise AdapterError unless a file holds an adapter for ``model``; return its alpha.

    upstream: src/llama-adapter.cpp llama_adapter_lora_init_impl: checks a part of this; the rest
    would fail an assertion in decode, and so we check all of it.
    """
    try:
        with gguf_of(file) as gguf:
            check_kind(gguf, file.name, model.architecture, repr(model))
            _check_invocation(gguf, file.name, model)
            _check_tensors(gguf, file.name, model)
            return alpha_of(gguf, file.name)
    except GgufError as error:
        raise AdapterError(f"{file.name!r} is not an adapter: {error}") from error


def _check_invocation(gguf: Gguf, name: str, model: Model) -> None:
    """Check that the invocation tokens are in the model's vocabulary."""
    if INVOCATION not in gguf:
        return
    tokens: Any = gguf[INVOCATION]
    n_vocab = len(model.vocab)
    right = gguf.is_array(INVOCATION) and gguf.type(INVOCATION) == lib.GGUF_TYPE_UINT32
    if not right or not all(token < n_vocab for token in tokens):
        raise AdapterError(
            f"{name!r} does not fit {model!r}: {INVOCATION} must be an array of uint32 between 0 "
            f"and {n_vocab - 1}, not {reprlib.repr(tokens)}"
        )


def _check_tensors(gguf: Gguf, name: str, model: Model) -> None:
    """Check that each pair of matrices fits the weight that it changes."""
    shapes = weight_shapes(model.ptr)
    if f"{EMBEDDING}.lora_a" in gguf.tensors and _has_tied_output(model, shapes):
        raise AdapterError(
            f"{name!r} changes {EMBEDDING!r}, which {model!r} also uses for its output: llama.cpp "
            "cannot compute this"
        )
    for _, a, b in weight_changes(gguf, name, shapes, repr(model)):
        _check_types(name, a, b)


def _has_tied_output(model: Model, shapes: Mapping[str, Any]) -> bool:
    """Return whether the model computes its output with the token embeddings (tied weights).

    upstream: src/models/llama.cpp TENSOR_DUPLICATED: it does, as most do, if it has no other.
    """
    if "output.weight" in shapes or not lib.llama_model_has_decoder(model.ptr):
        return False
    return model.metadata.get(f"{model.architecture}.attention.causal") != "false"


def _check_types(name: str, *parts: GgufTensor) -> None:
    """Check that llama.cpp can multiply with the types of these tensors.

    upstream: ggml/src/ggml-cpu/ggml-cpu.c vec_dot: called without a check whether the type has it.
    """
    backend.load()
    for part in parts:
        if lib.ggml_get_type_traits_cpu(part.type).vec_dot == ffi.NULL:
            raise AdapterError(
                f"{name!r} is damaged: {part.name!r} is {part.type.name}, which is not a type for "
                "weights"
            )
