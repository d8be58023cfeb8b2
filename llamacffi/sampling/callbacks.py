"""Callbacks through which C runs samplers that are written in Python.

C holds a ``struct llama_sampler`` whose ``ctx`` is a handle to a `ChainedRunner`.  The owner of the
chain keeps the handle alive, so C has nothing to free.  An exception cannot pass through C: it is
stored, the candidates are left in a state that any sampler can work with, and `SamplerChain` raises
it after the call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from .._core.values import INT32_MAX
from .._native import ffi, lib
from .candidates import Candidates, lend, problem, token_data

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .base import Sampler


class Runner:
    """What a sampler in Python does in one chain; it holds the state for that chain."""

    sampler: Sampler
    """The description that it was made from."""
    name: str

    def apply(self, candidates: Candidates) -> None:
        """Change, remove or choose candidates."""
        raise NotImplementedError

    def accept(self, token: int) -> None:
        """Record that a token was chosen."""

    def reset(self) -> None:
        """Forget the tokens accepted so far."""

    def clone(self) -> Runner:
        """Return a copy in the same state."""
        raise NotImplementedError


class CandidateBuffer:
    """Memory for the candidates of one chain: C fills it, and numpy arrays view it."""

    __slots__ = ("array", "base", "data", "size")

    def __init__(self, n: int) -> None:
        self.array: npt.NDArray[np.void]
        self.data: Any
        self.array, self.data = token_data(n)
        self.base: int = int(ffi.cast("uintptr_t", self.data))
        self.size: int = n

    def has(self, struct: Any) -> bool:
        """Return whether the candidates of a struct lie in this memory."""
        offset = int(ffi.cast("uintptr_t", struct.data)) - self.base
        return bool(offset >= 0 and offset + struct.size * self.array.itemsize <= self.array.nbytes)


class ChainedRunner:
    """A `Runner` that a chain in C calls."""

    __slots__ = ("c_name", "chain", "clones", "error", "room", "runner")

    def __init__(self, runner: Runner) -> None:
        self.runner: Runner = runner
        self.error: BaseException | None = None
        self.c_name: Any = ffi.new("char[]", runner.name.encode())
        # The handles of clones that C has made, until the owner of the cloned chain takes them.
        self.clones: list[Any] = []
        self.chain: Any = None
        """The ``struct llamacffi_chain`` that it belongs to."""
        self.room: CandidateBuffer | None = None
        """The candidate buffer of that chain."""

    def make(self) -> tuple[Any, Any]:
        """Make the sampler in C.

        Returns:
            The handle that leads C here, which must outlive the sampler, and the pointer.
        """
        handle = ffi.new_handle(self)
        return handle, lib.llama_sampler_init(_interface(), handle)

    def fail(self, error: BaseException) -> None:
        """Store an exception, and tell C that the sampler failed."""
        if self.error is None:
            self.error = error
        if self.chain is not None:
            self.chain.failed = True

    def apply(self, struct: Any) -> None:
        """Let the runner work on the candidates that C passes."""
        if not struct.size:
            return
        room = self.room
        if room is not None and room.has(struct):
            self._apply(struct, room.array, room.base)
            return
        # This memory is C's, and a numpy array that the runner keeps would outlive it: lend a copy.
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
        lend(struct, memory, base, self.runner.apply)
        n_vocab = INT32_MAX if self.chain is None else self.chain.n_vocab
        if code := lib.llamacffi_candidates_check(struct, n_vocab):
            raise problem(code)


@cache
def _interface() -> Any:
    """Return the ``struct llama_sampler_i`` that all samplers in Python share, and never free."""
    interface = ffi.new("struct llama_sampler_i *")
    interface.name = lib.llamacffi_on_sampler_name
    interface.accept = lib.llamacffi_on_sampler_accept
    interface.apply = lib.llamacffi_on_sampler_apply
    interface.reset = lib.llamacffi_on_sampler_reset
    interface.clone = lib.llamacffi_on_sampler_clone
    return interface


def _callback(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register an ``extern "Python"`` function whose first argument is the sampler."""

    def interrupted(_type: Any, error: BaseException, traceback: Any) -> None:
        # A signal handler has raised this before the function reached its `try`.
        ChainedRunner.fail(ffi.from_handle(traceback.tb_frame.f_locals["sampler"].ctx), error)

    ffi.def_extern(name=function.__name__, onerror=interrupted)(function)
    return function


@_callback
def llamacffi_on_sampler_name(sampler: Any) -> Any:
    """Return the name of a sampler; the string lives as long as the sampler."""
    return ffi.from_handle(sampler.ctx).c_name


@_callback
def llamacffi_on_sampler_accept(sampler: Any, token: int) -> None:
    """Pass an accepted token to the runner."""
    chained: ChainedRunner = ffi.from_handle(sampler.ctx)
    try:
        chained.runner.accept(token)
    except BaseException as error:  # KeyboardInterrupt too must reach the caller
        chained.fail(error)


@_callback
def llamacffi_on_sampler_apply(sampler: Any, candidates: Any) -> None:
    """Let the runner work on the candidates."""
    chained: ChainedRunner = ffi.from_handle(sampler.ctx)
    try:
        if chained.error is None:
            chained.apply(candidates)
    except BaseException as error:
        chained.fail(error)
    if chained.error is not None and candidates.size:
        # Whatever it has left, the samplers after it can work with this.
        candidates.size, candidates.selected = 1, -1
        candidates.data[0] = (0, 0.0, 1.0)


@_callback
def llamacffi_on_sampler_reset(sampler: Any) -> None:
    """Forget the tokens accepted so far."""
    chained: ChainedRunner = ffi.from_handle(sampler.ctx)
    try:
        chained.runner.reset()
    except BaseException as error:
        chained.fail(error)


@_callback
def llamacffi_on_sampler_clone(sampler: Any) -> Any:
    """Return a sampler in the same state; on failure, one that shares the runner."""
    chained: ChainedRunner = ffi.from_handle(sampler.ctx)
    try:
        other = ChainedRunner(chained.runner.clone())
    except BaseException as error:
        chained.fail(error)
        other = ChainedRunner(chained.runner)
    handle, pointer = other.make()
    chained.clones.append(handle)
    return pointer
