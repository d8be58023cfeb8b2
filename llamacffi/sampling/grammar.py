"""Grammars: restrict what is generated to text that a grammar allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from .._core.values import INT32_MAX, check_text, elements, integer
from .._native import ffi, lib
from ..errors import ArgumentError, GrammarError, NativeError, TokenizeError, UnsupportedError
from ..log import with_log
from ..vocab.entries import sorted_pieces
from .gbnf import TokenReference, parse, place
from .gbnf_rules import Program
from .patterns import Pattern, compile_pattern
from .token_samplers import TokenSampler, check_texts

if TYPE_CHECKING:
    from ..vocab.vocab import Vocab

MAX_PATTERN = 4096


@dataclass(frozen=True, slots=True)
class Grammar(TokenSampler):
    r"""Allow only text that matches a grammar, and an end only where the grammar is complete.

    It fails closed.  A mistake in the grammar, or a rule that llama.cpp would misread, raises
    `GrammarError` at once.  Where the grammar leaves no candidate, or does not allow a token that
    is accepted, `SamplerChain` raises `GrammarError` and keeps its state.

    Put it first in a chain: truncating samplers before it may remove everything that it allows,
    which raises `GrammarError` too.  With a large vocabulary it takes longer than all other
    samplers together: see ``grammar_first`` of `SamplerChain`.

    The cost of a token does not grow with the number of ways to parse the text; llama.cpp's own
    grammar sampler follows every one, and may never return.  A grammar so ambiguous, or so large,
    that a token takes over 100 million steps (about a second) raises `GrammarError`.  ``.`` and
    ``[^...]`` match Unicode characters, never invalid bytes.

    With triggers the grammar is lazy: everything is allowed until a trigger appears, and from there
    on the text must match.

    Args:
        grammar: The grammar in GBNF, llama.cpp's notation.
        root: The start rule.
        trigger_patterns: Regular expressions (ECMAScript) to search for in the text accepted so
            far.  The grammar starts at the first group that is not empty, or else at the start of
            the match.  Each character is read once, so ``(?=...)``, ``(?!...)`` and ``\\1`` are not
            supported, and a pattern may unfold to at most 5,000 steps.
        trigger_tokens: Tokens that start the grammar and are its first tokens.

    Raises:
        GrammarError: The grammar has a mistake; the message says where.

    Source: ``llamacffi_sampler_init_grammar``, as ``llama_sampler_init_grammar`` and
        ``llama_sampler_init_grammar_lazy_patterns``.
    """

    grammar: str
    root: str = "root"
    trigger_patterns: Sequence[str] = field(default=(), kw_only=True)
    trigger_tokens: Sequence[int] = field(default=(), kw_only=True)
    _program: Program = field(init=False, repr=False, compare=False)
    _tokens: tuple[TokenReference, ...] = field(init=False, repr=False, compare=False)
    _triggers: tuple[Pattern, ...] = field(init=False, repr=False, compare=False)

    # upstream: src/llama-grammar.cpp llama_grammar_apply_impl: it does not reset ``sorted``.
    _disorders: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("grammar", "root"):
            try:
                check_text(name, getattr(self, name))
            except ArgumentError as error:
                raise GrammarError(str(error)) from None
        patterns = check_texts("trigger_patterns", self.trigger_patterns)
        object.__setattr__(self, "_triggers", tuple(map(_compiled, patterns)))
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
        """Whether the grammar starts only after a trigger."""
        return bool(self.trigger_patterns or self.trigger_tokens)

    def _make_for(self, vocab: Vocab) -> Any:
        if not lib.llama_vocab_type(vocab.ptr):
            raise UnsupportedError(
                "Grammar() needs the text of tokens, and the model has no vocabulary"
            )
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
                sorted_pieces(vocab),
            )
        except NativeError as error:
            raise with_log(GrammarError(f"the grammar cannot be used: {error}")) from error


def _compiled(pattern: str) -> Pattern:
    check_text("trigger_patterns", pattern)
    if not 1 <= len(pattern) <= MAX_PATTERN:
        n = len(pattern)
        raise ArgumentError(f"a trigger pattern must have 1 to {MAX_PATTERN} characters, not {n}")
    try:
        return compile_pattern(pattern)
    except ArgumentError as error:
        reason = f"the trigger pattern {pattern!r:.80} cannot be used: {error}"
        raise ArgumentError(reason) from None


def _token(reference: TokenReference, vocab: Vocab, grammar: str) -> int:
    """Return the id of a token that the grammar names."""
    text = reference.text
    if reference.id is not None:
        if reference.id < len(vocab):
            return reference.id
        reason = f"{text} is outside the vocabulary, which has {len(vocab)} tokens"
        raise GrammarError(f"{place(grammar, reference.position)}: {reason}")
    try:
        tokens = vocab.tokenize(text, add_special=False, parse_special=True)
        if len(tokens) == 1:
            return tokens[0]
        reason = f"{text} must be one token of the vocabulary, but it is {len(tokens)}"
    except TokenizeError as error:
        reason = f"{text} cannot be tokenized: {error}"
    raise GrammarError(f"{place(grammar, reference.position)}: {reason}")


def grammar_failure(code: int, token: int | None, vocab: Vocab | None) -> GrammarError | None:
    """Return the error for a token that a grammar rejects; None for other codes."""
    piece = "" if token is None or vocab is None else f" {vocab.piece(token)!r}"
    if code == lib.LLAMACFFI_SAMPLE_GRAMMAR:
        return GrammarError(f"the grammar does not allow token {token}{piece}")
    if code == lib.LLAMACFFI_SAMPLE_TRIGGER:
        return GrammarError(
            "the text that triggered the lazy grammar does not match the start of the grammar"
        )
    if code == lib.LLAMACFFI_SAMPLE_STEPS:
        return GrammarError(
            "the grammar is too ambiguous or too large here: a token takes over 100 million steps; "
            "let alternatives start with different text, and repeat nothing that may be empty"
        )
    return None
