"""The C side of a `SamplerChain`: how it is made, bound to what it needs, cloned and freed."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._core.locks import CallLock, ExitGuard
from .._core.ownership import Handle, make, own
from .._core.text import new_uncleared
from .._core.values import INT32_MAX, check_object, integer
from .._native import ffi, lib
from ..errors import (
    ArgumentError,
    BusyError,
    ClosedError,
    GrammarError,
    LlamaError,
    NativeError,
    UnsupportedError,
)
from ..log import with_log
from ..vocab.vocab import Vocab
from .base import Sampler, make_in_c, needs_vocab
from .callbacks import CandidateBuffer, ChainedRunner
from .candidates import problem
from .custom import PythonSampler, new_runner
from .grammar import Grammar, grammar_failure
from .order import plan_of
from .samplers import AdaptiveP, Unsorted

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..context.base import ContextBase
    from ..context.graph_samplers import BackendSampling


class ChainBase(Handle):
    """What a chain has in C, and what Python must keep for it."""

    __slots__ = (
        "_attached",
        "_closed",
        "_grammar_first",
        "_handles",
        "_lock",
        "_needy",
        "_no_perf",
        "_plan",
        "_prepared",
        "_room",
        "_runs",
        "_samplers",
        "_stop",
        "_struct",
        "_vocab",
    )

    def __init__(
        self,
        samplers: tuple[Sampler, ...],
        vocab: Vocab | None,
        grammar_first: bool,
        no_perf: bool,
    ) -> None:
        super().__init__(None)
        if vocab is not None and not isinstance(vocab, Vocab):
            raise TypeError(f"vocab must be a Vocab, not {vocab!r}")
        self._closed = False
        self._samplers, self._plan = samplers, plan_of(samplers)
        self._grammar_first, self._no_perf = grammar_first, no_perf
        self._lock = CallLock("SamplerChain")
        self._needy = any(map(needs_vocab, samplers))
        self._vocab = vocab
        # The context that samples with it in its graph.
        self._attached: Callable[[], BackendSampling | None] | None = None
        # Where in the plan something stands that keeps the rest out of that graph.
        self._stop: int | None = None
        # For whose vocabulary there is room.
        self._prepared: Callable[[], Vocab | None] = _nobody
        self._struct = ffi.new("struct llamacffi_chain *")
        self._room: Any = None
        self._runs: list[ChainedRunner] = []
        # What leads C to those; as long as the chain in C.
        self._handles: list[Any] = []

    @property
    def ptr(self) -> Any:
        """The ``struct llama_sampler *`` of the chain, for `llamacffi.lib`.

        Raises:
            ClosedError: After `close`.
            ArgumentError: A sampler must know the vocabulary, and none is known yet.
        """
        gone = self._attached is not None and self._attached() is None
        if gone or (self._owner is None and not self._closed):
            with self._lock:
                return self._ready()
        return self._held()

    def _ready(self) -> Any:
        """Return `ptr`, of a chain that can be used; who calls holds it."""
        if self._owner is None:
            if not self._closed:
                self._make()
        elif self._attached is not None and self._attached() is None:
            self._leave_graph()
        return self._held()

    def _held(self) -> Any:
        """Return `ptr` of a chain that is made, unless somebody has closed it meanwhile."""
        return super().ptr

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closed

    def close(self) -> None:
        """Free the chain in C now.  Idempotent.

        A context that samples with it in its graph no longer does so.
        """
        context = None if self._attached is None else self._attached()
        if context is not None:
            # If it computes just now in another thread, the chain in C is its own from here on.
            with contextlib.suppress(BusyError, BufferError, ClosedError):
                context._drop(self)
        self._closed = True
        super().close()
        self._lock.sweep()

    def __enter__(self) -> Self:
        return super().__enter__() if self._closed else self  # which raises; or lacks a vocabulary

    def _lacks_vocab(self) -> bool:
        return self._vocab is None and self._needy

    def _make(self) -> None:
        """Make the chain and its samplers in C."""
        if self._lacks_vocab():
            needy = next(one for one in self._samplers if needs_vocab(one))
            raise ArgumentError(
                f"{needy!r} must know the vocabulary: give vocab=model.vocab to SamplerChain"
            )
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = self._no_perf
        handles: list[Any] = []
        self._prepared = _nobody
        chain = self._own(handles, lib.llama_sampler_chain_init, params)
        for sampler in self._plan:
            if isinstance(sampler, PythonSampler):
                handle, made = ChainedRunner(new_runner(sampler, self._vocab)).make()
                handles.append(handle)
            else:
                made = _made(sampler, self._vocab)
            lib.llama_sampler_chain_add(chain, made)  # which owns it from here on
        self._bind(chain, handles)

    def _own(self, handles: list[Any], function: Callable[..., Any], *args: object) -> Any:
        """Have C make a chain, and return its owner."""
        keep: tuple[Any, ...] = ExitGuard(self._lock), handles
        if self._vocab is not None and self._needy:
            # They may point into the vocabulary, which is the model's: it closes them first.
            keep = (*keep, self._vocab.model.ptr)
        if (made := make(lib.llama_sampler_free, keep, function, *args))[1] == ffi.NULL:
            raise with_log(LlamaError("llama.cpp cannot make a sampler chain"))
        return own(made)

    def _bind(self, chain: Any, handles: list[Any]) -> None:
        """Become the chain ``chain``, which is whole."""
        self._owner = None  # whoever is interrupted here leaves a chain that is to be made anew
        struct = self._struct
        self._handles, self._runs = handles, [ffi.from_handle(one) for one in handles]
        for run in self._runs:
            run.chain = struct
        struct.sampler, struct.timed = chain, not self._no_perf
        struct.grammar_first = self._grammar_first
        struct.n_vocab = len(self._vocab) if self._vocab is not None and self._needy else INT32_MAX
        self._owner = chain  # not before it is whole
        if self._closed:
            super().close()
            raise ClosedError("the SamplerChain is closed")
        if self._vocab is not None and self._needy:
            self._join(self._vocab.model)

    def _prepare(self, context: ContextBase) -> None:
        """Get ready to sample for a context: for its vocabulary, with room for the candidates."""
        check_object("context", context, "Context")
        if not any(one.selects for one in self._samplers):
            raise ArgumentError(f"{self!r} chooses no token: end it with Greedy() or Dist()")
        with self._lock:
            self._settle_for(context._vocab)
            n = len(context._vocab)
            self._prepared = _nobody  # the room is about to move
            if self._runs:
                self._room = CandidateBuffer(n)
                data = self._room.data
                for run in self._runs:
                    run.room = self._room
            else:
                self._room = data = new_uncleared("llama_token_data[]", n)
            self._struct.data, self._struct.n_data = data, n
            # A weak reference: it would keep the weights in memory.
            self._prepared = weakref.ref(context._vocab)

    def _settle_for(self, vocab: Vocab) -> None:
        """Make the chain, for this vocabulary if it has none yet."""
        if self._lacks_vocab():
            self._vocab = vocab
            try:
                self._ready()
            except BaseException:  # also if interrupted: as if it had not been tried
                self._vocab = self._owner = None
                raise
        elif self._needy and self._vocab is not None and self._vocab.model is not vocab.model:
            raise ArgumentError("this chain is of another model's vocabulary: make one for it")
        self._ready()

    def _enter_graph(self, stop: int | None) -> None:
        """Become a chain that a context can have in its graph, up to the part ``stop`` of the plan.

        llama.cpp gets a sampler ready for that only once, so those are clones.
        """
        self._rebuild(stop)
        self._struct.in_graph = True

    def _leave_graph(self) -> None:
        """Become a chain again that does not leave out what was in the graph."""
        self._attached = None
        self._struct.in_graph = False
        if self._owner is not None:  # else it is closed, or to be made anew
            self._rebuild(None)

    def _rebuild(self, stop: int | None) -> None:
        """Move the samplers into a new chain; with something at ``stop`` that ends the graph."""
        old = self._held()
        try:
            self._move(old, stop)
        except BaseException:
            # Some are in the one, and some in the other: make new ones when they are needed.
            self._owner, self._attached, self._stop = None, None, None
            self._plan = plan_of(self._samplers)
            self._struct.in_graph = False
            raise

    def _move(self, old: Any, stop: int | None) -> None:
        plan = list(self._plan)
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = self._no_perf
        chain = self._own(self._handles, lib.llama_sampler_chain_init, params)
        if self._stop is not None:
            lib.llama_sampler_free(lib.llama_sampler_chain_remove(old, self._stop))
            del plan[self._stop]
        for k in range(len(plan)):
            if k == stop:
                lib.llama_sampler_chain_add(chain, make_in_c(Unsorted(), None))
            part = lib.llama_sampler_chain_remove(old, 0)
            if part.iface.backend_init != ffi.NULL:
                used, part = part, lib.llama_sampler_clone(part)
                lib.llama_sampler_free(used)
            lib.llama_sampler_chain_add(chain, part)
        if stop is not None:
            plan.insert(stop, Unsorted())
        self._plan, self._stop = tuple(plan), stop
        counted = lib.llama_perf_sampler(old)
        self._struct.n_sample += counted.n_sample
        self._struct.t_sample_us += int(counted.t_sample_ms * 1000)
        self._bind(chain, self._handles)

    def _take_clone(self, source: ChainBase) -> None:
        """Become a clone of a chain that exists in C; who calls holds its lock."""
        ptr, handles = source._ready(), list[Any]()
        try:
            chain = self._own(handles, lib.llama_sampler_clone, ptr)
        finally:
            handles += source._take_clones()
        source._raise_stored()
        if source._stop is not None:
            lib.llama_sampler_free(lib.llama_sampler_chain_remove(chain, source._stop))
        self._bind(chain, handles)
        self._become_of(source, chain)

    def _copy(self, source: ChainBase) -> None:
        """Take over the state of another chain of the same samplers; who calls holds both."""
        if self._stop != source._stop:
            raise ArgumentError(
                "one of the chains is in the graph of a context, and cannot be copied to the other"
            )
        own_ptr, ptr = self._ready(), source._ready()
        struct, other = self._struct, source._struct
        if not self._runs:
            lib.llama_sampler_copy(ptr, own_ptr)
            self._become_of(source, own_ptr)
            struct.n_sample, struct.t_sample_us = other.n_sample, other.t_sample_us
            return
        # llama.cpp could not cope with an exception out of a clone function there.
        if self._attached is not None:
            raise UnsupportedError("in a graph, a chain cannot copy samplers that are in Python")
        self._take_clone(source)
        counted = lib.llama_perf_sampler(ptr)
        struct.n_sample = other.n_sample + counted.n_sample
        struct.t_sample_us = other.t_sample_us + int(counted.t_sample_ms * 1000)
        if self._room is not None:
            for run in self._runs:
                run.room = self._room

    def _become_of(self, source: ChainBase, chain: Any) -> None:
        """Copy what the clone of a chain in C lacks, and make safe what it should not have."""
        for part, sampler in zip(parts_of(chain), self._plan, strict=True):
            if isinstance(sampler, AdaptiveP):
                # It copies the token that waits to be accepted, but not the probabilities, which it
                # would then look up.  This is not that token, and makes it forget it.
                lib.llama_sampler_accept(part, INT32_MAX)
        runs = iter(self._runs)
        samplers = (
            next(runs).runner.sampler if isinstance(one, PythonSampler) else one
            for one in self._samplers
        )
        self._samplers = tuple(samplers)

    def _take_clones(self) -> list[Any]:
        """Return the handles of what C has cloned just now, in the order of the chain."""
        found = [run.clones.pop() for run in self._runs if run.clones]
        for run in self._runs:
            run.clones.clear()
        return found

    def _raise_stored(self) -> None:
        """Raise what a sampler in Python has raised."""
        errors = [run.error for run in self._runs if run.error is not None]
        for run in self._runs:
            run.error = None
        if errors:
            raise errors[0]

    def _check_token(self, token: int) -> int:
        """Return a token as an int, if it can be one."""
        if self._vocab is not None:
            return self._vocab.check_one(token)
        return integer("token", token, 0, INT32_MAX)

    def _failure(self, code: int, token: int | None = None) -> BaseException:
        """Return the error for what went wrong: ``LLAMACFFI_SAMPLE_...``."""
        if code == lib.LLAMACFFI_SAMPLE_FAILED:
            self._raise_stored()
        if code == lib.LLAMACFFI_SAMPLE_NONE:
            return ArgumentError(f"{self._samplers[-1]!r} has chosen no token")
        if code == lib.LLAMACFFI_SAMPLE_GRAPH:
            return self._of_another()
        if code == lib.LLAMACFFI_SAMPLE_RULED_OUT:
            return self._ruled_out()
        return grammar_failure(code, token, self._vocab) or problem(code)

    def _of_another(self) -> ArgumentError:
        if self._attached is None:
            return ArgumentError(
                "that output was sampled in the graph of the context: use the chain that "
                "Context.samplers has for its sequence"
            )
        return ArgumentError(
            "that output is of a sequence that this chain does not sample in the graph"
        )

    def _ruled_out(self) -> LlamaError:
        first = next((k for k, one in enumerate(self._samplers) if type(one) is Grammar), None)
        if first is None:
            return ArgumentError(f"{self!r} has ruled out all tokens")
        hint = f"; put Grammar before {self._samplers[0]!r}, which may have removed them"
        reason = "the grammar allows none of the tokens that are left"
        return GrammarError(reason + hint if first else reason)


def parts_of(chain: Any) -> list[Any]:
    """Return the samplers of a chain in C, which owns them."""
    n = lib.llama_sampler_chain_n(chain)
    return [lib.llama_sampler_chain_get(chain, k) for k in range(n)]


def _made(sampler: Sampler, vocab: Vocab | None) -> Any:
    """Make a sampler in C."""
    try:
        made = make_in_c(sampler, vocab)
    except NativeError as error:
        raise with_log(LlamaError(f"llama.cpp cannot make {sampler!r}: {error}")) from error
    if made == ffi.NULL:
        raise with_log(LlamaError(f"llama.cpp cannot make {sampler!r}"))
    return made


def _nobody() -> None:
    return None
