"""Grammars: only text that a grammar allows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ._checks import INT32_MAX, check_int, check_text
from ._ffi import ffi, lib
from ._params import elements
from ._sampling.gbnf import TokenReference, parse
from .errors import ArgumentError, GrammarError, NativeError, TokenizeError, UnsupportedError
from .log import with_log
from .token_samplers import TokenSampler, c_strings, check_texts

if TYPE_CHECKING:
    from .vocab import Vocab

MAX_PATTERN = 4096
# The search for a pattern with a repetition needs stack for each character of the text: at about
# 45 KB of text there was an end to 8 MB of it.
MAX_SEARCHED = 16 * 1024
# A repetition without end; or a brace, which may be one.
_REPETITION = re.compile(r"(?<!\\)(?:\\\\)*[*+{]")


@dataclass(frozen=True, slots=True)
class Grammar(TokenSampler):
    r"""Allow only text that a grammar describes, and its end only where the grammar is complete.

    It fails closed.  What is no grammar, or would be none to llama.cpp, is an error when it is
    described; where it leaves no candidate, or a token is accepted that it does not allow,
    `SamplerChain` raises `GrammarError` and the chain stays as it was.

    Put it first in a chain.  Truncating samplers before it may leave nothing that it allows, which
    is such an error.  Over a large vocabulary it takes longer than all other samplers together:
    see ``grammar_first`` of `SamplerChain`.

    ``.`` and ``[^...]`` match whatever the bytes of tokens spell, also what is no Unicode.

    With triggers it is lazy: everything is allowed until one of them appears, and the grammar must
    match the text from there on.

    Args:
        grammar: In llama.cpp's notation, GBNF.
        root: The rule to begin with.
        trigger_patterns: Regular expressions (ECMAScript) that are searched in the text accepted
            so far.  The grammar begins with the first group that is not empty, or else with the
            whole match.  Avoid ``.*`` and the like: llama.cpp's search takes long with it, and
            after 16 KB of text it is an error.
        trigger_tokens: Tokens that begin the grammar, and belong to it.

    Raises:
        GrammarError: It has a mistake; the message has its place.

    Source: ``llama_sampler_init_grammar``, ``llama_sampler_init_grammar_lazy_patterns``.
    """

    grammar: str
    root: str = "root"
    trigger_patterns: Sequence[str] = field(default=(), kw_only=True)
    trigger_tokens: Sequence[int] = field(default=(), kw_only=True)
    _tokens: tuple[TokenReference, ...] = field(init=False, repr=False, compare=False)

    disorders: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("grammar", "root"):
            try:
                check_text(name, getattr(self, name))
            except ArgumentError as error:
                raise GrammarError(str(error)) from None
        patterns = check_texts("trigger_patterns", self.trigger_patterns)
        for pattern in patterns:
            _check_pattern(pattern)
        object.__setattr__(self, "trigger_patterns", patterns)
        object.__setattr__(
            self, "trigger_tokens", tuple(elements("trigger_tokens", self.trigger_tokens, "tokens"))
        )
        for token in self.trigger_tokens:
            check_int("trigger_tokens", token, 0, INT32_MAX)
        object.__setattr__(self, "_tokens", parse(self.grammar, self.root))

    @property
    def lazy(self) -> bool:
        """Whether it waits for a trigger."""
        return bool(self.trigger_patterns or self.trigger_tokens)

    @property
    def n_searched(self) -> int:
        """How many bytes of text may pass until a trigger is found."""
        repeats = any(map(_REPETITION.search, self.trigger_patterns))
        return MAX_SEARCHED if repeats else INT32_MAX

    def make_for(self, vocab: Vocab) -> Any:
        """Make it in C.

        Raises:
            GrammarError: A token of the grammar is not in the vocabulary, or llama.cpp refuses it.
            ArgumentError: A trigger is not in the vocabulary.
            UnsupportedError: The model has no vocabulary: its tokens have no text.
        """
        if not lib.llama_vocab_type(vocab.ptr):
            raise UnsupportedError("the model has no vocabulary whose texts a grammar could allow")
        for reference in self._tokens:
            _check_reference(reference, vocab)
        for token in self.trigger_tokens:
            vocab.check_one(token)
        text, root = self.grammar.encode(), self.root.encode()
        try:
            if self.lazy:
                patterns, _kept = c_strings(self.trigger_patterns)
                tokens = ffi.new("llama_token[]", list(self.trigger_tokens))
                n_patterns, n_tokens = len(patterns), len(tokens)
                sampler = lib.llama_sampler_init_grammar_lazy_patterns(
                    vocab.ptr, text, root, patterns, n_patterns, tokens, n_tokens
                )
            else:
                sampler = lib.llama_sampler_init_grammar(vocab.ptr, text, root)
        except NativeError as error:
            raise with_log(GrammarError(f"llama.cpp refuses the grammar: {error}")) from error
        if sampler == ffi.NULL:
            raise with_log(GrammarError("llama.cpp cannot parse the grammar"))
        return sampler


def _check_pattern(pattern: str) -> None:
    check_text("trigger_patterns", pattern)
    if not 1 <= len(pattern) <= MAX_PATTERN:
        n = len(pattern)
        raise ArgumentError(f"a trigger pattern has {n} characters, not 1 to {MAX_PATTERN}")
    try:
        lib.llamacffi_check_regex(pattern.encode())
    except NativeError as error:
        reason = f"the trigger pattern {pattern!r} is no regular expression: {error}"
        raise ArgumentError(reason) from None


def _check_reference(reference: TokenReference, vocab: Vocab) -> None:
    """Check that a token of the grammar is one of the vocabulary."""
    if reference.id is not None:
        if reference.id >= len(vocab):
            raise GrammarError(
                f"{reference.place}: the token {reference.text} is not in the vocabulary of "
                f"{len(vocab)} tokens"
            )
        return
    try:
        tokens = vocab.tokenize(reference.text, add_special=False, parse_special=True)
    except TokenizeError as error:
        raise GrammarError(f"{reference.place}: {reference.text} is no token: {error}") from error
    if len(tokens) != 1:
        raise GrammarError(
            f"{reference.place}: {reference.text} is not one token of the vocabulary, but "
            f"{len(tokens)}"
        )


def grammar_failure(code: int, token: int | None, vocab: Vocab | None) -> GrammarError | None:
    """Return the error for a token that a grammar does not take."""
    piece = "" if token is None or vocab is None else f" {vocab.piece(token)!r}"
    if code == lib.LLAMACFFI_SAMPLE_GRAMMAR:
        return GrammarError(f"the grammar does not allow the token {token}{piece}")
    if code == lib.LLAMACFFI_SAMPLE_TRIGGER:
        return GrammarError(
            "the text that triggers the lazy grammar does not begin as the grammar demands"
        )
    if code == lib.LLAMACFFI_SAMPLE_WAITED:
        return GrammarError(
            "the text has become too long to search for the trigger of a lazy grammar: use a "
            "trigger pattern without repetitions such as .*, or a trigger token"
        )
    return None
