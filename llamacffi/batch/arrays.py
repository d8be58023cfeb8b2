"""The memory of a `Batch`: numpy arrays, and the C struct that points to them.

`Batch` is the public side: it converts and checks its arguments.  The context that computes a
batch, and its bookkeeping, read these attributes directly, through `arrays_of`: in a loop that
decodes token by token, each property would be one more call of a Python function.
"""

from __future__ import annotations

from sys import _getframe as here
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core.locks import CallLock
from .._native import ffi, lib
from ..errors import ArgumentError
from .ext import fill
from .input import SECTIONS, pointer, section_rows

if TYPE_CHECKING:
    import numpy.typing as npt

# What the entries of a batch are.  llama.cpp takes one kind per batch.
TOKENS, EMBEDDINGS, BOTH = "tokens", "embeddings", "tokens with embeddings"


class BatchArrays:
    """Room for a number of entries, each with its position, sequences and output flag."""

    __slots__ = (
        *("content", "coupled", "embd", "first_pos", "first_token", "lock", "logits", "n_embd"),
        *("n_rows", "n_seq_id", "n_seq_id_max", "output_flags", "pos", "row", "rows", "sections"),
        *("seq_id", "seq_id_max", "single", "struct", "token", "token_range", "value"),
    )

    content: str
    """`TOKENS`, `EMBEDDINGS` or `BOTH`."""
    coupled: bool
    """Whether some token belongs to several sequences."""
    output_flags: bytes | None
    """What `outputs` returns; None until it is needed."""
    sections: npt.NDArray[np.int32] | None
    """Positions of M-RoPE, ``[capacity, SECTIONS]``; None until an entry has them."""
    row: int | None
    """The sequence that the first entry is set to, with an output; None if it is set otherwise."""
    single: int | None
    """The sequence of the one token that `Batch.set_one` has put here; None otherwise."""
    token_range: tuple[int, int] | None
    """The smallest and the largest token; None until `check` computes it."""
    seq_id_max: int
    """The greatest sequence of any entry."""
    n_seq_id_max: int
    """The greatest number of sequences of any entry."""

    def __init__(self, capacity: int, n_seq_max: int, n_embd: int) -> None:
        self.n_embd: int = n_embd
        self.token: npt.NDArray[np.int32] = np.zeros(capacity, np.int32)
        self.pos: npt.NDArray[np.int32] = np.zeros(capacity, np.int32)
        self.n_seq_id: npt.NDArray[np.int32] = np.zeros(capacity, np.int32)
        self.seq_id: npt.NDArray[np.int32] = np.zeros((capacity, n_seq_max), np.int32)
        self.logits: npt.NDArray[np.int8] = np.zeros(capacity, np.int8)
        self.embd: npt.NDArray[np.float32] = np.zeros((capacity, n_embd), np.float32)
        # A pointer for each row of seq_id.  Only those in use are set: memory that is not
        # written is not allocated.
        self.rows: npt.NDArray[np.uintp] = np.zeros(capacity, np.uintp)
        self.n_rows: int = 0
        self.row = None
        # Held while C reads the arrays.
        self.lock: CallLock = CallLock("Batch")
        self.content = ""
        self.struct: Any = ffi.new("struct llama_batch *")
        self.value: Any = self.struct[0]  # the same memory, as C's functions take it
        self.first_token: Any = pointer("llama_token *", self.token)
        self.first_pos: Any = pointer("llama_pos *", self.pos)
        self.value.pos = self.first_pos
        self.value.n_seq_id = pointer("int32_t *", self.n_seq_id)
        self.value.seq_id = pointer("llama_seq_id **", self.rows)
        self.value.logits = pointer("int8_t *", self.logits)
        self.set_rows(1)
        self.clear()

    def __len__(self) -> int:
        return int(self.value.n_tokens)

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """A view of the tokens; empty if the entries are embeddings alone."""
        return self.token[: 0 if self.content == EMBEDDINGS else len(self)]

    @property
    def positions(self) -> npt.NDArray[np.int32]:
        """A view of the positions; with M-RoPE, of the first section."""
        return self.pos[: len(self)]

    @property
    def seq_ids(self) -> list[list[int]]:
        """The sequences of each entry."""
        counts, rows = self.n_seq_id[: len(self)], self.seq_id[: len(self)]
        return [ids[:n] for n, ids in zip(counts.tolist(), rows.tolist(), strict=True)]

    @property
    def only_sequence(self) -> int | None:
        """The sequence that all entries belong to; None if there are several."""
        if self.single is not None:
            return self.single
        first = int(self.seq_id[0, 0])
        alone = not self.coupled and (self.seq_id[: len(self), 0] == first).all()
        return first if alone else None

    def starts(self) -> dict[int, int]:
        """Return the sequences of the batch, each with its lowest position."""
        starts: dict[int, int] = {}
        for pos, ids in zip(self.positions.tolist(), self.seq_ids, strict=True):
            for seq_id in ids:
                starts[seq_id] = min(pos, starts.get(seq_id, pos))
        return starts

    def outputs(self) -> bytes:
        """Return which entries have an output: a byte for each, 1 or 0."""
        if self.output_flags is None:
            self.output_flags = self.logits[: len(self)].tobytes()
        return self.output_flags

    def clear(self) -> None:
        """Remove all entries."""
        self.value.n_tokens = 0
        self.seq_id_max = self.n_seq_id_max = 0
        self.coupled, self.single = False, None
        self.output_flags, self.token_range = b"", (0, 0)
        self.sections = None
        if self.content is not TOKENS:
            self.set_content(TOKENS)

    def truncate(self, n: int) -> None:
        """Keep only the first ``n`` entries, at least one."""
        counts = self.n_seq_id[:n]
        used = np.arange(self.seq_id.shape[1]) < counts[:, None]
        self.n_seq_id_max = int(counts.max())
        self.coupled = self.n_seq_id_max > 1
        self.seq_id_max = int(self.seq_id[:n][used].max())
        self.token_range, self.output_flags, self.single = None, None, None
        self.value.n_tokens = n

    def place(
        self,
        stop: int,
        content: str,
        positions: npt.NDArray[np.integer[Any]],
        seq_ids: list[int],
        flags: npt.NDArray[np.bool_] | bool | None,
    ) -> None:
        """Write what all kinds of entries have behind the last entry, up to index ``stop``.

        The new entries exist only when the caller sets ``value.n_tokens``.

        Args:
            stop: The index after the last new entry.
            content: What the entries are.
            positions: ``[n]``, or ``[SECTIONS, n]`` for M-RoPE.
            seq_ids: The sequences that each new entry belongs to, in order.
            flags: Which new entries have an output; None is the last alone.
        """
        start = len(self)
        self.set_content(content)
        self.row = None
        if stop > self.n_rows:
            self.set_rows(stop)
        if positions.ndim == 2 and self.sections is None:
            self.sections = np.zeros((len(self.token), SECTIONS), np.int32)
            self.sections[:start] = section_rows(self.pos[:start])
        if self.sections is not None:
            self.sections[start:stop] = section_rows(positions)
        self.pos[start:stop] = positions if positions.ndim == 1 else positions[0]
        self.n_seq_id[start:stop] = len(seq_ids)
        self.seq_id[start:stop, : len(seq_ids)] = seq_ids
        self.logits[start:stop] = 0 if flags is None else flags
        if flags is None:
            self.logits[stop - 1] = 1
        self.seq_id_max = max(self.seq_id_max, seq_ids[-1])
        self.n_seq_id_max = max(self.n_seq_id_max, len(seq_ids))
        self.coupled = self.n_seq_id_max > 1
        self.single = self.output_flags = None

    def set_one(self, token: int, pos: int, seq_id: int) -> None:
        """Become one token with an output; the values fit 32 bits."""
        if self.single != seq_id or self.lock.holders:
            if self.lock.holders:
                self.lock.check()
            if self.value.n_tokens or self.content is not TOKENS:
                self.clear()
            if self.row != seq_id:
                self.row = None  # until all of it is written
                self.n_seq_id[0], self.seq_id[0, 0], self.logits[0] = 1, seq_id, 1
                self.row = seq_id
            self.coupled, self.sections = False, None
            self.seq_id_max, self.n_seq_id_max, self.output_flags = seq_id, 1, b"\1"
            self.value.n_tokens, self.single = 1, seq_id
        self.first_token[0] = token
        self.first_pos[0] = pos
        self.token_range = token, token

    def check(self, n_vocab: int, n_seq_max: int, kv_unified: bool, drafts: bool) -> None:
        """Raise ArgumentError unless a context can compute the entries; see `Batch.check`."""
        if self.token_range is None:
            tokens = self.token[: len(self)]
            self.token_range = int(tokens.min()), int(tokens.max())
        least, most = self.token_range
        if (least < 0 or most >= n_vocab) and self.content != EMBEDDINGS:
            tokens = self.token[: len(self)]
            i = int(np.argmax((tokens < 0) | (tokens >= n_vocab)))
            raise ArgumentError(
                f"the token at index {i} must be between 0 and {n_vocab - 1}, not {tokens[i]}"
            )
        if self.seq_id_max >= n_seq_max:
            raise ArgumentError(
                f"seq_id must be between 0 and {n_seq_max - 1}, not {self.seq_id_max}: create the "
                "Context with a larger n_seq_max"
            )
        if self.n_seq_id_max > 1 and not kv_unified:
            raise ArgumentError(
                f"a token belongs to {self.n_seq_id_max} sequences, which have separate buffers: "
                "create the Context with kv_unified=True"
            )
        if self.content == BOTH and not drafts:
            raise ArgumentError(
                "this context would read the tokens and ignore their embeddings: only the context "
                'of a draft model (ctx_type="mtp", or ctx_other) reads both'
            )

    def submit(self, context: Any, encode: bool, reached: list[bool]) -> int:
        """Have C compute the batch.

        Args:
            context: The ``struct llama_context *``, for which the batch was checked.
            encode: By the encoder.
            reached: Gets an element when C may have got the batch: what is raised after that says
                nothing about whether C has computed it.

        Returns:
            C's return code.

        Raises:
            ArgumentError: The embeddings or positions do not suit the model; nothing was computed.
            BusyError: Another thread is decoding the batch.

        Source: ``llama_decode``, ``llama_encode``; with embeddings ``llama_process``.
        """
        # As `with self.lock`, without the four function calls of that.
        if self.lock.holders.setdefault(0, here()) is not here():
            self.lock.enter(here())
        try:
            filled = None if self.content is TOKENS else self._with_embeddings(context)
            reached.append(True)
            code: int
            if filled is None:
                code = (lib.llama_encode if encode else lib.llama_decode)(context, self.value)
            else:
                kind = lib.LLAMA_PROCESS_TYPE_ENCODE if encode else lib.LLAMA_PROCESS_TYPE_DECODE
                code = lib.llama_process(context, kind, filled)
            return code
        finally:
            self.lock.holders.clear()  # as `self.lock.leave()`
            if self.lock.ended:
                self.lock.leave()

    def set_content(self, content: str) -> None:
        """Set what the entries are, for C too."""
        if content != self.content:
            self.content = content
            token, embd = content != EMBEDDINGS, content != TOKENS
            self.value.token = self.first_token if token else ffi.NULL
            self.value.embd = pointer("float *", self.embd) if embd else ffi.NULL

    def set_rows(self, n: int) -> None:
        """Set the pointers to the rows of the first ``n`` entries, and of some more."""
        done, self.n_rows = self.n_rows, min(2 * n, len(self.token))
        first, step = self.seq_id.ctypes.data, self.seq_id.strides[0]
        self.rows[done : self.n_rows] = np.arange(done, self.n_rows, dtype=np.uintp) * step + first

    def _with_embeddings(self, context: Any) -> Any:
        """Return this as the kind of batch that can carry embeddings."""
        n, sections = len(self), self.sections
        rope = lib.llama_model_rope_type(lib.llama_get_model(context))
        if sections is None:
            sections = section_rows(self.pos[:n])
        elif rope not in (lib.LLAMA_ROPE_TYPE_MROPE, lib.LLAMA_ROPE_TYPE_IMROPE):
            raise ArgumentError(
                f"{SECTIONS} positions for each embedding are for models with M-RoPE; this model "
                "takes one"
            )
        tokens = None if self.content == EMBEDDINGS else self.token[:n].tolist()
        return fill(context, tokens, self.embd[:n], sections[:n], self.seq_ids, self.outputs())
