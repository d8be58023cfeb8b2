"""Grammars: only text that a grammar allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from .._core.values import INT32_MAX, check_text, elements, integer
from .._native import ffi, lib
from ..errors import ArgumentError, GrammarError, NativeError, TokenizeError, UnsupportedError
from ..log import with_log
from .gbnf import TokenReference, parse, place
from .gbnf_rules import Program
from .token_samplers import TokenSampler, check_texts
from .trigger import Trigger, trigger

if TYPE_CHECKING:
    from ..vocab.vocab import Vocab

MAX_PATTERN = 4096


@dataclass(frozen=True, slots=True)
class Grammar(TokenSampler):
    r"""Allow only text that a grammar describes, and its end only where the grammar is complete.

    It fails closed.  What is no grammar, or would be none to llama.cpp, is an error when it is
    described; where it leaves no candidate, or a token is accepted that it does not allow,
    `SamplerChain` raises `GrammarError` and the chain stays as it was.

    Put it first in a chain.  Truncating samplers before it may leave nothing that it allows, which
    is such an error.  Over a large vocabulary it takes longer than all other samplers together:
    see ``grammar_first`` of `SamplerChain`.

    What a token costs does not depend on how many ways there are to read the text: llama.cpp's own
    sampler of grammars follows each, and may never come back.  Where a grammar is so ambiguous, or
    so large, that a token takes over 100 million steps (about a second), that is a `GrammarError`.
    ``.`` and ``[^...]`` match characters of Unicode, and no bytes that are none.

    With triggers it is lazy: everything is allowed until one of them appears, and the grammar must
    match the text from there on.

    Args:
        grammar: In llama.cpp's notation, GBNF.
        root: The rule to begin with.
        trigger_patterns: Regular expressions (ECMAScript) that are searched in the text accepted
            so far.  The grammar begins with the first group that is not empty, or else with the
            whole match.  Each character is looked at once, so there is no ``(?=...)``, ``(?!...)``
            nor ``\\1``, and a pattern unfolds to 5,000 steps at most.
        trigger_tokens: Tokens that begin the grammar, and belong to it.

    Raises:
        GrammarError: It has a mistake; the message has its place.

    Source: ``llamacffi_sampler_init_grammar``, as ``llama_sampler_init_grammar`` and
        ``llama_sampler_init_grammar_lazy_patterns``.
    """

    grammar: str
    root: str = "root"
    trigger_patterns: Sequence[str] = field(default=(), kw_only=True)
    trigger_tokens: Sequence[int] = field(default=(), kw_only=True)
    _program: Program = field(init=False, repr=False, compare=False)
    _tokens: tuple[TokenReference, ...] = field(init=False, repr=False, compare=False)
    _triggers: tuple[Trigger, ...] = field(init=False, repr=False, compare=False)

    _disorders: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("grammar", "root"):
            try:
                check_text(name, getattr(self, name))
            except ArgumentError as error:
                raise GrammarError(str(error)) from None
        patterns = check_texts("trigger_patterns", self.trigger_patterns)
        object.__setattr__(self, "_triggers", tuple(map(_trigger, patterns)))
        object.__setattr__(self, "trigger_patterns", patterns)
        object.__setattr__(
            self, "trigger_tokens", tuple(elements("trigger_tokens", self.trigger_tokens, "tokens"))
        )
        for token in self.trigger_tokens:
            integer("trigger_tokens", token, 0, INT32_MAX)
        program, tokens = parse(self.grammar, self.root)
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_tokens", tokens)

    @property
    def lazy(self) -> bool:
        """Whether it waits for a trigger."""
        return bool(self.trigger_patterns or self.trigger_tokens)

    def _make_for(self, vocab: Vocab) -> Any:
        """Make it in C.

        Raises:
            GrammarError: A token of the grammar is not in the vocabulary.
            ArgumentError: A trigger is not in the vocabulary.
            UnsupportedError: The model has no vocabulary: its tokens have no text.
        """
        if not lib.llama_vocab_type(vocab.ptr):
            raise UnsupportedError("the model has no vocabulary whose texts a grammar could allow")
        tokens = [_token(one, vocab, self.grammar) for one in self._tokens]
        for token in self.trigger_tokens:
            vocab.check_one(token)
        rules, kept = self._program.struct()
        patterns = ffi.new("struct llamacffi_pattern[]", len(self._triggers))
        for struct, one in zip(patterns, self._triggers, strict=True):
            kept += one.fill(struct)
        triggers = list(self.trigger_tokens)
        try:
            return lib.llamacffi_sampler_init_grammar(
                rules,
                tokens,
                *(patterns, len(patterns)),
                *(triggers, len(triggers)),
                vocab._pieces,
            )
        except NativeError as error:
            raise with_log(GrammarError(f"the grammar cannot be used: {error}")) from error


def _trigger(pattern: str) -> Trigger:
    check_text("trigger_patterns", pattern)
    if not 1 <= len(pattern) <= MAX_PATTERN:
        n = len(pattern)
        raise ArgumentError(f"a trigger pattern has {n} characters, not 1 to {MAX_PATTERN}")
    try:
        return trigger(pattern)
    except ArgumentError as error:
        reason = f"the trigger pattern {pattern!r:.80} cannot be used: {error}"
        raise ArgumentError(reason) from None


def _token(reference: TokenReference, vocab: Vocab, grammar: str) -> int:
    """Return the number of a token of the grammar."""
    text = reference.text
    if reference.id is not None:
        if reference.id < len(vocab):
            return reference.id
        reason = f"the token {text} is not in the vocabulary of {len(vocab)} tokens"
        raise GrammarError(f"{place(grammar, reference.position)}: {reason}")
    try:
        tokens = vocab.tokenize(text, add_special=False, parse_special=True)
        if len(tokens) == 1:
            return tokens[0]
        reason = f"{text} is not one token of the vocabulary, but {len(tokens)}"
    except TokenizeError as error:
        reason = f"{text} is no token: {error}"
    raise GrammarError(f"{place(grammar, reference.position)}: {reason}")


def grammar_failure(code: int, token: int | None, vocab: Vocab | None) -> GrammarError | None:
    """Return the error for a token that a grammar does not take."""
    piece = "" if token is None or vocab is None else f" {vocab.piece(token)!r}"
    if code == lib.LLAMACFFI_SAMPLE_GRAMMAR:
        return GrammarError(f"the grammar does not allow the token {token}{piece}")
    if code == lib.LLAMACFFI_SAMPLE_TRIGGER:
        return GrammarError(
            "the text that triggers the lazy grammar does not begin as the grammar demands"
        )
    if code == lib.LLAMACFFI_SAMPLE_STEPS:
        return GrammarError(
            "the grammar is too ambiguous or too large here: a token takes over 100 million steps; "
            "let its alternatives begin differently, and repeat nothing that may be empty"
        )
    return None
