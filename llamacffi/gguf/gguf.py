"""GGUF files: metadata and tensors, to read, to write and to edit.

    with Gguf.open("model.gguf") as gguf:
        gguf["general.name"] = "mine"
        print(gguf["llama.context_length"], gguf.tensors["output.weight"].shape)
        gguf.write("mine.gguf")

The metadata are a mapping; llama.cpp keeps them.  The data of the tensors stay where they are, in
the mapped file or in arrays of the caller's, until they are written.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO

from .._core.atomic import replacing
from .._core.files import check_readable, file_name, file_position, open_at_once
from .._core.ownership import make, own
from .._core.path_hints import no_file
from .._core.text import checked_path
from .._core.values import flag
from .._native import lib
from ..errors import ForkError, GgufError, LoadError
from .files import map_file, metadata_of, parse, serialize
from .metadata import GgufMetadata
from .tensors import GgufTensor, Source, add_tensors, make_tensor, new_hash, read_tensor
from .types import dequantize_array, quantize_array
from .values import encode_name

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Self

    from .types import AnyType

__all__ = ["Gguf", "GgufTensor", "dequantize_array", "quantize_array"]


class Gguf(GgufMetadata):
    """The content of a GGUF file: a mapping of metadata, and tensors.

    It owns the ``struct gguf_context``.  Make one with `open`, `from_file`, `from_bytes` or `new`.

    A value is a bool, int, float, str, a list of str, or a numpy array of numbers or bools.  Text
    that is not UTF-8 has its bytes as surrogates, as file names in Python.  A string that was read
    ends at a NUL character, for Python as for llama.cpp; what is written is still all of it.

    One may be used by several threads at once.
    """

    _instead = (
        "Gguf.copy() makes another over the same data; in another process, open the file again, or "
        "give from_bytes() what to_bytes() returns"
    )

    __slots__ = ("_described", "_source", "_tensors")

    def __init__(self, source: Source | None = None, *, metadata_only: bool = False) -> None:
        """Read from ``source``, or begin an empty one.

        Source: ``gguf_init_empty``, ``gguf_init_from_buffer``.
        """
        self._source = source
        self._described = 0  # so many of the tensors C knows
        self._tensors: dict[str, GgufTensor] = {}
        if source is None:
            super().__init__(own(make(lib.gguf_free, (), lib.gguf_init_empty)))
            return
        if not isinstance(source, Source):
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
        """Begin an empty one."""
        return cls()

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, metadata_only: bool = False) -> Self:
        """Read a file.  It is mapped into memory: tensors are read when they are used.

        The file must not be changed in place while this is open; `write` may replace it.

        Args:
            path: The file.
            metadata_only: Read the metadata and the list of tensors, but no data.  Of the file,
                only the beginning need be there.

        Raises:
            ModelNotFoundError: There is no such file.
            LoadError: It cannot be read.
            GgufError: It is no GGUF, or damaged; the lines of llama.cpp's log are in the notes.
            ArgumentError: It is no regular file, as a pipe, or no file can be called so.

        Source: ``gguf_init_from_buffer``.
        """
        name = checked_path(path)
        try:
            with open_at_once(name) as file:
                check_readable(file.fileno(), name)
                data = map_file(file.fileno(), 0, repr(name))
        except FileNotFoundError:
            raise no_file("there is no such file", name) from None
        except OSError as error:
            raise LoadError(error.errno, error.strerror, name) from None
        return cls(Source(data, 0, repr(name), name), metadata_only=metadata_only)

    @classmethod
    def from_file(cls, file: BinaryIO, *, metadata_only: bool = False) -> Self:
        """Read what begins at the position of an open file, up to its end.

        A file of the system is mapped, and may be closed; its position never moves, so several
        threads can read from it at once, as from an `io.BytesIO`.  Of another object the bytes are
        read, and its position is put back: keep other threads from it meanwhile.

        Raises:
            LoadError: It cannot be read.
            GgufError: It is no GGUF, or damaged.
        """
        if not hasattr(file, "read") or not hasattr(file, "tell"):
            raise TypeError(f"file must be an open binary file, not {file!r}")
        called = file_name(file)
        name = f"the file {called!r}"
        if isinstance(file, io.TextIOBase):
            raise TypeError(f"{called!r} is a text file: open it in binary mode, 'rb'")
        try:
            # Others may have a descriptor too, but of what they decompress.
            if isinstance(getattr(file, "raw", file), io.FileIO):
                check_readable(file.fileno(), called)
                data = map_file(file.fileno(), file_position(file, file.fileno()), name)
            elif isinstance(file, io.BytesIO):
                data = memoryview(file.getvalue())[file.tell() :]
            else:
                start = file.tell()
                data = memoryview(file.read())
                file.seek(start)
        except OSError as error:
            raise LoadError(error.errno, error.strerror or str(error), called) from None
        path = called if isinstance(getattr(file, "name", None), (str, bytes)) else None
        return cls(Source(data, 0, name, path), metadata_only=metadata_only)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Self:
        """Read a GGUF in memory.  It is kept, not copied: do not change it.

        Raises:
            GgufError: It is no GGUF, or damaged.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data must be bytes, a bytearray or a memoryview, not {data!r:.80}")
        return cls(Source(memoryview(data).cast("B"), 0, f"the GGUF of {len(data)} bytes"))

    def _read_tensors(self, source: Source, metadata_only: bool) -> None:
        ptr = super().ptr
        source.start = lib.gguf_get_data_offset(ptr)
        n = lib.gguf_get_n_tensors(ptr)
        for i in range(n):
            tensor = read_tensor(ptr, i, source)
            if not metadata_only:
                source.check(tensor)
            self._tensors[tensor.name] = tensor
        self._described = n
        # C compares names up to a NUL in some places, and as a whole in others.
        keys = set(self)
        if len(self._tensors) != n or len(keys) != len(self):
            raise GgufError(f"{source.name} has two keys or tensors of the same name")
        if "" in keys or "" in self._tensors:
            raise GgufError(f"{source.name} has a key or a tensor without a name")

    @property
    def ptr(self) -> Any:
        """The ``struct gguf_context *``, with all metadata and tensors as they are now.

        Whoever holds it keeps it alive; after a change of the tensors it may be another.
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

    @property
    def _origin(self) -> str:
        """What to call it where the name of a file is expected."""
        path = None if self._source is None else self._source.path
        return f"<Gguf of {len(self._tensors)} tensors>" if path is None else path

    def copy(self) -> Gguf:
        """Return another with the same metadata and tensors; their data are shared."""
        with self._lock:
            other = Gguf(Source(memoryview(metadata_of(super().ptr)), 0, "the copy"))
            other._source = None
            other._tensors = dict(self._tensors)
        return other

    @property
    def data_offset(self) -> int:
        """Where the data of the tensors begin in what was read, in bytes; 0 if nothing was.

        Source: ``gguf_get_data_offset``.
        """
        return 0 if self._source is None else self._source.start

    # Tensors

    @property
    def tensors(self) -> Mapping[str, GgufTensor]:
        """The tensors by name, in order; a view that shows later changes."""
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
            data: Numbers; or for a quantized ``type`` its blocks as they are, ``[..., bytes of a
                row]`` uint8; or a tensor of this or another `Gguf`.  An array that need not be
                converted is not copied: do not change it until this is written.
            type: What to convert it to; omitted, it is what it is.  An array of float64 is then
                stored with a `RuntimeWarning`: no model computes with such weights.
            imatrix: For quantized types: how much each column matters, ``[columns]``.

        Returns:
            The tensor.

        Raises:
            GgufError: The name is taken or cannot be stored, or the data cannot.
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
        """Put other data in the place of a tensor; see `add_tensor`.

        Raises:
            KeyError: There is no such tensor.
            GgufError: The data cannot be stored.
            ArgumentError: ``type`` or ``imatrix`` does not fit.
        """
        with self._lock:
            self.tensors[name]
            self._tensors[name] = tensor = make_tensor(name, data, type, imatrix)
            self._stale = True
        return tensor

    def rename_tensor(self, name: str, new: str) -> None:
        """Give a tensor another name; it keeps its place.

        Raises:
            KeyError: There is no such tensor.
            GgufError: The new name is taken or cannot be stored.
        """
        with self._lock:
            tensor = self.tensors[name]
            if new == name:
                return
            self._check_name(new)
            renamed = tensor.renamed(new)
            ordered = [renamed if one is tensor else one for one in self._tensors.values()]
            # In place: views of `tensors` show it.
            self._tensors.clear()
            self._tensors.update((one.name, one) for one in ordered)
            self._stale = True

    def remove_tensor(self, name: str) -> GgufTensor:
        """Take a tensor out, and return it.

        Raises:
            KeyError: There is no such tensor.
        """
        with self._lock:
            self.tensors[name]
            self._stale = True
            return self._tensors.pop(name)

    def _check_name(self, name: str) -> None:
        encode_name(name, "the name of a tensor", lib.GGML_MAX_NAME - 1)
        if name in self._tensors:
            raise GgufError(f"there is a tensor {name!r} already; see replace_tensor")

    def hash(self, algorithm: str = "sha256") -> str:
        """Return a hash of the data of all tensors, in order; the metadata do not count.

        Raises:
            ArgumentError: `hashlib` has no such algorithm.
        """
        digest = new_hash(algorithm)
        for tensor in self.tensors.values():
            digest.update(tensor.raw)
        return digest.hexdigest()

    # The file

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, at once or not at all.  It may be the one that was opened.

        Raises:
            OSError: It cannot be written.
            ClosedError: The `Gguf` that a tensor was taken from is closed.

        Source: ``gguf_get_meta_data``.
        """
        with replacing(path) as file:
            for piece in self._pieces():
                file.write(piece)

    def to_bytes(self) -> bytes:
        """Return what `write` writes."""
        return b"".join(self._pieces())

    def _pieces(self) -> Iterator[bytes | bytearray | memoryview]:
        """Yield the file: what C makes of the metadata, and each tensor from where it is."""
        with self._lock:
            ptr = self.ptr
            tensors = list(self._tensors.values())
            for tensor in tensors:
                if not tensor.nbytes:
                    raise GgufError(f"{tensor.name!r} has no elements: C cannot store its shape")
            alignment = lib.gguf_get_alignment(ptr)
            head = serialize(ptr)
        yield head
        for tensor in tensors:
            yield tensor.raw
            yield bytes(-tensor.nbytes % alignment)

    def _rebuild(self) -> None:
        """Make the C object anew: it can be given tensors, but not be rid of them."""
        source = Source(memoryview(metadata_of(super().ptr)), 0, "the metadata")
        self._owner = parse(source)
        self._described, self._stale = 0, False
