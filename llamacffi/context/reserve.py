"""When a context plans the memory of its compute graphs, and what must not happen meanwhile.

llama.cpp plans when a context is created, and anew with the first computation after its adapters or
samplers have changed.  It looks then at the list of the model's adapters, without a lock; loading
or freeing an adapter in another thread would change the list under its eyes.  So each of these is
one call of a function of native/planning.cpp, where a lock is held.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .._native import ffi, lib

if TYPE_CHECKING:
    from ..adapter.adapter import Adapter
    from ..adapter.control_vector import ControlVector

# What takes a control vector away.
NO_VECTOR = ffi.NULL, 0, 0, 0, 0


class ActiveAdapters:
    """What a context computes with; C points to the adapters until it is given others."""

    __slots__ = ("_adapters", "_held", "_vector", "planned", "told")

    def __init__(self) -> None:
        self._adapters: tuple[Mapping[Adapter, float], list[Any]] = MappingProxyType({}), []
        """With the C objects, which stay although their `Adapter` is closed."""
        self._vector: tuple[ControlVector | None, tuple[Any, ...]] = None, NO_VECTOR
        """With what `llama_set_adapter_cvec` is called with for it, beside the context."""
        self.told: bool = True
        """Whether C has just these; not so if somebody was interrupted who told it of others."""
        self._held: tuple[list[Any], ...] = ()
        self.planned: bool = True
        """Whether the next computation need not plan anew."""

    @property
    def adapters(self) -> Mapping[Adapter, float]:
        """The adapters with their scales."""
        return self._adapters[0]

    @property
    def vector(self) -> ControlVector | None:
        """The control vector."""
        return self._vector[0]

    def plan_anew(self, context: Any) -> None:
        """Let the next computation plan, after one that did not get the memory it wanted.

        llama.cpp would take what is left of the plan for a whole one, and write to NULL.
        """
        # There is no function that says only this.
        self.planned = False
        lib.llama_set_adapter_cvec(context, *self._vector[1])

    def use_adapters(
        self, context: Any, scales: Mapping[Adapter, float], owners: list[Any]
    ) -> None:
        """Tell C of adapters; the caller holds the context."""
        self.planned = self.told = False
        self._held = self._adapters[1], owners  # C has the one or the other
        _set_adapters(context, scales, owners)
        self._adapters = MappingProxyType(dict(scales)), owners
        self.told, self._held = True, ()

    def use_vector(self, context: Any, vector: ControlVector | None, args: tuple[Any, ...]) -> bool:
        """Tell C of a control vector; return whether it can use it."""
        self.planned = self.told = False
        if lib.llama_set_adapter_cvec(context, *args) != 0:
            return False
        self._vector = vector, args
        self.told = True
        return True

    def plan(self, context: Any) -> None:
        """Plan now, before a computation would; the caller holds the context."""
        if not self.told:
            _set_adapters(context, *self._adapters)
            lib.llama_set_adapter_cvec(context, *self._vector[1])
            self.told = True
        lib.llamacffi_reserve(context)
        self.planned = True


def _set_adapters(context: Any, scales: Mapping[Adapter, float], owners: list[Any]) -> None:
    adapters = ffi.new("struct llama_adapter_lora *[]", owners)
    lib.llama_set_adapters_lora(
        context, adapters, len(owners), ffi.new("float[]", list(scales.values()))
    )
