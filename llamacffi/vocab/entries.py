"""The entries of a vocabulary: properties of single tokens, and the special tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .._core.ownership import Pointer
from .._core.text import c_text, new_uncleared
from .._core.tokens import outside
from .._core.values import INT32_MAX, flag, integer
from .._native import ffi, lib
from ..errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    from .._generated.enums import TokenAttr, VocabType
    from ..model.model import Model

# A first buffer that is large enough for nearly all tokens.
PIECE_BYTES = 64


class Entries(Pointer):
    """The tokens of a vocabulary, one by one; the base of `Vocab`."""

    _why = "it is a part of its Model"
    _instead = (
        "any number of threads can share it; in another process, load the file again, with "
        "vocab_only=True if only the vocabulary is needed"
    )

    def __init__(self, model: Model) -> None:
        self._model = model
        # The model owns the vocabulary: each call that passes it to C must hold `model.ptr`.
        ptr = model.ptr
        self._vocab: Any = lib.llama_model_get_vocab(ptr)
        self._size: int = lib.llama_vocab_n_tokens(self._vocab)
        self._type: int = lib.llama_vocab_type(self._vocab)
        # Whether some texts must not be passed to C: see `Tokenizing._check_text`.
        self._checks_text = self._type in (lib.LLAMA_VOCAB_TYPE_NONE, lib.LLAMA_VOCAB_TYPE_RWKV)

    @property
    def ptr(self) -> Any:
        """The ``const struct llama_vocab *``, valid while the model is open.

        Raises:
            ClosedError: The model is closed.
        """
        self._model.ptr  # noqa: B018  raises if closed
        return self._vocab

    @property
    def model(self) -> Model:
        """The model that this vocabulary belongs to."""
        return self._model

    def __len__(self) -> int:
        return self._size

    @property
    def type(self) -> VocabType:
        """The kind of tokenizer; ``VocabType.NONE`` for a model without a vocabulary.

        Source: ``llama_vocab_type``.
        """
        from .._generated.enums import VocabType

        return VocabType(self._call(lib.llama_vocab_type))

    def piece(self, token: int, *, lstrip: int = 0, special: bool = True) -> bytes:
        """Return the text of one token as bytes, which may end within a character.

        Args:
            token: The id of the token.
            lstrip: The largest number of leading spaces to remove.
            special: Return the text of special tokens; otherwise their text is empty.

        Returns:
            The text; empty for a model without a vocabulary.

        Raises:
            ArgumentError: The token is not in the vocabulary, or ``lstrip`` is negative.

        Source: ``llama_token_to_piece``.
        """
        token = self.check_one(token)
        lstrip = integer("lstrip", lstrip, 0, INT32_MAX)
        model = self._model.ptr  # noqa: F841  held while C works on the vocabulary
        if self._type == lib.LLAMA_VOCAB_TYPE_NONE:
            return b""
        buffer = new_uncleared("char[]", PIECE_BYTES)
        vocab, special = self._vocab, flag("special", special)
        n = lib.llama_token_to_piece(vocab, token, buffer, PIECE_BYTES, lstrip, special)
        if n < 0:
            buffer = new_uncleared("char[]", -n)
            n = lib.llama_token_to_piece(vocab, token, buffer, -n, lstrip, special)
        found: bytes = ffi.unpack(buffer, n)
        return found

    def text(self, token: int) -> str:
        """Return the text of the entry in the vocabulary's notation (such as ``▁`` for a space).

        Source: ``llama_vocab_get_text``.
        """
        token = self._check_entry(token)
        model = self._model.ptr  # noqa: F841  the text is the model's
        chars = lib.llama_vocab_get_text(self._vocab, token)
        return c_text(chars)

    def score(self, token: int) -> float:
        """Return the score of a token; its meaning depends on the tokenizer.

        Source: ``llama_vocab_get_score``.
        """
        return float(self._call(lib.llama_vocab_get_score, self._check_entry(token)))

    def attr(self, token: int) -> TokenAttr:
        """Return the attributes of a token.

        Source: ``llama_vocab_get_attr``.
        """
        from .._generated.enums import TokenAttr

        return TokenAttr(self._call(lib.llama_vocab_get_attr, self._check_entry(token)))

    def is_eog(self, token: int) -> bool:
        """Return whether a token ends generation.

        Source: ``llama_vocab_is_eog``.
        """
        token = self.check_one(token)
        model = self._model.ptr  # noqa: F841  held while C works on the vocabulary
        return lib.llama_vocab_is_eog(self._vocab, token)

    def is_control(self, token: int) -> bool:
        """Return whether a token is a control token, which is not ordinary text.

        Source: ``llama_vocab_is_control``.
        """
        return bool(self._call(lib.llama_vocab_is_control, self._check_entry(token)))

    @cached_property
    def _pieces(self) -> Any:
        """The texts of all tokens, sorted, for grammars.

        Copies that do not depend on the model.  Sorting them takes about ten milliseconds.

        Source: ``llamacffi_pieces_init``.
        """
        model = self._model.ptr  # noqa: F841  held meanwhile
        return ffi.gc(lib.llamacffi_pieces_init(self._vocab), lib.llamacffi_pieces_free)

    @cached_property
    def eog_tokens(self) -> tuple[int, ...]:
        """All tokens that end generation, in order: `eos`, `eot` and others.

        Source: ``llama_vocab_is_eog``.
        """
        model = self._model.ptr  # noqa: F841  held meanwhile
        vocab, is_eog = self._vocab, lib.llama_vocab_is_eog
        return tuple(token for token in range(self._size) if is_eog(vocab, token))

    @cached_property
    def _textless(self) -> dict[str, list[int]]:
        """Tokens whose text is left out of generated text, by that text."""
        tokens = new_uncleared("llama_token[]", self._size)
        n = self._call(lib.llamacffi_textless_tokens, tokens)
        found: dict[str, list[int]] = {}
        for token in ffi.unpack(tokens, n) if n else ():
            text = self.piece(token).decode(errors="replace")
            if text:
                found.setdefault(text, []).append(token)
        return found

    @property
    def suppress_tokens(self) -> tuple[int, ...]:
        """The tokens that must never be generated, according to the model's metadata.

        Source: ``llama_vocab_get_suppress_tokens``.
        """
        n = ffi.new("int32_t *")
        model = self._model.ptr  # noqa: F841  the array is the model's
        tokens = lib.llama_vocab_get_suppress_tokens(self._vocab, n)
        return tuple(ffi.unpack(tokens, n[0])) if n[0] else ()

    @property
    def bos(self) -> int | None:
        """The token that begins a text (BOS); in a vocabulary like BERT's, CLS."""
        return self._special(lib.llama_vocab_bos)

    @property
    def eos(self) -> int | None:
        """The token that ends a text (EOS)."""
        return self._special(lib.llama_vocab_eos)

    @property
    def eot(self) -> int | None:
        """The token that ends a turn of a chat (EOT)."""
        return self._special(lib.llama_vocab_eot)

    @property
    def sep(self) -> int | None:
        """The token that separates two sentences (SEP)."""
        return self._special(lib.llama_vocab_sep)

    @property
    def nl(self) -> int | None:
        """The newline token."""
        return self._special(lib.llama_vocab_nl)

    @property
    def pad(self) -> int | None:
        """The padding token."""
        return self._special(lib.llama_vocab_pad)

    @property
    def mask(self) -> int | None:
        """The mask token, which stands for a token to predict."""
        return self._special(lib.llama_vocab_mask)

    @property
    def fim_pre(self) -> int | None:
        """Fill-in-the-middle: the token before the text that precedes the gap."""
        return self._special(lib.llama_vocab_fim_pre)

    @property
    def fim_suf(self) -> int | None:
        """Fill-in-the-middle: the token before the text that follows the gap."""
        return self._special(lib.llama_vocab_fim_suf)

    @property
    def fim_mid(self) -> int | None:
        """Fill-in-the-middle: the token after which the model generates the missing text."""
        return self._special(lib.llama_vocab_fim_mid)

    @property
    def fim_pad(self) -> int | None:
        """Fill-in-the-middle: the padding token."""
        return self._special(lib.llama_vocab_fim_pad)

    @property
    def fim_rep(self) -> int | None:
        """Fill-in-the-middle: the token before the name of a repository."""
        return self._special(lib.llama_vocab_fim_rep)

    @property
    def fim_sep(self) -> int | None:
        """Fill-in-the-middle: the token that separates two files."""
        return self._special(lib.llama_vocab_fim_sep)

    @property
    def add_bos(self) -> bool:
        """Whether `Vocab.tokenize` adds `bos`, as the model's metadata says."""
        return bool(self._call(lib.llama_vocab_get_add_bos))

    @property
    def add_eos(self) -> bool:
        """Whether `Vocab.tokenize` adds `eos`, as the model's metadata says."""
        return bool(self._call(lib.llama_vocab_get_add_eos))

    @property
    def add_sep(self) -> bool:
        """Whether `sep` belongs between two texts, as the model's metadata says."""
        return bool(self._call(lib.llama_vocab_get_add_sep))

    def check_one(self, token: int) -> int:
        """Return a token as an int.

        Raises:
            ArgumentError: The token is not in the vocabulary.
            TypeError: The token is not an integer.
        """
        if type(token) is not int:
            token = integer("token", token)
        if not 0 <= token < self._size:
            raise ArgumentError(outside(token, self._size))
        return token

    def _check_entry(self, token: int) -> int:
        """Check a token for a C function that needs a vocabulary."""
        # upstream: src/llama-vocab.cpp LLAMA_VOCAB_TYPE_NONE: getters of tokens assert that the
        # model has a vocabulary, and so we check first.
        if self._type == lib.LLAMA_VOCAB_TYPE_NONE:
            raise UnsupportedError("the model has no vocabulary, only token ids")
        return self.check_one(token)

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a C function that takes the vocabulary, and hold the model during the call."""
        model = self._model.ptr  # noqa: F841  held during the call
        return function(self._vocab, *args)

    def _special(self, function: Callable[..., int]) -> int | None:
        token: int = self._call(function)
        return None if token == lib.LLAMA_TOKEN_NULL else token


def sorted_pieces(vocab: Entries) -> Any:
    """Return the texts of all tokens, sorted in C, for the grammars of a vocabulary."""
    return vocab._pieces


def textless_tokens(vocab: Entries) -> dict[str, list[int]]:
    """Return the tokens whose text is left out of generated text, by that text."""
    return vocab._textless
