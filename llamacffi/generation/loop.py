"""The loop that generates tokens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

from .._core.text import StopFinder, Utf8Stream
from .._native import lib
from ..batch.batch import Batch
from ..context.contention import EVERY
from ..context.handle import bookkeeping_of, decoder_of, traits_of
from ..errors import ContextFullError, InvalidBatchError, LlamaError, UnsupportedError
from ..sampling.chain import native
from .step import Step, changed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..context.context import Context
    from ..sampling.chain import SamplerChain
    from ..vocab.vocab import Vocab

    Prompt: TypeAlias = Sequence[int] | npt.NDArray[np.int32]

FinishReason: TypeAlias = Literal["stop", "eog", "length", "context"]


class Token(NamedTuple):
    """One generated token."""

    id: int
    text: str
    """The text that is final now.  Text that may be part of a stop string, or of an incomplete
    character, is held back until a later token, so this can be empty, or include earlier text."""
    logprob: float | None = None
    """The log-probability of the token before the samplers; None unless requested."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The most likely tokens with their log-probabilities, best first; empty unless requested."""


class Overflow(Protocol):
    """A policy for full sequences."""

    def make_room(self, context: Context, seq_id: int, pos: int, n: int) -> int:
        """Make room for ``n`` tokens at position ``pos``; return their new position."""


class Loop:
    """The state of one generation, and its results."""

    finish_reason: FinishReason | None = None
    stop_match: str | None = None
    prompt_seconds: float = 0.0
    seconds: float = 0.0

    def __init__(
        self,
        context: Context,
        prompt: Prompt,
        pos: int,
        seq_id: int,
        sampler: SamplerChain,
    ) -> None:
        self.context = context
        self.vocab: Vocab = context.model.vocab
        self.prompt = prompt
        self.pos: int = pos
        self.seq_id = seq_id
        self.sampler = sampler
        self.tokens: list[int] = []
        self.max_tokens: int | None = None
        self.stops: StopFinder = StopFinder(())
        self.marks: dict[int, str] = {}
        self.utf8: Utf8Stream = Utf8Stream()
        self.stop_when: Callable[[Sequence[int]], object] | None = None
        self.overflow: Overflow | None = None
        self.logprobs: Logprobs | None = None
        self.place: Callable[[], tuple[Prompt, int]] = lambda: (prompt, pos)
        """Returns the prompt and its position anew, if the sequence no longer ends at `pos`."""

    def run(self) -> Generator[Token, None, None]:
        """Compute the prompt, then choose, yield and decode tokens until the generation ends."""
        clock, began = time.perf_counter, time.perf_counter()
        self.start()
        self.context.synchronize()  # devices may compute asynchronously
        self.prompt_seconds = clock() - began
        context, tokens, stops = self.context, self.tokens, self.stops
        utf8, texts, find = self.utf8, Texts(self.vocab, self.marks), stops.feed if stops else None
        step, logprobs, limit = self.step(), self.logprobs, self.limit()
        logprob: float | None = None
        top: tuple[tuple[int, float], ...] = ()
        contention = decoder_of(context).contention
        began = clock()
        # Sample before yielding, as in `Step`: another generation may use the context meanwhile.
        token = self.sampler.sample(context)
        while True:
            if logprobs is not None:
                logprob, top = logprobs(context, token)
            tokens.append(token)
            text = texts[token]
            if utf8.waits or text is None:
                text = texts.continued(token, utf8)
            if find is not None:
                text = find(text)
            is_eog = token in texts.ends
            if is_eog or len(tokens) == limit or self.stop_when is not None or stops.match:
                text += self.ending(is_eog, limit)
            self.seconds += clock() - began
            yield Token(token, text, logprob, top)
            if self.finish_reason is not None:
                return
            began = clock()
            try:
                if len(tokens) % EVERY != 1 and not contention.slow:
                    token = step(token, self.pos)
                else:
                    with contention.of(context.n_threads):
                        token = step(token, self.pos)
            except InvalidBatchError as error:
                if context.memory.next_pos(self.seq_id) == self.pos:
                    raise
                raise changed(self.seq_id) from error
            self.pos += 1

    def ending(self, is_eog: bool, limit: int | None) -> str:
        """Decide whether the generation ends; if so, return the text that was held back."""
        if self.stops.match is None:
            if is_eog:
                self.finish_reason = "eog"
            elif self.stop_when is not None and self.stop_when(self.tokens):
                self.finish_reason = "stop"
            elif len(self.tokens) == limit:
                self.finish_reason = "length" if limit == self.max_tokens else "context"
            else:
                return ""
        rest = "" if self.stops.match else self.stops.feed(self.utf8.finish())
        if self.stops.match is None:
            return rest + self.stops.finish()
        self.stop_match, self.finish_reason = self.stops.found, "stop"
        return rest

    def limit(self) -> int | None:
        """Return the maximum number of tokens; the last one needs no room in memory."""
        if self.overflow is not None:
            return self.max_tokens
        room = self.context.n_ctx_seq - self.pos + 1
        return room if self.max_tokens is None else min(room, self.max_tokens)

    def step(self) -> Callable[[int, int], int]:
        """Return the function that decodes a token, after making room, and samples the next."""
        step, overflow = Step(self.context, self.sampler, self.seq_id), self.overflow
        if overflow is None:
            return step
        n_ctx = self.context.n_ctx_seq

        def step_with_room(token: int, pos: int) -> int:
            if pos >= n_ctx:
                self.make_room(overflow)
                step.look()
            try:
                return step(token, self.pos)
            except ContextFullError:  # other sequences occupy the rest of the buffer
                self.make_room(overflow)
                step.look()
                return step(token, self.pos)

        return step_with_room

    def make_room(self, overflow: Overflow, n: int = 1) -> None:
        """Make room for more tokens by the policy."""
        self.pos = overflow.make_room(self.context, self.seq_id, self.pos, n)

    def start(self) -> None:
        """Compute the prompt; if that fails, restore the sequence.

        The sequence may have been changed since `generate` was called.
        """
        chain, sampled = self.sampler, native(self.sampler)
        if self.context.memory.next_pos(self.seq_id) != self.pos:
            self.prompt, self.pos = self.place()
        chain.reset()
        if sampled.prepared() is not self.vocab:
            sampled.prepare(self.vocab)
        try:
            if traits_of(self.context).feeds_decoder:
                n = self.encode_prompt()
            else:
                # Penalties apply to the whole text, which includes earlier turns.
                earlier = bookkeeping_of(self.context).tokens.before(self.seq_id, self.pos)
                chain.accept_prompt([*earlier, *self.prompt])
                n = self.decode_prompt()
        except BaseException:  # also an interrupt
            # If this fails too, for the same reason, the first error is the one to raise.
            with contextlib.suppress(LlamaError):
                memory = self.context.memory
                if not memory.remove(self.seq_id, self.pos):  # after a shift, `pos` is lower
                    memory.remove(self.seq_id)
            raise
        self.pos += n

    def decode_prompt(self) -> int:
        """Decode the prompt in batches, with an output for its last token; return its length."""
        prompt, n = self.prompt, len(self.prompt)
        if self.overflow is not None and self.pos + n > self.context.n_ctx_seq:
            self.make_room(self.overflow, n)
        step = min(n, self.context.n_batch)
        batch, done = Batch(step), 0
        while done < n:
            part = prompt[done : done + step]
            batch.clear()
            logits: Literal["last", "none"] = "last" if done + len(part) == n else "none"
            batch.add(part, self.pos + done, (self.seq_id,), logits)
            try:
                self.context.decode(batch)
            except ContextFullError:
                if step == 1:
                    raise
                step //= 2  # a smaller batch may fit
            else:
                done += len(part)
        return n

    def encode_prompt(self) -> int:
        """Encode the prompt, and decode the token that starts the answer.

        Returns:
            The number of tokens of the answer so far.
        """
        seq_ids = (self.seq_id,)
        self.context.encode(Batch.from_tokens(self.prompt, 0, seq_ids, "all"))
        first: int | None = lib.llama_model_decoder_start_token(self.context.model.ptr)
        if first == lib.LLAMA_TOKEN_NULL:
            first = self.vocab.bos
        if first is None:
            raise UnsupportedError("the model does not specify the start token of its decoder")
        self.context.decode(Batch.from_tokens([first], self.pos, seq_ids))
        return 1


class Texts(dict[int, "str | None"]):
    """Caches the texts of tokens; None if a token is not made of whole characters.

    Args:
        vocab: The vocabulary of the model.
        marks: Texts that replace those of some tokens.
    """

    def __init__(self, vocab: Vocab, marks: dict[int, str]) -> None:
        super().__init__()
        self._vocab = vocab
        self._marks = marks
        self.pieces: dict[int, bytes] = {}
        self.ends: set[int] = set()
        """The tokens that end a generation; they have no text."""

    def __missing__(self, token: int) -> str | None:
        piece = b""
        if self._vocab.is_eog(token):
            self.ends.add(token)
        else:
            piece = self._vocab.piece(token, special=False)
        text: str | None = self._marks.get(token)
        if text is not None:
            self.pieces[token], self[token] = b"", text
            return text
        with contextlib.suppress(UnicodeDecodeError):
            text = piece.decode()
        self.pieces[token], self[token] = piece, text
        return text

    def continued(self, token: int, utf8: Utf8Stream) -> str:
        """Return the text of a token, preceded by the bytes held back in a stream."""
        mark = self._marks.get(token)
        return utf8.feed(self.pieces[token]) if mark is None else utf8.finish() + mark


class Logprobs:
    """Computes log-probabilities of tokens from the logits of the model."""

    def __init__(self, n_vocab: int, n_top: int) -> None:
        import numpy as np

        self.n_top = n_top
        self._logits = np.empty(n_vocab, np.float32)

    def __call__(self, context: Context, token: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        """Return the log-probability of a token for the last output, and the best tokens."""
        import numpy as np

        logits = context.logits(out=self._logits)
        best = logits.max()
        total = np.exp(logits - best).sum(dtype=np.float64)
        base = float(best) + float(np.log(total))
        top: tuple[tuple[int, float], ...] = ()
        if self.n_top:
            found = np.argpartition(logits, -self.n_top)[-self.n_top :]
            order = np.lexsort((found, -logits[found]))
            top = tuple((int(i), float(logits[i]) - base) for i in found[order])
        return float(logits[token]) - base, top
