"""Adapters and the control vector of a context, and when it reserves the memory of its graphs.

llama.cpp reserves that memory when a context is created, and anew before the first computation
after its adapters or samplers have changed.  It then reads the list of the model's adapters,
without a lock; loading or freeing an adapter in another thread would change the list at the same
time.  So each of these is one call of a function of native/, which holds a lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .._core.values import number
from .._native import ffi, lib
from ..errors import AdapterError
from ..log import with_log

if TYPE_CHECKING:
    from ..adapter.adapter import Adapter
    from ..adapter.control_vector import ControlVector
    from ..model.model import Model

# The arguments of llama_set_adapter_cvec that take a control vector away.
NO_VECTOR = ffi.NULL, 0, 0, 0, 0


class ActiveAdapters:
    """The adapters and the control vector that a context uses.

    The first argument of most methods is the ``struct llama_context *``; the caller holds the
    context.
    """

    __slots__ = ("_adapters", "_vector", "pointers", "reserved", "told")

    pointers: list[Any]
    """What C points to, as long as the context lives in C; nothing in it leads to the context."""
    told: bool
    """Whether C has these adapters and this vector: not after an interrupted change."""
    reserved: bool
    """Whether the memory of the next compute graph is reserved."""

    def __init__(self) -> None:
        # With the C objects, which stay although their `Adapter` is closed.
        self._adapters: tuple[Mapping[Adapter, float], list[Any]] = MappingProxyType({}), []
        # With the arguments of llama_set_adapter_cvec, beside the context.
        self._vector: tuple[ControlVector | None, tuple[Any, ...]] = None, NO_VECTOR
        self.pointers = []
        self.told = self.reserved = True

    def close(self) -> None:
        """Release the adapters; C may still point to them until the context is freed."""
        self._adapters, self._vector = (MappingProxyType({}), []), (None, NO_VECTOR)
        self.pointers = []  # the list that C's object keeps is another one from here on

    @property
    def adapters(self) -> Mapping[Adapter, float]:
        """The adapters, each with its scale."""
        return self._adapters[0]

    @property
    def vector(self) -> ControlVector | None:
        """The control vector."""
        return self._vector[0]

    @staticmethod
    def scales(adapters: Any, model: Model) -> dict[Adapter, float]:
        """Return what `Context.adapters` is set to, checked for a context of a model.

        Raises:
            AdapterError: An adapter was loaded for another model.
            ArgumentError: A scale is not a finite 32-bit number.
            TypeError: It is not a mapping of adapters to numbers.
        """
        chosen = {} if adapters is None else adapters
        if not isinstance(chosen, Mapping):
            raise TypeError(f"adapters must be a mapping {{adapter: scale}}, not {adapters!r}")
        return {_checked(one, model): number("scale", scale) for one, scale in chosen.items()}

    def use_adapters(self, ptr: Any, scales: Mapping[Adapter, float], owners: list[Any]) -> None:
        """Compute with adapters.

        Args:
            ptr: The context.
            scales: What `scales` has returned.
            owners: The pointers of the adapters.
        """
        self.reserved = self.told = False
        self.pointers += owners  # C has the one or the other
        _set_adapters(ptr, scales, owners)
        self._adapters = MappingProxyType(dict(scales)), owners
        self.told, self.pointers[:] = True, owners

    @staticmethod
    def vector_arguments(vector: Any, model: Model) -> tuple[Any, ...]:
        """Return the arguments of ``llama_set_adapter_cvec`` for a control vector, or None.

        Raises:
            AdapterError: The vector does not fit the model.
            TypeError: It is not a `ControlVector`.
        """
        if vector is None:
            return NO_VECTOR
        from ..adapter.control_vector import ControlVector, rows_for_model  # needs numpy

        if not isinstance(vector, ControlVector):
            raise TypeError(f"control_vector must be a ControlVector or None, not {vector!r}")
        rows = rows_for_model(vector, model.n_layer, model.n_embd)
        first, last = vector.layers[0], vector.layers[-1]
        # All layers: C would keep the numbers of the vector before for those it is not given.
        return ffi.from_buffer("float[]", rows), rows.size, rows.shape[1], first, last

    def use_vector(self, ptr: Any, vector: ControlVector | None, args: tuple[Any, ...]) -> None:
        """Compute with a control vector.

        Raises:
            AdapterError: llama.cpp refuses it.
        """
        self.reserved = self.told = False
        if lib.llama_set_adapter_cvec(ptr, *args) != 0:
            raise with_log(AdapterError(f"llama.cpp cannot use {vector!r}"))
        self._vector = vector, args
        self.told = True

    def reserve(self, ptr: Any) -> None:
        """Reserve the memory of the compute graph now, before a computation would."""
        if not self.told:
            _set_adapters(ptr, *self._adapters)
            lib.llama_set_adapter_cvec(ptr, *self._vector[1])
            self.told = True
        lib.llamacffi_reserve(ptr)
        self.reserved = True

    def reserve_anew(self, ptr: Any) -> None:
        """Make the next computation reserve memory, after an allocation failed.

        upstream: src/llama-context.cpp sched_need_reserve: it would use the incomplete plan, and
        write to NULL.  Setting the control vector is what makes it reserve again.
        """
        self.reserved = False
        lib.llama_set_adapter_cvec(ptr, *self._vector[1])


def _checked(adapter: Any, model: Model) -> Adapter:
    """Return an adapter that a context of the model can use."""
    from ..adapter.adapter import Adapter

    if not isinstance(adapter, Adapter):
        raise TypeError(f"adapters must map each Adapter to its scale, not {adapter!r}")
    if adapter.model is not model:
        raise AdapterError(
            f"{adapter!r} was loaded for {adapter.model!r}, but this is a context of {model!r}: "
            "load it again for this model"
        )
    return adapter


def _set_adapters(ptr: Any, scales: Mapping[Adapter, float], owners: list[Any]) -> None:
    adapters = ffi.new("struct llama_adapter_lora *[]", owners)
    lib.llama_set_adapters_lora(
        ptr, adapters, len(owners), ffi.new("float[]", list(scales.values()))
    )
