"""When a context plans the memory of its compute graphs, and what must not happen meanwhile.

llama.cpp plans when a context is created, and anew with the first computation after its adapters or
samplers have changed.  It looks then at the list of the model's adapters, without a lock; loading
or freeing an adapter in another thread would change the list under its eyes.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .._ffi import ffi, lib
from .._handle import EXIT_SECONDS, hold_at_fork

if TYPE_CHECKING:
    from ..adapter import Adapter
    from ..control_vector import ControlVector

# Held while an adapter is loaded or freed, and while a context plans.
lock = hold_at_fork(threading.RLock())


class Applied:
    """What a context computes with; C points to the adapters until it is given others."""

    __slots__ = ("adapters", "owners", "planned", "vector", "vector_args")

    def __init__(self) -> None:
        self.adapters: Mapping[Adapter, float] = MappingProxyType({})
        self.owners: list[Any] = []
        """The C objects, which stay although their `Adapter` is closed."""
        self.vector: ControlVector | None = None
        self.vector_args: tuple[Any, ...] = ffi.NULL, 0, 0, 0, 0
        """What `llama_set_adapter_cvec` is called with for it, beside the context."""
        self.planned = True
        """Whether the next computation need not plan anew."""

    def plan_anew(self, context: Any) -> None:
        """Let the next computation plan, after one that did not get the memory it wanted.

        llama.cpp would take what is left of the plan for a whole one, and write to NULL.
        """
        # There is no function that says only this.
        lib.llama_set_adapter_cvec(context, *self.vector_args)
        self.planned = False

    def plan(self, context: Any) -> None:
        """Plan now, before a computation would; the caller holds the context."""
        with lock:
            lib.llamacffi_reserve(context)
        self.planned = True


def free_adapter(ptr: Any) -> None:
    """Free an adapter when nobody plans."""
    # At the interpreter's exit the thread that has the lock may never come back: leave it alone.
    if lock.acquire(timeout=-1 if threading.main_thread().is_alive() else EXIT_SECONDS):
        try:
            lib.llama_adapter_lora_free(ptr)
        finally:
            lock.release()
