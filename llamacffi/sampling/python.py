"""Samplers in Python, as C sees them: the callbacks, and what runs behind them.

C holds a ``struct llama_sampler`` whose ``ctx`` leads to a `ChainedRunner`.  Who owns the chain
keeps that, and C has nothing to free.  An exception cannot go through C: it is stored, the
candidates are left so that any sampler can work with them, and `SamplerChain` raises it when the
call is over.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from .._core.values import INT32_MAX
from .._native import ffi, lib
from .candidates import Candidates, problem, token_data

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .base import Sampler


class Runner:
    """What a sampler in Python does; it has the state of one chain."""

    sampler: Sampler
    """Its description."""
    name: str

    def apply(self, candidates: Candidates) -> None:
        """Change, remove or choose candidates."""
        raise NotImplementedError

    def accept(self, token: int) -> None:
        """Take notice of a token."""

    def reset(self) -> None:
        """Begin anew."""

    def clone(self) -> Runner:
        """Return another one in the same state."""
        raise NotImplementedError


class CandidateBuffer:
    """Memory for the candidates of one chain, which C fills and numpy looks into."""

    __slots__ = ("array", "base", "data", "size")

    def __init__(self, n: int) -> None:
        self.array: npt.NDArray[np.void]
        self.data: Any
        self.array, self.data = token_data(n)
        self.base: int = int(ffi.cast("uintptr_t", self.data))
        self.size: int = n

    def has(self, struct: Any) -> bool:
        """Return whether the candidates of a struct are in this memory."""
        offset = int(ffi.cast("uintptr_t", struct.data)) - self.base
        return bool(offset >= 0 and offset + struct.size * self.array.itemsize <= self.array.nbytes)


class ChainedRunner:
    """A `Runner` in a chain."""

    __slots__ = ("c_name", "chain", "clones", "error", "room", "runner")

    def __init__(self, runner: Runner) -> None:
        self.runner: Runner = runner
        self.error: BaseException | None = None
        self.c_name: Any = ffi.new("char[]", runner.name.encode())
        # The handles of its clones in C, until the owner of the clones takes them.
        self.clones: list[Any] = []
        self.chain: Any = None
        """The ``struct llamacffi_chain`` that it is in."""
        self.room: CandidateBuffer | None = None
        """The memory for the candidates of that chain."""

    def make(self) -> tuple[Any, Any]:
        """Make it in C.

        Returns:
            The handle that leads C here and must be kept as long as it, and the pointer.
        """
        handle = ffi.new_handle(self)
        return handle, lib.llama_sampler_init(_interface(), handle)

    def fail(self, error: BaseException) -> None:
        """Store what was raised, and let C know."""
        if self.error is None:
            self.error = error
        if self.chain is not None:
            self.chain.failed = True

    def apply(self, struct: Any) -> None:
        """Let the runner work on what C gives."""
        if not struct.size:
            return
        room = self.room
        if room is not None and room.has(struct):
            self._apply(struct, room.array, room.base)
            return
        # C's own memory, which arrays that somebody keeps would outlive: the runner gets a copy.
        n, original = struct.size, struct.data
        copy = CandidateBuffer(n)
        ffi.memmove(copy.data, original, n * copy.array.itemsize)
        struct.data = copy.data
        try:
            self._apply(struct, copy.array, copy.base)
        finally:
            ffi.memmove(original, struct.data, struct.size * copy.array.itemsize)
            struct.data = original

    def _apply(self, struct: Any, memory: npt.NDArray[Any], base: int) -> None:
        candidates = Candidates._over(struct, memory, base)
        try:
            self.runner.apply(candidates)
        finally:
            told = candidates._sorted_is_told
            candidates._release()
        if not told:
            struct.sorted = False
        n_vocab = INT32_MAX if self.chain is None else self.chain.n_vocab
        if code := lib.llamacffi_candidates_check(struct, n_vocab):
            raise problem(code)


def running(sampler: Any) -> ChainedRunner | None:
    """Return what runs behind a ``struct llama_sampler *``, if that is in Python."""
    if sampler.iface != _interface():
        return None
    found: ChainedRunner = ffi.from_handle(sampler.ctx)
    return found


@cache
def _interface() -> Any:
    """Return the ``struct llama_sampler_i`` of all samplers in Python; it is never freed."""
    interface = ffi.new("struct llama_sampler_i *")
    interface.name = lib.llamacffi_on_sampler_name
    interface.accept = lib.llamacffi_on_sampler_accept
    interface.apply = lib.llamacffi_on_sampler_apply
    interface.reset = lib.llamacffi_on_sampler_reset
    interface.clone = lib.llamacffi_on_sampler_clone
    return interface


def _callback(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register an ``extern "Python"`` function, whose first argument is the sampler."""

    def interrupted(_type: Any, error: BaseException, traceback: Any) -> None:
        # Raised before the `try`: by the handler of a signal.
        ChainedRunner.fail(ffi.from_handle(traceback.tb_frame.f_locals["sampler"].ctx), error)

    ffi.def_extern(name=function.__name__, onerror=interrupted)(function)
    return function


@_callback
def llamacffi_on_sampler_name(sampler: Any) -> Any:
    """Return its name, which lives as long as the sampler."""
    return ffi.from_handle(sampler.ctx).c_name


@_callback
def llamacffi_on_sampler_accept(sampler: Any, token: int) -> None:
    """Pass on a token."""
    one: ChainedRunner = ffi.from_handle(sampler.ctx)
    try:
        one.runner.accept(token)
    except BaseException as error:  # KeyboardInterrupt too must come out of the call
        one.fail(error)


@_callback
def llamacffi_on_sampler_apply(sampler: Any, candidates: Any) -> None:
    """Let it work on the candidates."""
    one: ChainedRunner = ffi.from_handle(sampler.ctx)
    try:
        if one.error is None:
            one.apply(candidates)
    except BaseException as error:
        one.fail(error)
    if one.error is not None and candidates.size:
        # Whatever is left there, the samplers after it can work with this.
        candidates.size, candidates.selected = 1, -1
        candidates.data[0] = (0, 0.0, 1.0)


@_callback
def llamacffi_on_sampler_reset(sampler: Any) -> None:
    """Begin anew."""
    one: ChainedRunner = ffi.from_handle(sampler.ctx)
    try:
        one.runner.reset()
    except BaseException as error:
        one.fail(error)


@_callback
def llamacffi_on_sampler_clone(sampler: Any) -> Any:
    """Return a sampler in the same state; one that does nothing if that fails."""
    one: ChainedRunner = ffi.from_handle(sampler.ctx)
    try:
        other = ChainedRunner(one.runner.clone())
    except BaseException as error:
        one.fail(error)
        other = ChainedRunner(one.runner)
    handle, pointer = other.make()
    one.clones.append(handle)
    return pointer
