"""Quantization: storing the weights of a model in fewer bits."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core.atomic import check_target, explain_failure, replacing_all, scratch_beside
from .._core.callbacks import bridged
from .._core.text import c_path, checked_path
from .._core.values import check_function
from .._generated.enums import Ftype, GgmlType
from .._native import ffi, lib
from ..backend import registry as backend
from ..errors import ArgumentError, GgufError, NativeError, QuantizeError, UnsupportedError
from ..gguf.gguf import Gguf
from ..gguf.shards import check_other, open_all, paths_of
from ..gguf.types import dequantize_array, row_bytes
from ..log import capture_logs, drain, with_log
from ..model.file_kind import MODEL, PROJECTOR, kind_of
from .quantize_params import ftype_name, ftype_of, ftypes, quantize_params

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._generated.model_quantize_params import QuantizeParams
    from ..gguf.gguf import GgufTensor

__all__ = ["QuantizeResult", "ftype_name", "ftype_of", "ftypes", "quantize"]

# upstream: src/llama-quant.cpp "[%4d/%4d] %-36s - [%s], type = %6s, ": what it logs for a tensor
# tells us its number and name, and in a dry run its new type.
NUMBER = re.compile(rb"\[ *(\d+)/ *\d+\] (.+?) *- \[")
TYPE = re.compile(rb"-> .*\((\w+)\)\s*$")
BLOCK = re.compile(r"blk\.(\d+)\.")

# upstream: ggml/src/ggml-quants.c "GGML_ASSERT(grid_index >= 0)": larger weights overflow in the
# search for the nearest grid point, and fail this assertion on a worker thread.  The grids could
# not
# represent them anyway.
LARGEST = 1e6
PIECE = 2**26  # bytes of float32 to check at a time


@dataclass(frozen=True)
class QuantizeResult:
    """What `quantize` has done or, in a dry run, would do."""

    paths: tuple[Path, ...]
    """The files that were written; empty in a dry run."""
    ftype: Ftype | None
    """The file type; None if the tensors were only copied."""
    types: Mapping[str, GgmlType]
    """The type of each tensor, by its name in the new file."""
    size_before: int
    """Size of these tensors in the source, in bytes."""
    size_after: int
    """Their new size, in bytes."""
    n_elements: int
    """Number of elements in these tensors."""

    @property
    def bits_per_weight(self) -> float:
        """Average number of bits per element."""
        return 8 * self.size_after / max(self.n_elements, 1)


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor, and what will become of it."""

    name: str
    original: GgufTensor
    type: GgmlType

    @property
    def nbytes(self) -> int:
        """Its size in the new file, in bytes."""
        shape = self.original.shape
        return self.original.n_elements // shape[-1] * row_bytes(self.type, shape[-1])


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None,
    ftype: Ftype | int | str | None = None,
    /,
    *,
    progress: Callable[[float], bool | None] | None = None,
    **params: Unpack[QuantizeParams],
) -> QuantizeResult:
    """Write a copy of a model whose weights take fewer bits.

    It uses all CPU cores (see ``nthread``), tensor by tensor.  Ctrl-C, an exception or False from
    ``progress`` stops it at the next tensor.  The target appears, or is replaced, only when it is
    complete.

    Args:
        source: The model, preferably F32, F16 or BF16; if it has several files, the first.
        target: The file to write; with ``keep_split``, the prefix of the file names.  None is for
            ``dry_run=True``.
        ftype: The file type to make, such as ``"Q4_K_M"`` (the default); `ftypes` lists them all.
            Can also be given as a keyword.
        progress: Called with the fraction done by size, 0.0 to 1.0.
        **params: Fields of ``llama_model_quantize_params``:
            ``imatrix`` is an `Imatrix`, a mapping of names to arrays, or a file;
            ``tt_overrides`` maps regular expressions for tensor names to types; the first match
            counts;
            ``kv_overrides`` is metadata to set;
            ``prune_layers`` lists layers to leave out;
            ``dry_run`` only reports what would be done.

    Returns:
        What became of each tensor.

    Raises:
        ModelNotFoundError: The source does not exist.
        GgufError: The source is not GGUF.
        ArgumentError: A parameter is out of range, or conflicts with the model or another one.
        QuantizeError: llama.cpp failed, or ``progress`` stopped it; the notes have its log.
        OSError: The target cannot be written.

    Source: ``llama_model_quantize``.
    """
    fields = _fields(ftype, dict(params))
    if progress is not None:
        check_function("progress", progress)
    backend.load()
    with ExitStack() as stack:
        files = open_all(checked_path(source, "source"), metadata_only=True)
        for gguf in files.values():
            stack.enter_context(gguf)
        _check_kind(source, next(iter(files.values())))
        struct, _keep = quantize_params(fields, list(files.values()))
        targets = _targets(target, struct, files)
        planned = _plan(source, struct, files)
        _check_plan(planned, struct, files)
        if not struct.dry_run:
            _check_threads(struct)
            _run(source, struct, targets, planned, progress)
        return QuantizeResult(
            tuple(targets),
            None if struct.only_copy else Ftype(struct.ftype),
            MappingProxyType({tensor.name: tensor.type for tensor in planned}),
            sum(tensor.original.nbytes for tensor in planned),
            sum(tensor.nbytes for tensor in planned),
            sum(tensor.original.n_elements for tensor in planned),
        )


def _check_kind(source: Any, gguf: Gguf) -> None:
    """Reject a file that is neither a model nor a projector."""
    kind = kind_of(gguf.ptr)
    if kind not in ("", MODEL, PROJECTOR):
        raise QuantizeError(f"cannot quantize {os.fspath(source)!r}: it is {kind}")


def _fields(ftype: Any, params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters, including the file type."""
    if ftype is not None and "ftype" in params:
        raise TypeError("ftype is given twice, as an argument and as a keyword: give it once")
    if ftype is not None:
        params["ftype"] = ftype
    return {"ftype": "Q4_K_M"} | params


def _targets(target: Any, struct: Any, files: Mapping[Path, Gguf]) -> list[Path]:
    """Return the files to write.

    Raises:
        ArgumentError: The target is missing, a directory, or a file of the source.
    """
    if struct.dry_run:
        return []
    if target is None:
        raise ArgumentError("target=None needs dry_run=True; otherwise name a file to write")
    target = checked_path(target, "target")
    targets = paths_of(target, len(files)) if struct.keep_split else [Path(target)]
    for path in targets:
        check_other(path, files)
        if path.is_dir():
            raise ArgumentError(f"the target {os.fspath(path)!r} is a directory: name a file")
        check_target(path if struct.keep_split else target)
        if not path.parent.is_dir():
            raise FileNotFoundError(2, "no such directory", os.fspath(path.parent))
    return targets


def _plan(source: Any, struct: Any, files: Mapping[Path, Gguf]) -> list[PlannedTensor]:
    """Return what llama.cpp will do, according to its log of a dry run."""
    tensors = dict(_kept(struct, files))
    found: list[tuple[str, GgmlType | None]] = []

    def on_message(text: bytes) -> None:
        if match := NUMBER.match(text):
            found.append((match[2].decode("utf-8", "surrogateescape"), None))
        elif found and (match := TYPE.search(text)):
            found[-1] = (found[-1][0], _type_called(match[1]))

    dry_run, struct.dry_run = struct.dry_run, True
    try:
        # The real run logs the same again, so forward the log only of a dry run.
        with capture_logs(forward=dry_run, thread=True):
            _call(source, source, struct, on_message)
    finally:
        struct.dry_run = dry_run
    if {name for name, _type in found} != set(tensors):
        raise UnsupportedError("this llama.cpp does not log what it does with each tensor")
    return [
        PlannedTensor(name, tensors[name], tensors[name].type if type_ is None else type_)
        for name, type_ in found
    ]


def _type_called(name: bytes) -> GgmlType:
    return next(
        one
        for one in GgmlType
        if one != GgmlType.COUNT
        and lib.ggml_type_name(one) != ffi.NULL
        and ffi.string(lib.ggml_type_name(one)) == name
    )


def _kept(struct: Any, files: Mapping[Path, Gguf]) -> Iterator[tuple[str, GgufTensor]]:
    """Yield the tensors that pruning leaves, with their new names."""
    pruned: list[int] = []
    while struct.prune_layers != ffi.NULL and struct.prune_layers[len(pruned)] >= 0:
        pruned.append(struct.prune_layers[len(pruned)])
    for i, gguf in enumerate(files.values()):
        empty = True
        for name, tensor in gguf.tensors.items():
            # upstream: src/llama-quant.cpp n_per_row: it divides by the length of a row.
            if not tensor.nbytes:
                raise QuantizeError(f"cannot quantize the empty tensor {name!r}")
            match = BLOCK.search(name)
            layer = int(match[1]) if match else -1
            if layer in pruned:
                continue
            if match:
                new = layer - sum(one < layer for one in pruned)
                name = f"{name[: match.start(1)]}{new}{name[match.end(1) :]}"
            empty = False
            yield name, tensor
        # upstream: src/llama-quant.cpp ctx_outs: it creates a file only for tensors that are left.
        if empty and i > 0 and struct.keep_split:
            raise ArgumentError(
                "prune_layers leaves one of the model's files empty: omit keep_split=True"
            )


def _check_plan(planned: list[PlannedTensor], struct: Any, files: Mapping[Path, Gguf]) -> None:
    """Reject what llama.cpp would refuse halfway through, or fail an assertion for.

    upstream: src/llama-quant.cpp llama_tensor_dequantize_impl, tensor_requires_imatrix: checked
    when a tensor is processed.
    """
    important: set[bytes] = set()
    while struct.imatrix != ffi.NULL and struct.imatrix[len(important)].name != ffi.NULL:
        important.add(ffi.string(struct.imatrix[len(important)].name))
    changed = [tensor for tensor in planned if tensor.type != tensor.original.type]
    for tensor in changed:
        name, old = tensor.name, tensor.original.type
        try:
            row_bytes(tensor.type, tensor.original.shape[-1])
        except GgufError as error:
            raise ArgumentError(f"{name!r}: {error}") from None
        if lib.ggml_is_quantized(old) and not struct.allow_requantize:
            raise QuantizeError(
                f"{name!r} is already quantized to {old.name}; start from F16 for better quality, "
                "or give allow_requantize=True"
            )
        if not lib.ggml_is_quantized(old) and old.name not in ("F32", "F16", "BF16"):
            raise QuantizeError(f"llama.cpp cannot convert {name!r}, which is {old.name}")
        needed = lib.ggml_quantize_requires_imatrix(tensor.type)
        if needed and tensor.original.name.encode("utf-8", "surrogateescape") not in important:
            raise QuantizeError(
                f"quantizing {name!r} to {tensor.type.name} needs its importance matrix: give "
                "imatrix (see compute_imatrix)"
            )
    if not struct.dry_run:
        _check_numbers([tensor for tensor in changed if _searches_grid(tensor.type)], files)


def _searches_grid(type_: GgmlType) -> bool:
    return type_.name.startswith("IQ")


def _check_numbers(planned: list[PlannedTensor], files: Mapping[Path, Gguf]) -> None:
    """Reject weights that are too large for the types that search a grid."""
    # F16 cannot represent numbers that large.
    planned = [tensor for tensor in planned if tensor.original.type != GgmlType.F16]
    with ExitStack() as stack:
        tensors: dict[str, GgufTensor] = {}
        for path in files if planned else ():
            tensors.update(stack.enter_context(Gguf.open(path)).tensors)
        for tensor in planned:
            if not _largest(tensors[tensor.original.name]) <= LARGEST:
                raise QuantizeError(
                    f"{tensor.name!r} cannot become {tensor.type.name}: it contains NaN, inf or "
                    f"numbers over {LARGEST:g}"
                )


def _largest(tensor: GgufTensor) -> float:
    """Return the largest absolute value in a tensor; NaN if it contains one."""
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    n = max(1, PIECE // (4 * tensor.shape[-1]))
    largest = 0.0
    for i in range(0, len(rows), n):
        values = dequantize_array(rows[i : i + n], tensor.type)
        largest = float(np.max([largest, values.max(), -values.min()]))
    return largest


def _check_threads(struct: Any) -> None:
    """Check that the system can start the threads.

    upstream: src/llama-quant.cpp llama_tensor_quantize_impl: a thread that cannot start ends the
    process there.
    """
    n = struct.nthread if struct.nthread > 0 else os.cpu_count() or 1
    started = lib.llamacffi_threads_fit(n) if n > 1 else n
    if started < n:
        raise QuantizeError(
            f"the system can start only {started} of {n} threads: give nthread={max(started, 1)}"
        )


def _run(
    source: Any,
    struct: Any,
    targets: list[Path],
    planned: list[PlannedTensor],
    progress: Callable[[float], bool | None] | None,
) -> None:
    """Write the files, and report each tensor to ``progress``."""
    total = sum(tensor.original.nbytes for tensor in planned)
    done = 0
    pending = iter(planned)

    def report(done: int) -> None:
        fraction = done / max(total, 1)
        if progress is not None and progress(fraction) is False:
            raise QuantizeError(f"stopped at {fraction:.0%}: progress returned False")

    def on_message(text: bytes) -> None:
        nonlocal done
        if NUMBER.match(text):  # logged before llama.cpp processes a tensor
            report(done)
            done += next(pending).original.nbytes

    with replacing_all() as temporary:
        parts = [temporary(path) for path in targets]
        try:
            if struct.keep_split:
                # C chooses the file names itself, so they are links to our files.
                with scratch_beside(targets[0]) as directory:
                    for link, part in zip(
                        paths_of(directory / "part", len(parts)), parts, strict=True
                    ):
                        link.symlink_to(part)
                    _call(source, directory / "part", struct, on_message)
            else:
                _call(source, parts[0], struct, on_message)
        except QuantizeError:
            explain_failure(parts[0], targets[0])  # all of them are on the same disk
            raise
        report(total)


def _call(source: Any, target: Any, struct: Any, on_message: Callable[[bytes], None]) -> None:
    failure = f"cannot quantize {os.fspath(source)!r}"
    drain()
    with bridged(on_message) as user_data:
        try:
            code = lib.llamacffi_quantize(
                c_path(source), c_path(target), struct, lib.llamacffi_on_quantize, user_data
            )
        except NativeError as error:
            raise with_log(QuantizeError(f"{failure}: {error}")) from error
        if code:
            raise with_log(QuantizeError(failure))
    drain()
