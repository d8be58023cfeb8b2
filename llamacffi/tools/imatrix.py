"""Importance matrices: how much each column of a weight matters, for `quantize`.

    collector = ImatrixCollector()
    with Context(model, cb_eval=collector, n_ctx=512) as context:
        ...  # decode representative text
    collector.imatrix().save("model.imatrix.gguf")

or at once, `compute_imatrix`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._core.values import (
    INT32_MAX,
    check_function,
    check_object,
    check_text,
    elements,
    flag,
    integer,
    is_text,
)
from ..errors import ArgumentError, ContextError, GgufError
from ..gguf.gguf import Gguf
from ..model.file_kind import kind_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from .._core.text import Text
    from ..backend.tensor import TensorView
    from ..gguf.types import Floats
    from ..model.model import Model

# The keys and the names of tensors of upstream's files.
DATASETS, CHUNKS, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
MOST_COUNTED = 2.0**62  # so that two can be added
SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass
class Squares:
    """What was seen of the inputs of one weight, which may be a stack of experts."""

    sums: npt.NDArray[np.floating]
    """``[experts, columns]``: the sums of the squares of the inputs."""
    counts: npt.NDArray[np.int64]
    """``[experts]``: of how many inputs; or ``[1]``."""


@dataclass(eq=False)
class Imatrix(Mapping[str, "Floats"]):
    """Mean squares of the inputs of each weight, by its name.

    A value is ``[columns]`` float32, of a stack of experts ``[experts, columns]``; ones for an
    expert that no token went to.
    """

    squares: dict[str, Squares]
    """The sums behind it."""
    datasets: list[str] = field(default_factory=list)
    """What it was computed from."""
    chunk_count: int = 0
    """How many pieces of text that were."""
    chunk_size: int = 0
    """How many tokens each had."""
    path: Path | None = None
    """The file that it was read from."""

    def __getitem__(self, name: str) -> Floats:
        entry = self.squares[name]
        counts = entry.counts[:, None]
        seen = entry.sums / np.maximum(counts, 1)
        means = np.where(counts > 0, seen, 1).astype(np.float32)
        return means[0] if len(means) == 1 else means

    def __iter__(self) -> Iterator[str]:
        return iter(self.squares)

    def __len__(self) -> int:
        return len(self.squares)

    def __repr__(self) -> str:
        return f"<Imatrix of {len(self)} weights and {self.chunk_count} chunks>"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Imatrix:
        """Read a file of llama.cpp's, GGUF or the older ``.dat``.

        Raises:
            ModelNotFoundError: There is no such file.
            GgufError: It is no importance matrix, or damaged.
        """
        try:
            with Gguf.open(path) as gguf:
                return _from_gguf(gguf, Path(path))
        except GgufError:
            data = Path(path).read_bytes()
            if data.startswith(b"GGUF"):
                raise
        return _from_legacy(data, Path(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as upstream's llama-imatrix does, as GGUF; at once or not at all.

        Raises:
            GgufError: A name is too long.
            OSError: It cannot be written.
        """
        with Gguf.new() as gguf:
            gguf["general.type"] = "imatrix"
            gguf.set(DATASETS, self.datasets, type="str")
            gguf.set(CHUNKS, self.chunk_count, type="u32")
            gguf.set(CHUNK_SIZE, self.chunk_size, type="u32")
            for name in sorted(self.squares):
                entry = self.squares[name]
                sums = entry.sums.reshape(len(entry.counts), -1)
                gguf.add_tensor(name + SUMS, sums, type="f32")
                gguf.add_tensor(name + COUNTS, entry.counts[:, None], type="f32")
            gguf.write(path)

    def merge(self, other: Imatrix) -> Imatrix:
        """Return one of what both have seen.

        Raises:
            ArgumentError: A weight has another shape in the other, or their sums are too large.
        """
        check_object("other", other, "Imatrix")
        squares = {name: Squares(one.sums, one.counts) for name, one in self.squares.items()}
        for name, new in other.squares.items():
            old = squares.get(name)
            if old is None:
                squares[name] = new
            elif old.sums.shape != new.sums.shape or old.counts.shape != new.counts.shape:
                raise ArgumentError(
                    f"{name!r} has the shape {old.sums.shape} here, and there {new.sums.shape}"
                )
            else:
                sums = old.sums.astype(np.float64) + new.sums
                if (np.abs(sums) > np.finfo(np.float32).max).any():
                    raise ArgumentError(f"the sums of {name!r} are too large together")
                squares[name] = Squares(sums.astype(old.sums.dtype), old.counts + new.counts)
        datasets = [*self.datasets, *other.datasets]
        chunks = self.chunk_count + other.chunk_count
        return Imatrix(squares, datasets, chunks, self.chunk_size or other.chunk_size)


class ImatrixCollector:
    """Collects an `Imatrix` from the graphs of a context: ``Context(..., cb_eval=collector)``.

    It sees each multiplication with a weight of a layer, of dense models and of mixtures.
    """

    def __init__(self, *, process_output: bool = False) -> None:
        """Begin with nothing.

        Args:
            process_output: Look at ``output.weight`` too, which is multiplied with for the tokens
                of a batch that have outputs.
        """
        self._process_output = flag("process_output", process_output)
        self._squares: dict[str, Squares] = {}

    def __call__(self, tensor: TensorView, ask: bool) -> bool:
        """Look at a node of the graph; the callback of the context."""
        name = self._weight(tensor)
        if name is not None and not ask:
            if tensor.op.name == "MUL_MAT_ID":
                self._add_experts(name, tensor)
            else:
                self._add(name, tensor)
        return name is not None or not ask

    def imatrix(self, *, dataset: str | None = None, chunk_size: int = 512) -> Imatrix:
        """Return what was collected so far.

        Args:
            dataset: What to call the text that was seen.
            chunk_size: How many tokens are a chunk; only to say how many were seen.

        Raises:
            ArgumentError: It is less than 1.
        """
        chunk_size = integer("chunk_size", chunk_size, 1, INT32_MAX)
        if dataset is not None:
            check_text("dataset", dataset, escaped=True)
        # With the precision of the files, so that a saved one is the same.
        squares = {
            name: Squares(one.sums.astype(np.float32), one.counts.copy())
            for name, one in self._squares.items()
        }
        most = max((int(one.counts.max()) for one in squares.values()), default=0)
        datasets = [] if dataset is None else [dataset]
        return Imatrix(squares, datasets, most // chunk_size, chunk_size)

    def _weight(self, tensor: TensorView) -> str | None:
        """Return the weight that a node multiplies with, if it is to be looked at."""
        if tensor.op.name not in ("MUL_MAT", "MUL_MAT_ID"):
            return None
        weight, inputs = tensor.sources[:2]
        if weight is None or inputs is None or inputs.type.name != "F32":
            return None
        # The scheduler calls its copies "device#name#number".
        parts = weight.name.split("#")
        name = parts[1] if len(parts) > 1 else parts[0]
        wanted = name.startswith("blk.") or (self._process_output and name == "output.weight")
        return name if wanted else None

    def _entry(self, name: str, n_experts: int, n_counts: int, n: int) -> Squares:
        entry = self._squares.get(name)
        if entry is None:
            entry = Squares(np.zeros((n_experts, n)), np.zeros(n_counts, np.int64))
            self._squares[name] = entry
        elif entry.sums.shape != (n_experts, n):
            raise ContextError(
                f"{name!r} was {entry.sums.shape} before, and is now {(n_experts, n)}: "
                "one collector is for one model"
            )
        return entry

    def _add(self, name: str, tensor: TensorView) -> None:
        weight, inputs = tensor.sources[:2]
        assert weight is not None
        assert inputs is not None
        x = _array(inputs)
        n_2, n_3 = int(weight.ptr.ne[2]), int(weight.ptr.ne[3])
        entry = self._entry(name, n_2 * n_3, 1, x.shape[-1])
        for i, j in np.ndindex(x.shape[:2]):
            # What is multiplied with a matrix of the stack; a plain one takes all.
            matrix = (i % n_3) * n_2 + j % n_2
            entry.sums[matrix] += _sum_of_squares(name, x[i, j])
        entry.counts += x.size // x.shape[-1] // (n_2 * n_3)

    def _add_experts(self, name: str, tensor: TensorView) -> None:
        weight, inputs, chosen = tensor.sources[:3]
        assert weight is not None
        assert inputs is not None
        assert chosen is not None
        x = _array(inputs)[0]  # [tokens, experts of a token or 1, columns]
        ids = _array(chosen)[0, 0]  # [tokens, experts of a token]
        n_experts = int(weight.ptr.ne[2])
        entry = self._entry(name, n_experts, n_experts, x.shape[-1])
        tokens, places = np.indices(ids.shape)
        rows = x[tokens.ravel(), places.ravel() % x.shape[1]]
        for expert in np.unique(ids):
            mine = rows[ids.ravel() == expert]
            entry.sums[expert] += _sum_of_squares(name, mine)
            entry.counts[expert] += len(mine)


def _array(tensor: TensorView) -> npt.NDArray[np.generic]:
    """Copy a tensor as an array of four dimensions, rows last."""
    ne = [int(n) for n in tensor.ptr.ne]
    array: npt.NDArray[np.generic] = tensor.to_numpy().reshape(ne[::-1])
    return array


def _sum_of_squares(name: str, rows: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Return the sum over rows of the squares of each column."""
    sums: npt.NDArray[np.float64] = np.square(rows, dtype=np.float64).sum(axis=0)
    if not np.isfinite(sums).all():
        raise ContextError(f"the inputs of {name!r} are not finite: the model is damaged")
    return sums


def compute_imatrix(
    model: Model,
    text: Text | Sequence[int],
    *,
    chunk_size: int = 512,
    max_chunks: int | None = None,
    process_output: bool = False,
    dataset: str | None = None,
    progress: Callable[[float], bool | None] | None = None,
) -> Imatrix:
    """Run a model over text, and return how much each column of its weights matters.

    The text is cut into chunks, and each begins anew, with the token that begins a text, as
    upstream's llama-imatrix does it; what is left at the end is not used.

    Args:
        model: The model, best not quantized.
        text: Representative text (UTF-8 if given as bytes), or its tokens.
        chunk_size: How many tokens a chunk has.
        max_chunks: Stop after so many.
        process_output: Look at ``output.weight`` too.
        dataset: What to call the text in the file.
        progress: Called with the part that is done; it stops if that returns False.

    Raises:
        ArgumentError: The text is shorter than a chunk, or a number is less than 1.
    """
    from ..batch.batch import Batch
    from ..context.context import Context

    check_object("model", model, "Model")
    collector = ImatrixCollector(process_output=process_output)
    if is_text(text):
        tokens = model.vocab.tokenize(text)
    else:
        tokens = elements("text", text, "tokens, or a text")
        model.vocab.check(tokens)
    if dataset is not None:
        check_text("dataset", dataset, escaped=True)
    if progress is not None:
        check_function("progress", progress)
    chunk_size = integer("chunk_size", chunk_size, 1, INT32_MAX)
    if max_chunks is not None:
        max_chunks = integer("max_chunks", max_chunks, 1, INT32_MAX)
    n_chunks = min(len(tokens) // chunk_size, max_chunks or len(tokens))
    if not n_chunks:
        raise ArgumentError(
            f"{len(tokens)} tokens are less than a chunk of chunk_size={chunk_size}: give a longer "
            "text, or smaller chunks"
        )
    batch = Batch(chunk_size)
    bos = model.vocab.bos if model.vocab.add_bos else None
    with Context(
        model, cb_eval=collector, n_ctx=chunk_size, n_batch=chunk_size, n_ubatch=chunk_size
    ) as context:
        for i in range(n_chunks):
            chunk = tokens[i * chunk_size : (i + 1) * chunk_size]
            batch.clear()
            # All outputs: without them the last layer computes the inputs of some weights only.
            batch.add([bos, *chunk[1:]] if bos is not None else chunk, logits="all")
            context.memory.clear()
            context.decode(batch)
            if progress is not None and progress((i + 1) / n_chunks) is False:
                break
    return collector.imatrix(dataset=dataset, chunk_size=chunk_size)


def _from_gguf(gguf: Gguf, path: Path) -> Imatrix:
    squares = {}
    names = [name.removesuffix(SUMS) for name in gguf.tensors if name.endswith(SUMS)]
    if not names:
        kind = kind_of(gguf.ptr)
        reason = f"it is {kind}" if kind else f"it has no tensors whose names end in {SUMS!r}"
        raise GgufError(f"{os.fspath(path)!r} is no importance matrix: {reason}")
    for name in names:
        sums, counts = gguf.tensors[name + SUMS], gguf.tensors.get(name + COUNTS)
        if counts is None or {sums.type.name, counts.type.name} != {"F32"}:
            raise GgufError(f"{os.fspath(path)!r} has no counts, or other numbers, for {name!r}")
        n = counts.n_elements
        if not n or not sums.n_elements or sums.n_elements % n:
            raise GgufError(f"{os.fspath(path)!r}: the counts do not fit the sums of {name!r}")
        squares[name] = _squares(sums.data.reshape(n, -1), counts.data.ravel(), name, path)
    datasets, chunks, size = gguf.get(DATASETS, []), gguf.get(CHUNKS, 0), gguf.get(CHUNK_SIZE, 0)
    if not (
        isinstance(datasets, list)
        and all(isinstance(text, str) for text in datasets)
        and isinstance(chunks, int)
        and isinstance(size, int)
        and all(0 <= number < 2**32 for number in (chunks, size))
    ):
        raise GgufError(f"{os.fspath(path)!r} has metadata that no importance matrix has")
    return Imatrix(squares, datasets, chunks, size, path)


def _squares(sums: Floats, counts: Floats, name: str, path: Path) -> Squares:
    """Return what a file says of a weight.

    Raises:
        GgufError: They are no numbers.
    """
    if not ((counts >= 0) & (counts < MOST_COUNTED)).all() or not np.isfinite(sums).all():
        raise GgufError(f"{os.fspath(path)!r} has no numbers in the sums or counts of {name!r}")
    return Squares(sums.copy(), np.rint(counts).astype(np.int64))


def _from_legacy(data: bytes, path: Path) -> Imatrix:
    """Read the format before GGUF: means, times a number of calls."""
    squares, at, datasets, chunks = {}, 4, [], 0
    try:
        (n,) = struct.unpack_from("<i", data)
        for _ in range(n):
            (length,) = struct.unpack_from("<i", data, at)
            name, calls, n_values = struct.unpack_from(f"<{length}sii", data, at + 4)
            at += 12 + length
            if n_values < 1:
                raise ValueError(f"it has {n_values} numbers for {name!r}")
            sums = np.frombuffer(data, "<f4", n_values, at).astype(np.float32)
            at += 4 * n_values
            squares[name.decode("utf-8", "surrogateescape")] = Squares(
                sums[None], np.array([max(calls, 1)])
            )
        if at < len(data):
            chunks, length = struct.unpack_from("<ii", data, at)
            datasets = [struct.unpack_from(f"<{length}s", data, at + 8)[0].decode(errors="replace")]
    except struct.error:  # its text is of buffers
        raise GgufError(
            f"{os.fspath(path)!r} is no importance matrix, or is cut off: it has {len(data)} bytes"
        ) from None
    except ValueError as error:
        raise GgufError(f"{os.fspath(path)!r} is no importance matrix: {error}") from None
    if not squares:
        raise GgufError(f"{os.fspath(path)!r} is no importance matrix: it has no sums")
    return Imatrix(squares, datasets, chunks, 0, path)
