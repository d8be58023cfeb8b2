"""A model: its weights, its vocabulary and its metadata."""

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

    from .._core.ownership import Made
    from .._generated.model_params import ModelParams
    from ..gguf.gguf import Gguf
    from . import types as types
    from .loading import Path, Progress


class Model(ModelInfo):
    """The weights of a model, with its vocabulary.

    ::

        model = Model("model.gguf")                             # on the GPUs, if any
        model = Model("model.gguf", n_gpu_layers=20, load_mode="none")
        model = Model.from_pretrained("owner/repo", "*Q4_K_M.gguf")
        print(model)                                            # description, size, devices
        print(model.metadata["general.name"], model.n_ctx_train, model.placement)
        tokens = model.vocab.tokenize("Hello")

    Load one from a path with this class itself; from an open file, a descriptor or bytes with
    `from_file`; from split files with `from_splits`; from a `Gguf`, or metadata and a function that
    sets the weights, with `from_gguf`; or from the Hugging Face hub with `from_pretrained`.

    The model owns the ``struct llama_model``.  Any number of contexts and threads can share one
    model, so its weights are in memory only once.  `close`, or leaving a ``with`` block, closes the
    contexts and then frees the weights; otherwise the weights are freed with the last reference to
    the model and its contexts.

    **Parameters.**  Each way to load a model takes the fields of ``llama_model_params``.  Fields
    that are not given keep llama.cpp's defaults:

    * ``devices``: the devices to use besides the CPU: a sequence of `Device` objects or names from
      ``llamacffi.devices()``; ``"none"`` or ``[]`` for the CPU alone.  The default is all GPUs.
    * ``n_gpu_layers``: the number of layers to offload to them; negative, the default, for all.
    * ``split_mode``: how several devices share the model: split by ``"layer"``, by ``"row"`` or
      within each ``"tensor"``, or ``"none"`` to use only the device at index ``main_gpu``.
      ``tensor_split``: the proportion of the model for each device, such as ``[3, 1]``.
    * ``tensor_buft_overrides``: where to put tensors, by regular expressions (C++ ECMAScript) that
      are searched for in their names: ``{r"ffn_.*_exps": "CPU"}``.  A place is a device, a buffer
      type, or the name of either.  The first pattern that matches applies.
    * ``cpu_moe``, ``n_cpu_moe``: keep the expert weights of a mixture-of-experts model on the CPU,
      for all layers or for the first ``n_cpu_moe``.
    * ``load_mode``: ``"mmap"``, ``"mmap_mlock"`` (mapped and locked in RAM), ``"none"`` (read into
      memory), ``"mlock"`` (read and locked in RAM), ``"direct_io"`` (read past the page cache).
      The default is mapped, unless a device does not support it.  ``lazy_mode``: whether large
      tables are read on demand.
    * ``kv_overrides``: values that replace metadata of the file: bools, ints, floats and strings by
      key.  Each must have the type that llama.cpp reads.
    * ``vocab_only``, ``no_alloc``: do not load the weights; such a model cannot have contexts.
      ``check_tensors``: look for NaN and infinite weights.  ``use_extra_bufts``: allow layouts for
      this CPU.  ``no_host``, ``load_mtp``: see llama.h.
    * ``progress``: a function that is called with the fraction loaded, 0.0 to 1.0, in the calling
      thread.  Loading stops if it returns False or raises, or if the user presses Ctrl-C; its
      exception propagates.

    llama.cpp ignores parameters for a GPU on a machine without one, and for experts of a model
    without any; llamacffi warns about them with a `RuntimeWarning`.
    """

    _instead = "any number of contexts can share it; in another process, load the file again"

    __slots__ = ("_name", "_vocab", "path")

    path: str | None
    """The path of the file that it was loaded from; None if it was not loaded from a path."""

    def __init__(
        self,
        path: Path,
        *,
        progress: Progress | None = None,
        cpu_moe: bool = False,
        n_cpu_moe: int = 0,
        **params: Unpack[ModelParams],
    ) -> None:
        """Load a GGUF file.  For a split model, give the path of the first file.

        Args:
            path: The path of the file.
            progress: Called with the fraction loaded, 0.0 to 1.0; return False to stop.
            cpu_moe: Keep the expert weights of a mixture-of-experts model on the CPU.
            n_cpu_moe: Keep the expert weights of the first ``n_cpu_moe`` layers on the CPU.
            **params: Fields of ``llama_model_params``; see `Model`.

        Raises:
            ModelNotFoundError: The file, or another file of a split model, does not exist.
            LoadError: The file cannot be read, is not a GGUF, or llama.cpp cannot load it; the
                notes hold the lines of its log.  Or the CPU cannot compute with the type of a
                tensor.
            ArgumentError: A parameter is out of range, or two contradict each other.
            BackendUnavailableError: A device does not exist.

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

        The file is mapped or read like one that is given by its path, wherever the GGUF starts in
        it.  It stays open at the same position, and the model does not need it after loading.  The
        position never moves, so other threads can read the file or load from it at the same time.
        A file that the process can no longer open, for example because it dropped privileges, is
        copied into memory first.  Bytes are copied once, into memory that the model owns.

        Args:
            file: A binary file with a descriptor, a descriptor, or bytes, a bytearray, a memoryview
                or an `io.BytesIO`.
            offset: Where the GGUF starts, in bytes; by default the position of the file, or 0 for
                bytes.
            **params: See `Model`.

        Raises:
            LoadError: The file is not a GGUF, or llama.cpp cannot load it.
            ArgumentError: The file is closed, not open for reading, a pipe, or ends before
                ``offset``; or ``load_mode`` asks to map a GGUF that is not aligned in the file.
            TypeError: ``file`` is a path, a text file or an object of another type.

        Source: ``llama_model_load_from_file_ptr``.
        """
        return cls._make(
            file_name(file), dict(params), lambda *load: load_file(file, offset, *load)
        )

    @classmethod
    def from_splits(cls, paths: Sequence[Path], **params: Unpack[types.LoadParams]) -> Self:
        """Load a split model from files with any names.

        Args:
            paths: The files, in order.
            **params: See `Model`.

        Raises:
            ModelNotFoundError: A file does not exist.
            LoadError: A file is not a GGUF, or llama.cpp cannot load them.
            ArgumentError: There are too few or too many files, or their order is wrong.

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
        """Build a model of any architecture in memory.

        Without ``fill``, the model is the same as if ``gguf`` were written to a file and loaded.

        With ``fill``, only the metadata and the types of the tensors are used: the model gets all
        tensors that its architecture can have, float32 unless ``gguf`` has a tensor of that name
        with another type, and ``fill`` writes their data.  ``load_mode``, ``lazy_mode``,
        ``check_tensors``, ``use_extra_bufts`` and ``progress`` apply to files only and are refused.

        Args:
            gguf: A `Gguf`; with ``fill`` also a ``struct gguf_context *``.
            fill: Called for each tensor with its name and an array of zeros to write the data to:
                ``[..., elements per row]`` in the type of the tensor (bfloat16 as its bits in
                uint16), or ``[..., bytes per row]`` uint8 for block-quantized types.  It can keep
                the array.  Its exceptions propagate.
            **params: See `Model`.

        Raises:
            LoadError: llama.cpp cannot build the model: metadata or tensors are missing.
            ArgumentError: ``gguf`` has no tensors, or a parameter cannot be used here.
            TypeError: ``gguf`` or ``fill`` has the wrong type.

        Source: ``llama_model_init_from_user``; ``llama_model_load_from_file_ptr``.
        """
        from .making import load_filled, load_gguf

        given: dict[str, Any] = dict(params)
        if fill is None:
            return cls._make("<Gguf>", given, lambda *load: load_gguf(gguf, *load))
        if given.pop("progress", None) is not None:
            raise TypeError("'progress' is for files: use fill=, which is called for each tensor")
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
        """Load a model from the Hugging Face hub; download it first unless it is cached.

        Needs ``pip install 'llamacffi[hf]'``.  ``progress`` reports loading; downloads show the
        hub's own progress bars.

        Args:
            repo_id: ``"owner/name"``, or ``"owner/name:Q4_K_M"`` for the model with that in its
                name.
            filename: The file, or a pattern such as ``"*Q4_K_M.gguf"`` that one model matches; all
                files of a split model are downloaded.  Without it the repository must hold exactly
                one model.
            revision: A branch, a tag or a commit; by default the main branch.
            cache_dir: The directory of the cache, in the hub's own layout.
            local_dir: A directory to put the files in under their own names, instead of the cache.
            token: Access token for gated or private repositories; by default that of
                ``hf auth login``.
            **params: See `Model`.

        Raises:
            DependencyError: ``huggingface_hub`` is not installed.
            ArgumentError: No model or several models match (the message lists them), or a parameter
                is out of range.
            ModelNotFoundError: The repository, revision or file does not exist.
            LoadError: The hub cannot be reached or denies access, or llama.cpp cannot load the
                file.

        Source: ``llama_model_load_from_file``, ``llama_model_load_from_splits``.
        """
        from .hub import download

        backend.load()
        model_params(dict(params), warning=False)  # raise before downloading gigabytes
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
            name: The source of the model, for `repr`.
            given: The parameters, including ``progress``.
            load: Takes the struct and ``progress``; returns what `make` returns.
        """
        backend.load()
        struct, keep = model_params(given)
        progress = given.get("progress")
        # C may read what the parameters point to for as long as the model lives.
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
        places = ", ".join(device.name for device in devices) or "the CPU"
        return f"<Model {self._name!r}: {desc}, {_bytes(size)} on {places}>"

    @property
    def vocab(self) -> Vocab:
        """The vocabulary; it keeps the model alive and works until the model is closed."""
        # A weak reference: with a cycle, the weights would stay in memory until the garbage
        # collector runs.
        vocab = self._vocab() if self._vocab is not None else None
        if vocab is None:
            vocab = Vocab(self)
            self._vocab = weakref.ref(vocab)
        return vocab

    def save(self, path: Path) -> None:
        """Write the model to a GGUF file, atomically: the whole file or nothing.

        The file gets the current weights, the hyperparameters, the vocabulary with the attributes
        of its tokens, the chat templates, the recommended sampling settings, and the other scalar
        metadata of the tokenizer and the architecture, and texts.  Arrays other than the
        vocabulary's are lost: to edit a file without changing the rest, use `Gguf`.

        Args:
            path: The path of the file; an existing file is replaced.

        Raises:
            UnsupportedError: The model has no weights; some cannot be read back (load the model
                with ``use_extra_bufts=False``); or llama.cpp cannot save its architecture.
            OSError: The file cannot be written.

        Source: ``llama_model_save_to_file``.
        """
        from .saving import save

        save(self, path, lambda data: type(self).from_file(data, vocab_only=True))


def _bytes(size: int) -> str:
    """Return a size in a unit that people can read, such as ``4.58 GiB``."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.4g} {units[0]}"
