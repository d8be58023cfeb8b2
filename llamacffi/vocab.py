"""The vocabulary of a model: text to token ids and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ._ffi import ffi, lib
from ._text import new_uncleared, read_bytes
from .errors import ArgumentError, NativeError, TokenizeError

if TYPE_CHECKING:
    from ._generated.enums import TokenAttr, VocabType
    from .model import Model

# llama_tokenize's answer when the number of tokens does not fit its result.
INT32_MIN = -(2**31)


class Vocab:
    """The vocabulary of a `Model`: `tokenize`, `detokenize`, and what is known of each token.

    It belongs to its model and is usable as long as that is open, from many threads at once.
    ``len(vocab)`` is the number of tokens; ids are ``0`` to ``len(vocab) - 1``.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._size: int = lib.llama_vocab_n_tokens(self.ptr)

    @property
    def ptr(self) -> Any:
        """The ``const struct llama_vocab *``, valid while the model is open.

        Raises:
            ClosedError: The model is closed.
        """
        return lib.llama_model_get_vocab(self._model.ptr)

    @property
    def model(self) -> Model:
        """The model that it belongs to."""
        return self._model

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"<Vocab of {self._size} tokens>"

    @property
    def type(self) -> VocabType:
        """The kind of tokenizer.

        Source: ``llama_vocab_type``.
        """
        from ._generated.enums import VocabType

        return VocabType(self._call(lib.llama_vocab_type))

    def tokenize(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Split text into tokens.

        Args:
            text: UTF-8 if given as bytes.
            add_special: Add the tokens that the model expects around a text, such as BOS, if its
                metadata says so.
            parse_special: Read the texts of special tokens, such as ``<|im_start|>``, as those
                tokens.  Leave it off for text that comes from users.

        Returns:
            Token ids, an empty list for an empty text without special tokens.

        Raises:
            TokenizeError: The text is no valid Unicode, or this vocabulary cannot tokenize.
            ClosedError: The model is closed.

        Source: ``llama_tokenize``.
        """
        data = _encode(text)
        model = self._model.ptr  # held while C works on the vocabulary
        vocab = lib.llama_model_get_vocab(model)
        size = len(data) // 2 + 8
        while True:
            buffer = new_uncleared("llama_token[]", size)
            try:
                n = lib.llama_tokenize(
                    vocab, data, len(data), buffer, size, add_special, parse_special
                )
            except NativeError as error:
                raise TokenizeError(f"cannot tokenize this text: {error}") from error
            if n >= 0:
                return ffi.unpack(buffer, n)  # type: ignore[no-any-return]
            if n == INT32_MIN:
                raise TokenizeError(f"the text is too long: {len(data)} bytes")
            size = -n

    def detokenize(
        self, tokens: Iterable[int], *, remove_special: bool = False, unparse_special: bool = False
    ) -> str:
        """Return the text of tokens; bytes that are no UTF-8 become U+FFFD.

        Args:
            tokens: Token ids.
            remove_special: Leave out the special tokens that `tokenize` adds around a text.
            unparse_special: Write special tokens as their texts instead of leaving them out.

        Raises:
            ArgumentError: A token is not in the vocabulary.
            ClosedError: The model is closed.

        Source: ``llama_detokenize``.
        """
        text = self.detokenize_bytes(
            tokens, remove_special=remove_special, unparse_special=unparse_special
        )
        return text.decode(errors="replace")

    def detokenize_bytes(
        self, tokens: Iterable[int], *, remove_special: bool = False, unparse_special: bool = False
    ) -> bytes:
        """Return the text of tokens as bytes, exactly; see `detokenize`."""
        ids = self.check(tokens)
        model = self._model.ptr
        vocab = lib.llama_model_get_vocab(model)
        array = ffi.new("llama_token[]", ids)
        size = 4 * len(ids) + 16
        while True:
            buffer = new_uncleared("char[]", size)
            n = lib.llama_detokenize(
                vocab, array, len(ids), buffer, size, remove_special, unparse_special
            )
            if n >= 0:
                return bytes(ffi.buffer(buffer, n))
            size = -n

    def piece(self, token: int, *, special: bool = True) -> bytes:
        """Return the text of one token: not always whole characters.

        Args:
            token: Its id.
            special: Write a special token as its text; else it is empty.

        Source: ``llama_token_to_piece``.
        """
        self.check_one(token)
        model = self._model.ptr
        vocab = lib.llama_model_get_vocab(model)

        def write(buffer: Any, size: int) -> int:
            return abs(lib.llama_token_to_piece(vocab, token, buffer, size, 0, special))

        return read_bytes(write, 64)

    def text(self, token: int) -> str:
        """Return the entry of the vocabulary, in its own notation (such as ``▁`` for a blank).

        Source: ``llama_vocab_get_text``.
        """
        self.check_one(token)
        model = self._model.ptr  # the text is the model's
        chars = lib.llama_vocab_get_text(lib.llama_model_get_vocab(model), token)
        return ffi.string(chars).decode(errors="replace")  # type: ignore[no-any-return]

    def score(self, token: int) -> float:
        """Return the score of a token, whose meaning depends on the tokenizer.

        Source: ``llama_vocab_get_score``.
        """
        self.check_one(token)
        return float(self._call(lib.llama_vocab_get_score, token))

    def attr(self, token: int) -> TokenAttr:
        """Return the attributes of a token.

        Source: ``llama_vocab_get_attr``.
        """
        from ._generated.enums import TokenAttr

        self.check_one(token)
        return TokenAttr(self._call(lib.llama_vocab_get_attr, token))

    def is_eog(self, token: int) -> bool:
        """Tell whether a token ends a generation.

        Source: ``llama_vocab_is_eog``.
        """
        self.check_one(token)
        return bool(self._call(lib.llama_vocab_is_eog, token))

    def is_control(self, token: int) -> bool:
        """Tell whether a token is a control token, which has no text of its own.

        Source: ``llama_vocab_is_control``.
        """
        self.check_one(token)
        return bool(self._call(lib.llama_vocab_is_control, token))

    @property
    def bos(self) -> int | None:
        """The token that begins a text."""
        return self._special(lib.llama_vocab_bos)

    @property
    def eos(self) -> int | None:
        """The token that ends a text."""
        return self._special(lib.llama_vocab_eos)

    @property
    def eot(self) -> int | None:
        """The token that ends a turn."""
        return self._special(lib.llama_vocab_eot)

    @property
    def sep(self) -> int | None:
        """The token between two sentences."""
        return self._special(lib.llama_vocab_sep)

    @property
    def nl(self) -> int | None:
        """The token of a newline."""
        return self._special(lib.llama_vocab_nl)

    @property
    def pad(self) -> int | None:
        """The token that fills up."""
        return self._special(lib.llama_vocab_pad)

    @property
    def mask(self) -> int | None:
        """The token that stands for one to be guessed."""
        return self._special(lib.llama_vocab_mask)

    @property
    def add_bos(self) -> bool:
        """Whether `tokenize` adds `bos`, as the model's metadata says."""
        return bool(self._call(lib.llama_vocab_get_add_bos))

    @property
    def add_eos(self) -> bool:
        """Whether `tokenize` adds `eos`, as the model's metadata says."""
        return bool(self._call(lib.llama_vocab_get_add_eos))

    def check_one(self, token: int) -> None:
        """Raise `ArgumentError` unless ``token`` is in the vocabulary."""
        if not 0 <= token < self._size:
            raise ArgumentError(f"token {token} is not in the vocabulary: 0 to {self._size - 1}")

    def check(self, tokens: Iterable[int]) -> Sequence[int]:
        """Return tokens as a sequence; raise `ArgumentError` unless all are in the vocabulary."""
        ids = tokens if isinstance(tokens, list | tuple) else list(tokens)
        if ids and not (min(ids) >= 0 and max(ids) < self._size):
            self.check_one(min(ids))
            self.check_one(max(ids))
        return ids

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the vocabulary while the model is held."""
        model = self._model.ptr
        return function(lib.llama_model_get_vocab(model), *args)

    def _special(self, function: Callable[..., int]) -> int | None:
        token: int = self._call(function)
        return None if token == lib.LLAMA_TOKEN_NULL else token


def _encode(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise TypeError(f"text must be str or bytes, not {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TokenizeError(
            f"the text has a lone surrogate at index {error.start}, which UTF-8 cannot encode; "
            "give bytes, or clean it with text.encode('utf-8', 'replace')"
        ) from None
