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
    """The vocabulary of a `Model`: `tokenize`, `detokenize` and the properties of each token.

    It belongs to its model and works while the model is open, from any number of threads at once; a
    call that is running when the model is closed completes.  ``len(vocab)`` is the number of
    tokens; ids are ``0`` to ``len(vocab) - 1``.

    A text is a str, or UTF-8 as bytes, a bytearray or a memoryview.  Whether ``detokenize(tokenize(
    text)) == text`` depends on the vocabulary: some normalize text or lack tokens for some bytes.
    """

    def __repr__(self) -> str:
        return f"<Vocab of {self._size} tokens>"

    def tokenize(
        self, text: Text, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Split text into tokens.

        Args:
            text: The text; bytes must be UTF-8.
            add_special: Add the tokens that the model expects around a text, such as BOS, if its
                metadata says so.
            parse_special: Turn the texts of special tokens, such as ``<|im_start|>``, into those
                tokens.  Leave it off for text from users: then no control token results from the
                text, even with a vocabulary whose tokenizer would produce one from its letters; the
                text is split into other tokens instead.  The same applies to tokens that the file
                marks as user-defined if they end generation, look like ``<|this|>``, or are
                ``<this>`` or ``[this]`` and occur in the model's chat template; and to words like
                ``<this>`` that end generation.  Other user-defined tokens, such as runs of spaces
                and HTML tags, count as ordinary text, and llama.cpp tokenizes them.  A few tokens
                remain because the vocabulary has no other way to write the text: control tokens of
                a single character, the unknown token, and all tokens of the ``test`` tokenizer.

        Returns:
            Token ids; an empty list for an empty text without special tokens.

        Raises:
            TokenizeError: The text has a lone surrogate or bytes that are not UTF-8, or the
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
        """Split text into tokens like `tokenize`; the fastest way to fill `Batch.add`.

        Returns:
            Token ids, shape ``[n]``, int32; a new array.
        """
        import numpy as np

        buffer, n = self._tokens_of(text, add_special, parse_special)
        return np.array(np.frombuffer(ffi.buffer(buffer), np.int32, n))

    def n_tokens(self, text: Text, *, add_special: bool = True, parse_special: bool = False) -> int:
        """Count the tokens of a text like `tokenize`, without creating Python objects for them.

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
        """Split many texts into tokens like `tokenize`, with several C threads.

        Other Python threads keep running; Ctrl-C takes effect every few megabytes.

        Args:
            texts: Any number of texts of any length.
            add_special: See `tokenize`.
            parse_special: See `tokenize`.
            n_threads: How many threads at most; by default one for each physical core.

        Returns:
            The tokens of each text, in order.

        Raises:
            TokenizeError: A text cannot be tokenized; ``error.index`` is the index of the first.
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
        """Split many texts into tokens like `tokenize_batch`, as arrays.

        Returns:
            The tokens of each text, shape ``[n]``, int32: slices of one array.
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
        """Return the text of tokens; bytes that are not UTF-8 become U+FFFD.

        Args:
            tokens: Token ids; a contiguous int32 array is not copied.
            remove_special: Leave out the special tokens that `tokenize` adds around a text.
            unparse_special: Include the texts of special tokens instead of leaving them out.
            exact: Undo `tokenize`: join the pieces unchanged, except for the space that some
                vocabularies add before a text.  False returns what ``llama_detokenize`` returns:
                depending on the vocabulary, without spaces before ``.,?!``, or with a space after
                BOS.

        Returns:
            The text; empty for a model without a vocabulary.

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
        """Return the text of tokens as bytes; see `detokenize`."""
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
            # upstream: src/llama-vocab.cpp "std::numeric_limits<int32_t>::min()": returned if the
            # result is larger than an int32_t can count.
            if n == INT32_MIN:
                raise ArgumentError(f"the text of {count} tokens exceeds 2 GiB: pass fewer at once")
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
        """Return the texts of many sequences of tokens: the inverse of `tokenize_batch`.

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
            reason = f"cannot detokenize sequence {error.index}: {error}"
            raise with_log(ArgumentError(reason)) from None
        return [one.decode(errors="replace") for one in split(text, starts)]

    def check(self, tokens: TokenIds) -> Sequence[int] | npt.NDArray[np.int32]:
        """Check tokens, and return them as a sequence or as the given array.

        Raises:
            ArgumentError: A token is not in the vocabulary.
            TypeError: A token is not an integer.
        """
        ids = token_sequence(tokens)
        array, count = token_array(ids, self._size)
        model = self._model.ptr  # noqa: F841  held meanwhile
        self._check_array(array, count)
        return ids

    def warn_of_second_bos(self, tokens: Sequence[int], *, stacklevel: int = 1) -> None:
        """Warn if `tokenize` added BOS to a text that already began with BOS.

        Args:
            tokens: What `tokenize` returned.
            stacklevel: Which line the warning shows: 1 for the caller, 2 for the caller's caller.
        """
        bos = self.bos
        if len(tokens) > 1 and tokens[0] == tokens[1] == bos and self.add_bos:
            warnings.warn(
                f"the text begins with {self.piece(bos).decode(errors='replace')!r}, and "
                "tokenize() added another one, as the model's metadata says: leave it out",
                stacklevel=stacklevel + 1,
            )

    def _style(self, remove_special: bool, unparse_special: bool, exact: bool) -> Any:
        """Return the options of detokenization for C."""
        flags = (
            flag("remove_special", remove_special),
            flag("unparse_special", unparse_special),
            *(flag("exact", exact), self._adds_space),
        )
        return ffi.new("struct llamacffi_text_style *", flags)

    @cached_property
    def _adds_space(self) -> bool:
        """Whether `tokenize` adds a space before a text."""
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
