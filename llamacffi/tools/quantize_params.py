"""The parameters of `quantize`: checked against the model, and converted to C's struct."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core.params import fill
from .._core.text import c_text
from .._core.values import as_array, check_text, checked_indices, integer, mapping
from .._generated.enums import Ftype, GgmlType
from .._native import ffi, lib
from ..errors import ArgumentError
from ..gguf.metadata import ALIGNMENT
from ..gguf.types import ggml_type, scaled_weights
from ..model.file_kind import architecture_of
from ..model.overrides import c_pattern, fit_kv_overrides, kv_overrides
from .imatrix import Imatrix

if TYPE_CHECKING:
    from typing import TypeAlias

    from ..gguf.gguf import Gguf
    from ..gguf.types import Floats

    AnyFtype: TypeAlias = Ftype | int | str

STRUCT = "llama_model_quantize_params"
# upstream: include/llama.h llama_model_kv_override: longer strings do not fit its val_str.
MOST_CHARS = ffi.sizeof(ffi.new("struct llama_model_kv_override *").val_str) - 1


def ftype_of(value: AnyFtype) -> Ftype:
    """Return the `Ftype` for a name, a number or a member.

    Args:
        value: A name such as ``"Q4_K_M"``, ``"MOSTLY_Q4_K_M"`` or what `ftype_name` returns; its
            number; or a member of `Ftype`.

    Raises:
        ArgumentError: No file type has that name or number.
        TypeError: The value is of another type.
    """
    if isinstance(value, str):
        wanted = value.upper()
        for one in Ftype:
            names = (one.name, one.name.partition("_")[2], ftype_name(one).upper())
            if wanted and wanted in names:
                return one
    elif isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"ftype must be a name, a number or a member of Ftype, not {value!r}")
    elif value in list(Ftype):
        return Ftype(value)
    known = ", ".join(one.name.partition("_")[2] for one in ftypes())
    raise ArgumentError(f"{value!r} is not a file type; models can be quantized to {known}")


def ftype_name(value: AnyFtype) -> str:
    """Return llama.cpp's name of a file type, such as ``"Q4_K - Medium"``.

    Raises:
        ArgumentError: No file type has that name or number.

    Source: ``llama_ftype_name``.
    """
    ftype = value if isinstance(value, Ftype) else ftype_of(value)
    return c_text(lib.llama_ftype_name(ftype))


def ftypes() -> list[Ftype]:
    """Return the file types that `quantize` can make."""
    return [one for one in Ftype if lib.llamacffi_ftype_type(one) != lib.GGML_TYPE_COUNT]


def quantize_params(params: Mapping[str, Any], files: list[Gguf]) -> tuple[Any, list[object]]:
    """Return a ``struct llama_model_quantize_params *``, and what it points to.

    Args:
        params: Fields of the struct, as Python values.
        files: The files of the model; only their metadata are used.

    Raises:
        TypeError: A parameter is unknown, or its value has the wrong type.
        ArgumentError: A value is out of range, or conflicts with the model or another parameter.
    """
    fields = dict(params)
    overrides = fields.pop("kv_overrides", None)
    if overrides is None:
        overrides = {}
    overrides = dict(mapping("kv_overrides", overrides, "keys to values"))
    imatrix = fields.get("imatrix")
    if isinstance(imatrix, (str, os.PathLike)):
        fields["imatrix"] = imatrix = Imatrix.open(imatrix)
    if isinstance(imatrix, Mapping):
        overrides = _provenance(imatrix) | overrides
    struct = ffi.new(f"struct {STRUCT} *")
    struct[0] = lib.llama_model_quantize_default_params()
    converters = {
        "ftype": lambda value: (ftype_of(value), None),
        "output_tensor_type": lambda value: (_tensor_type("output_tensor_type", value), None),
        "token_embedding_type": lambda value: (_tensor_type("token_embedding_type", value), None),
        "nthread": _nthread,
        "imatrix": lambda value: _imatrix(value, files),
        "tt_overrides": _tt_overrides,
        "prune_layers": lambda value: _prune_layers(value, files),
    }
    keep = fill(struct, STRUCT, fields, {}, converters)
    keep.append(_set_kv_overrides(struct, overrides, files[0]))
    _check_together(struct, fields)
    return struct, keep


def _check_together(struct: Any, fields: Mapping[str, Any]) -> None:
    """Reject combinations of parameters of which C would ignore one."""
    default = lib.llamacffi_ftype_type(struct.ftype)
    if default == lib.GGML_TYPE_COUNT:
        name = ftype_name(Ftype(struct.ftype))
        raise ArgumentError(f"llama.cpp cannot quantize to {name}; ftypes() lists what it can make")
    names = ("tt_overrides", "imatrix", "output_tensor_type", "token_embedding_type", "pure")
    chosen = [name for name in names if fields.get(name) not in (None, False)]
    if struct.only_copy and chosen:
        raise ArgumentError(f"only_copy=True would ignore {chosen[0]}: give one or the other")
    # upstream: src/llama-quant.cpp tensor_type_patterns: used only if the default is quantized.
    if "tt_overrides" in chosen and not lib.ggml_is_quantized(default):
        raise ArgumentError(
            f"llama.cpp ignores tt_overrides for {Ftype(struct.ftype).name}, which is not "
            "quantized; give a quantized ftype, or use Gguf.replace_tensor"
        )
    if "tt_overrides" in chosen and struct.pure:
        raise ArgumentError("pure=True would ignore tt_overrides: give one or the other")


def _nthread(value: Any) -> tuple[Any, object]:
    most = lib.GGML_MAX_N_THREADS
    return integer("nthread", value, 0, most, "; 0 uses all processors"), None


def _tensor_type(field: str, value: Any) -> GgmlType:
    """Return a type that C can quantize a tensor to; other types would fail an assertion."""
    if value is None or value == GgmlType.COUNT:
        return GgmlType.COUNT
    type_ = ggml_type(value)
    plain = type_ != GgmlType.F32 and type_ not in (GgmlType.F16, GgmlType.BF16)
    if plain and not lib.ggml_is_quantized(type_):
        raise ArgumentError(f"{field}={value!r}: weights cannot be converted to {type_.name}")
    if lib.ggml_get_type_traits(type_).to_float == ffi.NULL and type_ != GgmlType.F32:
        raise ArgumentError(
            f"{field}={value!r}: llama.cpp uses {type_.name} only for intermediate results"
        )
    return type_


def _tt_overrides(value: Any) -> tuple[Any, object]:
    """Return types by name pattern as a ``struct llama_model_tensor_override[]``."""
    if value is None:
        return ffi.NULL, None
    if not isinstance(value, (Mapping, Iterable)) or isinstance(value, (str, bytes)):
        raise TypeError(f"tt_overrides must map name patterns to types, not {value!r}")
    pairs = list(value.items()) if isinstance(value, Mapping) else [tuple(one) for one in value]
    if any(len(pair) != 2 for pair in pairs):
        raise TypeError(f"tt_overrides must be pairs of a pattern and a type, not {value!r}")
    # One more, without a pattern, ends the array.
    array = ffi.new("struct llama_model_tensor_override[]", len(pairs) + 1)
    keep: list[object] = [array]
    for one, (pattern, type_) in zip(array, pairs, strict=False):
        keep.append(chars := ffi.new("char[]", c_pattern(pattern)))
        one.type = _tensor_type(f"tt_overrides[{pattern!r}]", type_)
        if one.type == GgmlType.COUNT:
            raise TypeError(f"tt_overrides[{pattern!r}] must be a type, not {type_!r}")
        one.pattern = chars
    return array, keep


def _prune_layers(value: Any, files: list[Gguf]) -> tuple[Any, object]:
    """Return the layers to leave out as an ``int32_t[]`` that ends with -1."""
    if value is None:
        return ffi.NULL, None
    layers = sorted(checked_indices("prune_layers", value))
    architecture = architecture_of(files[0])
    n = files[0].get(f"{architecture}.block_count", 0)
    assert isinstance(n, int)
    if layers and not 0 <= layers[0] <= layers[-1] < n:
        raise ArgumentError(f"prune_layers={layers}: the model has layers 0 to {n - 1}")
    if layers and len(layers) == n:
        raise ArgumentError(f"prune_layers={layers} would remove every layer")
    # upstream: src/llama-quant.cpp prune_list: arrays with one value per layer keep their length.
    for key in files[0]:
        if layers and key.startswith(f"{architecture}.") and files[0].is_array(key):
            array = files[0][key]
            if isinstance(array, (list, np.ndarray)) and len(array) == n:
                raise ArgumentError(
                    f"cannot prune layers: the model has one value per layer in {key!r}, which "
                    "llama.cpp does not adapt, so the result could not be loaded"
                )
    array = ffi.new("int32_t[]", [*layers, -1])
    return array, array


def _imatrix(value: Any, files: list[Gguf]) -> tuple[Any, object]:
    """Return an importance matrix as a ``struct llama_model_imatrix_data[]``."""
    if value is None:
        return ffi.NULL, None
    mapping("imatrix", value, "names to arrays, or a file")
    tensors = {name: tensor for one in files for name, tensor in one.tensors.items()}
    if not set(value) & set(tensors):
        raise ArgumentError(
            f"imatrix is for another model: none of its {len(value)} names is a tensor here"
        )
    # One more, without a name, ends the array.
    array = ffi.new("struct llama_model_imatrix_data[]", len(value) + 1)
    keep: list[object] = [array]
    for one, (name, weights) in zip(array, value.items(), strict=False):
        if not isinstance(name, str):
            raise TypeError(f"a name in imatrix must be str, not {name!r}")
        tensor, given = tensors.get(name), as_array(f"imatrix[{name!r}]", weights, np.float32)
        shape = (-1, given.shape[-1] if given.ndim else 1)
        if tensor is not None:
            shape = (tensor.shape[-3] if len(tensor.shape) > 2 else 1, tensor.shape[-1])
        data = _weights(name, given, shape)
        chars = ffi.new("char[]", check_text(f"the name {name!r} in imatrix", name, escaped=True))
        numbers = ffi.from_buffer("float[]", data)
        one.name, one.data, one.size = chars, numbers, data.size
        keep += [chars, numbers]
    return array, keep


def _weights(name: str, given: Floats, shape: tuple[int, int]) -> Floats:
    """Return the importance of columns as C expects it: one row, or one for each expert."""
    try:
        data = given.reshape(shape)
    except ValueError:
        raise ArgumentError(
            f"imatrix[{name!r}] must have shape {shape} for this model, not {given.shape}"
        ) from None
    if not (np.isfinite(data).all() and (data >= 0).all()):
        raise ArgumentError(
            f"imatrix[{name!r}] must contain only finite numbers that are not negative"
        )
    return np.ascontiguousarray(scaled_weights(data))


def _provenance(imatrix: Any) -> dict[str, Any]:
    """Return the metadata that record the importance matrix.

    upstream: tools/quantize/quantize.cpp LLM_KV_QUANTIZE_IMATRIX_FILE: its programs write the same.
    """
    found: dict[str, Any] = {"quantize.imatrix.entries_count": len(imatrix)}
    if isinstance(imatrix, Imatrix):
        if imatrix.path is not None:
            found["quantize.imatrix.file"] = os.fspath(imatrix.path)
        if imatrix.datasets:
            found["quantize.imatrix.dataset"] = imatrix.datasets[0]
        if imatrix.chunk_count:
            found["quantize.imatrix.chunks_count"] = imatrix.chunk_count
    return {key: _cut(value) if isinstance(value, str) else value for key, value in found.items()}


def _cut(text: str) -> str:
    raw = text.encode("utf-8", "surrogateescape")[:MOST_CHARS]
    return raw.decode("utf-8", "ignore")


def _set_kv_overrides(struct: Any, overrides: dict[str, Any], gguf: Gguf) -> object:
    """Set the metadata to override, in the types that C will store."""
    if ALIGNMENT in overrides:
        raise ArgumentError(
            f"kv_overrides cannot change {ALIGNMENT!r}, which llama.cpp does not apply when it "
            "writes; set it with Gguf"
        )
    # upstream: src/llama-quant.cpp gguf_set_val_u32, gguf_set_val_f32: it sets numbers only so.
    for key, value in overrides.items():
        known = gguf.type(key) if key in gguf else None
        number = isinstance(value, int) and not isinstance(value, bool)
        short = None if known is None else known.name
        if number and short not in (None, "UINT32", "FLOAT32", "FLOAT64"):
            raise ArgumentError(
                f"kv_overrides[{key!r}]: llama.cpp stores integers as UINT32, but the model has "
                f"{short}; set it with Gguf"
            )
        if short == "FLOAT64":
            raise ArgumentError(
                f"kv_overrides[{key!r}]: llama.cpp would store 32 bits instead of 64; set it with "
                "Gguf"
            )
        if number and not 0 <= value < 2**32:
            raise ArgumentError(
                f"kv_overrides[{key!r}] must be between 0 and {2**32 - 1}, not {value}: llama.cpp "
                "stores it as UINT32"
            )
    # upstream: src/llama-quant.cpp GGUF_DEFAULT_ALIGNMENT: it aligns tensors so, even if the
    # metadata that it copies say otherwise.
    if gguf.alignment != lib.GGUF_DEFAULT_ALIGNMENT:
        overrides = overrides | {ALIGNMENT: lib.GGUF_DEFAULT_ALIGNMENT}
    struct.kv_overrides, keep = kv_overrides(overrides or None)
    fit_kv_overrides(struct, gguf.ptr)
    return keep
