"""Tokenize texts: the C calls, their errors, and a check of texts that C cannot handle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .._core.ownership import make, own
from .._core.text import Text, encode, encode_all, new_uncleared
from .._core.values import INT32_MAX, flag
from .._native import ffi, lib
from ..errors import NativeError, TokenizeError
from ..log import drain, with_log
from .entries import Entries
from .sequences import SequenceError, thread_count, tokenize_all

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


# A text of at most this many bytes gets more stack per byte than any vocabulary needs, so that the
# need is not measured.
SHORT_TEXT, SHORT_STACK = 1024, 2048

# A batch is tokenized in parts of about this many bytes; Ctrl-C takes effect between parts.  Texts
# are never split.
BATCH_BYTES = 2**21


class Tokenizing(Entries):
    """Tokenization; the base of `Vocab`."""

    def _tokens_of(self, text: Text, add_special: bool, parse_special: bool) -> tuple[Any, int]:
        """Return a C array with the tokens of a text, and their number."""
        flags = flag("add_special", add_special), flag("parse_special", parse_special)
        data = encode(text)
        model = self._model.ptr  # noqa: F841  held while C works on the vocabulary
        if self._checks_text or len(data) > INT32_MAX:
            self._check_text(data)
        options = *flags, self._stack(len(data))
        try:
            if len(data) > lib.LLAMACFFI_SHORT_TEXT:
                return self._tokens_of_long(data, options)
            size = len(data) + 8  # usually enough; unused memory is never touched
            while True:
                buffer = new_uncleared("llama_token[]", size)
                n = lib.llamacffi_tokenize(self._tokenizer, data, len(data), buffer, size, *options)
                if n >= 0:
                    return buffer, n
                size = -n
        except NativeError as error:
            failure = str(error).removeprefix(f"{error.function}: ")
            raise with_log(TokenizeError(self._reason(failure, add_special))) from error

    def _tokens_of_long(self, data: bytes, options: tuple[bool, bool, int]) -> tuple[Any, int]:
        """Tokenize a long text in steps, so that Ctrl-C can take effect between them."""
        args = self._tokenizer, ffi.from_buffer(data), len(data), *options
        free = lib.llamacffi_tokens_free
        made = own(make(free, args[:2], lib.llamacffi_tokens_begin, *args))
        while lib.llamacffi_tokens_more(made):
            pass
        n = lib.llamacffi_tokens_size(made)
        buffer = new_uncleared("llama_token[]", n)
        lib.llamacffi_tokens_copy(made, buffer)
        return buffer, n

    def _tokens_of_all(
        self, texts: Iterable[Text], add_special: bool, parse_special: bool, n_threads: int | None
    ) -> tuple[npt.NDArray[np.int32], list[int]]:
        """Return the tokens of all texts, the start of each text, and the end of the last."""
        import numpy as np

        flags = flag("add_special", add_special), flag("parse_special", parse_special)
        threads, data = thread_count(n_threads), encode_all(texts)
        model = self._model.ptr  # noqa: F841  held while C works on the vocabulary
        for i, one in enumerate(data):
            if self._checks_text or len(one) > INT32_MAX:
                self._check_text(one, i)
        stack = self._stack(max(map(len, data), default=0))
        options = *flags, stack
        parts, starts, first = [np.empty(0, np.int32)], [0], 0
        for part in _parts(data):
            try:
                made, ends = tokenize_all(self._tokenizer, part, options, threads)
            except SequenceError as error:
                index = first + error.index
                reason = f"text {index}: {self._reason(str(error), add_special)}"
                raise with_log(TokenizeError(reason, index)) from None
            except NativeError as error:
                raise with_log(TokenizeError(f"cannot tokenize these texts: {error}")) from error
            parts.append(made)
            last = starts[-1]
            starts += [last + end for end in ends[1:]]
            first += len(part)
        drain()
        return (parts[1] if len(parts) == 2 else np.concatenate(parts)), starts

    @cached_property
    def _tokenizer(self) -> Any:
        """The ``struct llamacffi_tokenizer *`` for this vocabulary."""
        model = self._model.ptr  # noqa: F841  held while C reads the vocabulary
        # upstream: src/llama-arch.cpp "tokenizer.chat_template": the key of the default template.
        prefix = "tokenizer.chat_template"
        templates = [one for key, one in self._model.metadata.items() if key.startswith(prefix)]
        text = "\n".join(templates).encode()
        args = lib.llamacffi_tokenizer_new, self._vocab, text, len(text)
        # A cache that points into nothing else, so it can be freed in any order.
        return make(lib.llamacffi_tokenizer_free, (), *args)[1]

    def _check_text(self, data: bytes, index: int | None = None) -> None:
        """Raise `TokenizeError` for a text that C cannot handle."""
        where = "" if index is None else f"text {index}: "
        if self._type == lib.LLAMA_VOCAB_TYPE_NONE:
            raise TokenizeError("the model has no vocabulary: give it token ids instead of text")
        if len(data) > INT32_MAX:
            raise TokenizeError(
                f"{where}the text has {len(data)} bytes, but the limit is {INT32_MAX}: split it",
                index,
            )
        if self._endless and (found := self._endless.intersection(data)):
            raise TokenizeError(
                f"{where}the vocabulary has tokens that start with byte {min(found):#04x}, but no "
                "token for this byte alone: llama.cpp would never finish",
                index,
            )

    def _stack(self, length: int) -> int:
        """Return how many bytes of stack to reserve per byte of a text of that length."""
        return SHORT_STACK if length <= SHORT_TEXT else self._stack_per_byte

    @cached_property
    def _stack_per_byte(self) -> int:
        """How many bytes of stack C needs per byte of a text."""
        return lib.llamacffi_stack_per_byte(self._vocab)

    @cached_property
    def _endless(self) -> frozenset[int]:
        """The bytes on which llama.cpp's tokenizer for RWKV can loop forever."""
        # upstream: src/llama-vocab.cpp llm_tokenizer_rwkv_session: goes back to the start of the
        # text if a token starts with a byte but none is that byte alone, and so we refuse these.
        if self._type != lib.LLAMA_VOCAB_TYPE_RWKV:
            return frozenset()
        pieces = [self.piece(token) for token in range(self._size)]
        return frozenset(piece[0] for piece in pieces if piece) - {
            piece[0] for piece in pieces if len(piece) == 1
        }

    def _reason(self, failure: str, add_special: bool) -> str:
        """Return why a text could not be tokenized."""
        bert = self._type == lib.LLAMA_VOCAB_TYPE_WPM
        wanted = {"bos": bert or self.add_bos, "sep": bert, "eos": self.add_eos and not bert}
        lacking = [name for name, want in wanted.items() if want and getattr(self, name) is None]
        if add_special and lacking:
            return (
                f"the model adds the token {lacking[0]!r} to each text, but its vocabulary has no "
                "such token: pass add_special=False"
            )
        return f"cannot tokenize this text: {failure}"


def _parts(data: list[bytes]) -> Iterator[list[bytes]]:
    """Split a list of texts into parts that are quick to tokenize."""
    size, start = 0, 0
    for i, one in enumerate(data):
        if size and size + len(one) > BATCH_BYTES:
            yield data[start:i]
            size, start = 0, i
        size += len(one)
    yield data[start:]
