"""The threads that a context computes with."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .._core.locks import CallLock, CallLocks
from .._core.values import integer
from .._native import lib
from ..backend.threads import Placement, Threadpool, check_computing, register_abort_flag
from ..errors import ArgumentError, ClosedError
from .base import ContextBase

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType, TracebackType


class Threads(ContextBase):
    """The part of a `Context` that chooses its threads."""

    __slots__ = ()

    @property
    def n_threads(self) -> int:
        """How many threads compute a single token.

        Setting it replaces the context's own pool; an attached one must be large enough.

        Source: ``llama_n_threads``, ``llama_set_n_threads``.
        """
        return int(lib.llama_n_threads(self.ptr))

    @n_threads.setter
    def n_threads(self, n_threads: int) -> None:
        self._set_n_threads(n_threads, self.n_threads_batch)

    @property
    def n_threads_batch(self) -> int:
        """How many threads compute several tokens.

        Setting it replaces the context's own pool; an attached one must be large enough.

        Source: ``llama_n_threads_batch``, ``llama_set_n_threads``.
        """
        return int(lib.llama_n_threads_batch(self.ptr))

    @n_threads_batch.setter
    def n_threads_batch(self, n_threads_batch: int) -> None:
        self._set_n_threads(self.n_threads, n_threads_batch)

    def attach_threadpool(self, pool: Threadpool, batch_pool: Threadpool | None = None) -> None:
        """Compute with the threads of ``pool`` instead of the context's own.

        The context keeps the pools alive, even if they are closed.

        Args:
            pool: For single tokens; at least `n_threads` threads.
            batch_pool: For several tokens; at least `n_threads_batch` threads.  ``pool`` if
                omitted.

        Raises:
            ArgumentError: A pool has too few threads.
            BusyError: Another thread is using the context.

        Source: ``llama_attach_threadpool``.
        """
        pools = pool, pool if batch_pool is None else batch_pool
        for one in pools:
            if not isinstance(one, Threadpool):
                raise TypeError(f"a pool must be a Threadpool, not {one!r}")
        ptr = self.ptr
        with self.lock:
            _check_sizes((self.n_threads, self.n_threads_batch), pools)
            self._pools.attach(ptr, pools, self._abort, own=False)

    def detach_threadpool(self) -> None:
        """Compute with threads of the context's own again.

        Raises:
            BusyError: Another thread is using the context.

        Source: ``llama_attach_threadpool``.
        """
        ptr = self.ptr
        with self.lock:
            if not self._pools.own:
                pools = own_pools(self.n_threads, self.n_threads_batch)
                self._pools.attach(ptr, pools, self._abort, own=True)

    def computing(self, n_tokens: int) -> Computing:
        """Return what to hold while C computes so many tokens: the context and its pools."""
        computing = self._computing
        if computing is None:
            raise ClosedError("the Context is closed")
        return computing[n_tokens > 1]

    def close(self) -> None:
        """Free the C object now, after everything made from it.  Idempotent.

        Only a call still running in another thread, or a live zero-copy array, delays the free
        until it is done.
        """
        super().close()
        self._computing = None  # the threads too: only what C points into still has them
        self.lock.sweep()

    @property
    def _pools(self) -> Pools:
        return self.computing(1).pools

    def _computed(self, ptr: Any) -> None:
        """Note that C has computed a graph, with a pool that is attached now."""
        computing = self._computing  # None if it was closed meanwhile
        if computing is not None and computing[0].pools.left:
            computing[0].pools.forget(ptr)

    def _set_n_threads(self, *numbers: int) -> None:
        numbers = tuple(integer(name, n) for name, n in zip(NAMES, numbers, strict=True))
        for name, n in zip(NAMES, numbers, strict=True):
            check_computing(name, n)
        ptr, pools = self.ptr, self._pools
        with self.lock:
            if not pools.own:
                _check_sizes(numbers, pools.attached)
            elif numbers != tuple(pool.n_threads for pool in pools.attached):
                # At no time may a pool have too few, also if this is interrupted.
                before = lib.llama_n_threads(ptr), lib.llama_n_threads_batch(ptr)
                lib.llama_set_n_threads(ptr, *map(min, numbers, before))
                pools.attach(ptr, own_pools(*numbers), self._abort, own=True)
            lib.llama_set_n_threads(ptr, *numbers)


NAMES = ("n_threads", "n_threads_batch")


def own_pools(n_threads: int, n_threads_batch: int) -> tuple[Threadpool, Threadpool]:
    """Return new pools for single tokens and for several: one for both if that fits.

    A pool with more threads than compute would wake the others for each graph in vain.
    """
    pool = Threadpool(n_threads)
    return pool, pool if n_threads_batch == n_threads else Threadpool(n_threads_batch)


def _check_sizes(numbers: tuple[int, ...], pools: tuple[Threadpool, Threadpool]) -> None:
    """Raise ArgumentError for a pool with too few threads: ggml would use fewer than were told."""
    for name, n, pool in zip(NAMES, numbers, pools, strict=True):
        if n > pool.n_threads:
            raise ArgumentError(
                f"{name}={n} is more than the {pool.n_threads} of {pool!r}: lower it, or attach a "
                "larger pool"
            )


def n_threads_for(ptr: Any, n_tokens: int) -> int:
    """Return how many threads compute so many tokens."""
    get = lib.llama_n_threads if n_tokens == 1 else lib.llama_n_threads_batch
    return int(get(ptr))


class Pools:
    """The pools of a context, and the locks of all."""

    __slots__ = (
        *("_settled", "alone", "attached", "held", "left", "locks", "others", "own", "placed"),
        "pointers",
    )

    attached: tuple[Threadpool, Threadpool]
    own: bool
    """Whether the context has made them itself."""
    alone: bool
    """Whether nobody else can use what the context computes with."""

    def __init__(self, lock: CallLock) -> None:
        self.locks: CallLocks = CallLocks(lock)
        # Those that C may have, until the context is freed.
        self.held: dict[Threadpool, Any] = {}
        # Their pointers, for what the context points into.  Without the pools: the lock of one may
        # hold a call that is over, and its variables the context.
        self.pointers: set[Any] = set()
        self.left: bool = False  # whether some of them are no longer attached
        self.placed: bool = False  # whether some of them move the thread that computes
        self.others: tuple[CallLock, ...] = ()  # what else C uses while it computes
        # Whether C has those that are attached; if not, it may have others that are held.
        self._settled: bool = True

    def attach(
        self, ptr: Any, pools: tuple[Threadpool, Threadpool], abort_flag: Any, *, own: bool
    ) -> None:
        """Make a context compute with ``pools``: for single tokens, and for several.

        The caller holds the context.
        """
        pointers = [pool.ptr for pool in pools]
        for pool in pools:
            register_abort_flag(pool, abort_flag)
        # The CPU backend still has the pool of the last graph, and pauses it at the next: till then
        # that pool must live, and run no graph.  All this before C has the others: whoever is
        # interrupted leaves both kept and locked.
        self.pointers.update(pointers)
        self.held.update(zip(pools, pointers, strict=True))
        self._settled = False
        self.attached, self.own = pools, own
        self._survey()
        lib.llama_attach_threadpool(ptr, *pointers)
        self._settled = True
        self._survey()

    def forget(self, ptr: Any) -> None:
        """Let go of the pools that are no longer attached: the last graph did not use them."""
        if not self._settled:  # perhaps it did
            lib.llama_attach_threadpool(ptr, *(self.held[pool] for pool in self.attached))
            self._settled = True
            return
        for pool in self.held.keys() - set(self.attached):
            del self.held[pool]
        self.pointers.intersection_update(self.held.values())
        self._survey()

    def hold(self, others: Iterable[CallLock]) -> None:
        """Hold the locks of what else C uses while it computes; the caller holds the context."""
        self.others = tuple(others)
        self._survey()

    def _survey(self) -> None:
        self.left = not self._settled or len(self.held) > len(set(self.attached))
        self.placed = any(pool.placement for pool in self.held)
        self.locks.others = (*(pool.lock for pool in self.held), *self.others)
        # Then the lock of the context is enough.
        self.alone = self.own and not (self.left or self.placed or self.others)


class Computing:
    """Held while C computes: the lock of the context and those of its pools.

    The calling thread is placed as the others of the pool.
    """

    __slots__ = ("_alone", "_index", "_placement", "pools")

    def __init__(self, pools: Pools, index: int) -> None:
        self.pools: Pools = pools
        self._alone = False  # whether only the context is held, meanwhile
        self._index = index  # of the pool among those attached
        self._placement: Placement | None = None  # of the calling thread, meanwhile

    def __enter__(self) -> None:
        self.enter(sys._getframe(1))

    def enter(self, frame: FrameType) -> None:
        """Begin; ``frame`` is the function that computes."""
        pools = self.pools
        if pools.alone:
            first = pools.locks.first
            first.enter(frame)
            if pools.alone:  # and nobody has changed that before
                self._alone = True
                return
            first.leave()
        pools.locks.enter(frame)
        self._alone = False
        if pools.placed:
            self._placement = Placement.current()
            if placement := pools.attached[self._index].placement:
                placement.apply()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave(sys._getframe(1))

    def leave(self, frame: FrameType) -> None:
        """End it."""
        pools = self.pools
        if self._alone:
            self._alone = False
            pools.locks.first.leave()
            return
        if self._placement:
            self._placement.apply()
            self._placement = None
        pools.locks.leave(frame)
