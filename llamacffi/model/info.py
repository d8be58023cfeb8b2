"""What is known of a model: its sizes, its kind, and what its file says of it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .._core.ownership import Handle
from .._core.text import read_bytes, read_metadata
from .._native import ffi, lib
from ..backend.device_types import Device, new_device, text
from ..errors import ArgumentError, UnsupportedError
from .weights import tensors, weights_identity

if TYPE_CHECKING:
    from .._generated.enums import Ftype, RopeType

# The metadata with the default chat template; others have a dot and their name behind it.
CHAT_TEMPLATE = "tokenizer.chat_template"


class ModelInfo(Handle):
    """The properties of a `Model`; `Model` itself is how to get one.

    Of a model that was loaded with ``vocab_only=True`` llama.cpp knows the metadata, the vocabulary
    and the kind; the other properties raise `UnsupportedError`.
    """

    __slots__ = ("__dict__", "_divided", "without_weights")

    _divided: list[Any]
    """The devices among which each tensor is divided; empty if none is."""

    without_weights: str | None
    """The parameter that left the weights out, ``"vocab_only"`` or ``"no_alloc"``; else None."""

    def _check_weights(self) -> None:
        """Raise UnsupportedError if it was loaded without its weights."""
        if self.without_weights:
            raise UnsupportedError(
                f"{self!r} was loaded with {self.without_weights}=True, without its weights: load "
                "it without that"
            )

    def _known(self, function: Callable[[Any], Any]) -> Any:
        """Return what a C function says that reads the parameters of the architecture."""
        ptr = self.ptr
        if self.without_weights == "vocab_only":  # they are not set, or an assertion fails
            raise UnsupportedError("that is not known of a model loaded with vocab_only=True")
        return function(ptr)

    # The file

    @functools.cached_property
    def metadata(self) -> Mapping[str, str]:
        """The scalar metadata of the file, as text; `Gguf` reads arrays and types too.

        It does not show what ``kv_overrides`` has overridden.

        Source: ``llama_model_meta_key_by_index``, ``llama_model_meta_val_str_by_index``.
        """
        return Metadata(self.ptr)

    @functools.cached_property
    def _identity(self) -> Mapping[str, str]:
        """What tells it from others, in saved states."""
        return {"desc": self.desc, **weights_identity(self.ptr, self.metadata)}

    @property
    def architecture(self) -> str:
        """The name of its architecture, such as ``llama``; empty if the file does not say."""
        return self.metadata.get("general.architecture", "")

    @property
    def desc(self) -> str:
        """What kind of model it is, such as ``llama 7B Q4_K - Medium``.

        Empty if it was loaded with ``vocab_only=True``.

        Source: ``llama_model_desc``.
        """
        ptr = self.ptr
        return read_bytes(lambda buffer, size: lib.llama_model_desc(ptr, buffer, size)).decode()

    @property
    def ftype(self) -> Ftype | None:
        """The type of most of its weights; None if the file names one that llama.cpp has not.

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
        """The type of most of its weights in words, such as ``Q4_K - Medium``.

        ``(guessed)`` stands before it if the file does not say.

        Source: ``llama_ftype_name``.
        """
        name = lib.llama_ftype_name(self._known(lib.llama_model_ftype))
        return str(ffi.string(name), "utf-8")

    # Sizes

    @property
    def size(self) -> int:
        """The size of all tensors, in bytes.  Source: ``llama_model_size``."""
        ptr = self.ptr
        # llama.cpp counts while it reads a file, and knows neither of a model made in memory.
        return int(lib.llama_model_size(ptr)) or sum(map(lib.ggml_nbytes, weights(ptr)))

    @property
    def n_params(self) -> int:
        """The number of weights.  Source: ``llama_model_n_params``."""
        ptr = self.ptr
        return int(lib.llama_model_n_params(ptr)) or sum(map(lib.ggml_nelements, weights(ptr)))

    @property
    def n_ctx_train(self) -> int:
        """The length of the texts it was trained with, in tokens.

        Source: ``llama_model_n_ctx_train``.
        """
        return int(self._known(lib.llama_model_n_ctx_train))

    @property
    def n_embd(self) -> int:
        """The width of its hidden states.  Source: ``llama_model_n_embd``."""
        return int(self._known(lib.llama_model_n_embd))

    @property
    def n_embd_inp(self) -> int:
        """The width of an embedding as input; more than `n_embd` if it has several parts.

        Source: ``llama_model_n_embd_inp``.
        """
        return int(self._known(lib.llama_model_n_embd_inp))

    @property
    def n_embd_out(self) -> int:
        """The width of an embedding as output.  Source: ``llama_model_n_embd_out``."""
        return int(self._known(lib.llama_model_n_embd_out))

    @property
    def n_layer(self) -> int:
        """The number of layers, without those of `n_layer_nextn`.

        Source: ``llama_model_n_layer``.
        """
        return int(self._known(lib.llama_model_n_layer))

    @property
    def n_layer_nextn(self) -> int:
        """The number of layers that predict further tokens (MTP); 0 without.

        Source: ``llama_model_n_layer_nextn``.
        """
        return int(self._known(lib.llama_model_n_layer_nextn))

    @property
    def n_head(self) -> int:
        """The number of attention heads in the first layer; 0 without attention.

        Source: ``llama_model_n_head``.
        """
        return int(self._known(lib.llama_model_n_head))

    @property
    def n_head_kv(self) -> int:
        """The number of heads of keys and values in the first layer.

        Source: ``llama_model_n_head_kv``.
        """
        return int(self._known(lib.llama_model_n_head_kv))

    @property
    def n_swa(self) -> int:
        """The width of its sliding window, in tokens; 0 without.  Source: ``llama_model_n_swa``."""
        return int(self._known(lib.llama_model_n_swa))

    # Kind

    @property
    def rope_type(self) -> RopeType:
        """How it rotates by positions; ``NONE`` if it does not.

        Source: ``llama_model_rope_type``.
        """
        from .._generated.enums import RopeType

        return RopeType(self._known(lib.llama_model_rope_type))

    @property
    def rope_freq_scale_train(self) -> float:
        """The scale of the frequencies of its rotation.

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
        """The token that the decoder begins with, after the encoder; None if it names none.

        Source: ``llama_model_decoder_start_token``.
        """
        token = int(self._known(lib.llama_model_decoder_start_token))
        return None if token == lib.LLAMA_TOKEN_NULL else token

    @property
    def is_recurrent(self) -> bool:
        """Whether it has a state in place of a cache, as Mamba.

        Source: ``llama_model_is_recurrent``.
        """
        return bool(lib.llama_model_is_recurrent(self.ptr))

    @property
    def is_hybrid(self) -> bool:
        """Whether it has both a state and a cache, as Jamba.  Source: ``llama_model_is_hybrid``."""
        return bool(lib.llama_model_is_hybrid(self.ptr))

    @property
    def is_diffusion(self) -> bool:
        """Whether it fills in many tokens at once.  Source: ``llama_model_is_diffusion``."""
        return bool(lib.llama_model_is_diffusion(self.ptr))

    @property
    def n_cls_out(self) -> int:
        """The number of scores that it gives a text, if it is a classifier or reranker.

        1 for any other model, since llama.cpp does not tell them apart.

        Source: ``llama_model_n_cls_out``.
        """
        return int(self._known(lib.llama_model_n_cls_out))

    @property
    def cls_labels(self) -> tuple[str | None, ...]:
        """What each score of a classifier is called, None if it has no name; ``()`` without names.

        Source: ``llama_model_cls_label``.
        """
        ptr = self.ptr  # the texts are the model's
        chars = [lib.llama_model_cls_label(ptr, i) for i in range(self.n_cls_out)]
        labels = tuple(text(one) if one != ffi.NULL else None for one in chars)
        return labels if any(label is not None for label in labels) else ()

    # Text

    def chat_template(self, name: str | None = None) -> str | None:
        """Return the default chat template, or the one called ``name``; None if there is none.

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
                raise ArgumentError(f"a chat template cannot be called {name!r}")
        ptr = self.ptr  # the text is the model's
        chars = lib.llama_model_chat_template(ptr, raw)
        return None if chars == ffi.NULL else text(chars)

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """All chat templates by name; the one without is ``"default"``."""
        found = {}
        if (default := self.chat_template()) is not None:
            found["default"] = default
        for key, template in self.metadata.items():
            if key.startswith(f"{CHAT_TEMPLATE}."):
                found[key.removeprefix(f"{CHAT_TEMPLATE}.")] = template
        return MappingProxyType(found)

    @property
    def recommended_sampling(self) -> Mapping[str, int | float | str]:
        """How its makers sample from it: those of their settings that are in the file.

        The keys are the ends of llama.cpp's own: ``temp``, ``top_k``, ``top_p``, ``min_p``,
        ``penalty_repeat``, ``sequence`` and so on.

        Source: ``llama_model_meta_key_str``.
        """
        from .._generated.enums import ModelMetaKey

        keys = [text(lib.llama_model_meta_key_str(key)) for key in ModelMetaKey]
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
        """The devices that it uses besides the processor; ``()`` if there are none.

        Source: ``llamacffi_model_device``.
        """
        ptr = self.ptr
        count = lib.llamacffi_model_n_devices(ptr)
        # Those among which each tensor is divided are one for llama.cpp, which has no backend.
        found = self._divided or [lib.llamacffi_model_device(ptr, i) for i in range(count)]
        return tuple(map(new_device, found))

    @property
    def placement(self) -> Mapping[str, int]:
        """Where its weights are: bytes by the name of the buffer type, such as ``CUDA0``.

        ``CPU_Mapped`` is the file, mapped into memory; ``CPU_REPACK`` and its like are memory with
        the weights in a layout for this processor.  With ``no_alloc=True`` it is where they would
        be, if the file were not mapped: ``CPU``, and not ``CPU_Mapped``.  Empty with
        ``vocab_only=True``, which places none.

        Source: ``ggml_backend_buffer_name``.
        """
        found: dict[str, int] = {}
        for tensor in tensors(self.ptr):
            if tensor.buffer != ffi.NULL:
                name = text(lib.ggml_backend_buffer_name(tensor.buffer))
                found[name] = found.get(name, 0) + lib.ggml_nbytes(tensor)
        return MappingProxyType(found)


class Metadata(Mapping[str, str]):
    """The metadata of a model: read from C once, then independent of it."""

    def __init__(self, ptr: Any) -> None:
        self._values = read_metadata(
            ptr,
            lib.llama_model_meta_count,
            lib.llama_model_meta_key_by_index,
            lib.llama_model_meta_val_str_by_index,
        )

    def __getitem__(self, key: str) -> str:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


def weights(ptr: Any) -> Iterator[Any]:
    """Yield the tensors of a model, each once."""
    return iter({bytes(ffi.string(tensor.name)): tensor for tensor in tensors(ptr)}.values())


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Return the shape of a ``struct ggml_tensor *`` as numpy has it: rows are last."""
    return tuple(tensor.ne[i] for i in reversed(range(lib.ggml_n_dims(tensor))))


def typed(value: str) -> int | float | str:
    """Return a metadata value by what it looks like."""
    if re.fullmatch(r"-?\d+", value):
        return int(value)
    return float(value) if re.fullmatch(r"-?\d+\.\d+(e[-+]?\d+)?", value) else value
