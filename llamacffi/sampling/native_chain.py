"""The C side of a `SamplerChain`: creates, copies and frees the chain in C."""

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
from .chain_runners import ChainRunners
from .custom import PythonSampler, new_runner
from .grammar import Grammar, grammar_failure
from .order import plan_of
from .samplers import AdaptiveP, Unsorted


class Attachment(Protocol):
    """Owns the link between a chain and a compute graph."""

    def gone(self) -> bool:
        """Return whether the graph no longer exists."""

    def release(self, chain: NativeChain) -> None:
        """Remove the chain, which is being closed, from the graph.

        Raises:
            BusyError: The graph is being computed.
            BufferError: A view of its outputs is alive.
            ClosedError: The context of the graph is closed.
        """


class NativeChain(Handle):
    """Owns the ``struct llama_sampler`` of a `SamplerChain` and everything that it points into.

    Hold `lock` while calling a method, except for `ptr`, `close`, `prepare`, and methods that only
    read.
    """

    lock: CallLock
    """Held while C uses the chain."""
    samplers: tuple[Sampler, ...]
    """The descriptions as the user gave them."""
    plan: tuple[Sampler, ...]
    """The samplers of the chain in C, which include some that C needs between those."""
    struct: Any
    """The ``struct llamacffi_chain *``, which the C functions of a chain take."""
    vocab: Vocab | None
    """The vocabulary of the chain; None as long as it is undecided."""
    prepared: Callable[[], Vocab | None]
    """Returns the vocabulary for which `prepare` has allocated memory, if that still exists."""
    attachment: Attachment | None
    """The link to the compute graph that contains the chain; None without a graph."""
    grammar_first: bool
    no_perf: bool

    __slots__ = (
        *("_buffer", "_closed", "_graph_end", "_needs_vocab", "_runners", "attachment"),
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
        self._needs_vocab = any(map(needs_vocab, samplers))
        self.vocab = vocab
        self.attachment = None
        # The index in the plan of the sampler that keeps those after it out of the graph.
        self._graph_end: int | None = None
        self.prepared = _no_vocab
        self.struct = ffi.new("struct llamacffi_chain *")
        self._buffer: Any = None
        self._runners = ChainRunners([])

    def __repr__(self) -> str:
        return f"SamplerChain({', '.join(map(repr, self.samplers))})"

    def _noun(self) -> str:
        return "SamplerChain"

    @property
    def ptr(self) -> Any:
        """The ``struct llama_sampler *`` of the chain, for `llamacffi.lib`.

        Raises:
            ClosedError: After `close`.
            ArgumentError: A sampler needs the vocabulary, which is not known yet.
        """
        attachment = self.attachment
        if self.is_new() or (attachment is not None and attachment.gone()):
            with self.lock:
                return self.ready()
        return self.held()

    def ready(self) -> Any:
        """Return `ptr`; first create the chain in C, or take it back from a graph that is gone."""
        owner = self._owner
        if owner is None:
            if not self._closed:
                self._make()
        elif (attachment := self.attachment) is not None and attachment.gone():
            self.leave_graph()
        elif self._generation == shutdown.generation:
            return owner  # the same as `held`, without its calls: this runs for each token
        return self.held()

    def is_new(self) -> bool:
        """Return whether the chain has to be created in C, for the first time or again."""
        return self._owner is None and not self._closed

    def held(self) -> Any:
        """Return `ptr` of an existing chain; raise if another thread has closed it meanwhile."""
        return super().ptr

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closed

    def close(self) -> None:
        """Remove the chain from its graph, and free it in C now.  Idempotent."""
        attachment = self.attachment
        if attachment is not None and not attachment.gone():
            # If another thread is computing the graph right now, only the graph keeps the chain in
            # C from here on.
            with contextlib.suppress(BusyError, BufferError, ClosedError):
                attachment.release(self)
        self._closed = True
        super().close()
        self.lock.sweep()

    @property
    def owner(self) -> Any:
        """Keeps the chain in C alive; None if it does not exist in C."""
        return self._owner

    def lacks_vocab(self) -> bool:
        """Return whether a sampler needs the vocabulary, which is not known yet."""
        return self.vocab is None and self._needs_vocab

    def _make(self) -> None:
        """Create the chain and its samplers in C."""
        if self.lacks_vocab():
            needy = next(one for one in self.samplers if needs_vocab(one))
            raise ArgumentError(
                f"{needy!r} needs the vocabulary: pass vocab=model.vocab to SamplerChain"
            )
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = self.no_perf
        handles: list[Any] = []
        self.prepared = _no_vocab
        chain = self._own(handles, lib.llama_sampler_chain_init, params)
        for sampler in self.plan:
            if isinstance(sampler, PythonSampler):
                handle, made = ChainedRunner(new_runner(sampler, self.vocab)).make()
                handles.append(handle)
            else:
                made = _make_sampler(sampler, self.vocab)
            lib.llama_sampler_chain_add(chain, made)  # which takes ownership
        self._bind(chain, handles)

    def _own(self, handles: list[Any], function: Callable[..., Any], *args: object) -> Any:
        """Call a C function that creates a chain, and return the owner of the chain."""
        keep: tuple[Any, ...] = ExitGuard(self.lock), handles
        if self.vocab is not None and self._needs_vocab:
            # The samplers may point into the vocabulary, so the model must outlive the chain.
            keep = (*keep, self.vocab.model.ptr)
        if (made := make(lib.llama_sampler_free, keep, function, *args))[1] == ffi.NULL:
            raise with_log(LlamaError("llama.cpp could not create a sampler chain"))
        return own(made)

    def _bind(self, chain: Any, handles: list[Any]) -> None:
        """Take over a complete chain in C."""
        self._owner = None  # after an interrupt here, the chain is created again
        struct = self.struct
        self._runners = ChainRunners(handles)
        self._runners.join(struct)
        struct.sampler, struct.timed = chain, not self.no_perf
        struct.grammar_first = self.grammar_first
        struct.n_vocab = (
            len(self.vocab) if self.vocab is not None and self._needs_vocab else INT32_MAX
        )
        self._owner = chain  # only now is everything complete
        if self._closed:
            super().close()
            raise ClosedError("the SamplerChain is closed")
        if self.vocab is not None and self._needs_vocab:
            self._join(self.vocab.model)

    def prepare(self, vocab: Vocab) -> None:
        """Get ready to sample from a vocabulary: allocate memory for its candidates."""
        if not any(one.selects for one in self.samplers):
            raise ArgumentError(f"{self!r} never chooses a token: end it with Greedy() or Dist()")
        with self.lock:
            self.settle_for(vocab)
            n = len(vocab)
            self.prepared = _no_vocab  # the memory is about to move
            if self._runners:
                self._buffer = CandidateBuffer(n)
                data = self._buffer.data
                self._runners.share(self._buffer)
            else:
                self._buffer = data = new_uncleared("llama_token_data[]", n)
            self.struct.data, self.struct.n_data = data, n
            # A weak reference: a strong one would keep the weights in memory.
            self.prepared = weakref.ref(vocab)

    def settle_for(self, vocab: Vocab) -> None:
        """Create the chain in C; use this vocabulary if the chain has none yet."""
        if self.lacks_vocab():
            self.vocab = vocab
            try:
                self.ready()
            except BaseException:  # also an interrupt: undo the attempt
                self.vocab = self._owner = None
                raise
        elif self._needs_vocab and self.vocab is not None and self.vocab.model is not vocab.model:
            raise ArgumentError(
                "this chain belongs to the vocabulary of another model: create one for this model"
            )
        self.ready()

    def enter_graph(self, stop: int | None) -> None:
        """Prepare the chain for a graph, which will contain the samplers before index ``stop``.

        upstream: src/llama-sampler.cpp is_init: a sampler can be initialized for a graph only once,
        and so the samplers are replaced with clones.
        """
        self._rebuild(stop)
        self.struct.in_graph = True

    def leave_graph(self) -> None:
        """Run all samplers outside the graph again."""
        self.attachment = None
        self.struct.in_graph = False
        if self._owner is not None:  # else it is closed, or has to be created
            self._rebuild(None)

    def _rebuild(self, stop: int | None) -> None:
        """Move the samplers into a new chain, with one at index ``stop`` that ends the graph."""
        old = self.held()
        try:
            self._move(old, stop)
        except BaseException:
            # Some samplers are in the old chain, some in the new one: create all again on use.
            self._owner, self.attachment, self._graph_end = None, None, None
            self.plan = plan_of(self.samplers)
            self.struct.in_graph = False
            raise

    def _move(self, old: Any, stop: int | None) -> None:
        plan = list(self.plan)
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = self.no_perf
        handles = self._runners.handles
        chain = self._own(handles, lib.llama_sampler_chain_init, params)
        if self._graph_end is not None:
            lib.llama_sampler_free(lib.llama_sampler_chain_remove(old, self._graph_end))
            del plan[self._graph_end]
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
        self.plan, self._graph_end = tuple(plan), stop
        counted = lib.llama_perf_sampler(old)
        self.struct.n_sample += counted.n_sample
        self.struct.t_sample_us += int(counted.t_sample_ms * 1000)
        self._bind(chain, handles)

    def take_clone(self, source: NativeChain) -> None:
        """Become a clone of a chain that exists in C; the caller holds the lock of ``source``."""
        ptr, handles = source.ready(), list[Any]()
        try:
            chain = self._own(handles, lib.llama_sampler_clone, ptr)
        finally:
            handles += source._runners.take_clones()
        source.raise_stored()
        if source._graph_end is not None:
            lib.llama_sampler_free(lib.llama_sampler_chain_remove(chain, source._graph_end))
        self._bind(chain, handles)
        self._complete_clone(chain)

    def copy_from(self, source: NativeChain) -> None:
        """Copy the state of a chain of the same samplers; the caller holds the locks of both."""
        if self._graph_end != source._graph_end:
            raise ArgumentError(
                "cannot copy the state: one of the two chains is in the graph of a context; remove "
                "it from Context.samplers first"
            )
        own_ptr, ptr = self.ready(), source.ready()
        struct, other = self.struct, source.struct
        if not self._runners:
            lib.llama_sampler_copy(ptr, own_ptr)
            self._complete_clone(own_ptr)
            struct.n_sample, struct.t_sample_us = other.n_sample, other.t_sample_us
            return
        # upstream: src/llama-sampler.cpp llama_sampler_chain_clone: cannot handle an exception from
        # a clone function, so the clone is made here and replaces this chain.
        if self.attachment is not None:
            raise UnsupportedError(
                "the state of a Python sampler cannot be copied into a chain that is in a graph"
            )
        self.take_clone(source)
        counted = lib.llama_perf_sampler(ptr)
        struct.n_sample = other.n_sample + counted.n_sample
        struct.t_sample_us = other.t_sample_us + int(counted.t_sample_ms * 1000)
        if self._buffer is not None:
            self._runners.share(self._buffer)

    def _complete_clone(self, chain: Any) -> None:
        """Make a clone in C safe to use, and update the descriptions of Python samplers."""
        for part, sampler in zip(parts_of(chain), self.plan, strict=True):
            if isinstance(sampler, AdaptiveP):
                # upstream: src/llama-sampler.cpp llama_sampler_adaptive_p_clone, original_probs:
                # the clone has the pending token, but lacks the probabilities that accepting it
                # would read.  Accepting another token makes the clone forget the pending one.
                lib.llama_sampler_accept(part, INT32_MAX)
        cloned = self._runners.samplers()
        self.samplers = tuple(
            next(cloned) if isinstance(one, PythonSampler) else one for one in self.samplers
        )

    def raise_stored(self) -> None:
        """Raise the exception of a Python sampler, if there was one."""
        self._runners.raise_stored()

    def check_token(self, token: int) -> int:
        """Return a token as an int; raise if it is not in the vocabulary."""
        if self.vocab is not None:
            return self.vocab.check_one(token)
        return integer("token", token, 0, INT32_MAX)

    def failure(self, code: int, token: int | None = None) -> BaseException:
        """Return the error for a code ``LLAMACFFI_SAMPLE_...``."""
        if code == lib.LLAMACFFI_SAMPLE_FAILED:
            self.raise_stored()
        if code == lib.LLAMACFFI_SAMPLE_NONE:
            return ArgumentError(f"{self.samplers[-1]!r} did not choose a token")
        if code == lib.LLAMACFFI_SAMPLE_GRAPH:
            return self._wrong_chain()
        if code == lib.LLAMACFFI_SAMPLE_RULED_OUT:
            return self._ruled_out()
        return grammar_failure(code, token, self.vocab) or problem(code)

    def _wrong_chain(self) -> ArgumentError:
        if self.attachment is None:
            return ArgumentError(
                "that output was sampled in the graph of the context: use the chain that "
                "Context.samplers has for its sequence"
            )
        return ArgumentError(
            "that output belongs to a sequence that this chain does not sample in the graph"
        )

    def _ruled_out(self) -> LlamaError:
        first = next((k for k, one in enumerate(self.samplers) if type(one) is Grammar), None)
        if first is None:
            return ArgumentError(f"{self!r} has ruled out all tokens")
        hint = f"; put Grammar before {self.samplers[0]!r}, which may have removed them"
        reason = "the grammar allows none of the remaining tokens"
        return GrammarError(reason + hint if first else reason)


def parts_of(chain: Any) -> list[Any]:
    """Return the samplers of a chain in C; the chain owns them."""
    n = lib.llama_sampler_chain_n(chain)
    return [lib.llama_sampler_chain_get(chain, k) for k in range(n)]


def _make_sampler(sampler: Sampler, vocab: Vocab | None) -> Any:
    """Create a sampler in C."""
    try:
        made = make_in_c(sampler, vocab)
    except NativeError as error:
        raise with_log(LlamaError(f"llama.cpp could not create {sampler!r}: {error}")) from error
    if made == ffi.NULL:
        raise with_log(LlamaError(f"llama.cpp could not create {sampler!r}"))
    return made


def _no_vocab() -> None:
    return None
