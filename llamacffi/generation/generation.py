"""Generating tokens and text from a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._core.frames import is_inside
from .._core.hints import hinting
from .._core.unique import Unique
from .._core.values import check_function, check_object, flag, integer
from .._native import lib
from ..context.context import Context
from ..context.handle import lock_of, locked_memory, traits_of
from ..errors import ArgumentError, BusyError, UnsupportedError
from ..sampling.chain import SamplerChain
from .loop import FinishReason, Logprobs, Loop, Token
from .prompt import prompt_tokens
from .stops import stop_finder, stop_strings, stop_tokens_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .._core.text import Text
    from .loop import Prompt

__all__ = ["ContextShift", "FinishReason", "Generation", "Token", "generate"]


@dataclass(frozen=True, slots=True)
class ContextShift:
    """Lets `generate` discard old tokens when the sequence is full, and continue.

    The tokens after the discarded ones move to lower positions, which makes room at the end; the
    model then continues from a text with a gap in it.

    Args:
        n_keep: Number of leading tokens to keep; models attend strongly to them, and they may
            contain an instruction.
        n_discard: Number of tokens to discard after those, or more if a prompt needs it; None is
            half of them.
    """

    n_keep: int = 1
    n_discard: int | None = None

    def __post_init__(self) -> None:
        integer("n_keep", self.n_keep, 0)
        if self.n_discard is not None:
            integer("n_discard", self.n_discard, 1)

    def check(self, context: Context) -> None:
        """Check that the sequences of a context can be shifted like this.

        Raises:
            ArgumentError: It would not make room.
            UnsupportedError: The positions of this model cannot be moved, or it is recurrent.  The
                state of a recurrent model does not grow with ``n_ctx``: raise that instead.

        Source: ``llama_model_is_recurrent``, ``llama_memory_can_shift``.
        """
        _check_context(context)
        needed, n_ctx = self.n_keep + (self.n_discard or 1), context.n_ctx_seq
        if needed >= n_ctx:
            raise ArgumentError(f"{self!r} needs n_ctx above {needed}, but it is {n_ctx}")
        model = context.model.ptr
        if lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model):
            raise UnsupportedError(
                "a recurrent model cannot discard part of a sequence: raise n_ctx instead, which "
                "does not enlarge its state"
            )
        with lock_of(context):
            reason = locked_memory(context).why_not_shift()
        if reason is not None:
            raise UnsupportedError(
                f"the positions of this context cannot be moved: {reason}; or raise n_ctx"
            )

    def make_room(self, context: Context, seq_id: int, pos: int, n: int) -> int:
        """Discard tokens of a sequence, and return the new position of its next token.

        Args:
            context: The context that holds the sequence.
            seq_id: The sequence.
            pos: The position of its next token.
            n: Number of tokens that must fit.

        Raises:
            ArgumentError: Too few tokens may be discarded.
            UnsupportedError: As in `check`; or other sequences share tokens that would move.
        """
        _check_context(context)
        needed, movable = pos + n - context.n_ctx_seq, pos - self.n_keep
        n_discard = max(needed, self.n_discard or movable // 2, 1)
        if n_discard > movable:
            raise ArgumentError(
                f"{n} more tokens fit only if {n_discard} of the {pos} in memory are discarded, "
                f"but n_keep={self.n_keep} allows {max(movable, 0)}: raise n_ctx, or lower n_keep"
            )
        context.memory.cut(seq_id, self.n_keep, self.n_keep + n_discard)
        return pos - n_discard


class Generation(Unique, Iterator[Token]):
    """An iterator over tokens, which also reports how the generation went.

    Each token is computed when it is requested.  Memory then contains the prompt and all tokens but
    the last; to continue later, start the next prompt with that token.  You may stop iterating at
    any time.  Several generations can take turns in one context, each with its own sequence and
    sampler.
    """

    _why = "it is tied to a running computation in a Context"
    _instead = "call generate() again; `tokens` has the tokens so far"

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._tokens = loop.run()

    @property
    def context(self) -> Context:
        """The context that computes it."""
        return self._loop.context

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None while it is running.

        ``"stop"``: a stop string, a stop token or ``stop_when``; ``"eog"``: an end-of-generation
        token of the model; ``"length"``: ``max_tokens``; ``"context"``: the context is full.
        """
        return self._loop.finish_reason

    @property
    def stop_match(self) -> str | None:
        """The stop string that ended it, or the text of the stop token."""
        return self._loop.stop_match

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens so far."""
        return tuple(self._loop.tokens)

    @property
    def n_prompt(self) -> int:
        """Number of tokens in the prompt."""
        return len(self._loop.prompt)

    @property
    def n_generated(self) -> int:
        """Number of tokens generated so far."""
        return len(self._loop.tokens)

    @property
    def prompt_seconds(self) -> float:
        """Time to process the prompt, up to the first logits."""
        return self._loop.prompt_seconds

    @property
    def seconds(self) -> float:
        """Time spent on everything after the prompt."""
        return self._loop.seconds

    @property
    def seed(self) -> int | None:
        """The seed of the sampler, even if it was picked at random; None if nothing is random."""
        return self._loop.sampler.seed

    def __next__(self) -> Token:
        try:
            return next(self._tokens)
        except ValueError as error:
            raise self._busy(error) from None

    def text(self) -> str:
        """Generate to the end, and return the text of the remaining tokens."""
        return "".join(token.text for token in self)

    def close(self) -> None:
        """Stop generating.

        Raises:
            BusyError: Another thread is computing a token: stop that with `Context.cancel`.
        """
        try:
            self._tokens.close()
        except ValueError as error:
            raise self._busy(error) from None

    def _busy(self, error: ValueError) -> ValueError | BusyError:
        """Return the error to raise for one of the underlying generator."""
        if str(error) != "generator already executing":
            return error
        if is_inside(self._tokens.gi_frame):  # type: ignore[attr-defined]  # generators have it
            return BusyError(
                "this Generation is computing a token: callbacks that run meanwhile, such as "
                "stop_when or cb_eval, cannot use it"
            )
        return BusyError(
            "another thread is computing a token of this Generation; Context.cancel() stops it"
        )


@hinting
def generate(
    context: Context,
    prompt: Text | Sequence[int] | npt.NDArray[np.integer],
    *,
    sampler: SamplerChain | None = None,
    max_tokens: int | None = None,
    stop: str | Sequence[str] | None = (),
    stop_tokens: Iterable[int] | None = (),
    stop_when: Callable[[Sequence[int]], object] | None = None,
    seq_id: int = 0,
    parse_special: bool = True,
    logprobs: bool = False,
    top_logprobs: int = 0,
    overflow: ContextShift | None = None,
) -> Generation:
    """Generate tokens after a prompt, which is appended to what the sequence has in memory.

    Nothing is computed until the first token is requested; the prompt is appended to the sequence
    as it is then.  If the prompt fails, the sequence is restored (or emptied, if its model cannot
    remove part of a sequence: see `Memory.remove`), except for tokens that ``overflow`` discarded.
    An encoder-decoder model encodes the prompt, and its decoder answers in the sequence, which must
    be empty.

    Args:
        context: The context to compute in.
        prompt: Text (UTF-8 if given as bytes), or tokens.  At the start of a sequence, tokenizing
            text adds the model's special tokens, such as BOS.
        sampler: The chain that chooses tokens.  It is reset first, then accepts the tokens that the
            sequence has in memory and the prompt: penalties and `DRY` count all of them.  The
            context must have decoded those tokens, or loaded them with a saved state.  The default
            is `SamplerChain.from_model`: what the model's file recommends, or else the same choices
            as `SamplerChain.default`.
        max_tokens: Stop after this many tokens; None continues until the model ends or the context
            is full.
        stop: Stop where one of these strings appears; the text ends before it.  If a string
            contains the text of a special token, such as ``<|im_end|>``, that token matches too,
            although the model generates it without text.  None means no strings.
        stop_tokens: Stop at one of these tokens, and leave its text out.  None means no tokens.
        stop_when: Called after each token with the tokens so far: a true result stops.  It may read
            ``context.logits()``, from which the last token was chosen, but must not decode.
        seq_id: The sequence.
        parse_special: Whether text in the prompt such as ``<|im_start|>`` becomes that special
            token.  Turn it off for text that comes from users.
        logprobs: Compute `Token.logprob`, which costs a pass over the vocabulary for each token.
        top_logprobs: Number of entries in `Token.top_logprobs`.
        overflow: What to do when the sequence is full; by default the generation ends, and a prompt
            that does not fit is rejected.

    Returns:
        An iterator of tokens, which includes the end-of-generation token.

    Raises:
        ArgumentError: The prompt is empty or does not fit, or a value is out of range.
        TypeError: The prompt is neither text nor tokens, or a value has the wrong type.
        UnsupportedError: The model has no memory, or ``overflow`` does not work with its memory.
        ContextFullError: While iterating: sequences share the KV cache, and others fill it.
        ContextError: While iterating, if something else has changed the memory of the sequence.
        DecodeError: While iterating, if decoding fails.
    """
    _check_context(context)
    if max_tokens is not None:
        max_tokens = integer("max_tokens", max_tokens, 1)
    parse_special, logprobs = flag("parse_special", parse_special), flag("logprobs", logprobs)
    stops = stop_strings(stop)
    ends = stop_tokens_of(context.model.vocab, stop_tokens)
    n_vocab = len(context.model.vocab)
    top_logprobs = integer("top_logprobs", top_logprobs, 0, n_vocab)
    if stop_when is not None:
        check_function("stop_when", stop_when)
    if overflow is not None:
        check_object("overflow", overflow, "ContextShift", ": give ContextShift(n_keep=...)")
        overflow.check(context)

    def place() -> tuple[Prompt, int]:
        start = context.memory.next_pos(seq_id)
        tokens = prompt_tokens(context.model.vocab, prompt, start, parse_special)
        _check_room(context, len(tokens), start, overflow)
        return tokens, start

    tokens, start = place()
    chain = SamplerChain.from_model(context.model) if sampler is None else sampler
    check_object("sampler", chain, "SamplerChain", ": SamplerChain.default(temp=...) makes one")
    loop = Loop(context, tokens, start, seq_id, chain)
    loop.stops, loop.marks = stop_finder(context.model.vocab, stops, ends)
    loop.max_tokens, loop.stop_when = max_tokens, stop_when
    loop.overflow, loop.place = overflow, place
    if logprobs or top_logprobs:
        loop.logprobs = Logprobs(n_vocab, top_logprobs)
    return Generation(loop)


def _check_context(context: object) -> None:
    check_object("context", context, "Context")


def _check_room(context: Context, n: int, start: int, overflow: ContextShift | None) -> None:
    """Check that a prompt of ``n`` tokens fits after ``start`` others."""
    if traits_of(context).feeds_decoder:  # its encoder keeps nothing in memory
        if start:
            raise ArgumentError(
                f"an encoder-decoder model answers in an empty sequence, but this one has {start} "
                "tokens: remove them"
            )
        return
    n_ctx = context.n_ctx_seq
    n_keep = start if overflow is None else min(start, overflow.n_keep)
    if n_keep + n > n_ctx:
        remedy = "raise n_ctx, or clear the memory" if start else "raise n_ctx"
        raise ArgumentError(
            f"the prompt of {n} tokens does not fit: {n_keep} of n_ctx={n_ctx} tokens are in use"
            f"{'' if overflow is None else ' and kept'}; {remedy}"
        )
