"""The C side of a `SamplerChain`: how it is made, bound to what it needs, cloned and freed."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from .._core import shutdown
from .._core.locks import CallLock, ExitGuard
from .._core.ownership import Handle, make, own
from .._core.text import new_uncleared
from .._core.values import INT32_MAX, integer
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


class Attachment(Protocol):
    """What has attached a chain to a compute graph."""

    def gone(self) -> bool:
        """Return whether that graph exists no more."""

    def release(self, chain: NativeChain) -> None:
        """Take the chain, which is being closed, out of the graph.

        Raises:
            BusyError: The graph is being computed.
            BufferError: A view of its outputs is alive.
            ClosedError: Its owner is closed.
        """


class NativeChain(Handle):
    """Owns the ``struct llama_sampler`` of a `SamplerChain`, and keeps what that points into.

    Whoever calls a method holds `lock`, except for `ptr`, `close`, `prepare` and what only reads.
    """

    lock: CallLock
    """Held while C uses the chain."""
    samplers: tuple[Sampler, ...]
    """The descriptions, as the user gave them."""
    plan: tuple[Sampler, ...]
    """The samplers that C has: also those that it needs in between."""
    struct: Any
    """The ``struct llamacffi_chain *``, which the C functions of a chain take."""
    vocab: Vocab | None
    """The vocabulary that the chain is for; None while it is for any."""
    prepared: Callable[[], Vocab | None]
    """Returns the vocabulary for whose candidates there is memory: see `prepare`."""
    attachment: Attachment | None
    """What has the chain in a compute graph; None if it is in no graph."""
    grammar_first: bool
    no_perf: bool

    __slots__ = (
        *("_closed", "_handles", "_needy", "_room", "_runs", "_stop", "attachment"),
        *("grammar_first", "lock", "no_perf", "plan", "prepared", "samplers", "struct", "vocab"),
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
        self.samplers, self.plan = samplers, plan_of(samplers)
        self.grammar_first, self.no_perf = grammar_first, no_perf
        self.lock = CallLock("SamplerChain")
        self._needy = any(map(needs_vocab, samplers))
        self.vocab = vocab
        self.attachment = None
        # The place in the plan of what keeps the samplers after it out of the graph.
        self._stop: int | None = None
        self.prepared = _nobody
        self.struct = ffi.new("struct llamacffi_chain *")
        self._room: Any = None
        self._runs: list[ChainedRunner] = []
        # The handles that lead C to those; they live as long as the chain in C.
        self._handles: list[Any] = []

    def __repr__(self) -> str:
        return f"SamplerChain({', '.join(map(repr, self.samplers))})"

    def _noun(self) -> str:
        return "SamplerChain"

    @property
    def ptr(self) -> Any:
        """The ``struct llama_sampler *`` of the chain, for `llamacffi.lib`.

        Raises:
            ClosedError: After `close`.
            ArgumentError: A sampler must know the vocabulary, and none is known yet.
        """
        attachment = self.attachment
        if self.is_new() or (attachment is not None and attachment.gone()):
            with self.lock:
                return self.ready()
        return self.held()

    def ready(self) -> Any:
        """Return `ptr`; make the chain in C first, or take it back from a graph that is gone."""
        owner = self._owner
        if owner is None:
            if not self._closed:
                self._make()
        elif (attachment := self.attachment) is not None and attachment.gone():
            self.leave_graph()
        elif self._generation == shutdown.generation:
            return owner  # as `held`, without its calls: this is run for each token
        return self.held()

    def is_new(self) -> bool:
        """Return whether the chain has not been made in C yet, or has to be made again."""
        return self._owner is None and not self._closed

    def held(self) -> Any:
        """Return `ptr` of a chain that is made, unless another thread has closed it meanwhile."""
        return super().ptr

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closed

    def close(self) -> None:
        """Free the chain in C now, out of the graph that has it.  Idempotent."""
        attachment = self.attachment
        if attachment is not None and not attachment.gone():
            # If another thread computes the graph just now, the chain in C is the graph's alone
            # from here on.
            with contextlib.suppress(BusyError, BufferError, ClosedError):
                attachment.release(self)
        self._closed = True
        super().close()
        self.lock.sweep()

    @property
    def owner(self) -> Any:
        """What keeps the chain in C alive; None if there is none in C."""
        return self._owner

    def lacks_vocab(self) -> bool:
        """Return whether a sampler needs a vocabulary, and none is known yet."""
        return self.vocab is None and self._needy

    def _make(self) -> None:
        """Make the chain and its samplers in C."""
        if self.lacks_vocab():
            needy = next(one for one in self.samplers if needs_vocab(one))
            raise ArgumentError(
                f"{needy!r} must know the vocabulary: give vocab=model.vocab to SamplerChain"
            )
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = self.no_perf
        handles: list[Any] = []
        self.prepared = _nobody
        chain = self._own(handles, lib.llama_sampler_chain_init, params)
        for sampler in self.plan:
            if isinstance(sampler, PythonSampler):
                handle, made = ChainedRunner(new_runner(sampler, self.vocab)).make()
                handles.append(handle)
            else:
                made = _made(sampler, self.vocab)
            lib.llama_sampler_chain_add(chain, made)  # which owns it from here on
        self._bind(chain, handles)

    def _own(self, handles: list[Any], function: Callable[..., Any], *args: object) -> Any:
        """Have C make a chain, and return its owner."""
        keep: tuple[Any, ...] = ExitGuard(self.lock), handles
        if self.vocab is not None and self._needy:
            # They may point into the vocabulary, which is the model's: it closes them first.
            keep = (*keep, self.vocab.model.ptr)
        if (made := make(lib.llama_sampler_free, keep, function, *args))[1] == ffi.NULL:
            raise with_log(LlamaError("llama.cpp cannot make a sampler chain"))
        return own(made)

    def _bind(self, chain: Any, handles: list[Any]) -> None:
        """Become the chain ``chain``, which is whole."""
        self._owner = None  # whoever is interrupted here leaves a chain that is to be made anew
        struct = self.struct
        self._handles, self._runs = handles, [ffi.from_handle(one) for one in handles]
        for run in self._runs:
            run.chain = struct
        struct.sampler, struct.timed = chain, not self.no_perf
        struct.grammar_first = self.grammar_first
        struct.n_vocab = len(self.vocab) if self.vocab is not None and self._needy else INT32_MAX
        self._owner = chain  # not before it is whole
        if self._closed:
            super().close()
            raise ClosedError("the SamplerChain is closed")
        if self.vocab is not None and self._needy:
            self._join(self.vocab.model)

    def prepare(self, vocab: Vocab) -> None:
        """Get ready to sample from a vocabulary: with memory for its candidates."""
        if not any(one.selects for one in self.samplers):
            raise ArgumentError(f"{self!r} chooses no token: end it with Greedy() or Dist()")
        with self.lock:
            self.settle_for(vocab)
            n = len(vocab)
            self.prepared = _nobody  # the memory is about to move
            if self._runs:
                self._room = CandidateBuffer(n)
                data = self._room.data
                for run in self._runs:
                    run.room = self._room
            else:
                self._room = data = new_uncleared("llama_token_data[]", n)
            self.struct.data, self.struct.n_data = data, n
            # A weak reference: a strong one would keep the weights in memory.
            self.prepared = weakref.ref(vocab)

    def settle_for(self, vocab: Vocab) -> None:
        """Make the chain, for this vocabulary if it has none yet."""
        if self.lacks_vocab():
            self.vocab = vocab
            try:
                self.ready()
            except BaseException:  # also if interrupted: as if it had not been tried
                self.vocab = self._owner = None
                raise
        elif self._needy and self.vocab is not None and self.vocab.model is not vocab.model:
            raise ArgumentError("this chain is of another model's vocabulary: make one for it")
        self.ready()

    def enter_graph(self, stop: int | None) -> None:
        """Become a chain that can be in a graph, up to the part ``stop`` of the plan.

        upstream: src/llama-sampler.cpp is_init: a sampler gets ready for a graph only once, and so
        those are clones.
        """
        self._rebuild(stop)
        self.struct.in_graph = True

    def leave_graph(self) -> None:
        """Become a chain again that does not leave out what was in the graph."""
        self.attachment = None
        self.struct.in_graph = False
        if self._owner is not None:  # else it is closed, or to be made anew
            self._rebuild(None)

    def _rebuild(self, stop: int | None) -> None:
        """Move the samplers into a new chain; with something at ``stop`` that ends the graph."""
        old = self.held()
        try:
            self._move(old, stop)
        except BaseException:
            # Some are in the one, and some in the other: make new ones when they are needed.
            self._owner, self.attachment, self._stop = None, None, None
            self.plan = plan_of(self.samplers)
            self.struct.in_graph = False
            raise

    def _move(self, old: Any, stop: int | None) -> None:
        plan = list(self.plan)
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = self.no_perf
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
        self.plan, self._stop = tuple(plan), stop
        counted = lib.llama_perf_sampler(old)
        self.struct.n_sample += counted.n_sample
        self.struct.t_sample_us += int(counted.t_sample_ms * 1000)
        self._bind(chain, self._handles)

    def take_clone(self, source: NativeChain) -> None:
        """Become a clone of a chain that exists in C; the caller holds that one."""
        ptr, handles = source.ready(), list[Any]()
        try:
            chain = self._own(handles, lib.llama_sampler_clone, ptr)
        finally:
            handles += source._take_clones()
        source.raise_stored()
        if source._stop is not None:
            lib.llama_sampler_free(lib.llama_sampler_chain_remove(chain, source._stop))
        self._bind(chain, handles)
        self._become_of(source, chain)

    def copy_from(self, source: NativeChain) -> None:
        """Take over the state of another chain of the same samplers; the caller holds both."""
        if self._stop != source._stop:
            raise ArgumentError(
                "one of the chains is in the graph of a context, and cannot be copied to the other"
            )
        own_ptr, ptr = self.ready(), source.ready()
        struct, other = self.struct, source.struct
        if not self._runs:
            lib.llama_sampler_copy(ptr, own_ptr)
            self._become_of(source, own_ptr)
            struct.n_sample, struct.t_sample_us = other.n_sample, other.t_sample_us
            return
        # upstream: src/llama-sampler.cpp llama_sampler_chain_clone: could not cope with an
        # exception out of a clone function there.
        if self.attachment is not None:
            raise UnsupportedError("in a graph, a chain cannot copy samplers that are in Python")
        self.take_clone(source)
        counted = lib.llama_perf_sampler(ptr)
        struct.n_sample = other.n_sample + counted.n_sample
        struct.t_sample_us = other.t_sample_us + int(counted.t_sample_ms * 1000)
        if self._room is not None:
            for run in self._runs:
                run.room = self._room

    def _become_of(self, source: NativeChain, chain: Any) -> None:
        """Copy what the clone of a chain in C lacks, and make safe what it should not have."""
        for part, sampler in zip(parts_of(chain), self.plan, strict=True):
            if isinstance(sampler, AdaptiveP):
                # upstream: src/llama-sampler.cpp llama_sampler_adaptive_p_clone, original_probs: it
                # copies the token that waits to be accepted, but not the probabilities, which it
                # would then look up.  This is not that token, and makes it forget it.
                lib.llama_sampler_accept(part, INT32_MAX)
        runs = iter(self._runs)
        samplers = (
            next(runs).runner.sampler if isinstance(one, PythonSampler) else one
            for one in self.samplers
        )
        self.samplers = tuple(samplers)

    def _take_clones(self) -> list[Any]:
        """Return the handles of what C has cloned just now, in the order of the chain."""
        found = [run.clones.pop() for run in self._runs if run.clones]
        for run in self._runs:
            run.clones.clear()
        return found

    def raise_stored(self) -> None:
        """Raise what a sampler in Python has raised."""
        errors = [run.error for run in self._runs if run.error is not None]
        for run in self._runs:
            run.error = None
        if errors:
            raise errors[0]

    def check_token(self, token: int) -> int:
        """Return a token as an int, if it can be one."""
        if self.vocab is not None:
            return self.vocab.check_one(token)
        return integer("token", token, 0, INT32_MAX)

    def failure(self, code: int, token: int | None = None) -> BaseException:
        """Return the error for what went wrong: ``LLAMACFFI_SAMPLE_...``."""
        if code == lib.LLAMACFFI_SAMPLE_FAILED:
            self.raise_stored()
        if code == lib.LLAMACFFI_SAMPLE_NONE:
            return ArgumentError(f"{self.samplers[-1]!r} has chosen no token")
        if code == lib.LLAMACFFI_SAMPLE_GRAPH:
            return self._of_another()
        if code == lib.LLAMACFFI_SAMPLE_RULED_OUT:
            return self._ruled_out()
        return grammar_failure(code, token, self.vocab) or problem(code)

    def _of_another(self) -> ArgumentError:
        if self.attachment is None:
            return ArgumentError(
                "that output was sampled in the graph of the context: use the chain that "
                "Context.samplers has for its sequence"
            )
        return ArgumentError(
            "that output is of a sequence that this chain does not sample in the graph"
        )

    def _ruled_out(self) -> LlamaError:
        first = next((k for k, one in enumerate(self.samplers) if type(one) is Grammar), None)
        if first is None:
            return ArgumentError(f"{self!r} has ruled out all tokens")
        hint = f"; put Grammar before {self.samplers[0]!r}, which may have removed them"
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
