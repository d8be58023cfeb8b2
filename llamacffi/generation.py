"""The loop: a prompt in, tokens and text out."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from ._text import StopFinder, Utf8Stream
from .batch import Batch
from .errors import ArgumentError
from .sampling import SamplerChain

if TYPE_CHECKING:
    from .context import Context

FinishReason: TypeAlias = Literal["stop", "eog", "length", "context"]


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token."""

    id: int
    text: str
    """The text that is certain now: a character or a stop string that may be incomplete waits for
    the next token, so it may be empty, or have text of the tokens before."""
    logprob: float | None = None
    """The logarithm of its probability by the model, before the samplers; if it was asked for."""


class Generation(Iterator[Token]):
    """Tokens as they are generated, and afterwards how it went.

    The next token is computed when it is asked for.  Memory then has the prompt and all tokens but
    the last; to go on after it, give it with the next prompt.
    """

    def __init__(self, context: Context, tokens: Iterator[Token]) -> None:
        self._tokens = tokens
        self.context = context
        self.finish_reason: FinishReason | None = None
        """Why it ended: ``"stop"`` (a stop string), ``"eog"`` (the model's own end), ``"length"``
        (max_tokens), ``"context"`` (memory is full); None while it goes on."""
        self.stop_match: str | None = None
        """The stop string that was found."""
        self.n_prompt = 0
        """Tokens of the prompt."""
        self.n_generated = 0
        """Tokens generated so far."""
        self.prompt_seconds = 0.0
        """Time for the prompt, until the first token could be chosen."""
        self.seconds = 0.0
        """Time from then on."""

    def __next__(self) -> Token:
        return next(self._tokens)

    def text(self) -> str:
        """Generate to the end and return the text of the tokens that are left."""
        return "".join(token.text for token in self)

    def close(self) -> None:
        """End it here."""
        close = getattr(self._tokens, "close", None)
        if close is not None:
            close()


def generate(
    context: Context,
    prompt: str | bytes | Sequence[int],
    *,
    sampler: SamplerChain | None = None,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
    seq_id: int = 0,
    logprobs: bool = False,
) -> Generation:
    """Generate tokens after a prompt, which itself comes after what the sequence has in memory.

    Args:
        context: Where to compute.
        prompt: Text (UTF-8 if given as bytes), or tokens.  A text is tokenized with the model's
            special tokens if it begins the sequence, and its own special tokens are recognised.
        sampler: How to choose; it is reset first.  Default `SamplerChain.default`.
        max_tokens: Stop after so many; None goes on until the model ends or memory is full.
        stop: Stop where one of these strings appears; neither it nor what follows is in the text.
        seq_id: The sequence.
        logprobs: Compute `Token.logprob`, which costs a pass over the vocabulary for each token.

    Returns:
        An iterator of tokens.  The token that ends it by the model's own decision is among them.

    Raises:
        ArgumentError: The prompt is empty or does not fit, or a value is out of range.
        DecodeError: While iterating, if decoding fails.
    """
    if max_tokens is not None and max_tokens < 1:
        raise ArgumentError(f"max_tokens={max_tokens} must be at least 1, or None")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(stops):
        raise ArgumentError("a stop string is empty")
    last = context.memory.pos_max(seq_id)
    start = 0 if last is None else last + 1
    tokens = _prompt_tokens(context, prompt, start)
    chain = SamplerChain.default() if sampler is None else sampler
    loop = _Loop(context, start, seq_id, chain, logprobs)
    generation = Generation(context, iter(()))
    generation.n_prompt = len(tokens)
    # A proxy: the generator runs only while somebody holds the generation, and a cycle would keep
    # the context alive after a loop that is left early.
    proxy = weakref.proxy(generation)
    generation._tokens = loop.run(proxy, tokens, max_tokens, StopFinder(stops))
    return generation


def _prompt_tokens(
    context: Context, prompt: str | bytes | Sequence[int], start: int
) -> Sequence[int]:
    """Return the tokens of a prompt that fits after ``start`` tokens."""
    if isinstance(prompt, str | bytes):
        tokens: Sequence[int] = context.model.vocab.tokenize(
            prompt, add_special=start == 0, parse_special=True
        )
    else:
        tokens = context.model.vocab.check(prompt)
    if not tokens:
        raise ArgumentError("the prompt has no tokens")
    if start + len(tokens) > context.n_ctx_seq:
        raise ArgumentError(
            f"the prompt of {len(tokens)} tokens does not fit: {start} of n_ctx="
            f"{context.n_ctx_seq} tokens are in use; raise n_ctx, or clear the memory"
        )
    return tokens


class _Loop:
    """The state of one generation."""

    def __init__(
        self, context: Context, pos: int, seq_id: int, sampler: SamplerChain, logprobs: bool
    ) -> None:
        self.context = context
        self.vocab = context.model.vocab
        self.pos = pos
        self.seq_id = seq_id
        self.sampler = sampler
        self.logprobs = logprobs

    def run(
        self,
        generation: Generation,
        prompt: Sequence[int],
        max_tokens: int | None,
        stops: StopFinder,
    ) -> Iterator[Token]:
        """Decode the prompt, then choose, yield and decode until something ends it."""
        began = time.perf_counter()
        self.sampler.reset()
        self.decode_prompt(prompt)
        generation.prompt_seconds = time.perf_counter() - began
        utf8, batch = Utf8Stream(), Batch(1)
        room = self.context.n_ctx_seq - self.pos
        limit = room + 1 if max_tokens is None else min(max_tokens, room + 1)
        while True:
            began = time.perf_counter()
            token = self.sampler.sample(self.context)
            logprob = self.logprob(token) if self.logprobs else None
            generation.n_generated += 1
            is_eog = self.vocab.is_eog(token)
            piece = b"" if is_eog else self.vocab.piece(token, special=False)
            text = stops.feed(utf8.feed(piece))
            if stops.match is not None:
                generation.stop_match, generation.finish_reason = stops.match, "stop"
            elif is_eog:
                generation.finish_reason = "eog"
            elif generation.n_generated >= limit:
                generation.finish_reason = "length" if limit == max_tokens else "context"
            if generation.finish_reason in ("eog", "length", "context"):
                text += self.rest(generation, utf8, stops)
            generation.seconds += time.perf_counter() - began
            yield Token(token, text, logprob)
            if generation.finish_reason is not None:
                return
            began = time.perf_counter()
            batch.set_one(token, self.pos, self.seq_id)
            self.context.decode(batch)
            self.pos += 1
            generation.seconds += time.perf_counter() - began

    def rest(self, generation: Generation, utf8: Utf8Stream, stops: StopFinder) -> str:
        """Return the text that was held back, up to a stop string that it completes."""
        text = stops.feed(utf8.finish())
        if stops.match is not None:
            generation.stop_match, generation.finish_reason = stops.match, "stop"
            return text
        return text + stops.finish()

    def decode_prompt(self, tokens: Sequence[int]) -> None:
        """Decode a prompt in batches, with an output for its last token."""
        step = min(len(tokens), self.context.n_batch)
        batch = Batch(step)
        for i in range(0, len(tokens), step):
            part = tokens[i : i + step]
            batch.clear()
            logits: Literal["last", "none"] = "last" if i + step >= len(tokens) else "none"
            batch.add(part, pos=self.pos, seq_ids=(self.seq_id,), logits=logits)
            self.context.decode(batch)
            self.pos += len(part)

    def logprob(self, token: int) -> float:
        """Return the log-probability of a token by the model."""
        import numpy as np

        logits = self.context.logits().astype(np.float64)
        top = logits.max()
        return float(logits[token] - top - np.log(np.exp(logits - top).sum()))
