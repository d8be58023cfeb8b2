"""A model: its weights, its vocabulary and what its file says of it."""

from __future__ import annotations

import errno
import functools
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from . import backend
from ._callbacks import bridged
from ._ffi import ffi, lib
from ._handle import Handle, own
from ._params import fill
from ._text import c_path, read_bytes, read_metadata
from .errors import LoadError, ModelNotFoundError, NativeError
from .log import drain, with_log
from .vocab import Vocab

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._generated.params import ModelParams

# Fields of llama_model_params that `Model` fills itself.
OWNED = {
    "progress_callback": "use progress=, a Python function",
    "progress_callback_user_data": "use progress=, a Python function",
}


class Model(Handle):
    """The weights of a model, with its vocabulary.

    It owns the ``struct llama_model``.  One model serves any number of contexts and threads;
    `close` closes its contexts first.
    """

    __slots__ = ("__dict__", "_path", "_vocab", "without_weights")

    without_weights: str | None
    """The parameter that left the weights out, ``"vocab_only"`` or ``"no_alloc"``; else None."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        progress: Callable[[float], bool | None] | None = None,
        **params: Unpack[ModelParams],
    ) -> None:
        """Load a GGUF file.  Of a model in several files, name the first.

        Args:
            path: The file.
            progress: Called with the part that is loaded, 0.0 to 1.0, in the thread of the call.
                Loading stops if it returns False; what it raises is raised here.
            **params: Fields of ``llama_model_params``; llama.cpp's defaults for the others.

        Raises:
            ModelNotFoundError: There is no such file.
            LoadError: The file cannot be read, is no GGUF, or llama.cpp cannot load it; the lines
                of its log are in the notes.

        Source: ``llama_model_load_from_file``.
        """
        backend.load()
        struct = ffi.new("struct llama_model_params *")
        struct[0] = lib.llama_model_default_params()
        keep = fill(struct, "llama_model_params", params, OWNED)
        check_gguf(path)
        drain()
        # Always a callback: Python must run now and then for Ctrl-C to stop the load.
        with bridged(progress or (lambda _part: None)) as user_data:
            struct.progress_callback = lib.llamacffi_on_progress
            struct.progress_callback_user_data = user_data
            ptr = _load(path, struct)
        self._path = os.fspath(path)
        self._vocab: weakref.ref[Vocab] | None = None
        left_out = (name for name in ("vocab_only", "no_alloc") if params.get(name))
        self.without_weights = next(left_out, None)
        # C may read what the parameters point to as long as the model lives.
        super().__init__(own(ptr, lib.llama_model_free, keep))
        drain()

    def __repr__(self) -> str:
        return f"<Model {self._path!r}{' closed' if self.closed else ''}>"

    @property
    def vocab(self) -> Vocab:
        """The vocabulary; it is usable as long as the model is open, and keeps it alive."""
        # A weak reference: a cycle would keep the weights in memory until the garbage collector
        # happens to run.
        vocab = self._vocab() if self._vocab is not None else None
        if vocab is None:
            vocab = Vocab(self)
            self._vocab = weakref.ref(vocab)
        return vocab

    @functools.cached_property
    def metadata(self) -> Mapping[str, str]:
        """The scalar metadata of the file, as text.

        Source: ``llama_model_meta_key_by_index``, ``llama_model_meta_val_str_by_index``.
        """
        return Metadata(self)

    @property
    def desc(self) -> str:
        """What kind of model it is, such as ``llama 7B Q4_K - Medium``.

        Source: ``llama_model_desc``.
        """
        ptr = self.ptr
        return read_bytes(lambda buffer, size: lib.llama_model_desc(ptr, buffer, size)).decode()

    @property
    def size(self) -> int:
        """The size of all tensors, in bytes.  Source: ``llama_model_size``."""
        return int(lib.llama_model_size(self.ptr))

    @property
    def n_params(self) -> int:
        """The number of weights.  Source: ``llama_model_n_params``."""
        return int(lib.llama_model_n_params(self.ptr))

    @property
    def n_ctx_train(self) -> int:
        """The context length it was trained with.  Source: ``llama_model_n_ctx_train``."""
        return int(lib.llama_model_n_ctx_train(self.ptr))

    @property
    def n_embd(self) -> int:
        """The width of its hidden states.  Source: ``llama_model_n_embd``."""
        return int(lib.llama_model_n_embd(self.ptr))

    @property
    def n_layer(self) -> int:
        """The number of layers.  Source: ``llama_model_n_layer``."""
        return int(lib.llama_model_n_layer(self.ptr))

    def chat_template(self, name: str | None = None) -> str | None:
        """Return the default chat template, or the one called ``name``; None if there is none.

        Source: ``llama_model_chat_template``.
        """
        ptr = self.ptr  # the text is the model's
        chars = lib.llama_model_chat_template(ptr, name.encode() if name else ffi.NULL)
        return None if chars == ffi.NULL else ffi.string(chars).decode(errors="replace")


class Metadata(Mapping[str, str]):
    """The metadata of a model: read from C once, then independent of it."""

    def __init__(self, model: Model) -> None:
        self._values = read_metadata(
            model.ptr,
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


def check_gguf(path: str | os.PathLike[str]) -> None:
    """Raise a clear error unless ``path`` is a file that begins as a GGUF does.

    Raises:
        ModelNotFoundError: There is no such file.
        LoadError: It cannot be read, or is something else.
    """
    name = os.fspath(path)
    magic = lib.GGUF_MAGIC
    try:
        with open(name, "rb") as file:
            start = file.read(4)
    except FileNotFoundError:
        raise ModelNotFoundError(errno.ENOENT, "there is no such model file", name) from None
    except OSError as error:
        raise LoadError(error.errno, error.strerror, name) from None
    if start != ffi.string(magic):
        raise LoadError(f"{name!r} is no GGUF file: it begins with {start!r}")


def _load(path: str | os.PathLike[str], struct: Any) -> Any:
    """Load a model and return the pointer that nobody owns yet."""
    failure = f"cannot load {os.fspath(path)!r}"
    try:
        ptr = lib.llama_model_load_from_file(c_path(path), struct[0])
    except NativeError as error:
        raise with_log(LoadError(f"{failure}: {error}")) from error
    if ptr == ffi.NULL:
        raise with_log(LoadError(failure))
    return ptr
