"""A model: its weights, its vocabulary and what its file says of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._core.files import file_name
from .._core.ownership import own
from .._core.text import path_text
from .._core.values import elements
from .._native import lib
from ..backend import registry as backend
from ..errors import ForkError
from ..log import drain
from ..vocab.vocab import Vocab
from .info import ModelInfo
from .loading import load_file, load_path, load_splits
from .params import model_params, used_devices, warn_without_experts
from .weight_types import check_weight_types

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .._core import types as types
    from .._core.ownership import Made
    from .._generated.params import ModelParams
    from ..gguf.gguf import Gguf
    from .loading import Path, Progress


class Model(ModelInfo):
    """The weights of a model, with its vocabulary.

    ::

        model = Model("model.gguf")                             # on the GPUs, if there are any
        model = Model("model.gguf", n_gpu_layers=20, load_mode="none")
        model = Model.from_pretrained("owner/repo", "*Q4_K_M.gguf")
        print(model)                                            # what it is, and where
        print(model.metadata["general.name"], model.n_ctx_train, model.placement)
        tokens = model.vocab.tokenize("Hello")

    It comes from a file, by its path (this class itself); from an open file, a descriptor or bytes
    (`from_file`); from several files (`from_splits`); from a `Gguf`, or from metadata and a
    function that gives the weights (`from_gguf`); or from the Hugging Face hub (`from_pretrained`).

    It owns the ``struct llama_model``.  One model serves any number of contexts and threads: its
    weights are in memory once.  `close`, or the end of a ``with``, frees them and closes the
    contexts first; else they go with the last reference to the model and its contexts.

    **Parameters.**  All ways to get a model take the fields of ``llama_model_params``, with
    llama.cpp's defaults for those that are not given:

    * ``devices``: the devices to use besides the processor: a sequence of `Device` or names, as
      ``llamacffi.devices()`` has them; ``"none"`` or ``[]`` for the processor alone.  By default
      all GPUs.
    * ``n_gpu_layers``: how many layers go there; negative, the default, is all of them.
    * ``split_mode``: how several devices share the model: by ``"layer"``, by ``"row"``, each
      ``"tensor"``, or ``"none"``: only device ``main_gpu`` of the list is used.  ``tensor_split``:
      the part for each, as ``[3, 1]``.
    * ``tensor_buft_overrides``: where tensors go, by regular expressions for their names (of C++,
      ECMAScript): ``{r"ffn_.*_exps": "CPU"}``.  A place is a device or a buffer type, or its name.
      The first pattern that matches counts.
    * ``cpu_moe``, ``n_cpu_moe``: keep the experts of a mixture, of all layers or of the first so
      many, on the processor.
    * ``load_mode``: ``"mmap"``, ``"mmap_mlock"`` (mapped, and never swapped out), ``"none"`` (read
      into memory), ``"mlock"`` (read, and never swapped out), ``"direct_io"`` (read past the cache
      of the system).  By default mapped, unless a device cannot.  ``lazy_mode``: whether large
      tables are read on demand.
    * ``kv_overrides``: metadata to use in place of the file's: bools, ints, floats and strings by
      key.  The type must be the one that llama.cpp reads.
    * ``vocab_only``, ``no_alloc``: without weights; such a model has no contexts.
      ``check_tensors``: look for numbers that are none.  ``use_extra_bufts``: allow layouts for
      this processor.  ``no_host``, ``load_mtp``: see llama.h.
    * ``progress``: a function, called with the part that is loaded, 0.0 to 1.0, in the thread of
      the call.  Loading stops if it returns False; what it raises is raised here.  Ctrl-C stops it
      too.

    A parameter for a GPU where there is none, or for experts of a model without any, is a
    `RuntimeWarning`, since llama.cpp ignores it.
    """

    _instead = "any number of contexts can use it; in another process, load the file again"

    __slots__ = ("_name", "_vocab", "path")

    path: str | None
    """The file that it was loaded from; None if it came otherwise."""

    def __init__(
        self,
        path: Path,
        *,
        progress: Progress | None = None,
        cpu_moe: bool = False,
        n_cpu_moe: int = 0,
        **params: Unpack[ModelParams],
    ) -> None:
        """Load a GGUF file.  Of a model in several files, name the first.

        Args:
            path: The file.
            progress: Called with the part that is loaded, 0.0 to 1.0; False stops.
            cpu_moe: Keep the experts of a mixture on the processor.
            n_cpu_moe: Keep those of the first so many layers there.
            **params: Fields of ``llama_model_params``; see `Model`.

        Raises:
            ModelNotFoundError: There is no such file, or another file of the model is missing.
            LoadError: The file cannot be read, is no GGUF, or llama.cpp cannot load it; the lines
                of its log are in the notes.  Or a tensor has a type that the processor cannot
                compute with.
            ArgumentError: A parameter is out of range, or two do not go together.
            BackendUnavailableError: There is no such device.

        Source: ``llama_model_load_from_file``.
        """
        given = {"progress": progress, "cpu_moe": cpu_moe, "n_cpu_moe": n_cpu_moe, **params}
        self.path = path_text(path)
        self._load(self.path, given, lambda *load: load_path(path, *load))

    @classmethod
    def from_file(
        cls,
        file: types.FileSource,
        *,
        offset: int | None = None,
        **params: Unpack[types.LoadParams],
    ) -> Self:
        """Load from an open file, a descriptor, or bytes.

        The file is mapped or read as one given by its path would be, wherever the GGUF begins in
        it.  It stays open, where it was, and is not needed any more.  Its position never moves:
        other threads may read it meanwhile, or load from it too.  A file that may not be opened
        again, as one whose rights this process has given up, is copied into memory first.  Bytes
        are copied once, to memory that the model keeps.

        Args:
            file: A binary file with a descriptor, a descriptor, or bytes, a bytearray, a memoryview
                or an `io.BytesIO`.
            offset: Where the GGUF begins, in bytes; by default at the position of the file, or at
                the first of the bytes.
            **params: See `Model`.

        Raises:
            LoadError: It is no GGUF, or llama.cpp cannot load it.
            ArgumentError: The file is closed, not open for reading, a pipe, or ends before
                ``offset``; or the GGUF is not aligned in it, and ``load_mode`` maps it.
            TypeError: ``file`` is a path, a text file or something else.

        Source: ``llama_model_load_from_file_ptr``.
        """
        return cls._make(
            file_name(file), dict(params), lambda *load: load_file(file, offset, *load)
        )

    @classmethod
    def from_splits(cls, paths: Sequence[Path], **params: Unpack[types.LoadParams]) -> Self:
        """Load a model in several files, whatever their names.

        Args:
            paths: The files, in order.
            **params: See `Model`.

        Raises:
            ModelNotFoundError: One of them is not there.
            LoadError: One is no GGUF, or llama.cpp cannot load them.
            ArgumentError: There are too few or too many, or the order is another.

        Source: ``llama_model_load_from_splits``.
        """
        names = [path_text(path, "paths") for path in elements("paths", paths, "paths")]
        name = names[0] if names else ""
        model = cls._make(name, dict(params), lambda *load: load_splits(names, *load))
        model.path = name
        return model

    @classmethod
    def from_gguf(
        cls,
        gguf: Gguf | types.CData,
        fill: types.Fill | None = None,
        **params: Unpack[types.LoadParams],
    ) -> Self:
        """Make a model in memory, of any architecture.

        Without ``fill``, the model is what it would be if ``gguf`` were written to a file.

        With ``fill``, only the metadata count, and the types of tensors: the model has all tensors
        that its architecture can have, float32 unless ``gguf`` has one of the name with another
        type, and ``fill`` writes their data.  ``load_mode``, ``lazy_mode``, ``check_tensors``,
        ``use_extra_bufts`` and ``progress`` are for files, and refused.

        Args:
            gguf: A `Gguf`; with ``fill`` also a ``struct gguf_context *``.
            fill: Called for each tensor with its name and an array of zeros to write to, which is
                its own: ``[..., elements of a row]`` of the type of the tensor (the bits of
                bfloat16 as uint16), or ``[..., bytes of a row]`` uint8 for types in blocks.  What
                it raises is raised here.
            **params: See `Model`.

        Raises:
            LoadError: llama.cpp cannot make a model of it, for lack of metadata or tensors.
            ArgumentError: ``gguf`` has no tensors, or a parameter is not possible.
            TypeError: ``gguf`` or ``fill`` is something else.

        Source: ``llama_model_init_from_user``; ``llama_model_load_from_file_ptr``.
        """
        from .making import load_filled, load_gguf

        given: dict[str, Any] = dict(params)
        if fill is None:
            return cls._make("<Gguf>", given, lambda *load: load_gguf(gguf, *load))
        if given.pop("progress", None) is not None:
            raise TypeError("'progress' is for files; fill= is called for each tensor")
        return cls._make("<Gguf>", given, lambda struct, _: load_filled(gguf, fill, struct, given))

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None = None,
        *,
        revision: str | None = None,
        cache_dir: Path | None = None,
        local_dir: Path | None = None,
        token: str | bool | None = None,
        **params: Unpack[types.LoadParams],
    ) -> Self:
        """Load a model from the Hugging Face hub, downloaded unless it is there already.

        It needs ``pip install 'llamacffi[hf]'``.  ``progress`` is of the load; downloads have the
        hub's own progress bars.

        Args:
            repo_id: ``"owner/name"``, or ``"owner/name:Q4_K_M"`` for the model with that in its
                name.
            filename: The file, or a pattern such as ``"*Q4_K_M.gguf"`` that one model matches; of
                one in several files all are downloaded.  Without it the repository must have one
                model only.
            revision: A branch, a tag or a commit; by default the main branch.
            cache_dir: Where to keep files, in the hub's own layout.
            local_dir: Where to put the files instead, under their own names.
            token: For repositories that are not public; by default that of ``hf auth login``.
            **params: See `Model`.

        Raises:
            DependencyError: ``huggingface_hub`` is not installed.
            ArgumentError: No model matches, or several: the message lists them; or a parameter is
                out of range.
            ModelNotFoundError: There is no such repository, revision or file.
            LoadError: The hub cannot be reached, or refuses; or llama.cpp cannot load the file.

        Source: ``llama_model_load_from_file``, ``llama_model_load_from_splits``.
        """
        from .hub import download

        backend.load()
        model_params(dict(params), warning=False)  # before gigabytes are on their way
        paths = download(
            repo_id,
            filename,
            revision=revision,
            cache_dir=cache_dir,
            local_dir=local_dir,
            token=token,
        )
        return cls.from_splits(paths, **params) if len(paths) > 1 else cls(paths[0], **params)

    @classmethod
    def _make(
        cls, name: str, given: dict[str, Any], load: Callable[[Any, Progress | None], Made]
    ) -> Self:
        """Return a new model; see `_load`."""
        model = cls.__new__(cls)
        model.path = None
        model._load(name, given, load)
        return model

    def _load(
        self, name: str, given: Mapping[str, Any], load: Callable[[Any, Progress | None], Made]
    ) -> None:
        """Load the model and own it.

        Args:
            name: Where it comes from, for `repr`.
            given: The parameters, with ``progress``.
            load: Gets the struct and ``progress``; returns a model for `own`.
        """
        backend.load()
        struct, keep = model_params(given)
        progress = given.get("progress")
        # C may read what the parameters point to as long as the model lives.
        owner = own(load(struct, progress), keep)
        check_weight_types(owner, name)
        self._name = name
        self._vocab: weakref.ref[Vocab] | None = None
        left_out = (name for name in ("vocab_only", "no_alloc") if getattr(struct, name))
        self.without_weights: str | None = next(left_out, None)
        divided = struct.split_mode == lib.LLAMA_SPLIT_MODE_TENSOR
        self._divided = used_devices(struct) if divided else []
        super().__init__(owner)
        drain()
        warn_without_experts(struct, given, owner)

    def __repr__(self) -> str:
        if self.closed:
            return f"<Model {self._name!r} closed>"
        try:
            desc, size, devices = self.desc, self.size, self.devices
        except ForkError:
            return f"<Model {self._name!r} of the parent process>"
        if self.without_weights:
            return f"<Model {self._name!r}: {self.architecture}, {self.without_weights}>"
        places = ", ".join(device.name for device in devices) or "the processor"
        return f"<Model {self._name!r}: {desc}, {_bytes(size)} on {places}>"

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

    def save(self, path: Path) -> None:
        """Write the model to a GGUF file, at once or not at all.

        The file has the weights as they are now, and what llama.cpp computes with; its tokens have
        the attributes of the model's; also the chat templates, the recommended sampling, and what
        else the metadata say of the vocabulary and the architecture, and texts.  Arrays beyond
        those of the vocabulary are not kept: to edit a file as it is, use `Gguf`.

        Args:
            path: The file; one that is there is replaced.

        Raises:
            UnsupportedError: The model has no weights, or some that cannot be read back: load it
                with ``use_extra_bufts=False``; or llama.cpp cannot save its architecture.
            OSError: The file cannot be written.

        Source: ``llama_model_save_to_file``.
        """
        from .saving import save

        save(self, path)


def _bytes(size: int) -> str:
    """Return a size as people read it."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.4g} {units[0]}"
