"""Quantization: to make the weights of a model smaller."""

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

    from .._generated.params import QuantizeParams
    from ..gguf.gguf import GgufTensor

__all__ = ["QuantizeResult", "ftype_name", "ftype_of", "ftypes", "quantize"]

# What llama.cpp logs of a tensor, in pieces: its number and name, and its type in a dry run.
NUMBER = re.compile(rb"\[ *(\d+)/ *\d+\] (.+?) *- \[")
TYPE = re.compile(rb"-> .*\((\w+)\)\s*$")
BLOCK = re.compile(r"blk\.(\d+)\.")

# Larger numbers overflow in the search for the nearest point of a grid, where C has assertions on
# threads of its own; and no block of a grid could hold them.
LARGEST = 1e6
PIECE = 2**26  # bytes of numbers that are looked at in one piece


@dataclass(frozen=True)
class QuantizeResult:
    """What `quantize` has done, or would do."""

    paths: tuple[Path, ...]
    """The files that were written; none in a dry run."""
    ftype: Ftype | None
    """The type of the file; None if the tensors were only copied."""
    types: Mapping[str, GgmlType]
    """The types of the tensors, by their names in the new file."""
    size_before: int
    """The size of those tensors in the source, in bytes."""
    size_after: int
    """Their size now, in bytes."""
    n_elements: int
    """How many numbers they have."""

    @property
    def bits_per_weight(self) -> float:
        """How many bits a number takes on average."""
        return 8 * self.size_after / max(self.n_elements, 1)


@dataclass(frozen=True)
class Step:
    """One tensor: what it is, and what becomes of it."""

    name: str
    source: GgufTensor
    type: GgmlType

    @property
    def nbytes(self) -> int:
        """Its size in the new file, in bytes."""
        shape = self.source.shape
        return self.source.n_elements // shape[-1] * row_bytes(self.type, shape[-1])


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None,
    ftype: Ftype | int | str | None = None,
    /,
    *,
    progress: Callable[[float], bool | None] | None = None,
    **params: Unpack[QuantizeParams],
) -> QuantizeResult:
    """Write a model with weights of fewer bits, at once or not at all.

    It works on all processors (``nthread``), tensor by tensor.  Ctrl-C, an exception or False from
    ``progress`` stop it at the next tensor, and leave what was there before.

    Args:
        source: The model, best of F32, F16 or BF16; of several files, the first.
        target: The file to write; with ``keep_split`` what the names of the files begin with.
            None for ``dry_run=True``.
        ftype: What to make, such as ``"Q4_K_M"`` (the default); `ftypes` has them all.  Also as a
            keyword.
        progress: Called with the part that is done, 0.0 to 1.0, by size.
        **params: Fields of ``llama_model_quantize_params``:
            ``imatrix`` is an `Imatrix`, a mapping of names to arrays, or a file;
            ``tt_overrides`` are types by regular expressions for the names of tensors, of which the
            first that is found counts;
            ``kv_overrides`` are metadata to set;
            ``prune_layers`` are layers to leave out;
            ``dry_run`` only says what would be done.

    Returns:
        What became of each tensor.

    Raises:
        ModelNotFoundError: There is no such model.
        GgufError: It is no GGUF.
        ArgumentError: A parameter is out of range, or does not fit the model or another.
        QuantizeError: llama.cpp cannot do it, or it was stopped; the lines of its log are in the
            notes.
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
        steps = _plan(source, struct, files)
        _check_steps(steps, struct, files)
        if not struct.dry_run:
            _check_threads(struct)
            _run(source, struct, targets, steps, progress)
        return QuantizeResult(
            tuple(targets),
            None if struct.only_copy else Ftype(struct.ftype),
            MappingProxyType({step.name: step.type for step in steps}),
            sum(step.source.nbytes for step in steps),
            sum(step.nbytes for step in steps),
            sum(step.source.n_elements for step in steps),
        )


def _check_kind(source: Any, gguf: Gguf) -> None:
    """Raise for a file that is neither a model nor a projector, which is quantized like one."""
    kind = kind_of(gguf.ptr)
    if kind not in ("", MODEL, PROJECTOR):
        raise QuantizeError(f"cannot quantize {os.fspath(source)!r}: it is {kind}")


def _fields(ftype: Any, params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters with the file type among them."""
    if ftype is not None and "ftype" in params:
        raise TypeError("ftype is given twice, by place and by name: give it once")
    if ftype is not None:
        params["ftype"] = ftype
    return {"ftype": "Q4_K_M"} | params


def _targets(target: Any, struct: Any, files: Mapping[Path, Gguf]) -> list[Path]:
    """Return the files to write.

    Raises:
        ArgumentError: There is no target, or it is the source.
    """
    if struct.dry_run:
        return []
    if target is None:
        raise ArgumentError("say where to write to; without a target, dry_run=True is possible")
    target = checked_path(target, "target")
    targets = paths_of(target, len(files)) if struct.keep_split else [Path(target)]
    for path in targets:
        check_other(path, files)
        if path.is_dir():
            raise ArgumentError(f"{os.fspath(path)!r} is a directory; name a file")
        check_target(path if struct.keep_split else target)
        if not path.parent.is_dir():
            raise FileNotFoundError(2, "there is no such directory", os.fspath(path.parent))
    return targets


def _plan(source: Any, struct: Any, files: Mapping[Path, Gguf]) -> list[Step]:
    """Return what llama.cpp will do, by what it logs when it only pretends."""
    tensors = dict(_kept(struct, files))
    found: list[tuple[str, GgmlType | None]] = []

    def on_message(text: bytes) -> None:
        if match := NUMBER.match(text):
            found.append((match[2].decode("utf-8", "surrogateescape"), None))
        elif found and (match := TYPE.search(text)):
            found[-1] = (found[-1][0], _type_called(match[1]))

    dry_run, struct.dry_run = struct.dry_run, True
    try:
        # What it logs comes again when it is done.
        with capture_logs(forward=dry_run, thread=True):
            _call(source, source, struct, on_message)
    finally:
        struct.dry_run = dry_run
    if {name for name, _type in found} != set(tensors):
        raise UnsupportedError("this llama.cpp does not log what it does with each tensor")
    return [
        Step(name, tensors[name], tensors[name].type if type_ is None else type_)
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
    """Yield the tensors of the layers that are not pruned, with their new names."""
    pruned: list[int] = []
    while struct.prune_layers != ffi.NULL and struct.prune_layers[len(pruned)] >= 0:
        pruned.append(struct.prune_layers[len(pruned)])
    for i, gguf in enumerate(files.values()):
        empty = True
        for name, tensor in gguf.tensors.items():
            if not tensor.nbytes:
                raise QuantizeError(f"{name!r} has no elements; llama.cpp divides by their number")
            match = BLOCK.search(name)
            layer = int(match[1]) if match else -1
            if layer in pruned:
                continue
            if match:
                new = layer - sum(one < layer for one in pruned)
                name = f"{name[: match.start(1)]}{new}{name[match.end(1) :]}"
            empty = False
            yield name, tensor
        if empty and i > 0 and struct.keep_split:
            raise ArgumentError(
                "nothing is left of one of the files of the model: do without keep_split=True"
            )


def _check_steps(steps: list[Step], struct: Any, files: Mapping[Path, Gguf]) -> None:
    """Raise for what llama.cpp finds only when half of the work is done, or has assertions for."""
    important: set[bytes] = set()
    while struct.imatrix != ffi.NULL and struct.imatrix[len(important)].name != ffi.NULL:
        important.add(ffi.string(struct.imatrix[len(important)].name))
    changed = [step for step in steps if step.type != step.source.type]
    for step in changed:
        name, old = step.name, step.source.type
        try:
            row_bytes(step.type, step.source.shape[-1])
        except GgufError as error:
            raise ArgumentError(f"{name!r}: {error}") from None
        if lib.ggml_is_quantized(old) and not struct.allow_requantize:
            raise QuantizeError(
                f"{name!r} is {old.name} already; to quantize it again makes it worse than from "
                "F16: start from that, or say allow_requantize=True"
            )
        if not lib.ggml_is_quantized(old) and old.name not in ("F32", "F16", "BF16"):
            raise QuantizeError(f"llama.cpp cannot convert {name!r}, which is {old.name}")
        needed = lib.ggml_quantize_requires_imatrix(step.type)
        if needed and step.source.name.encode("utf-8", "surrogateescape") not in important:
            raise QuantizeError(
                f"{name!r} is to be {step.type.name}, which needs an importance matrix: give "
                "imatrix with it, see compute_imatrix"
            )
    if not struct.dry_run:
        _check_numbers([step for step in changed if _searches_grid(step.type)], files)


def _searches_grid(type_: GgmlType) -> bool:
    return type_.name.startswith("IQ")


def _check_numbers(steps: list[Step], files: Mapping[Path, Gguf]) -> None:
    """Raise if a number is too large for the types that search a grid."""
    # Numbers of 16 bits are never so large.
    steps = [step for step in steps if step.source.type != GgmlType.F16]
    with ExitStack() as stack:
        tensors: dict[str, GgufTensor] = {}
        for path in files if steps else ():
            tensors.update(stack.enter_context(Gguf.open(path)).tensors)
        for step in steps:
            if not _largest(tensors[step.source.name]) <= LARGEST:
                raise QuantizeError(
                    f"{step.name!r} has numbers over {LARGEST:g}, or that are not finite; they "
                    f"cannot be {step.type.name}"
                )


def _largest(tensor: GgufTensor) -> float:
    """Return the largest absolute number of a tensor, or nan."""
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    n = max(1, PIECE // (4 * tensor.shape[-1]))
    largest = 0.0
    for i in range(0, len(rows), n):
        values = dequantize_array(rows[i : i + n], tensor.type)
        largest = float(np.max([largest, values.max(), -values.min()]))
    return largest


def _check_threads(struct: Any) -> None:
    """Check that the system starts as many threads: C++ would end the process where it does not."""
    n = struct.nthread if struct.nthread > 0 else os.cpu_count() or 1
    started = lib.llamacffi_threads_fit(n) if n > 1 else n
    if started < n:
        raise QuantizeError(f"the system starts {started} more threads, not {n}: give nthread=1")


def _run(
    source: Any,
    struct: Any,
    targets: list[Path],
    steps: list[Step],
    progress: Callable[[float], bool | None] | None,
) -> None:
    """Write the files, telling ``progress`` of each tensor."""
    total = sum(step.source.nbytes for step in steps)
    done = 0
    pending = iter(steps)

    def tell(done: int) -> None:
        part = done / max(total, 1)
        if progress is not None and progress(part) is False:
            raise QuantizeError(f"stopped at {part:.0%}: progress returned False")

    def on_message(text: bytes) -> None:
        nonlocal done
        if NUMBER.match(text):  # logged before the work on a tensor
            tell(done)
            done += next(pending).source.nbytes

    with replacing_all() as instead:
        parts = [instead(path) for path in targets]
        try:
            if struct.keep_split:
                # C makes the names itself: they lead to the files.
                with scratch_beside(targets[0]) as directory:
                    for link, part in zip(
                        paths_of(directory / "part", len(parts)), parts, strict=True
                    ):
                        link.symlink_to(part)
                    _call(source, directory / "part", struct, on_message)
            else:
                _call(source, parts[0], struct, on_message)
        except QuantizeError:
            explain_failure(parts[0], targets[0])  # on the same disk as the other files
            raise
        tell(total)


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
