"""Grammars and triggers take bounded time, and parse text correctly."""

from __future__ import annotations

import contextlib
import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamacffi import (
    ArgumentError,
    Candidates,
    ClosedError,
    Grammar,
    GrammarError,
    Greedy,
    Model,
    NativeError,
    SamplerChain,
    lib,
)
from tests.facade.grammar_reference import (
    accepts,
    grammars,
    left_recursive,
    loose_grammars,
    written,
)
from tests.facade.oracle import END, IDS
from tests.timing import Cpu, limited, within

WITHOUT_LOAD = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
A, B, BANG = (IDS[f"<0x{ord(char):02X}>"] for char in "ab!")


def doubling(n, end):
    rules = [f"r{i} ::= r{i + 1} r{i + 1}" for i in range(n)]
    return "\n".join(["root ::= r0", *rules, f"r{n} ::= {end}"])


def choosing(n):
    rules = [f'r{i} ::= r{i + 1} | r{i + 1} "x"' for i in range(n)]
    return "\n".join(["root ::= r0", *rules, f'r{n} ::= "a"'])


BOMBS = {
    "2^30 stacks": doubling(30, '"a" | ""'),
    "2^90 stacks": doubling(90, '"a"? "b"?'),
    "2^30 ways to begin": choosing(30),
    "3000 rules deep": "\n".join(f"r{i} ::= r{i + 1}" for i in range(3000))
    + '\nr3000 ::= "a"+\nroot ::= r0',
    "options in a row": "root ::= " + '"a"? ' * 64,
    "repeated options": "root ::= " + '("a"? "b"?)* ' * 64,
    "two ways for each character": 'root ::= ("a" | "a")* "x"',
    "classes that overlap": "root ::= ([a-c] | [a-d] | . | [^x])* [x]",
    "an empty repetition": 'root ::= ("" | "a")* "b"',
    "an empty repetition of such": 'root ::= (("a"*)* ("a"?)+)* "b"',
    "nothing but itself": 'root ::= root | "a" root | "b"',
    "nested on both sides": 'root ::= s "x"\ns ::= "a" s "b" | "a" s "c" | ""',
    "a sum": 'root ::= s\ns ::= "a" | "a" s | "a" s s | "a" s s s',
    "long repetitions": 'root ::= ("a"{0,40} "b"?){0,40}',
    "many alternatives": "root ::= " + " | ".join(f'"a{i}"' for i in range(20_000)),
}
# The number of "a" after which each allows no more.
ENDS = {"2^30 ways to begin": 1, "options in a row": 64, "many alternatives": 1}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_token_takes_bounded_time(model, chain, kind):
    """Each call takes at most a second or two with any grammar, then fails."""
    one = chain(Grammar(BOMBS[kind]), Greedy(), vocab=model.vocab)
    candidates = Candidates(np.zeros(len(model.vocab)))
    seconds, refusal = [], ""
    while len(seconds) < 100 and sum(seconds) < 1 and not refusal:
        candidates.logit[:] = 0
        with Cpu() as cpu:
            try:
                one.apply(candidates)
                one.accept(A)
            except GrammarError as error:
                refusal = str(error)
        seconds.append(cpu.seconds)
    within(max(seconds), 4)
    n_accepted = len(seconds) - bool(refusal)
    assert n_accepted == ENDS.get(kind, n_accepted) >= 1
    assert bool(refusal) == (kind in ENDS)
    assert "does not allow token" in refusal or not refusal


def test_a_token_that_takes_too_many_steps_is_an_error(model, chain):
    text = "root ::= s+\ns ::= " + " | ".join(f'"a" (s){{{i}}} "b"?' for i in range(1, 60))
    one = chain(Grammar(text), Greedy(), vocab=model.vocab)

    def accept_many():
        for _ in range(10**6):
            one.accept(A)

    with limited(60), pytest.raises(GrammarError, match="too ambiguous or too large"):
        accept_many()
    with pytest.raises(GrammarError, match="too ambiguous or too large"):
        one.accept(A)
    with pytest.raises(GrammarError, match="does not allow"):
        one.accept(BANG)
    one.reset()
    one.accept(A)


LARGE = {
    "a thousand options": "root ::= " + "[a-zA-Z ]? " * 1000,
    "many options": "root ::= " + "[a-zA-Z ]? " * 5000,
    "very many options": "root ::= " + "[a-zA-Z ]? " * 50_000,
    "repetitions": "root ::= (" + " | ".join(f"[a-zA-Z ]{{{i}}}" for i in range(1, 300)) + ")*",
    "calls": "root ::= s+\ns ::= " + " | ".join(f'[a-zA-Z ] (s){{{i}}} "b"?' for i in range(1, 20)),
}


@pytest.mark.parametrize("kind", LARGE)
def test_the_limit_of_a_token_holds_for_a_large_vocabulary(vocabularies, chain, kind):
    """The limit takes about a second here too, although a step costs more in a larger table."""
    vocab = vocabularies["gpt-2"]
    one = chain(Grammar(LARGE[kind]), Greedy(), vocab=vocab)
    candidates = Candidates(np.zeros(len(vocab)))
    with Cpu() as cpu, pytest.raises(GrammarError, match="too ambiguous or too large"):
        one.apply(candidates)
    within(cpu.seconds, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("root ::= " + "(" * 200_000 + '"a"' + ")" * 200_000, "parentheses"),
        ('root ::= "a"{5,3}', "the minimum, 5, is larger than the maximum, 3"),
        ('root ::= "a"{2000}{2000}', "at most 2000"),
        ('x ::= "a"{2000}\n' + "root ::= " + "((x{1999} x){1999} x){1999} " * 200, "unfolds|2000"),
        ("root ::= <[" + "9" * 5000 + "]>", None),
        ("root ::= " + "<[5]> | " * 120_000 + "<[6]>", None),
        ("root ::= " + "[a-z]" * 200_000, "1000009"),
    ],
)
def test_a_grammar_that_is_too_large_is_rejected_quickly(text, message):
    refused = pytest.raises(GrammarError, match=message) if message else contextlib.nullcontext()
    with limited(5), refused:
        Grammar(text)


TEDIOUS = {
    "rules": "root ::= r0\n"
    + "\n".join(f'r{i} ::= "a" r{i + 1}' for i in range(20_000))
    + '\nr20000 ::= "b"',
    "groups": "root ::= " + '("a")' * 50_000,
    "options": "root ::= " + '"a"?' * 60_000,
    "a long name": "r" * 400_000 + " ::= " + '"a"?' * 30_000 + "\nroot ::= " + "r" * 400_000,
    "characters": 'root ::= "' + "\U0001f600" * 200_000 + '"',
    "ranges": "root ::= [" + "a-z" * 300_000 + "]",
    "a chain": "\n".join(f"r{i} ::= r{i + 1}?" for i in range(15_000))
    + '\nr15000 ::= "a"\nroot ::= r0',
}


@pytest.mark.parametrize("kind", TEDIOUS)
def test_a_large_grammar_is_parsed_quickly(kind):
    with limited(3):
        Grammar(TEDIOUS[kind])


SCHEMAS = {
    "a long string": r"""root ::= "\"" char{0,2000} "\""
char ::= [^"\\\x7F\x00-\x1F] | [\\] (["\\bfnrt] | "u" [0-9a-fA-F]{4})""",
    "many items": r"""root ::= "[" space (item ("," space item){0,499})? "]" space
item ::= "\"" [^"]{0,20} "\"" space
space ::= | " " | "\n"{1,2} [ \t]{0,20}""",
    "many properties": "root ::= "
    + ' "," '.join(f'("\\"key{i}\\"" ":" value)?' for i in range(300))
    + '\nvalue ::= [0-9]{1,15} | "true"',
}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_grammars_made_from_schemas_work(model, chain, kind):
    with limited(2):
        one = chain(Grammar(SCHEMAS[kind]), Greedy(), vocab=model.vocab)
        candidates = Candidates(np.zeros(len(model.vocab)))
        one.apply(candidates)
    assert candidates.logit.max() == 0


def whole_characters(piece):
    """Return whether the bytes of a token are complete characters."""
    try:
        return bool(piece.decode())
    except UnicodeDecodeError:
        return False


@pytest.fixture
def large_vocab(llama_cpp):
    """The vocabulary of GPT-2."""
    with Model(llama_cpp / "models/ggml-vocab-gpt-2.gguf", vocab_only=True) as model:
        yield model.vocab


def test_upstream_s_grammars_allow_what_upstream_allows(llama_cpp, large_vocab):
    """Token by token, over a large vocabulary."""
    vocab = large_vocab
    texts = {
        "json": '{"The old tree": [1, 2.5e3, {"a": null}, "é\\n"], "b": true}',
        "json_arr": '[\n1,\n{"a": "b"}]',
        "list": "- one\n- two\n",
        "arithmetic": "12+x*(3)=7\n",
        "chess": "1. e4 e5\n2. Nf3 Nc6\n",
        "japanese": "日本 語",
        "c": "int main(){x = 5;}",
        "english": "The old tree.",
    }
    assert len(texts) >= 8
    for name, text in texts.items():
        grammar = (llama_cpp / f"grammars/{name}.gbnf").read_text()
        with SamplerChain(Grammar(grammar), Greedy(), vocab=vocab) as one:
            upstream = lib.llama_sampler_init_grammar(vocab.ptr, grammar.encode(), b"root")
            for token in vocab.tokenize(text, add_special=False):
                ours, theirs = Candidates(np.zeros(len(vocab))), Candidates(np.zeros(len(vocab)))
                one.apply(ours)
                lib.llama_sampler_apply(upstream, theirs.ptr)
                ours, theirs = set(ours.id[ours.logit == 0]), set(theirs.id[theirs.logit == 0])
                # It accepts bytes that are not Unicode characters, and where `[^...]` comes next,
                # it rejects the first bytes of allowed characters.
                assert all(vocab.piece(int(k))[0] >= 0xF5 for k in theirs - ours)
                assert not any(whole_characters(vocab.piece(int(k))) for k in ours - theirs)
                assert token in ours, (name, vocab.piece(token))
                one.accept(token)
                lib.llama_sampler_accept(upstream, token)
            lib.llama_sampler_free(upstream)


# --- Compared with a parser that tries everything ---


@given(loose_grammars)
@settings(max_examples=300, deadline=None)
def test_only_left_recursion_is_rejected(grammar):
    refused = contextlib.nullcontext()
    if left_recursive(grammar):
        refused = pytest.raises(GrammarError, match="left recursive")
    with refused:
        Grammar(written(grammar))


@given(grammars)
@WITHOUT_LOAD
def test_the_same_texts_as_an_exhaustive_parser(model, grammar):
    text = written(grammar)
    with SamplerChain(Grammar(text), Greedy(), vocab=model.vocab) as one:
        for n in range(6):
            for chars in itertools.product("ab", repeat=n):
                one.reset()
                try:
                    for char in chars:
                        one.accept(A if char == "a" else B)
                    one.accept(END)
                    taken = True
                except GrammarError:
                    taken = False
                assert taken == accepts(grammar, "".join(chars)), (text, chars)


@given(grammars, st.text("ab", max_size=12))
@WITHOUT_LOAD
def test_candidates_that_remain_can_be_accepted(model, grammar, chars):
    """The same result for all candidates at once, for a few, and for an accepted token."""
    vocab = model.vocab
    sample = range(0, len(vocab), 7)
    with SamplerChain(Grammar(written(grammar)), Greedy(), vocab=vocab) as one:
        for char in chars:
            every = Candidates(np.zeros(len(vocab)))
            try:
                one.apply(every)
            except GrammarError:  # such as `root ::= () root`, which matches no text
                with pytest.raises(GrammarError):
                    one.accept(END)
                return
            allowed = set(every.id[every.logit > -math.inf].tolist())
            few = Candidates(np.zeros(7), ids=[A, B, END, *sample[:4]])
            with one.clone() as other:
                other.accept(A) if A in allowed else None
            with one.clone() as other:
                other.apply(few)
                left = set(few.id[few.logit > -math.inf].tolist())
                assert left == allowed & {A, B, END, *sample[:4]}
                for token in sample:
                    if token in allowed:
                        continue
                    with pytest.raises(GrammarError):
                        other.accept(token)
            # One character or the other, for as long as the grammar allows.
            wanted = (A, B) if char == "a" else (B, A)
            token = next((token for token in wanted if token in allowed), END)
            one.accept(token)
            if token == END:
                return


# --- Triggers ---

atoms = st.sampled_from(
    ["a", "b", "ab", ".", "[ab]", "[^a]", r"\w", r"\s", "(a)", "(b|c)", "(?:ab)"]
)
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "+?", "{2}", "{0,2}", "{1,}?"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=2).map(lambda both: f"(?:{'|'.join(both)})"),
        inner.map(lambda one: f"({one})"),
    ),
    max_leaves=5,
)
anchored = st.tuples(
    st.sampled_from(["", "", "^", r"\b"]), patterns, st.sampled_from(["", "", "$"])
)


def found(pattern, text):
    """Return where Python finds it: the first group that is not empty, or the whole match."""
    match = re.search(pattern, text, re.ASCII)
    if match is None:
        return None
    for group in range(1, match.re.groups + 1):
        if match.end(group) > match.start(group) >= 0:
            return match.start(group)
    return match.start()


@given(anchored.map("".join), st.text("abc ", min_size=1, max_size=10))
@WITHOUT_LOAD
def test_triggers_are_found_where_python_finds_them(model, pattern, text):
    n = next((n for n in range(1, len(text) + 1) if found(pattern, text[:n]) is not None), None)
    rest = "" if n is None else text[found(pattern, text[:n]) : n]
    lazy = Grammar(f'root ::= "{rest}" "!"', trigger_patterns=[pattern])
    tokens = [IDS[f"<0x{ord(char):02X}>"] if char != " " else IDS["<0x20>"] for char in text]
    with SamplerChain(lazy, Greedy(), vocab=model.vocab) as one:
        for token in tokens[:n]:
            one.accept(token)
        if n is not None:  # otherwise it is still waiting
            with pytest.raises(GrammarError):
                one.accept(A)
            one.accept(BANG)
            one.accept(END)


CATASTROPHES = {
    "(a?){30}a{30}": "ab" * 2000,
    "(a*)*c": "a" * 4000,
    "(?:a|a)*c": "a" * 4000,
    "(?:.*a){20}c": "a" * 4000,
    "(a|aa)+$c": "a" * 4000,
    r"^(\w+\s?)*!$": "ab " * 1500,
}


@pytest.mark.parametrize("pattern", CATASTROPHES)
def test_every_trigger_is_fast(model, chain, pattern):
    lazy = Grammar('root ::= "x"', trigger_patterns=[pattern])
    one = chain(lazy, Greedy(), vocab=model.vocab)
    tokens = [IDS[f"<0x{ord(char):02X}>"] for char in CATASTROPHES[pattern]]
    with limited(4):
        for token in tokens:
            one.accept(token)


def test_searching_for_a_trigger_costs_the_same_everywhere(model, chain):
    """The same after 100,000 tokens as at the start: no text is searched twice."""
    lazy = Grammar('root ::= "x"', trigger_patterns=["<go>[^>]*(>)", "a.*b.*c"])
    one = chain(lazy, Greedy(), vocab=model.vocab)
    parts = []
    for _ in range(10):
        with Cpu() as cpu:
            for _ in range(10_000):
                one.accept(A)
        parts.append(cpu.seconds)
    assert min(parts[5:]) < 3 * min(parts[:5])
    for char in "<go>":
        one.accept(IDS[f"<0x{ord(char):02X}>"])
    with pytest.raises(GrammarError, match="does not match the start"):
        one.accept(IDS["<0x3E>"])


def test_a_trigger_of_several_bytes(model, chain):
    """Patterns match characters, and may end in the middle of a token."""
    lazy = Grammar('root ::= "é" "!"', trigger_patterns=["[ß-ê]"])
    one = chain(lazy, Greedy(), vocab=model.vocab)
    one.accept(A)
    one.accept(IDS["<0xFF>"])  # not a character
    one.accept(IDS["<0xC3>"])
    one.accept(IDS["<0xA9>"])
    with pytest.raises(GrammarError):
        one.accept(A)
    one.accept(BANG)


@pytest.mark.parametrize(
    "pattern",
    ["(", ")", "a{", "a{2", "*", "a{3,2}", "[", "[b-a]", "\\", "[[:no:]]", "(?<a>b)", "(a)[\\1]"],
)
def test_invalid_patterns(pattern):
    with pytest.raises(ArgumentError, match=r"the trigger pattern .* cannot be used"):
        Grammar('root ::= "a"', trigger_patterns=[pattern])
    with pytest.raises(NativeError):  # C++ says the same
        lib.llamacffi_check_regex(pattern.encode())


def test_a_chain_with_a_grammar_ends_with_its_model(demo_path):
    """It points into the vocabulary of the model."""
    with Model(demo_path) as model:
        chain = SamplerChain(Grammar('root ::= "a"'), Greedy(), vocab=model.vocab)
        chain.accept(A)
    assert chain.closed
    for call in (chain.reset, chain.clone, lambda: chain.accept(A), lambda: chain.ptr):
        with pytest.raises(ClosedError, match="SamplerChain is closed"):
            call()
