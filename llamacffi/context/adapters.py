"""What changes a context's computation: adapters and a control vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._core.values import number
from .._native import ffi
from ..errors import AdapterError
from ..log import with_log
from .base import ContextBase
from .reserve import NO_VECTOR, ActiveAdapters

if TYPE_CHECKING:
    from ..adapter.adapter import Adapter
    from ..adapter.control_vector import ControlVector


class Adapters(ContextBase):
    """The part of a `Context` that sets adapters and control vectors."""

    __slots__ = ()

    @property
    def adapters(self) -> Mapping[Adapter, float]:
        """The adapters in use, each with its scale; set a mapping, or None for none.

        Setting takes microseconds, but the next computation plans its memory anew, which takes
        about as long as creating a context.  What was computed before stays in `memory` as it is:
        forget it, unless the adapters are meant to continue it.  With no adapters the results are
        exactly those of the model alone.

        Raises:
            AdapterError: An adapter was loaded for another model.
            ClosedError: An adapter is closed.
            ArgumentError: A scale is not a finite 32-bit number.
            BusyError: Another thread is using the context.

        Source: ``llama_set_adapters_lora``.
        """
        self.ptr  # noqa: B018  raises if closed
        return self._active.adapters

    @adapters.setter
    def adapters(self, adapters: Mapping[Adapter, float] | None) -> None:
        chosen = {} if adapters is None else adapters
        if not isinstance(chosen, Mapping):
            raise TypeError(f"adapters must be a mapping {{adapter: scale}}, not {adapters!r}")
        scales = {
            self._checked(adapter): number("scale", scale) for adapter, scale in chosen.items()
        }
        owners = [adapter.ptr for adapter in scales]
        applied, ptr = self._active, self.ptr
        with self.lock:
            applied.use_adapters(ptr, scales, owners)

    @property
    def control_vector(self) -> ControlVector | None:
        """The control vector in use; set None for none.

        As with `adapters`, the next computation plans its memory anew, and what is in `memory`
        stays as it is.  Some architectures have no place for control vectors: llama.cpp takes them
        and leaves the results as they are.

        Raises:
            AdapterError: It is for another width, or has layers that the model has not got.
            BusyError: Another thread is using the context.

        Source: ``llama_set_adapter_cvec``.
        """
        self.ptr  # noqa: B018  raises if closed
        return self._active.vector

    @control_vector.setter
    def control_vector(self, vector: ControlVector | None) -> None:
        applied, ptr = self._active, self.ptr
        args: tuple[Any, ...] = NO_VECTOR
        if vector is not None:
            # Imported here since it needs numpy, which the rest does not.
            from ..adapter.control_vector import ControlVector, rows_for_model

            if not isinstance(vector, ControlVector):
                raise TypeError(f"control_vector must be a ControlVector or None, not {vector!r}")
            rows = rows_for_model(vector, self.model.n_layer, self.model.n_embd)
            first, last = vector.layers[0], vector.layers[-1]
            # All layers: what C is not given keeps the numbers of the vector before.
            args = ffi.from_buffer("float[]", rows), rows.size, rows.shape[1], first, last
        with self.lock:
            if not applied.use_vector(ptr, vector, args):
                raise with_log(AdapterError(f"llama.cpp cannot use {vector!r}"))

    def close(self) -> None:
        """Free the C object now, after everything made from it.  Idempotent.

        Only a call still running in another thread, or a live zero-copy array, delays the free
        until it is done.
        """
        super().close()
        self._active = ActiveAdapters()  # C may still point into the other, which its finalizer has

    def _checked(self, adapter: Adapter) -> Adapter:
        """Return an adapter that this context can use."""
        from ..adapter.adapter import Adapter

        if not isinstance(adapter, Adapter):
            raise TypeError(f"adapters maps each Adapter to its scale; {adapter!r} is none")
        if adapter.model is not self.model:
            raise AdapterError(
                f"{adapter!r} was loaded for {adapter.model!r}, and this is a context of "
                f"{self.model!r}"
            )
        return adapter
