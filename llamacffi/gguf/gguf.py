"""`Gguf`: the content of a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO

from .._core.atomic import replacing
from .._core.ownership import make, own
from .._core.values import flag
from .._native import lib
from ..errors import ForkError, GgufError
from .files import map_path, metadata_of, parse, read_open_file, serialize
from .metadata import GgufMetadata
from .tensors import (
    GgufBuffer,
    GgufTensor,
    add_tensors,
    make_tensor,
    new_hash,
    read_tensor,
    renamed,
)
from .types import dequantize_array, quantize_array
from .values import encode_name

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Self

    from .types import AnyType

__all__ = ["Gguf", "GgufTensor", "dequantize_array", "quantize_array"]


class Gguf(GgufMetadata):
    """The content of a GGUF file: a mapping of metadata, and tensors.

    It owns the ``struct gguf_context``.  Create one with `open`, `from_file`, `from_bytes` or
    `new`.

    A value is a bool, int, float, str, a list of str, or a numpy array of numbers or bools.  In
    text, bytes that are not valid UTF-8 become surrogates, as in Python's file names.  Python, like
    llama.cpp, reads a string only up to its first NUL; writing the file keeps all of it.

    Several threads may use the same object at the same time.
    """

    _instead = (
        "Gguf.copy() makes another over the same data; in another process, open the file again, or "
        "pass the result of to_bytes() to from_bytes()"
    )

    __slots__ = ("_described", "_source", "_tensors")

    def __init__(self, source: GgufBuffer | None = None, *, metadata_only: bool = False) -> None:
        """Read from ``source``, or create an empty one.

        Source: ``gguf_init_empty``, ``gguf_init_from_buffer``.
        """
        self._source = source
        self._described = 0  # the number of tensors that C knows
        self._tensors: dict[str, GgufTensor] = {}
        if source is None:
            super().__init__(own(make(lib.gguf_free, (), lib.gguf_init_empty)))
            return
        if not isinstance(source, GgufBuffer):
            raise TypeError(f"use Gguf.open, from_file or from_bytes to read {source!r}")
        metadata_only = flag("metadata_only", metadata_only)
        super().__init__(parse(source))
        try:
            self._read_tensors(source, metadata_only)
            if metadata_only:
                source.drop()
        except BaseException:
            self.close()
            raise

    @classmethod
    def new(cls) -> Self:
        """Create an empty one.

        Returns:
            The new `Gguf`.

        Source: ``gguf_init_empty``.
        """
        return cls()

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, metadata_only: bool = False) -> Self:
        """Open a file.  It is mapped into memory, so tensor data is read when it is used.

        Do not change the file in place while it is open; `write` may replace it.

        Args:
            path: The file.
            metadata_only: Read the metadata and the list of tensors, but no tensor data.  This
                works even if only the beginning of the file is there.

        Returns:
            The open `Gguf`.

        Raises:
            ModelNotFoundError: The file does not exist.
            LoadError: It cannot be read.
            GgufError: It is not a GGUF or is damaged; the notes have llama.cpp's log.
            ArgumentError: It is not a regular file but, say, a pipe; or the path is invalid.

        Source: ``gguf_init_from_buffer``.
        """
        return cls(map_path(path), metadata_only=metadata_only)

    @classmethod
    def from_file(cls, file: BinaryIO, *, metadata_only: bool = False) -> Self:
        """Read an open file from its position to its end.

        A real file is mapped: its position does not move, several threads may read from it at the
        same time, and it may be closed afterwards.  The same holds for an `io.BytesIO`.  Any other
        object is read into memory and its position restored; no other thread may use it meanwhile.

        Args:
            file: The file, opened in binary mode.
            metadata_only: See `open`.

        Returns:
            The open `Gguf`.

        Raises:
            LoadError: It cannot be read.
            GgufError: It is not a GGUF, or is damaged.

        Source: ``gguf_init_from_buffer``.
        """
        return cls(read_open_file(file), metadata_only=metadata_only)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Self:
        """Read a GGUF in memory.  The data is referenced, not copied: do not change it.

        Args:
            data: The content of a GGUF file.

        Returns:
            The open `Gguf`.

        Raises:
            GgufError: It is not a GGUF, or is damaged.

        Source: ``gguf_init_from_buffer``.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data must be bytes, a bytearray or a memoryview, not {data!r:.80}")
        return cls(GgufBuffer(memoryview(data).cast("B"), 0, f"the GGUF of {len(data)} bytes"))

    def _read_tensors(self, source: GgufBuffer, metadata_only: bool) -> None:
        ptr = super().ptr
        source.start = lib.gguf_get_data_offset(ptr)
        n = lib.gguf_get_n_tensors(ptr)
        for i in range(n):
            tensor = read_tensor(ptr, i, source)
            if not metadata_only:
                source.check(tensor)
            self._tensors[tensor.name] = tensor
        self._described = n
        # upstream: ggml/src/gguf.cpp gguf_find_key, gguf_find_tensor: they compare names up to a
        # NUL; elsewhere whole strings are compared, so duplicates can get past llama.cpp's checks.
        keys = set(self)
        if len(self._tensors) != n or len(keys) != len(self):
            raise GgufError(f"{source.name} has two keys or two tensors with the same name")
        if "" in keys or "" in self._tensors:
            raise GgufError(f"{source.name} has a key or a tensor with an empty name")

    @property
    def ptr(self) -> Any:
        """The ``struct gguf_context *``, with all metadata and tensors as they are now.

        It stays alive as long as you hold it.  Changing the tensors may create another one.

        Raises:
            ClosedError: After `close`.
        """
        with self._lock:
            if self._stale:
                self._rebuild()
            tensors = list(self._tensors.values())[self._described :]
            owner = super().ptr
            if tensors:
                add_tensors(owner, tensors)
                self._described += len(tensors)
            return owner

    def close(self) -> None:
        """Free the metadata and unmap the file; arrays over it keep it mapped.  Idempotent."""
        super().close()
        if self._source is not None:
            self._source.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<Gguf closed>"
        try:
            return f"<Gguf of {len(self)} keys and {len(self._tensors)} tensors>"
        except ForkError:
            return "<Gguf of the parent process>"

    def copy(self) -> Gguf:
        """Return another `Gguf` with the same metadata and tensors; it shares the tensor data.

        Raises:
            ClosedError: After `close`.
        """
        with self._lock:
            other = Gguf(GgufBuffer(memoryview(metadata_of(super().ptr)), 0, "the copy"))
            other._source = None
            other._tensors = dict(self._tensors)
        return other

    @property
    def data_offset(self) -> int:
        """The offset of the tensor data in the input, in bytes; 0 if there was no input.

        Source: ``gguf_get_data_offset``.
        """
        return 0 if self._source is None else self._source.start

    # Tensors

    @property
    def tensors(self) -> Mapping[str, GgufTensor]:
        """The tensors by name, in order: a live view, which shows later changes."""
        super().ptr  # noqa: B018  raises if closed
        return MappingProxyType(self._tensors)

    def add_tensor(
        self,
        name: str,
        data: npt.ArrayLike | GgufTensor,
        *,
        type: AnyType | None = None,
        imatrix: npt.ArrayLike | None = None,
    ) -> GgufTensor:
        """Add a tensor after the others.

        Args:
            name: Its name, less than 64 bytes.
            data: Numbers; or, for a quantized ``type``, its blocks as they are, ``[..., bytes of a
                row]`` uint8; or a tensor from this or another `Gguf`.  An array that needs no
                conversion is not copied: do not change it until the file is written.
            type: The type to convert to; by default the data keeps its type.  float64 is then
                stored with a `RuntimeWarning`, as no model computes with such weights.
            imatrix: For quantized types, the importance of each column, ``[columns]``.

        Returns:
            The tensor.

        Raises:
            GgufError: The name is taken, or the name or the data cannot be stored.
            ArgumentError: ``type`` or ``imatrix`` does not fit, or ``data`` has rows of different
                lengths.

        Source: ``gguf_add_tensor``, ``ggml_quantize_chunk``.
        """
        with self._lock:
            self._check_name(name)
            tensor = make_tensor(name, data, type, imatrix)
            super().ptr  # noqa: B018  raises if closed
            self._tensors[name] = tensor
        return tensor

    def replace_tensor(
        self,
        name: str,
        data: npt.ArrayLike | GgufTensor,
        *,
        type: AnyType | None = None,
        imatrix: npt.ArrayLike | None = None,
    ) -> GgufTensor:
        """Replace the data of a tensor.

        Args:
            name: Its name.
            data: See `add_tensor`.
            type: See `add_tensor`.
            imatrix: See `add_tensor`.

        Returns:
            The new tensor.

        Raises:
            KeyError: The tensor does not exist.
            GgufError: The data cannot be stored.
            ArgumentError: ``type`` or ``imatrix`` does not fit.

        Source: ``gguf_add_tensor``, ``ggml_quantize_chunk``.
        """
        with self._lock:
            self.tensors[name]
            self._tensors[name] = tensor = make_tensor(name, data, type, imatrix)
            self._stale = True
        return tensor

    def rename_tensor(self, name: str, new: str) -> None:
        """Rename a tensor; it keeps its place.

        Args:
            name: The present name.
            new: The new name.

        Raises:
            KeyError: The tensor does not exist.
            GgufError: The new name is taken or cannot be stored.
        """
        with self._lock:
            tensor = self.tensors[name]
            if new == name:
                return
            self._check_name(new)
            changed = renamed(tensor, new)
            ordered = [changed if one is tensor else one for one in self._tensors.values()]
            # In place, so that views of `tensors` show it.
            self._tensors.clear()
            self._tensors.update((one.name, one) for one in ordered)
            self._stale = True

    def remove_tensor(self, name: str) -> GgufTensor:
        """Remove a tensor, and return it.

        Args:
            name: Its name.

        Raises:
            KeyError: The tensor does not exist.
        """
        with self._lock:
            self.tensors[name]
            self._stale = True
            return self._tensors.pop(name)

    def _check_name(self, name: str) -> None:
        encode_name(name, "the name of a tensor", lib.GGML_MAX_NAME - 1)
        if name in self._tensors:
            raise GgufError(f"the tensor {name!r} already exists; use replace_tensor to replace it")

    def hash(self, algorithm: str = "sha256") -> str:
        """Return a hash of the data of all tensors, in order, without the metadata.

        Args:
            algorithm: An algorithm of `hashlib`.

        Returns:
            The hash in hexadecimal digits.

        Raises:
            ArgumentError: `hashlib` does not have this algorithm.
        """
        digest = new_hash(algorithm)
        for tensor in self.tensors.values():
            digest.update(tensor.raw)
        return digest.hexdigest()

    # The file

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a file, completely or not at all.  It may be the one that was opened.

        Args:
            path: The file.

        Raises:
            OSError: It cannot be written.
            ClosedError: The `Gguf` that a tensor was taken from is closed.

        Source: ``gguf_get_meta_data``.
        """
        with replacing(path) as file:
            for piece in self._pieces():
                file.write(piece)

    def to_bytes(self) -> bytes:
        """Return the content that `write` would write.

        Source: ``gguf_get_meta_data``.
        """
        return b"".join(self._pieces())

    def _pieces(self) -> Iterator[bytes | bytearray | memoryview]:
        """Yield the content of the file: the metadata from C, then the data of each tensor."""
        with self._lock:
            ptr = self.ptr
            tensors = list(self._tensors.values())
            for tensor in tensors:
                if not tensor.nbytes:
                    raise GgufError(
                        f"{tensor.name!r} has no elements: llama.cpp cannot store its shape"
                    )
            alignment = lib.gguf_get_alignment(ptr)
            head = serialize(ptr)
        yield head
        for tensor in tensors:
            yield tensor.raw
            yield bytes(-tensor.nbytes % alignment)

    def _rebuild(self) -> None:
        """Create the C object again: C can add tensors to it, but not remove any."""
        source = GgufBuffer(memoryview(metadata_of(super().ptr)), 0, "the metadata")
        self._owner = parse(source)
        self._described, self._stale = 0, False


def origin(gguf: Gguf) -> str:
    """Return the path that a `Gguf` was read from, or a description, for messages."""
    path = None if gguf._source is None else gguf._source.path
    return f"<Gguf of {len(gguf._tensors)} tensors>" if path is None else path


def pieces(gguf: Gguf) -> Iterator[bytes | bytearray | memoryview]:
    """Yield the content of the file that `Gguf.write` would write."""
    return gguf._pieces()
