"""Text out of a model: a prompt in, tokens and text out."""

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
from ..context.sequences import LockedMemory
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
    """What `generate` may do when the sequence is full: forget tokens, and go on.

    The tokens after those forgotten move up, so there are positions left; the model goes on from a
    text with a hole in it.

    Args:
        n_keep: Never forget so many tokens at the beginning.  Models lean on the first ones, and an
            instruction may be there.
        n_discard: Forget so many after those, or more if a prompt needs it; None is half of them.
    """

    n_keep: int = 1
    n_discard: int | None = None

    def __post_init__(self) -> None:
        integer("n_keep", self.n_keep, 0)
        if self.n_discard is not None:
            integer("n_discard", self.n_discard, 1)

    def check(self, context: Context) -> None:
        """Raise unless the sequences of a context can be shifted so.

        Raises:
            ArgumentError: It would not make any room.
            UnsupportedError: The positions of this model cannot be moved, or it is recurrent: the
                size of its state does not depend on ``n_ctx``, so make that as large as you like.

        Source: ``llama_model_is_recurrent``, ``llama_memory_can_shift``.
        """
        _check_context(context)
        needed, n_ctx = self.n_keep + (self.n_discard or 1), context.n_ctx_seq
        if needed >= n_ctx:
            raise ArgumentError(f"{self!r} needs more than n_ctx={needed}, and it is {n_ctx}")
        model = context.model.ptr
        if lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model):
            raise UnsupportedError(
                "a recurrent model cannot forget a part of a sequence; its state needs no more "
                "room for a longer one: raise n_ctx"
            )
        with context.lock:
            reason = LockedMemory(context).why_not_shift()
        if reason is not None:
            raise UnsupportedError(
                f"the positions of this context cannot be moved: {reason}; or raise n_ctx"
            )

    def make_room(self, context: Context, seq_id: int, pos: int, n: int) -> int:
        """Forget tokens of a sequence; return the position of the next from then on.

        Args:
            context: Where it is.
            seq_id: The sequence.
            pos: The position of its next token.
            n: For how many tokens there must be room.

        Raises:
            ArgumentError: There is not enough to be forgotten.
            UnsupportedError: As in `check`; or other sequences share tokens that would move.
        """
        _check_context(context)
        needed, movable = pos + n - context.n_ctx_seq, pos - self.n_keep
        n_discard = max(needed, self.n_discard or movable // 2, 1)
        if n_discard > movable:
            raise ArgumentError(
                f"{n} more tokens need {n_discard} to be forgotten, and {max(movable, 0)} of the "
                f"{pos} in memory may be (n_keep={self.n_keep})"
            )
        context.memory.cut(seq_id, self.n_keep, self.n_keep + n_discard)
        return pos - n_discard


class Generation(Unique, Iterator[Token]):
    """Tokens as they are generated, and afterwards how it went.

    The next token is computed when it is asked for.  Memory then has the prompt and all tokens but
    the last; to go on after it, give it with the next prompt.  It may be left at any time.  Several
    can take turns in one context, each with a sequence and a sampler of its own.
    """

    _why = "it is going on in a Context"
    _instead = "call generate() again; `tokens` are those so far"

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._tokens = loop.run()

    @property
    def context(self) -> Context:
        """Where it computes."""
        return self._loop.context

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None while it goes on.

        ``"stop"`` is a stop string, a stop token or ``stop_when``; ``"eog"`` the model's own end,
        ``"length"`` max_tokens, and ``"context"`` a full memory.
        """
        return self._loop.finish_reason

    @property
    def stop_match(self) -> str | None:
        """The stop string that was found, or the text of the stop token."""
        return self._loop.stop_match

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens so far."""
        return tuple(self._loop.tokens)

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self._loop.prompt)

    @property
    def n_generated(self) -> int:
        """Tokens generated so far."""
        return len(self._loop.tokens)

    @property
    def prompt_seconds(self) -> float:
        """Time for the prompt, until the first token could be chosen."""
        return self._loop.prompt_seconds

    @property
    def seconds(self) -> float:
        """Time from then on."""
        return self._loop.seconds

    @property
    def seed(self) -> int | None:
        """The seed of the sampler, also if it was chosen at random; None if nothing is random."""
        return self._loop.sampler.seed

    def __next__(self) -> Token:
        try:
            return next(self._tokens)
        except ValueError as error:
            raise self._busy(error) from None

    def text(self) -> str:
        """Generate to the end and return the text of the tokens that are left."""
        return "".join(token.text for token in self)

    def close(self) -> None:
        """End it here.

        Raises:
            BusyError: It is computing a token, in another thread: `Context.cancel` stops that.
        """
        try:
            self._tokens.close()
        except ValueError as error:
            raise self._busy(error) from None

    def _busy(self, error: ValueError) -> ValueError | BusyError:
        """Return what to raise for an error of the generator behind it."""
        if str(error) != "generator already executing":
            return error
        if is_inside(self._tokens.gi_frame):  # type: ignore[attr-defined]  # of what `yield` makes
            return BusyError(
                "this Generation is computing a token: what it calls meanwhile, as stop_when or "
                "cb_eval, cannot use it"
            )
        return BusyError(
            "another thread is asking this Generation for a token; Context.cancel() stops that"
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
    """Generate tokens after a prompt, which itself comes after what the sequence has in memory.

    Nothing is computed before the first token is asked for, and the prompt comes after what the
    sequence has in memory then.  If the prompt cannot be computed, the sequence is as before (or
    empty, if its model cannot forget a part: see `Memory.remove`), but for what ``overflow`` has
    forgotten to make room.  An encoder-decoder model encodes the prompt, and its
    decoder answers in the sequence, which must be empty.

    Args:
        context: Where to compute.
        prompt: Text (UTF-8 if given as bytes), or tokens.  A text is tokenized with the model's
            special tokens if it begins the sequence.
        sampler: How to choose.  It is reset first, and told of what the sequence has in memory and
            of the prompt: penalties and `DRY` count all of it.  This context must have decoded
            those tokens; of a loaded state it knows the tokens if they were saved with it.  By
            default what the model's file recommends, `SamplerChain.from_model`;
            where it recommends nothing, that chooses as `SamplerChain.default` does.
        max_tokens: Stop after so many; None goes on until the model ends or memory is full.
        stop: Stop where one of these strings appears; neither it nor what follows is in the text.
            The text of a special token in it, such as ``<|im_end|>``, stands for that token too,
            which the model generates without text.  None is no string.
        stop_tokens: Stop at one of these tokens, whose text is left out too.  None is no token.
        stop_when: Called with the tokens so far, after each: a true result stops.  It may read
            ``context.logits()``, from which the last was chosen, but must not decode.
        seq_id: The sequence.
        parse_special: Read the texts of special tokens in the prompt, such as ``<|im_start|>``, as
            those tokens.  Switch it off for a text that comes from users.
        logprobs: Compute `Token.logprob`, which costs a pass over the vocabulary for each token.
        top_logprobs: And `Token.top_logprobs`, so many.
        overflow: What to do when the sequence is full; by default the generation ends, and a prompt
            that does not fit is refused.

    Returns:
        An iterator of tokens.  The token that ends it by the model's own decision is among them.

    Raises:
        ArgumentError: The prompt is empty or does not fit, or a value is out of range.
        TypeError: The prompt is neither text nor tokens, or a value is of another type.
        UnsupportedError: The model has no memory, or not the one that ``overflow`` needs.
        ContextFullError: While iterating: sequences share one buffer, and the others have the rest.
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
    if context._feeds_decoder:  # its encoder remembers nothing
        if start:
            raise ArgumentError(
                f"the answer of an encoder-decoder model begins its sequence, and {start} tokens "
                "are in it: remove them"
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
