"""Tokens and embeddings on their way into a context."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core.values import INT32_MAX, elements, integer
from .._native import ffi, lib
from ..errors import ArgumentError
from .arrays import BOTH, EMBEDDINGS, TOKENS, Attempt, BatchArrays
from .ext import fill
from .input import (
    SECTIONS,
    embedding_rows,
    output_flags,
    pointer,
    position_array,
    section_rows,
    sequence_ids,
    single_token,
    token_array,
)

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Self

    from .input import Logits, Positions, Tokens


class Batch(BatchArrays):
    """Up to ``capacity`` tokens, each with its position, its sequences and its output flag.

    Instead of tokens it can have embeddings, or both for a draft model that reads the hidden state
    of its target too.  The arrays belong to Python and C reads them, so there is nothing to close.
    A batch can be cleared and used again.  It is for one thread at a time.
    """

    __slots__ = ()

    def __init__(self, capacity: int, n_seq_max: int = 1, n_embd: int = 0) -> None:
        """Make an empty batch.

        Args:
            capacity: How many tokens fit, at least 1.
            n_seq_max: To how many sequences one token may belong, at least 1.
            n_embd: The width of embeddings, `Model.n_embd` for most models; 0 for tokens alone.
        """
        super().__init__(capacity, n_seq_max, n_embd)
        self._set_rows(1)
        self.clear()

    @classmethod
    def from_tokens(
        cls,
        tokens: Tokens,
        pos: Positions = 0,
        seq_ids: Iterable[int] = (0,),
        logits: Logits = "last",
    ) -> Self:
        """Make a batch of exactly these tokens; the arguments are those of `add`.

        To go on where a sequence ends, give ``pos=context.memory.next_pos(seq_id)``.
        """
        ids, array = elements("seq_ids", seq_ids, "integers"), token_array(tokens)
        batch = cls(max(len(array), 1), max(len(ids), 1))
        batch.add(array, pos, ids, logits)
        return batch

    def add(
        self,
        tokens: Tokens,
        pos: Positions = 0,
        seq_ids: Iterable[int] = (0,),
        logits: Logits = "last",
        *,
        embeddings: npt.ArrayLike | None = None,
    ) -> range:
        """Append tokens.  If it raises, the batch is as before.

        Args:
            tokens: Token ids; an integer array is the fastest.
            pos: The position of the first, and the others follow; or an array of all positions.
            seq_ids: The sequences that they all belong to, 1 to `n_seq_max`.
            logits: Which of them get an output: the last, all, none; or a mask of booleans, one
                for each; or indices into ``tokens``, each once.  Integers are always indices:
                llama.cpp's own flags, 0 and 1, become a mask with ``flags.astype(bool)``.
            embeddings: The hidden state of each, ``[len(tokens), n_embd]``: for the contexts of
                draft models (``ctx_type="mtp"``, or ``ctx_other``) alone.

        Returns:
            Their indices in the batch, for `Context.logits`.

        Raises:
            ArgumentError: They do not fit, a value is out of range, ``logits`` looks like flags of
                0 and 1, or the batch has embeddings alone.
            TypeError: ``tokens``, ``pos`` or ``seq_ids`` are no integers, or ``embeddings`` no
                floats.
            BusyError: Another thread is decoding the batch.
        """
        if embeddings is None and not self._value.n_tokens:
            single = single_token(tokens, pos, seq_ids, logits)
            if single is not None:
                self.set_one(*single)
                return range(1)
        array = token_array(tokens)
        rows = None if embeddings is None else embedding_rows(embeddings, self.n_embd)
        if rows is not None and len(rows) != len(array):
            raise ArgumentError(
                f"{len(array)} tokens and {len(rows)} rows of embeddings: each token needs one"
            )
        start, stop = self._place(
            len(array), TOKENS if rows is None else BOTH, pos, seq_ids, logits
        )
        self._token[start:stop] = array
        self._token_range = None
        if rows is not None:
            self._embd[start:stop] = rows
        self._value.n_tokens = stop
        return range(start, stop)

    def add_embeddings(
        self,
        embeddings: npt.ArrayLike,
        pos: Positions = 0,
        seq_ids: Iterable[int] = (0,),
        logits: Logits = "last",
    ) -> range:
        """Append embeddings in place of tokens, as of a picture.  If it raises, nothing changes.

        Args:
            embeddings: ``[n, n_embd]``, floats; float32 is copied as it is.  All must be finite:
                one that is not would spoil every sequence that shares its memory.
            pos: The position of the first, and the others follow; or an array of all; or, for a
                model with M-RoPE, ``[4, n]``: time, height, width and one that is 0.
            seq_ids: The sequences that they all belong to, 1 to `n_seq_max`.
            logits: Which of them get an output, as in `add`.

        Returns:
            Their indices in the batch, for `Context.logits`.

        Raises:
            ArgumentError: They do not fit, a value is out of range or not finite, or the batch has
                tokens.
            TypeError: The embeddings are no floats, or ``pos`` or ``seq_ids`` no integers.
            BusyError: Another thread is decoding the batch.
        """
        rows = embedding_rows(embeddings, self.n_embd)
        start, stop = self._place(len(rows), EMBEDDINGS, pos, seq_ids, logits)
        self._embd[start:stop] = rows
        self._value.n_tokens = stop
        return range(start, stop)

    def truncate(self, n: int) -> None:
        """Keep only the first ``n`` entries."""
        if not 0 <= integer("n", n) <= len(self):
            raise ArgumentError(f"n={n} is not in 0 to {len(self)}, the length of the batch")
        if n == 0:
            return self.clear()
        self._check_free()
        counts = self._n_seq_id[:n]
        used = np.arange(self.n_seq_max) < counts[:, None]
        self._n_seq_id_max = int(counts.max())
        self.is_coupled = self._n_seq_id_max > 1
        self._seq_id_max = int(self._seq_id[:n][used].max())
        self._token_range, self._outputs, self._single = None, None, None
        self._value.n_tokens = n

    def clear(self) -> None:
        """Remove all entries."""
        self._check_free()
        self._value.n_tokens = 0
        self._seq_id_max = self._n_seq_id_max = 0
        self.is_coupled, self._single = False, None
        self._outputs, self._token_range = b"", (0, 0)
        self._sections = None
        self._set_content(TOKENS)

    def set_one(self, token: int, pos: int, seq_id: int = 0) -> None:
        """Make the batch one token with an output: `clear` and `add`, for a loop over tokens.

        Raises:
            ArgumentError: ``pos`` or ``seq_id`` is below 0, or a value does not fit 32 bits.
            BusyError: Another thread is decoding the batch.
        """
        if not (type(token) is int and type(pos) is int and type(seq_id) is int):
            token, pos = integer("token", token), integer("pos", pos)
            seq_id = integer("seq_id", seq_id)
        if not (0 <= pos <= INT32_MAX and 0 <= seq_id <= INT32_MAX):
            raise ArgumentError(f"pos={pos} and seq_id={seq_id} are not in 0 to {INT32_MAX}")
        if not -INT32_MAX <= token <= INT32_MAX:  # the vocabulary is looked at later
            raise ArgumentError(f"token={token} is not in 0 to {INT32_MAX}")
        if self._single != seq_id or self._lock.holders:
            self.clear()
            self._n_seq_id[0], self._seq_id[0, 0], self._logits[0] = 1, seq_id, 1
            self._seq_id_max, self._n_seq_id_max, self._outputs = seq_id, 1, b"\1"
            self._value.n_tokens, self._single = 1, seq_id
        self._first_token[0] = token
        self._first_pos[0] = pos
        self._token_range = token, token

    def check(
        self, n_vocab: int, n_seq_max: int, kv_unified: bool = True, drafts: bool = True
    ) -> None:
        """Raise `ArgumentError` unless all tokens and sequences can exist in a context.

        Args:
            n_vocab: How many tokens its vocabulary has.
            n_seq_max: How many sequences it has.
            kv_unified: Whether its sequences share one buffer.
            drafts: Whether it reads embeddings beside tokens, as the models that draft do.
        """
        if self._token_range is None:
            tokens = self._token[: len(self)]
            self._token_range = int(tokens.min()), int(tokens.max())
        least, most = self._token_range
        if (least < 0 or most >= n_vocab) and self._content != EMBEDDINGS:
            tokens = self._token[: len(self)]
            i = int(np.argmax((tokens < 0) | (tokens >= n_vocab)))
            raise ArgumentError(f"token {tokens[i]} at index {i} is not in 0 to {n_vocab - 1}")
        if self._seq_id_max >= n_seq_max:
            raise ArgumentError(
                f"seq_id {self._seq_id_max} is not in 0 to {n_seq_max - 1}: "
                "create the Context with a larger n_seq_max"
            )
        if self._n_seq_id_max > 1 and not kv_unified:
            raise ArgumentError(
                f"a token belongs to {self._n_seq_id_max} sequences, which have separate buffers: "
                "create the Context with kv_unified=True"
            )
        if self._content == BOTH and not drafts:
            raise ArgumentError(
                "this context would read the tokens and ignore their embeddings: only one of a "
                'draft model (ctx_type="mtp", or ctx_other) reads both'
            )

    def submit(self, context: Any, encode: bool = False, attempt: Attempt | None = None) -> int:
        """Have C compute the batch; `Context.decode` and `Context.encode` call it.

        Args:
            context: The ``struct llama_context *``, for which the batch was checked.
            encode: By the encoder.
            attempt: Is told when C gets the batch.

        Returns:
            C's return code.

        Raises:
            ArgumentError: The embeddings or positions do not suit the model; nothing was computed.
            BusyError: Another thread is decoding the batch.

        Source: ``llama_decode``, ``llama_encode``; with embeddings ``llama_process``.
        """
        with self._lock:
            filled = None if self._content is TOKENS else self._with_embeddings(context)
            code: int
            if attempt is not None:
                attempt.reached = True
            if filled is None:
                code = (lib.llama_encode if encode else lib.llama_decode)(context, self._value)
            else:
                kind = lib.LLAMA_PROCESS_TYPE_ENCODE if encode else lib.LLAMA_PROCESS_TYPE_DECODE
                code = lib.llama_process(context, kind, filled)
            return code

    def _place(
        self, n: int, content: str, pos: Positions, seq_ids: Iterable[int], logits: Logits
    ) -> tuple[int, int]:
        """Check what all kinds of entries have, and write it behind the last entry.

        Returns:
            The place of the new entries, which exist only when the caller counts them.
        """
        self._check_free()
        start, stop = len(self), len(self) + n
        if stop > self.capacity:
            raise ArgumentError(
                f"{n} tokens do not fit: of capacity={self.capacity}, {self.n_left} are left; make "
                "a larger Batch, or decode() and clear() this one"
            )
        if start and content != self._content:
            raise ArgumentError(
                f"the batch has {self._content}, and cannot have {content} too: use another Batch"
            )
        ids = sequence_ids(seq_ids, self.n_seq_max)
        positions = position_array(pos, n, content == EMBEDDINGS)
        flags = output_flags(logits, n)
        if not n:
            return start, stop
        self._set_content(content)
        if stop > self._n_rows:
            self._set_rows(stop)
        if positions.ndim == 2 and self._sections is None:
            self._sections = np.zeros((self.capacity, SECTIONS), np.int32)
            self._sections[:start] = section_rows(self._pos[:start])
        if self._sections is not None:
            self._sections[start:stop] = section_rows(positions)
        self._pos[start:stop] = positions if positions.ndim == 1 else positions[0]
        self._n_seq_id[start:stop] = len(ids)
        self._seq_id[start:stop, : len(ids)] = ids
        self._logits[start:stop] = 0 if flags is None else flags
        if flags is None:
            self._logits[stop - 1] = 1
        self._seq_id_max = max(self._seq_id_max, ids[-1])
        self._n_seq_id_max = max(self._n_seq_id_max, len(ids))
        self.is_coupled: bool = self._n_seq_id_max > 1
        self._single = None
        self._outputs = None
        return start, stop

    def _set_content(self, content: str) -> None:
        """Say what the entries are, to C too."""
        if content != self._content:
            self._content = content
            token, embd = content != EMBEDDINGS, content != TOKENS
            self._value.token = self._first_token if token else ffi.NULL
            self._value.embd = pointer("float *", self._embd) if embd else ffi.NULL

    def _with_embeddings(self, context: Any) -> Any:
        """Return this as a batch with embeddings is for C."""
        n, sections = len(self), self._sections
        rope = lib.llama_model_rope_type(lib.llama_get_model(context))
        if sections is None:
            sections = section_rows(self._pos[:n])
        elif rope not in (lib.LLAMA_ROPE_TYPE_MROPE, lib.LLAMA_ROPE_TYPE_IMROPE):
            raise ArgumentError(
                f"{SECTIONS} positions for each embedding are for models with M-RoPE; this one "
                "takes one"
            )
        tokens = None if self._content == EMBEDDINGS else self._token[:n].tolist()
        rows = self._embd[:n]
        return fill(context, tokens, rows, sections[:n], self.seq_ids, self.outputs())

    def _check_free(self) -> None:
        self._lock.check()
