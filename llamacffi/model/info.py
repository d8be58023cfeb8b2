"""Properties of a model: its sizes, its architecture and the metadata of its file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .._core.ownership import Handle
from .._core.text import c_text, read_bytes
from .._native import ffi, lib
from ..backend.device_types import Device, new_device
from ..errors import ArgumentError, UnsupportedError
from .file_kind import architecture_of
from .metadata import CHAT_TEMPLATE, Metadata, typed
from .weights import tensors, weights_fingerprint

if TYPE_CHECKING:
    from .._generated.enums import Ftype, RopeType


class ModelInfo(Handle):
    """The properties of a `Model`, its only subclass.

    For a model loaded with ``vocab_only=True``, llama.cpp reads the metadata, the vocabulary and
    the architecture only; properties that need more raise `UnsupportedError`.
    """

    __slots__ = ("__dict__", "_divided", "without_weights")

    _divided: list[Any]
    """The devices that each tensor is split across; empty unless ``split_mode`` is ``"tensor"``."""

    without_weights: str | None
    """Why the weights were not loaded: ``"vocab_only"``, ``"no_alloc"`` or None if they were."""

    def _known(self, function: Callable[[Any], Any]) -> Any:
        """Call a C function that reads the hyperparameters, if they were loaded."""
        ptr = self.ptr
        # upstream: src/llama-model.cpp vocab_only: hyperparameters are not loaded then; reading one
        # returns a default or fails an assertion, and so we refuse.
        if self.without_weights == "vocab_only":
            raise UnsupportedError("not known with vocab_only=True: load the model without it")
        return function(ptr)

    # The file

    @functools.cached_property
    def metadata(self) -> Mapping[str, str]:
        """The scalar metadata of the file, as text; use `Gguf` to read arrays and types.

        Values that ``kv_overrides`` replaced appear as they are in the file.

        Source: ``llama_model_meta_key_by_index``, ``llama_model_meta_val_str_by_index``.
        """
        return Metadata(self.ptr)

    @functools.cached_property
    def _fingerprint(self) -> Mapping[str, str]:
        return {"desc": self.desc, **weights_fingerprint(self.ptr, self.metadata)}

    @property
    def architecture(self) -> str:
        """The name of the architecture, such as ``llama``; empty if the file does not name one."""
        return architecture_of(self.metadata)

    @property
    def desc(self) -> str:
        """A short description, such as ``llama 7B Q4_K - Medium``.

        Empty if the model was loaded with ``vocab_only=True``.

        Source: ``llama_model_desc``.
        """
        ptr = self.ptr
        return read_bytes(lambda buffer, size: lib.llama_model_desc(ptr, buffer, size)).decode()

    @property
    def ftype(self) -> Ftype | None:
        """The type of most weights; None if the file gives a type that llama.cpp does not know.

        Source: ``llama_model_ftype``.
        """
        from .._generated.enums import Ftype

        number = self._known(lib.llama_model_ftype) & ~lib.LLAMA_FTYPE_GUESSED
        try:
            return Ftype(number)
        except ValueError:
            return None

    @property
    def ftype_name(self) -> str:
        """The type of most weights as text, such as ``Q4_K - Medium``.

        Starts with ``(guessed)`` if the file does not give the type.

        Source: ``llama_ftype_name``.
        """
        name = lib.llama_ftype_name(self._known(lib.llama_model_ftype))
        return c_text(name)

    # Sizes

    @property
    def size(self) -> int:
        """The size of all tensors, in bytes.  Source: ``llama_model_size``."""
        ptr = self.ptr
        # upstream: src/llama-model.cpp n_bytes, n_elements: counted while a file is read, so 0 for
        # a model built in memory, and so we add up its tensors.
        return int(lib.llama_model_size(ptr)) or sum(map(lib.ggml_nbytes, weights(ptr)))

    @property
    def n_params(self) -> int:
        """The number of weights.  Source: ``llama_model_n_params``."""
        ptr = self.ptr
        return int(lib.llama_model_n_params(ptr)) or sum(map(lib.ggml_nelements, weights(ptr)))

    @property
    def n_ctx_train(self) -> int:
        """The context length that the model was trained with, in tokens.

        Source: ``llama_model_n_ctx_train``.
        """
        return int(self._known(lib.llama_model_n_ctx_train))

    @property
    def n_embd(self) -> int:
        """The width of the hidden states.  Source: ``llama_model_n_embd``."""
        return int(self._known(lib.llama_model_n_embd))

    @property
    def n_embd_inp(self) -> int:
        """The width of an input embedding; larger than `n_embd` if it has several parts.

        Source: ``llama_model_n_embd_inp``.
        """
        return int(self._known(lib.llama_model_n_embd_inp))

    @property
    def n_embd_out(self) -> int:
        """The width of an output embedding.  Source: ``llama_model_n_embd_out``."""
        return int(self._known(lib.llama_model_n_embd_out))

    @property
    def n_layer(self) -> int:
        """The number of layers, not counting those of `n_layer_nextn`.

        Source: ``llama_model_n_layer``.
        """
        return int(self._known(lib.llama_model_n_layer))

    @property
    def n_layer_nextn(self) -> int:
        """The number of layers for multi-token prediction (MTP); 0 if the model has none.

        Source: ``llama_model_n_layer_nextn``.
        """
        return int(self._known(lib.llama_model_n_layer_nextn))

    @property
    def n_head(self) -> int:
        """The number of attention heads in the first layer; 0 if it has no attention.

        Source: ``llama_model_n_head``.
        """
        return int(self._known(lib.llama_model_n_head))

    @property
    def n_head_kv(self) -> int:
        """The number of key/value heads in the first layer.

        Source: ``llama_model_n_head_kv``.
        """
        return int(self._known(lib.llama_model_n_head_kv))

    @property
    def n_swa(self) -> int:
        """The sliding window in tokens; 0 if the model has none.  Source: ``llama_model_n_swa``."""
        return int(self._known(lib.llama_model_n_swa))

    # Kind

    @property
    def rope_type(self) -> RopeType:
        """The kind of rotary position embedding (RoPE); ``NONE`` if the model has none.

        Source: ``llama_model_rope_type``.
        """
        from .._generated.enums import RopeType

        return RopeType(self._known(lib.llama_model_rope_type))

    @property
    def rope_freq_scale_train(self) -> float:
        """The RoPE frequency scale that the model was trained with.

        Source: ``llama_model_rope_freq_scale_train``.
        """
        return float(self._known(lib.llama_model_rope_freq_scale_train))

    @property
    def has_encoder(self) -> bool:
        """Whether it has an encoder, for `Context.encode`.  Source: ``llama_model_has_encoder``."""
        return bool(lib.llama_model_has_encoder(self.ptr))

    @property
    def has_decoder(self) -> bool:
        """Whether it has a decoder, for `Context.decode`.  Source: ``llama_model_has_decoder``."""
        return bool(lib.llama_model_has_decoder(self.ptr))

    @property
    def decoder_start_token(self) -> int | None:
        """The token that starts the decoder of an encoder-decoder model; None if there is none.

        Source: ``llama_model_decoder_start_token``.
        """
        token = int(self._known(lib.llama_model_decoder_start_token))
        return None if token == lib.LLAMA_TOKEN_NULL else token

    @property
    def is_recurrent(self) -> bool:
        """Whether the model has a recurrent state instead of a KV cache, like Mamba.

        Source: ``llama_model_is_recurrent``.
        """
        return bool(lib.llama_model_is_recurrent(self.ptr))

    @property
    def is_hybrid(self) -> bool:
        """Whether the model has both a recurrent state and a KV cache, like Jamba.

        Source: ``llama_model_is_hybrid``.
        """
        return bool(lib.llama_model_is_hybrid(self.ptr))

    @property
    def is_diffusion(self) -> bool:
        """Whether it is a diffusion language model.  Source: ``llama_model_is_diffusion``."""
        return bool(lib.llama_model_is_diffusion(self.ptr))

    @property
    def n_cls_out(self) -> int:
        """The number of scores that a classifier or reranker gives a text.

        1 for any other model too: llama.cpp does not distinguish them.

        Source: ``llama_model_n_cls_out``.
        """
        return int(self._known(lib.llama_model_n_cls_out))

    @property
    def cls_labels(self) -> tuple[str | None, ...]:
        """The label of each score of a classifier, None where it has none; ``()`` if no score has.

        Source: ``llama_model_cls_label``.
        """
        ptr = self.ptr  # the texts are the model's
        chars = [lib.llama_model_cls_label(ptr, i) for i in range(self.n_cls_out)]
        labels = tuple(c_text(one) if one != ffi.NULL else None for one in chars)
        return labels if any(label is not None for label in labels) else ()

    # Text

    def chat_template(self, name: str | None = None) -> str | None:
        """Return the default chat template, or the one called ``name``; None if it does not exist.

        Source: ``llama_model_chat_template``.
        """
        raw = ffi.NULL
        if name is not None:
            if not isinstance(name, str):
                raise TypeError(f"name must be a text, not {name!r}")
            try:
                raw = name.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError:
                return None
            if b"\0" in raw:
                raise ArgumentError(
                    f"a chat template cannot have a NUL character in its name: {name!r}"
                )
        ptr = self.ptr  # the text is the model's
        chars = lib.llama_model_chat_template(ptr, raw)
        return None if chars == ffi.NULL else c_text(chars)

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """All chat templates by name; the unnamed one is ``"default"``."""
        found = {}
        if (default := self.chat_template()) is not None:
            found["default"] = default
        for key, template in self.metadata.items():
            if key.startswith(f"{CHAT_TEMPLATE}."):
                found[key.removeprefix(f"{CHAT_TEMPLATE}.")] = template
        return MappingProxyType(found)

    @property
    def recommended_sampling(self) -> Mapping[str, int | float | str]:
        """The sampling settings that the model's authors recommend in the file's metadata.

        The keys are the last parts of llama.cpp's metadata keys: ``temp``, ``top_k``, ``top_p``,
        ``min_p``, ``penalty_repeat``, ``sequence`` and so on.

        Source: ``llama_model_meta_key_str``.
        """
        from .._generated.enums import ModelMetaKey

        keys = [c_text(lib.llama_model_meta_key_str(key)) for key in ModelMetaKey]
        return MappingProxyType(
            {
                key.rpartition(".")[2]: typed(self.metadata[key])
                for key in keys
                if ".sampling." in key and key in self.metadata
            }
        )

    # Place

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices that the model uses besides the CPU; ``()`` if it uses none.

        Source: ``llamacffi_model_device``.
        """
        ptr = self.ptr
        count = lib.llamacffi_model_n_devices(ptr)
        # upstream: src/llama.cpp ggml_backend_meta_device: split_mode="tensor" gives the model one
        # device that belongs to no backend, and so we list the devices that it stands for.
        found = self._divided or [lib.llamacffi_model_device(ptr, i) for i in range(count)]
        return tuple(map(new_device, found))

    @property
    def placement(self) -> Mapping[str, int]:
        """Where the weights are: bytes by the name of the buffer type, such as ``CUDA0``.

        ``CPU_Mapped`` is the file mapped into memory; ``CPU_REPACK`` and similar types hold weights
        in a layout for this CPU.  With ``no_alloc=True``, this is where the weights would go if the
        file were not mapped, so ``CPU`` takes the place of ``CPU_Mapped``.  Empty with
        ``vocab_only=True``.

        Source: ``ggml_backend_buffer_name``.
        """
        found: dict[str, int] = {}
        for tensor in tensors(self.ptr):
            if tensor.buffer != ffi.NULL:
                name = c_text(lib.ggml_backend_buffer_name(tensor.buffer))
                found[name] = found.get(name, 0) + lib.ggml_nbytes(tensor)
        return MappingProxyType(found)


def weights(ptr: Any) -> Iterator[Any]:
    """Yield each tensor of a model once."""
    return iter({bytes(ffi.string(tensor.name)): tensor for tensor in tensors(ptr)}.values())


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Return the shape of a ``struct ggml_tensor *`` in numpy's order: rows come last."""
    return tuple(tensor.ne[i] for i in reversed(range(lib.ggml_n_dims(tensor))))


def check_weights(model: ModelInfo) -> None:
    """Raise UnsupportedError if a model was loaded without its weights."""
    if model.without_weights:
        raise UnsupportedError(
            f"{model!r} was loaded with {model.without_weights}=True, so it has no weights: load "
            "it without that parameter"
        )


def fingerprint_of(model: ModelInfo) -> Mapping[str, str]:
    """Return what a saved state must have in common with a model, ready for JSON."""
    return model._fingerprint


def is_divided(model: ModelInfo) -> bool:
    """Return whether each tensor is split across devices (``split_mode="tensor"``)."""
    return bool(model._divided)
