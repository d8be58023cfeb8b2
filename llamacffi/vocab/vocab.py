"""The vocabulary of a model: text to token ids and back."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .._core.text import Text, new_uncleared
from .._core.tokens import outside, token_array, token_sequence
from .._core.values import INT32_MAX, INT32_MIN, flag
from .._native import ffi, lib
from ..errors import ArgumentError, TokenizeError
from ..log import with_log
from .sequences import SequenceError, detokenize_all, join_tokens, split, thread_count
from .tokenizing import Tokenizing

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .._core.tokens import TokenIds


class Vocab(Tokenizing):
    """The vocabulary of a `Model`: `tokenize`, `detokenize`, and what is known of each token.

    It belongs to its model and is usable as long as that is open, from many threads at once; a call
    that is running when the model is closed is completed.  ``len(vocab)`` is the number of tokens;
    ids are ``0`` to ``len(vocab) - 1``.

    A text is str, or UTF-8 in bytes, a bytearray or a memoryview.  Whether ``detokenize(tokenize(
    text)) == text`` is up to the vocabulary: some normalize the text or lack tokens for some bytes.
    """

    def __repr__(self) -> str:
        return f"<Vocab of {self._size} tokens>"

    def tokenize(
        self, text: Text, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Split text into tokens.

        Args:
            text: UTF-8 if given as bytes.
            add_special: Add the tokens that the model expects around a text, such as BOS, if its
                metadata says so.
            parse_special: Read the texts of special tokens, such as ``<|im_start|>``, as those
                tokens.  Leave it off for text that comes from users: then no control token comes
                out of it, even of a vocabulary that would make one of its letters; its text is
                divided instead.  The same goes for tokens that the file calls user-defined, if they
                end a generation, look like ``<|this|>``, or are ``<this>`` or ``[this]`` and stand
                in the model's chat template; and for words like ``<this>`` that end a generation.
                Other user-defined tokens are ordinary text, such as
                runs of blanks and HTML tags, and are read as llama.cpp does.  What a vocabulary
                cannot say otherwise stays: a control token that is a single character, the one
                that stands for what it does not know, and all of the ``test`` tokenizer's.

        Returns:
            Token ids, an empty list for an empty text without special tokens.

        Raises:
            TokenizeError: The text has a lone surrogate, or bytes that are not UTF-8; or this
                vocabulary cannot tokenize it.
            ClosedError: The model is closed.

        Source: ``llama_tokenize``.
        """
        buffer, n = self._tokens_of(text, add_special, parse_special)
        found: list[int] = ffi.unpack(buffer, n)
        return found

    def tokenize_array(
        self, text: Text, *, add_special: bool = True, parse_special: bool = False
    ) -> npt.NDArray[np.int32]:
        """Split text into tokens, see `tokenize`; the quickest way into `Batch.add`.

        Returns:
            Token ids, shape ``[n]``, int32, the caller's own.
        """
        import numpy as np

        buffer, n = self._tokens_of(text, add_special, parse_special)
        return np.array(np.frombuffer(ffi.buffer(buffer), np.int32, n))

    def n_tokens(self, text: Text, *, add_special: bool = True, parse_special: bool = False) -> int:
        """Count the tokens of a text, see `tokenize`, without making Python objects of them.

        Source: ``llama_tokenize``.
        """
        return self._tokens_of(text, add_special, parse_special)[1]

    def tokenize_batch(
        self,
        texts: Iterable[Text],
        *,
        add_special: bool = True,
        parse_special: bool = False,
        n_threads: int | None = None,
    ) -> list[list[int]]:
        """Split many texts into tokens at once, see `tokenize`, with several threads in C.

        Python's other threads run meanwhile; Ctrl-C takes effect every few megabytes.

        Args:
            texts: Small or large, in any number.
            add_special: See `tokenize`.
            parse_special: See `tokenize`.
            n_threads: How many threads at most; by default one for each physical core.

        Returns:
            The tokens of each text, in order.

        Raises:
            TokenizeError: A text cannot be tokenized; ``error.index`` tells which is the first.
            ClosedError: The model is closed.

        Source: ``llama_tokenize``.
        """
        flat, starts = self._tokens_of_all(texts, add_special, parse_special, n_threads)
        return split(flat.tolist(), starts)

    def tokenize_batch_array(
        self,
        texts: Iterable[Text],
        *,
        add_special: bool = True,
        parse_special: bool = False,
        n_threads: int | None = None,
    ) -> list[npt.NDArray[np.int32]]:
        """Split many texts into tokens at once, see `tokenize_batch`, as arrays.

        Returns:
            The tokens of each text, shape ``[n]``, int32: parts of one array.
        """
        return split(*self._tokens_of_all(texts, add_special, parse_special, n_threads))

    def detokenize(
        self,
        tokens: TokenIds,
        *,
        remove_special: bool = False,
        unparse_special: bool = False,
        exact: bool = True,
    ) -> str:
        """Return the text of tokens; bytes that are no UTF-8 become U+FFFD.

        Args:
            tokens: Token ids; a contiguous array of int32 is not copied.
            remove_special: Leave out the special tokens that `tokenize` adds around a text.
            unparse_special: Write special tokens as their texts instead of leaving them out.
            exact: Undo what `tokenize` has done: the pieces as they are, without the blank that
                some vocabularies put before a text.  False gives what ``llama_detokenize`` makes
                of them: for some vocabularies without the blanks before ``.,?!``, and for some
                with one after BOS.

        Returns:
            The text, empty for a model without a vocabulary.

        Raises:
            ArgumentError: A token is not in the vocabulary, or the text would exceed 2 GiB.
            ClosedError: The model is closed.

        Source: ``llama_token_to_piece``, ``llama_detokenize``.
        """
        text = self.detokenize_bytes(
            tokens, remove_special=remove_special, unparse_special=unparse_special, exact=exact
        )
        return text.decode(errors="replace")

    def detokenize_bytes(
        self,
        tokens: TokenIds,
        *,
        remove_special: bool = False,
        unparse_special: bool = False,
        exact: bool = True,
    ) -> bytes:
        """Return the text of tokens as bytes, see `detokenize`."""
        array, count = token_array(tokens, self._size)
        model = self._model.ptr  # noqa: F841  held while C works on the vocabulary
        self._check_array(array, count)
        if self._type == lib.LLAMA_VOCAB_TYPE_NONE:
            return b""
        style = self._style(remove_special, unparse_special, exact)
        size = min(8 * count + 64, INT32_MAX)
        while True:
            buffer = new_uncleared("char[]", size)
            n = lib.llamacffi_detokenize(self._vocab, array, count, buffer, size, style)
            if n >= 0:
                found: bytes = ffi.unpack(buffer, n)
                return found
            if n == INT32_MIN:
                raise ArgumentError(f"the text of {count} tokens exceeds 2 GiB: give fewer at once")
            size = -n

    def detokenize_batch(
        self,
        sequences: Iterable[TokenIds],
        *,
        remove_special: bool = False,
        unparse_special: bool = False,
        exact: bool = True,
        n_threads: int | None = None,
    ) -> list[str]:
        """Return the texts of many sequences of tokens at once: the opposite of `tokenize_batch`.

        Args:
            sequences: Token ids, see `detokenize`.
            remove_special: See `detokenize`.
            unparse_special: See `detokenize`.
            exact: See `detokenize`.
            n_threads: How many threads at most; by default one for each physical core.

        Raises:
            ArgumentError: A token is not in the vocabulary, or a text would exceed 2 GiB.
            ClosedError: The model is closed.

        Source: ``llama_token_to_piece``, ``llama_detokenize``.
        """
        threads = thread_count(n_threads)
        lengths, tokens = join_tokens(sequences, self._size)
        model = self._model.ptr  # noqa: F841  held while C works on the vocabulary
        self._check_array(ffi.from_buffer("llama_token[]", tokens), len(tokens))
        if self._type == lib.LLAMA_VOCAB_TYPE_NONE:
            return [""] * len(lengths)
        style = self._style(remove_special, unparse_special, exact)
        try:
            text, starts = detokenize_all(self._vocab, tokens, lengths, style, threads)
        except SequenceError as error:
            reason = f"the text of sequence {error.index} cannot be made: {error}"
            raise with_log(ArgumentError(reason)) from None
        return [one.decode(errors="replace") for one in split(text, starts)]

    def check(self, tokens: TokenIds) -> Sequence[int] | npt.NDArray[np.int32]:
        """Return tokens as a sequence, or as the array that they are.

        Raises:
            ArgumentError: One is not in the vocabulary.
            TypeError: One is no integer.
        """
        ids = token_sequence(tokens)
        array, count = token_array(ids, self._size)
        model = self._model.ptr  # noqa: F841  held meanwhile
        self._check_array(array, count)
        return ids

    def warn_of_second_bos(self, tokens: Sequence[int], *, stacklevel: int = 1) -> None:
        """Warn if a text that has become ``tokens`` began with BOS, and `tokenize` put one before.

        Args:
            tokens: What `tokenize` has returned.
            stacklevel: Whose line the warning shows: 1 for the caller's, 2 for that of its caller.
        """
        bos = self.bos
        if len(tokens) > 1 and tokens[0] == tokens[1] == bos and self.add_bos:
            warnings.warn(
                f"the text begins with {self.piece(bos).decode(errors='replace')!r}, and one more "
                "was put before it, as the model's metadata says: leave it out of the text",
                stacklevel=stacklevel + 1,
            )

    def _style(self, remove_special: bool, unparse_special: bool, exact: bool) -> Any:
        """Return how to make a text, for C."""
        flags = (
            flag("remove_special", remove_special),
            flag("unparse_special", unparse_special),
            *(flag("exact", exact), self._adds_blank),
        )
        return ffi.new("struct llamacffi_text_style *", flags)

    @cached_property
    def _adds_blank(self) -> bool:
        """Whether `tokenize` puts a blank before a text."""
        try:
            first = self.tokenize("a", add_special=False)[:1]
        except TokenizeError:
            return False
        return b"".join(map(self.piece, first)).startswith(b" ")

    def _check_array(self, array: Any, count: int) -> None:
        """Raise `ArgumentError` unless all tokens are in the vocabulary."""
        i = lib.llamacffi_token_outside(self._vocab, array, count)
        if i >= 0:
            raise ArgumentError(f"{outside(array[i], self._size)} (at index {i})")
