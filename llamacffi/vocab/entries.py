"""What a vocabulary knows of each token."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .._core.ownership import Pointer
from .._core.text import new_uncleared
from .._core.tokens import outside
from .._core.values import INT32_MAX, flag, integer
from .._native import ffi, lib
from ..errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    from .._generated.enums import TokenAttr, VocabType
    from ..model.model import Model

# Nearly all pieces fit.
PIECE_BYTES = 64


class Entries(Pointer):
    """The tokens of a vocabulary, one by one; the base of `Vocab`."""

    _why = "it is a part of its Model"
    _instead = (
        "any number of threads can use it as it is; in another process, load the file again, with "
        "vocab_only=True if nothing else is wanted"
    )

    def __init__(self, model: Model) -> None:
        self._model = model
        # It is the model's, and goes with it: whoever gives it to C holds `model.ptr` meanwhile.
        ptr = model.ptr
        self._vocab: Any = lib.llama_model_get_vocab(ptr)
        self._size: int = lib.llama_vocab_n_tokens(self._vocab)
        self._type: int = lib.llama_vocab_type(self._vocab)
        # Whether there are texts that C must not be given.
        self._limited = self._type in (lib.LLAMA_VOCAB_TYPE_NONE, lib.LLAMA_VOCAB_TYPE_RWKV)

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
        """The model that it belongs to."""
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
        """Return the text of one token: not always whole characters.

        Args:
            token: Its id.
            lstrip: Leave out up to so many blanks at its beginning.
            special: Write a special token as its text; else it is empty.

        Returns:
            The text, empty for a model without a vocabulary.

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
        """Return the entry of the vocabulary, in its own notation (such as ``▁`` for a blank).

        Source: ``llama_vocab_get_text``.
        """
        token = self._check_entry(token)
        model = self._model.ptr  # noqa: F841  the text is the model's
        chars = lib.llama_vocab_get_text(self._vocab, token)
        return str(ffi.string(chars), "utf-8", "replace")

    def score(self, token: int) -> float:
        """Return the score of a token, whose meaning depends on the tokenizer.

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
        """Tell whether a token ends a generation.

        Source: ``llama_vocab_is_eog``.
        """
        token = self.check_one(token)
        model = self._model.ptr  # noqa: F841  held while C works on the vocabulary
        return lib.llama_vocab_is_eog(self._vocab, token)

    def is_control(self, token: int) -> bool:
        """Tell whether a token is a control token, which has no text of its own.

        Source: ``llama_vocab_is_control``.
        """
        return bool(self._call(lib.llama_vocab_is_control, self._check_entry(token)))

    @cached_property
    def _pieces(self) -> Any:
        """The texts of all tokens, sorted, for the grammars that are made for it.

        They are copies, which point to nothing, and take some ten milliseconds to sort.

        Source: ``llamacffi_pieces_init``.
        """
        model = self._model.ptr  # noqa: F841  held meanwhile
        return ffi.gc(lib.llamacffi_pieces_init(self._vocab), lib.llamacffi_pieces_free)

    @cached_property
    def eog_tokens(self) -> tuple[int, ...]:
        """All tokens that end a generation, in order: `eos`, `eot` and others.

        Source: ``llama_vocab_is_eog``.
        """
        model = self._model.ptr  # noqa: F841  held meanwhile
        vocab, is_eog = self._vocab, lib.llama_vocab_is_eog
        return tuple(token for token in range(self._size) if is_eog(vocab, token))

    @cached_property
    def _textless(self) -> dict[str, list[int]]:
        """Tokens that have no text where they are generated, by the texts that stand for them."""
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
        """The tokens that the model's metadata wants never to be generated.

        Source: ``llama_vocab_get_suppress_tokens``.
        """
        n = ffi.new("int32_t *")
        model = self._model.ptr  # noqa: F841  the array is the model's
        tokens = lib.llama_vocab_get_suppress_tokens(self._vocab, n)
        return tuple(ffi.unpack(tokens, n[0])) if n[0] else ()

    @property
    def bos(self) -> int | None:
        """The token that begins a text; in a vocabulary like BERT's, its CLS."""
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
    def fim_pre(self) -> int | None:
        """The token before the text that comes before a gap, for fill-in-the-middle."""
        return self._special(lib.llama_vocab_fim_pre)

    @property
    def fim_suf(self) -> int | None:
        """The token before the text that comes after a gap."""
        return self._special(lib.llama_vocab_fim_suf)

    @property
    def fim_mid(self) -> int | None:
        """The token after which the model fills the gap."""
        return self._special(lib.llama_vocab_fim_mid)

    @property
    def fim_pad(self) -> int | None:
        """The token that fills up where there is no gap."""
        return self._special(lib.llama_vocab_fim_pad)

    @property
    def fim_rep(self) -> int | None:
        """The token before the name of a repository."""
        return self._special(lib.llama_vocab_fim_rep)

    @property
    def fim_sep(self) -> int | None:
        """The token between two files."""
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
            ArgumentError: It is not in the vocabulary.
            TypeError: It is no integer.
        """
        if type(token) is not int:
            token = integer("token", token)
        if not 0 <= token < self._size:
            raise ArgumentError(outside(token, self._size))
        return token

    def _check_entry(self, token: int) -> int:
        """Check a token of which C tells something only if the model has a vocabulary."""
        if self._type == lib.LLAMA_VOCAB_TYPE_NONE:
            raise UnsupportedError("the model has no vocabulary: its tokens are only numbers")
        return self.check_one(token)

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the vocabulary while the model is held."""
        model = self._model.ptr  # noqa: F841  held meanwhile
        return function(self._vocab, *args)

    def _special(self, function: Callable[..., int]) -> int | None:
        token: int = self._call(function)
        return None if token == lib.LLAMA_TOKEN_NULL else token


def sorted_pieces(vocab: Entries) -> Any:
    """Return the texts of all tokens, sorted in C, for the grammars of a vocabulary."""
    return vocab._pieces


def textless_tokens(vocab: Entries) -> dict[str, list[int]]:
    """Return the tokens that are generated without text, by the text that stands for them."""
    return vocab._textless
