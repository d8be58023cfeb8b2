"""Importance matrices: how much each column of a weight matters when it is quantized.

    collector = ImatrixCollector()
    with Context(model, cb_eval=collector, n_ctx=512) as context:
        ...  # decode representative text
    collector.imatrix().save("model.imatrix.gguf")

or in one call, `compute_imatrix`.
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

# upstream: common/imatrix-loader.h LLM_KV_IMATRIX_DATASETS, LLM_KV_IMATRIX_CHUNK_COUNT,
# LLM_KV_IMATRIX_CHUNK_SIZE: the metadata keys of importance matrices.
DATASETS, CHUNKS, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
MOST_COUNTED = 2.0**62  # low enough that the sum of two fits int64
SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass
class Squares:
    """Statistics of the inputs of one weight, which may be a stack of experts."""

    sums: npt.NDArray[np.floating]
    """Sums of the squared inputs, ``[experts, columns]``."""
    counts: npt.NDArray[np.int64]
    """Number of inputs that were summed, ``[experts]`` or ``[1]``."""


@dataclass(eq=False)
class Imatrix(Mapping[str, "Floats"]):
    """Mean squares of the inputs of each weight, by the name of the weight.

    A value is float32, ``[columns]``, or ``[experts, columns]`` for a stack of experts.  The row of
    an expert that no token was routed to is all ones.
    """

    squares: dict[str, Squares]
    """The sums that the means are computed from."""
    datasets: list[str] = field(default_factory=list)
    """Names of the texts that it was computed from."""
    chunk_count: int = 0
    """Number of chunks of text."""
    chunk_size: int = 0
    """Number of tokens in each chunk."""
    path: Path | None = None
    """The file that it was read from, if any."""

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
        """Read an importance matrix of llama.cpp, in GGUF or the older ``.dat`` format.

        Raises:
            ModelNotFoundError: The file does not exist.
            GgufError: The file is damaged, or is not an importance matrix.
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
        """Write a GGUF file in the format of llama-imatrix.  The file appears only when complete.

        Raises:
            GgufError: A name is too long.
            OSError: The file cannot be written.
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
        """Return the importance matrix of both data sets together.

        Raises:
            ArgumentError: The two disagree about the shape of a weight, or a sum overflows float32.
        """
        check_object("other", other, "Imatrix")
        squares = {name: Squares(one.sums, one.counts) for name, one in self.squares.items()}
        for name, new in other.squares.items():
            old = squares.get(name)
            if old is None:
                squares[name] = new
            elif old.sums.shape != new.sums.shape or old.counts.shape != new.counts.shape:
                raise ArgumentError(
                    f"{name!r} has shape {old.sums.shape} in one matrix and {new.sums.shape} in "
                    "the other"
                )
            else:
                sums = old.sums.astype(np.float64) + new.sums
                if (np.abs(sums) > np.finfo(np.float32).max).any():
                    raise ArgumentError(f"the combined sums of {name!r} exceed float32")
                squares[name] = Squares(sums.astype(old.sums.dtype), old.counts + new.counts)
        datasets = [*self.datasets, *other.datasets]
        chunks = self.chunk_count + other.chunk_count
        return Imatrix(squares, datasets, chunks, self.chunk_size or other.chunk_size)


class ImatrixCollector:
    """Collects an `Imatrix` from the graphs of a context: ``Context(..., cb_eval=collector)``.

    It observes each multiplication with a weight of a layer, both dense and mixture of experts.
    """

    def __init__(self, *, process_output: bool = False) -> None:
        """Create an empty collector.

        Args:
            process_output: Observe ``output.weight`` too, which is used only for the tokens of a
                batch that have outputs.
        """
        self._process_output = flag("process_output", process_output)
        self._squares: dict[str, Squares] = {}

    def __call__(self, tensor: TensorView, ask: bool) -> bool:
        """Observe a node of the graph; the context calls this."""
        name = self._weight(tensor)
        if name is not None and not ask:
            if tensor.op.name == "MUL_MAT_ID":
                self._add_experts(name, tensor)
            else:
                self._add(name, tensor)
        return name is not None or not ask

    def imatrix(self, *, dataset: str | None = None, chunk_size: int = 512) -> Imatrix:
        """Return what has been collected so far.

        Args:
            dataset: A name for the text.
            chunk_size: Tokens per chunk, used only to compute the number of chunks.

        Raises:
            ArgumentError: ``chunk_size`` is less than 1.
        """
        chunk_size = integer("chunk_size", chunk_size, 1, INT32_MAX)
        if dataset is not None:
            check_text("dataset", dataset, escaped=True)
        # In the precision of the files, so that saving it changes nothing.
        squares = {
            name: Squares(one.sums.astype(np.float32), one.counts.copy())
            for name, one in self._squares.items()
        }
        most = max((int(one.counts.max()) for one in squares.values()), default=0)
        datasets = [] if dataset is None else [dataset]
        return Imatrix(squares, datasets, most // chunk_size, chunk_size)

    def _weight(self, tensor: TensorView) -> str | None:
        """Return the name of the weight that a node multiplies with, if it is to be observed."""
        if tensor.op.name not in ("MUL_MAT", "MUL_MAT_ID"):
            return None
        weight, inputs = tensor.sources[:2]
        if weight is None or inputs is None or inputs.type.name != "F32":
            return None
        # upstream: ggml/src/ggml-backend.cpp "%s#%s#%d": the scheduler names its copies of weights
        # so.
        parts = weight.name.split("#")
        name = parts[1] if len(parts) > 1 else parts[0]
        # upstream: tools/imatrix/imatrix.cpp "blk.", process_output: it observes the same weights.
        wanted = name.startswith("blk.") or (self._process_output and name == "output.weight")
        return name if wanted else None

    def _entry(self, name: str, n_experts: int, n_counts: int, n: int) -> Squares:
        entry = self._squares.get(name)
        if entry is None:
            entry = Squares(np.zeros((n_experts, n)), np.zeros(n_counts, np.int64))
            self._squares[name] = entry
        elif entry.sums.shape != (n_experts, n):
            raise ContextError(
                f"the shape of {name!r} changed from {entry.sums.shape} to {(n_experts, n)}: use a "
                "collector with one model only"
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
            # The matrix of the stack that this slice is multiplied with; 0 if the stack has only
            # one.
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
    """Return the sum of squares of each column."""
    sums: npt.NDArray[np.float64] = np.square(rows, dtype=np.float64).sum(axis=0)
    if not np.isfinite(sums).all():
        raise ContextError(f"the inputs of {name!r} contain NaN or inf: the model is damaged")
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

    As in llama-imatrix, the text is split into chunks; each is decoded on its own, with its first
    token replaced by BOS, and an incomplete chunk at the end is ignored.

    Args:
        model: The model, preferably not quantized.
        text: Representative text (UTF-8 if given as bytes), or its tokens.
        chunk_size: Number of tokens in a chunk.
        max_chunks: Stop after this many chunks.
        process_output: Observe ``output.weight`` too.
        dataset: A name for the text, stored in the file.
        progress: Called with the fraction done, 0.0 to 1.0; returning False stops early.

    Raises:
        ArgumentError: The text is shorter than one chunk, or a number is less than 1.
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
            f"the text has {len(tokens)} tokens, less than one chunk of {chunk_size}: give a "
            "longer text or a smaller chunk_size"
        )
    batch = Batch(chunk_size)
    bos = model.vocab.bos if model.vocab.add_bos else None
    with Context(
        model, cb_eval=collector, n_ctx=chunk_size, n_batch=chunk_size, n_ubatch=chunk_size
    ) as context:
        for i in range(n_chunks):
            chunk = tokens[i * chunk_size : (i + 1) * chunk_size]
            batch.clear()
            # All outputs: the last layer computes the inputs of some weights only for those.
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
        reason = f"it is {kind}" if kind else f"no tensor name ends in {SUMS!r}"
        raise GgufError(f"{os.fspath(path)!r} is not an importance matrix: {reason}")
    for name in names:
        sums, counts = gguf.tensors[name + SUMS], gguf.tensors.get(name + COUNTS)
        if counts is None or {sums.type.name, counts.type.name} != {"F32"}:
            raise GgufError(
                f"{os.fspath(path)!r} is damaged: {name!r} needs sums and counts, both F32"
            )
        n = counts.n_elements
        if not n or not sums.n_elements or sums.n_elements % n:
            raise GgufError(
                f"{os.fspath(path)!r} is damaged: sums and counts of {name!r} do not match"
            )
        squares[name] = _squares(sums.data.reshape(n, -1), counts.data.ravel(), name, path)
    datasets, chunks, size = gguf.get(DATASETS, []), gguf.get(CHUNKS, 0), gguf.get(CHUNK_SIZE, 0)
    if not (
        isinstance(datasets, list)
        and all(isinstance(text, str) for text in datasets)
        and isinstance(chunks, int)
        and isinstance(size, int)
        and all(0 <= number < 2**32 for number in (chunks, size))
    ):
        raise GgufError(f"{os.fspath(path)!r} is damaged: its imatrix metadata are invalid")
    return Imatrix(squares, datasets, chunks, size, path)


def _squares(sums: Floats, counts: Floats, name: str, path: Path) -> Squares:
    """Return the statistics of a weight in a file.

    Raises:
        GgufError: They contain NaN, inf or counts out of range.
    """
    if not ((counts >= 0) & (counts < MOST_COUNTED)).all() or not np.isfinite(sums).all():
        raise GgufError(
            f"{os.fspath(path)!r} is damaged: invalid numbers in the sums or counts of {name!r}"
        )
    return Squares(sums.copy(), np.rint(counts).astype(np.int64))


def _from_legacy(data: bytes, path: Path) -> Imatrix:
    """Read the older ``.dat`` format, in which a value is a mean times a number of calls."""
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
    except struct.error:  # its message is about buffers
        raise GgufError(
            f"{os.fspath(path)!r} is not an importance matrix, or is truncated at {len(data)} bytes"
        ) from None
    except ValueError as error:
        raise GgufError(f"{os.fspath(path)!r} is not an importance matrix: {error}") from None
    if not squares:
        raise GgufError(f"{os.fspath(path)!r} is not an importance matrix: it contains no weights")
    return Imatrix(squares, datasets, chunks, 0, path)
