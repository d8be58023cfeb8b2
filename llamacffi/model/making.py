"""Build models in memory: from a `Gguf`, or from metadata and a function that sets the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._core.callbacks import Bridge
from .._core.files import anonymous_file
from .._core.text import c_text
from .._core.values import check_function
from .._native import ffi, lib
from ..errors import ArgumentError, NativeError
from ..gguf.gguf import Gguf, origin, pieces
from . import load_mode
from .info import shape_of
from .loading import check_metadata, load, load_file, make_model

if TYPE_CHECKING:
    from .._core.ownership import Made
    from .loading import Progress
    from .types import Fill


def load_gguf(gguf: Any, struct: Any, progress: Progress | None) -> Made:
    """Load a `Gguf` as if it were written to a file first.

    Source: ``llama_model_load_from_file_ptr``.
    """
    if not isinstance(gguf, Gguf):
        raise TypeError(f"without fill=, gguf must be a Gguf with tensors, not {gguf!r}")
    if not gguf.tensors and not struct.vocab_only:
        raise ArgumentError("the Gguf has no tensors: pass fill= or vocab_only=True")
    name = origin(gguf)
    with anonymous_file(pieces(gguf), name) as file:
        return load_file(file, 0, struct, progress, name)


def load_filled(gguf: Any, fill: Fill, struct: Any, given: Mapping[str, Any]) -> Made:
    """Build the model that ``gguf`` describes, with weights from ``fill``.

    Source: ``llama_model_init_from_user``.
    """
    check_function("fill", fill)
    _check_file_params(struct, given)
    bridge = Bridge(_Filler(fill))
    user_data = ffi.new_handle(bridge)

    def call(params: Any) -> Made:
        args = metadata, lib.llamacffi_on_tensor_data, user_data, params
        try:
            made = make_model(lib.llama_model_init_from_user, *args)
        except NativeError:
            bridge.reraise()
            raise
        # upstream: include/llama.h llama_model_set_tensor_data_t: the callback cannot make the load
        # fail, and so we drop the finished model.
        if bridge.error is not None:
            del made
            bridge.reraise()
        return made

    metadata = _metadata_of(gguf)
    name = origin(gguf) if isinstance(gguf, Gguf) else "<metadata>"
    check_metadata(struct, metadata, name)
    return load(call, struct, name, None)


def _metadata_of(gguf: Any) -> Any:
    """Return the ``struct gguf_context *`` of a `Gguf`, or the raw one."""
    if isinstance(gguf, Gguf):
        return gguf.copy().ptr  # a copy: another thread may change the Gguf
    wanted = ffi.typeof("struct gguf_context *")
    if not isinstance(gguf, ffi.CData) or ffi.typeof(gguf) is not wanted or gguf == ffi.NULL:
        raise TypeError(f"gguf must be a Gguf or a struct gguf_context *, not {gguf!r}")
    return gguf


def _check_file_params(struct: Any, given: Mapping[str, Any]) -> None:
    """Raise ArgumentError for parameters that apply only to files."""
    # upstream: src/llama.cpp llama_model_init_from_user: ignores load_mode and use_extra_bufts, and
    # so we refuse them.
    lazy = hasattr(struct, "lazy_mode") and struct.lazy_mode == lib.LLAMA_LAZY_MODE_ON
    read = load_mode.is_auto(struct) or load_mode.is_read(struct)
    for name, is_given in (
        ("load_mode", not read or load_mode.is_direct(struct)),
        ("lazy_mode", lazy),
        ("check_tensors", struct.check_tensors),
    ):
        if is_given:
            raise ArgumentError(f"{name}={given.get(name)!r} applies to files only, not to fill=")
    if given.get("use_extra_bufts"):
        raise ArgumentError(
            "use_extra_bufts=True is not possible with fill=: llama.cpp keeps the weights in the "
            "layout that fill= gives them"
        )


class _Filler:
    """Takes the tensors of a model from C one by one, and has the user's function fill them."""

    def __init__(self, fill: Fill) -> None:
        self._fill = fill
        self._seen: dict[str, Any] = {}

    def __call__(self, tensor: Any) -> None:
        import numpy as np

        from .._generated.enums import GgmlType
        from ..gguf.types import array_of

        name = c_text(tensor.name)
        n_bytes = lib.ggml_nbytes(tensor)
        buffer = np.zeros(n_bytes, np.uint8)
        # upstream: src/llama-model-loader.cpp TENSOR_DUPLICATED: a tensor that is used in two
        # places may exist twice, and so the second gets the data of the first.
        if name in self._seen:
            lib.ggml_backend_tensor_get(self._seen[name], ffi.from_buffer(buffer), 0, n_bytes)
        else:
            array = array_of(buffer, GgmlType(tensor.type), shape_of(tensor))
            if self._fill(name, array) is not None:
                raise TypeError(f"fill returned a value for {name!r}; it must write to the array")
            self._seen[name] = tensor
        lib.ggml_backend_tensor_set(tensor, ffi.from_buffer(buffer), 0, n_bytes)
