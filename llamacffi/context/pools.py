"""The threads that a context computes with, and what is locked while it computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._core.locks import CallLock, CallLocks
from .._core.values import integer
from .._native import lib
from ..backend.threads import Placement, Threadpool, check_computing, register_abort_flag
from ..errors import ArgumentError, ClosedError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

NAMES = ("n_threads", "n_threads_batch")


class Pools:
    """The thread pools of a context, and the locks of all that C uses while it computes.

    The first argument of some methods is the ``struct llama_context *``.
    """

    __slots__ = (
        *("_abort", "_attached", "_held", "_lock", "_settled", "alone", "left", "locks"),
        *("others", "own", "placed", "pointers"),
    )

    alone: bool
    """Whether nothing else can use what the context computes with: then its lock is enough."""
    own: bool
    """Whether the context created its pools itself."""
    left: bool
    """Whether C may still use a pool that is no longer attached."""
    placed: bool
    """Whether a pool moves the computing thread to other CPUs."""

    def __init__(self, lock: CallLock, abort: Any) -> None:
        """Describe the pools of a context that is about to be created.

        Args:
            lock: The context's.
            abort: The ``struct llamacffi_abort_flag *`` that stops what it computes.
        """
        self._lock, self._abort = lock, abort
        self.locks: CallLocks = CallLocks(lock)
        # The pools that C may have until the context is freed.
        self._held: dict[Threadpool, Any] = {}
        # Their pointers, for what the context points into.  Without the pools: the lock of one may
        # hold a call that is over, and its variables the context.
        self.pointers: set[Any] = set()
        self.alone = self.own = self.left = self.placed = False
        self.others: tuple[CallLock, ...] = ()  # of what else C uses while it computes
        # Whether C has the pools that are attached; if not, it may have others that are held.
        self._settled = True
        self._attached: tuple[Threadpool, Threadpool]

    @property
    def attached(self) -> tuple[Threadpool, Threadpool]:
        """The pools for single tokens and for several."""
        return self._attached

    def attach(self, ptr: Any, pools: tuple[Threadpool, Threadpool], *, own: bool) -> None:
        """Make a context compute with ``pools``; the caller holds it."""
        pointers = [pool.ptr for pool in pools]
        for pool in pools:
            register_abort_flag(pool, self._abort)
        # upstream: ggml/src/ggml-cpu/ggml-cpu.cpp ggml_backend_cpu_set_threadpool: the backend
        # keeps the pool of the last graph, and pauses it at the next; until then that pool must
        # live, and run no graph.  We record this before C gets the new pools, so that an interrupt
        # leaves both kept and locked.
        self.pointers.update(pointers)
        self._held.update(zip(pools, pointers, strict=True))
        self._settled = False
        self._attached, self.own = pools, own
        self._survey()
        lib.llama_attach_threadpool(ptr, *pointers)
        self._settled = True
        self._survey()

    def replace(self, ptr: Any, pools: tuple[Threadpool, Threadpool]) -> None:
        """Compute with the caller's pools; see `Context.attach_threadpool`."""
        for pool in pools:
            if not isinstance(pool, Threadpool):
                raise TypeError(f"a pool must be a Threadpool, not {pool!r}")
        with self._lock:
            _check_sizes(_numbers(ptr), pools)
            self.attach(ptr, pools, own=False)

    def restore(self, ptr: Any) -> None:
        """Compute with pools of the context's own again; see `Context.detach_threadpool`."""
        with self._lock:
            if not self.own:
                self.attach(ptr, own_pools(*_numbers(ptr)), own=True)

    def resize(self, ptr: Any, *numbers: int) -> None:
        """Compute with other numbers of threads: for single tokens, and for several."""
        numbers = tuple(integer(name, n) for name, n in zip(NAMES, numbers, strict=True))
        for name, n in zip(NAMES, numbers, strict=True):
            check_computing(name, n)
        with self._lock:
            if not self.own:
                _check_sizes(numbers, self._attached)
            elif numbers != tuple(pool.n_threads for pool in self._attached):
                # At no time may a pool have too few threads, even if this is interrupted.
                lib.llama_set_n_threads(ptr, *map(min, numbers, _numbers(ptr)))
                self.attach(ptr, own_pools(*numbers), own=True)
            lib.llama_set_n_threads(ptr, *numbers)

    def computed(self, ptr: Any) -> None:
        """Release pools that are no longer attached, after C has computed a graph without them."""
        if not self._settled:  # perhaps with them
            lib.llama_attach_threadpool(ptr, *(self._held[pool] for pool in self._attached))
            self._settled = True
            return
        for pool in self._held.keys() - set(self._attached):
            del self._held[pool]
        self.pointers.intersection_update(self._held.values())
        self._survey()

    def hold(self, others: Iterable[CallLock]) -> None:
        """Also lock what else C uses while it computes; the caller holds the context."""
        self.others = tuple(others)
        self._survey()

    def _survey(self) -> None:
        self.left = not self._settled or len(self._held) > len(set(self._attached))
        self.placed = any(pool.placement for pool in self._held)
        self.locks.others = (*(pool.exclusive for pool in self._held), *self.others)
        self.alone = self.own and not (self.left or self.placed or self.others)


class Computing:
    """Held while C computes: the lock of the context, and those of its pools.

    The calling thread computes too, so it is placed like the other threads of the pool.
    """

    __slots__ = ("_alone", "_placement", "current")

    current: Pools | None
    """The pools; None after `close`."""

    def __init__(self, pools: Pools) -> None:
        self.current = pools
        self._alone = False  # whether only the context is held, meanwhile
        self._placement: Placement | None = None  # of the calling thread before

    @property
    def pools(self) -> Pools:
        """The pools.

        Raises:
            ClosedError: After `close`.
        """
        if self.current is None:
            raise ClosedError("the Context is closed")
        return self.current

    def close(self) -> None:
        """Release the threads; the objects that C points to still keep them."""
        self.current = None

    def enter(self, frame: FrameType, n_tokens: int) -> Pools:
        """Lock everything for a computation; ``frame`` is the caller's frame.

        Returns:
            The pools, for `leave`.

        Raises:
            BusyError: Another thread is using the context or a pool.
            ClosedError: After `close`.
        """
        pools = self.current or self.pools
        if pools.alone:
            first = pools.locks.first
            # As `first.enter(frame)`, without a function call in the most frequent case.
            if first.holders.setdefault(0, frame) is not frame:
                first.enter(frame)
            if pools.alone:  # no other thread has changed that meanwhile
                self._alone = True
                return pools
            first.leave()
        pools.locks.enter(frame)
        self._alone = False
        if pools.placed:
            self._placement = Placement.current()
            if placement := pools.attached[n_tokens > 1].placement:
                placement.apply()
        return pools

    def leave(self, frame: FrameType, pools: Pools) -> None:
        """Release what `enter` has locked."""
        if self._alone:
            self._alone = False
            first = pools.locks.first
            first.holders.clear()  # as `first.leave()`
            if first.ended:
                first.leave()
            return
        if self._placement:
            self._placement.apply()
            self._placement = None
        pools.locks.leave(frame)


def own_pools(n_threads: int, n_threads_batch: int) -> tuple[Threadpool, Threadpool]:
    """Return new pools for single tokens and for several: the same one if that fits.

    A pool with more threads than compute would wake the others for each graph.
    """
    pool = Threadpool(n_threads)
    return pool, pool if n_threads_batch == n_threads else Threadpool(n_threads_batch)


def n_threads_for(ptr: Any, n_tokens: int) -> int:
    """Return the number of threads that compute a batch."""
    get = lib.llama_n_threads if n_tokens == 1 else lib.llama_n_threads_batch
    return int(get(ptr))


def _numbers(ptr: Any) -> tuple[int, int]:
    return lib.llama_n_threads(ptr), lib.llama_n_threads_batch(ptr)


def _check_sizes(numbers: tuple[int, ...], pools: tuple[Threadpool, Threadpool]) -> None:
    """Raise ArgumentError for a pool with too few threads: ggml would silently use fewer."""
    for name, n, pool in zip(NAMES, numbers, pools, strict=True):
        if n > pool.n_threads:
            raise ArgumentError(
                f"{name}={n} is more than the {pool.n_threads} threads of {pool!r}: lower it, or "
                "attach a larger pool"
            )
