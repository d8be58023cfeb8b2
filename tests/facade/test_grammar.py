"""Grammars: which are valid, that only allowed text is generated, and that mistakes fail closed."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamacffi import (
    ArgumentError,
    Batch,
    Candidates,
    Dist,
    Grammar,
    GrammarError,
    Greedy,
    LogitBias,
    MinTokens,
    Model,
    Penalties,
    Temp,
    TopK,
    capture_logs,
    ffi,
    lib,
)
from tests.facade.oracle import END, IDS, logits_after, token
from tests.facade.sampler_reference import softmax

THE = token(" the")

MISTAKES = {
    "": "no rules",
    "# nothing": "no rules",
    'x ::= "a"': "does not define its root rule 'root'",
    "root ::= x": "line 1, column 10: the rule 'x' is not defined",
    'root ::= "a" x\n  y ::= "b"': "line 1, column 14: the rule 'x' is not defined",
    'root ::= "a"\nroot ::= "b"': "line 2, column 1: the rule 'root' is already defined at line 1",
    'root := "a"': "expected '::='",
    '= "a"': "the name of a rule",
    'root ::= "a': 'the closing " is missing',
    "root ::= [a": "the closing ] is missing",
    r'root ::= "\q"': r"column 11: the escape '\\\\q' is unknown",
    r'root ::= "\x4"': "is unknown or incomplete",
    "root ::= [z-a]": "z-a is empty",
    "root ::= []": "matches no character",
    "root ::= [^]": "matches no character",
    'root ::= ("a"': "line 1, column 14: expected '\\)'",
    'root ::= "a")': "expected the end of the rule",
    "root ::= *": "follows nothing that it could repeat",
    'root ::= "a" | +': "follows nothing that it could repeat",
    'root ::= ""?': "follows nothing that it could repeat",
    'root ::= "a"{': "a number after",
    'root ::= "a"{2': "expected '}'",
    'root ::= "a"{2,1}': "the minimum, 2, is larger than the maximum, 1",
    'root ::= "a"{1,2001}': "at most 2000 repetitions",
    'root ::= "a"{99999999999999999999}': "at most 2000 repetitions",
    'root ::= "a"{50}{50}': "at most 2000",
    'root ::= ("a"? "b"?){700}': "at most 2000",
    "root ::= <[x]>": "a token such as",
    "root ::= !a": "a token such as",
    "root ::= " + "(" * 201 + '"a"' + ")" * 201: "parentheses",
    'root ::= root "a" | "b"': "'root' is left recursive",
    'root ::= x root "b" | "a"\nx ::= y\ny ::= ""': "'root' is left recursive",
    'a ::= b "x" | "x"\nb ::= c\nc ::= "z"? a\nroot ::= a': "left recursive",
    'root ::= "a"{' + "9" * 5000 + "}": "at most 2000 repetitions",
    'root ::= "a" # ' + "x" * 1_000_000: "1000015 characters; the limit is 1000000",
    'root ::= "\0"': "NUL character",
    "root ::= " + " ".join(f'"{"x" * 100}"{{2000}}' for _ in range(30)): "unfolds",
}


def test_mistakes():
    for text, message in MISTAKES.items():
        with pytest.raises(GrammarError, match=message):
            Grammar(text)
    with pytest.raises(GrammarError, match="does not define its root rule 'start', only root"):
        Grammar('root ::= "a"', "start")
    with pytest.raises(GrammarError, match="does not define its root rule 'root_1'"):
        Grammar('root ::= ("a")', "root_1")  # a name that llama.cpp generates
    for grammar in (b'root ::= "a"', None):
        with pytest.raises(TypeError):
            Grammar(grammar)
    with pytest.raises(GrammarError, match="surrogate"):
        Grammar('root ::= "\udc80"')


def test_upstream_s_grammars(llama_cpp, chain, model):
    paths = sorted((llama_cpp / "grammars").glob("*.gbnf"))
    assert len(paths) >= 8
    for path in paths:
        assert chain(Grammar(path.read_text()), vocab=model.vocab).ptr


PIECES = st.sampled_from(
    [
        *("root", "a", "b-1", " ::= ", "\n", "\r\n", " ", "\t", "# c\n", "|", "(", ")", "."),
        *("*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "{,2}", "{3,2}", "{0}", "{ 1 , 2 }"),
        *('"x"', '""', '"\\n\\""', '"\\x4"', '"', "[a-z]", "[^a]", "[-a]", "[a-]", "[\\]]", "["),
        *("<[5]>", "!<[5]>", "<[", "_", "\\", "é", '"é"', "[é-ê]", 'root ::= "a"\n', "a ::= a2 | "),
    ]
)
# What llama.cpp accepts but should not, or never finishes.
STRICTER = re.compile("already defined|left recursive|larger than the maximum|is empty|character")


ATOMS = st.sampled_from(
    [
        *('"x"', '""', '"\\n\\""', '"é"', "[a-z]", "[^a]", "[-a]", "[a-]", "[\\]]", "[é-ê]", "."),
        *("<[5]>", "!<[5]>", "a", "b-1", '( a | "x" )', '("x" |)', '(b-1\n"x"?)*'),
    ]
)
REPEATS = st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "{ 1 , 2 }"])
SEQUENCES = st.lists(st.tuples(ATOMS, REPEATS).map("".join), min_size=1, max_size=3).map(" ".join)
RULES = st.lists(SEQUENCES, min_size=1, max_size=2).map(" | ".join)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 2), PIECES), max_size=2)


@st.composite
def almost_grammars(draw):
    """Three rules, with up to two edits."""
    text = "\n".join(f"{name} ::= {draw(RULES)}" for name in ("root", "a", "b-1"))
    for where, n, piece in draw(EDITS):
        start = int(where * len(text))
        text = text[:start] + piece + text[start + n :]
    return text


def test_which_grammars_are_valid(model):
    """The same as for llama.cpp, which explains itself only on stderr."""
    outcomes = Counter()

    @given(almost_grammars() | st.lists(PIECES, max_size=14).map("".join))
    @settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
    def check(text):
        try:
            Grammar(text)
            reason = ""
        except GrammarError as error:
            reason = str(error)
        # Tokens given by text are looked up later, when the vocabulary is known.
        if STRICTER.search(reason) or re.search(r"<(?!\[)", text):
            outcomes["stricter"] += 1
            return
        with capture_logs() as lines:
            sampler = lib.llama_sampler_init_grammar(model.vocab.ptr, text.encode(), b"root")
        made = sampler != ffi.NULL and bool(text)
        lib.llama_sampler_free(sampler)
        # It reports a rule that may consist of only itself as left recursion.
        taken = made or "left recursion" in lines.text
        assert taken == (not reason), (text, reason)
        outcomes["taken" if taken else "refused"] += 1

    check()
    assert outcomes["taken"] >= 30, outcomes
    assert outcomes["refused"] >= 30, outcomes


def generate(context, chain, start=THE, n=60):
    """Generate until the end, and return the text."""
    context.memory.clear(data=False)
    batch, text, one = Batch(1), b"", start
    for pos in range(n):
        batch.clear()
        batch.set_one(one, pos)
        context.decode(batch)
        one = chain.sample(context)
        if one == END:
            return text.decode(errors="replace")
        text += context.model.vocab.piece(one)
    return text.decode(errors="replace") + "..."


WORDS = 'root ::= " the" (" " adjective)* " " noun "."\nadjective ::= "old" | "small" | "green"\n'
WORDS += 'noun ::= "llama" | "tree" | "river"'
GENERATED = {
    WORDS: r" the( (old|small|green))* (llama|tree|river)\.",
    'root ::= "[" n ("," n){0,3} "]"\nn ::= "0" | [1-9] [0-9]{0,2}': (
        r"\[(0|[1-9]\d{0,2})(,(0|[1-9]\d{0,2})){0,3}\]"
    ),
    'root ::= [à-ü]{3} "é"': "[à-ü]{3}é",
    'root ::= [^ -~é]{2} "x"': r"[^ -~é]{2}x",
    'root ::= .{3} "é"': r"(?s:...)é",
    'root ::= "a"? "b"+ "c"{2}': "a?b+c{2}",
}


@pytest.mark.parametrize("grammar_first", [True, False])
def test_only_what_the_grammar_allows(context, chain, grammar_first):
    for grammar, pattern in GENERATED.items():
        for seed in range(4):
            one = chain(Grammar(grammar), Temp(3.0), Dist(seed), grammar_first=grammar_first)
            text = generate(context, one)
            if not text.endswith("..."):
                assert re.fullmatch(pattern, text), (grammar, text)
            one.reset()
            assert generate(context, one) == text
            one.close()


def test_json(llama_cpp, context, chain):
    grammar = Grammar((llama_cpp / "grammars/json_arr.gbnf").read_text())
    bias = LogitBias({IDS[f"<0x{ord(char):02X}>"]: 12.0 for char in '"]}0:'})
    for seed in range(5):
        text = generate(context, chain(grammar, bias, Dist(seed)), n=150)
        if not text.endswith("..."):
            assert isinstance(json.loads(text), list)


@pytest.mark.parametrize("grammar_first", [True, False])
def test_probabilities(context, chain, grammar_first):
    """Those of the model, restricted to what is allowed."""
    allowed = [*(token(word) for word in (" llama", " tree", " river", " moon")), END]
    p = softmax(logits_after([THE])[0].astype(np.float64)[allowed])
    alternatives = " | ".join(f"<[{one}]>" for one in allowed[:-1])
    one = chain(Grammar(f"root ::= ({alternatives})*"), Dist(seed=4), grammar_first=grammar_first)
    after(context, THE)
    counts = Counter(one.sample(context) for _ in range(1500))
    assert set(counts) <= set(allowed)
    for k, share in zip(allowed, p, strict=True):
        assert abs(counts[k] - 1500 * share) <= 5 * math.sqrt(1500 * share) + 1


def after(context, *tokens):
    context.memory.clear(data=False)
    batch = Batch(len(tokens))
    batch.add(tokens)
    context.decode(batch)
    return context


def test_the_end_comes_when_it_is_complete(context, chain):
    one = chain(Grammar('root ::= " the"'), Greedy())
    after(context, token(" old"))
    accepted = [one.sample(context) for _ in range(9)]
    assert b"".join(context.model.vocab.piece(k) for k in accepted if k != END) == b" the"
    assert accepted[-1] == END  # and again: it is always allowed there


def test_the_end_may_be_optional(context, chain):
    one = chain(Grammar('root ::= "a"*'), LogitBias({END: 30.0}), Greedy())
    assert one.sample(after(context, THE)) == END
    one = chain(Grammar('root ::= "a"+'), LogitBias({END: 30.0}), Greedy())
    assert one.sample(context) != END


def test_without_an_end(demo_path, chain):
    """Without an end token, nothing is allowed after a complete grammar."""
    from llamacffi import Context

    overrides = {"tokenizer.ggml.eos_token_id": IDS["<unk>"]}
    with Model(demo_path, kv_overrides=overrides) as model, Context(model, n_ctx=64) as context:
        after(context, THE)
        one = chain(Grammar("root ::= <[300]>"), LogitBias.eog(model.vocab), Greedy())
        assert one.sample(context) == 300
        for _ in range(2):
            with pytest.raises(GrammarError, match="allows none"):
                one.sample(context)
        one.reset()
        assert one.sample(context) == 300


def test_truncation_before_the_grammar(context, chain):
    after(context, THE)
    one = chain(Penalties(freq=0.1), TopK(2), Grammar('root ::= "Z"'), Dist(seed=1))
    for _ in range(3):
        with pytest.raises(GrammarError, match=r"put Grammar before Penalties"):
            one.sample(context)
    one.accept(IDS["<0x5A>"])  # Z: the grammar is still at the same place
    assert one.perf().n_sample == 1
    wide = chain(TopK(0), Grammar('root ::= "Z"'), Dist(seed=1))
    assert wide.sample(context) == IDS["<0x5A>"]


def test_the_best_of_sorted_candidates_is_ruled_out(context, chain):
    """llama.cpp would treat the first as still the best, and then choose the last."""
    after(context, THE)
    best, second = np.argsort(-context.logits(), kind="stable")[[0, 40]].tolist()
    grammar = Grammar(f"root ::= <[{second}]>")
    assert chain(TopK(200), grammar, Dist(seed=1)).sample(context) == second
    assert best != second


def allowed(candidates, vocab):
    """Return the texts that a grammar leaves."""
    return {vocab.piece(k) for k in candidates.id[candidates.logit > -math.inf].tolist()}


def test_a_token_that_is_not_allowed(context, chain):
    one = chain(Penalties(freq=1.0), Grammar(WORDS), Greedy(), vocab=context.model.vocab)
    tree = token(" tree")
    for wrong in (tree, END, IDS["<s>"], IDS["<unk>"]):
        with pytest.raises(GrammarError, match=f"does not allow token {wrong} b"):
            one.accept(wrong)
    candidates = Candidates(np.arange(len(context.model.vocab), dtype=float))
    one.apply(candidates)
    assert candidates.logit[tree] == -math.inf
    one.accept(THE)
    one.accept(tree)
    with pytest.raises(GrammarError):
        one.accept(tree)
    with one.clone() as other:
        for chain_of_two in (one, other):
            candidates = Candidates(np.zeros(len(context.model.vocab)))
            chain_of_two.apply(candidates)
            assert allowed(candidates, context.model.vocab) == {b"."}
            # Accepted once: the failed token was not counted.
            assert candidates.logit.max() == 0
    one.accept(token("."))
    one.accept(END)


def test_state_is_cloned(context, chain):
    vocab = context.model.vocab
    one, other = (chain(Grammar(WORDS), Greedy(), vocab=vocab) for _ in range(2))
    one.accept(THE)
    other.copy_from(one)
    other.accept(token(" tree"))
    with pytest.raises(GrammarError):
        one.accept(token("."))
    other.accept(token("."))
    other.reset()
    other.accept(THE)
    one.accept(token(" old"))


def test_tokens_of_the_vocabulary(context, chain):
    vocab = context.model.vocab
    n = len(vocab)
    one = chain(Grammar("root ::= !<[5]> </s>?"), Greedy(), vocab=vocab)
    with pytest.raises(GrammarError):
        one.accept(5)
    one.accept(6)
    for text, message in (
        (f"root ::= <[{n}]>", f"line 1, column 10: <\\[{n}\\]> is outside the voc"),
        ("root ::= <no such token>", "must be one token of the vocabulary, but it is"),
    ):
        broken = chain(Grammar(text), Greedy(), vocab=vocab)
        with pytest.raises(GrammarError, match=message):
            broken.accept(1)
        late = chain(Grammar(text), Greedy())
        for _ in range(2):
            with pytest.raises(GrammarError, match=message):
                late.sample(after(context, THE))


def test_lazily_by_pattern(context, chain):
    """Anything until the trigger; from there on, the grammar."""
    grammar = Grammar('root ::= " tree" " sings" "."', trigger_patterns=[" tree"])
    assert grammar.lazy
    one = chain(grammar, Greedy(), vocab=context.model.vocab)
    for anything in (THE, END, token(" moon"), 65):
        one.accept(anything)
    assert one.sample(after(context, THE)) != token(" sings")
    one.accept(token(" tree"))
    with pytest.raises(GrammarError, match="does not allow"):
        one.accept(THE)
    assert one.sample(context) in range(len(context.model.vocab))
    one.reset()
    one.accept(THE)


def test_lazily_from_the_middle_of_a_token(context, chain):
    """The grammar starts at the group, even in the middle of a token."""
    grammar = Grammar('root ::= "ree" "."', trigger_patterns=["the.*t(ree)"])
    one = chain(grammar, Greedy(), vocab=context.model.vocab)
    one.accept(THE)
    one.accept(token(" tree"))
    with pytest.raises(GrammarError):
        one.accept(THE)
    one.accept(token("."))
    one.accept(END)


def test_lazily_by_token(context, chain):
    moon, tree = token(" moon"), token(" tree")
    one = chain(
        Grammar('root ::= " moon" " tree"', trigger_tokens=[moon]),
        Greedy(),
        vocab=context.model.vocab,
    )
    one.accept(tree)
    one.accept(moon)
    with one.clone() as other:
        other.accept(tree)
        other.accept(END)
    with pytest.raises(GrammarError):
        one.accept(moon)
    one.accept(tree)


def test_a_trigger_that_does_not_match_the_start(context, chain):
    moon = token(" moon")
    one = chain(
        Penalties(freq=1.0),
        Grammar('root ::= "x"', trigger_patterns=[" moon"]),
        Greedy(),
        vocab=context.model.vocab,
    )
    one.accept(THE)
    for _ in range(2):
        with pytest.raises(GrammarError, match="does not match the start"):
            one.accept(moon)
    assert one.perf().n_sample == 1
    one.accept(THE)  # it still waits
    biased = chain(
        Grammar('root ::= "x"', trigger_tokens=[moon]), LogitBias({moon: 99.0}), Greedy()
    )
    with pytest.raises(GrammarError, match="does not match the start"):
        biased.sample(after(context, THE))


def test_triggers(model, chain):
    for options, error, message in (
        ({"trigger_patterns": ["("]}, ArgumentError, r"'\(' cannot be used: '\(' has no matching"),
        ({"trigger_patterns": ["[z-a]"]}, ArgumentError, "ends before it begins"),
        ({"trigger_patterns": ["(a)\\1"]}, ArgumentError, "read the text more than once"),
        ({"trigger_patterns": ["a(?=b)"]}, ArgumentError, "read the text more than once"),
        (
            {"trigger_patterns": ["(a{99}){99}"]},
            ArgumentError,
            "used: .* more than 5000 steps; ",
        ),
        ({"trigger_patterns": ["(" * 2000]}, ArgumentError, "nested more than 100 deep"),
        ({"trigger_patterns": [""]}, ArgumentError, "1 to 4096 characters, not 0"),
        ({"trigger_patterns": ["a" * 5000]}, ArgumentError, "characters, not 5000"),
        ({"trigger_patterns": ["a\0"]}, ArgumentError, "NUL character at index 1"),
        ({"trigger_patterns": "abc"}, TypeError, "not a single one"),
        ({"trigger_patterns": [b"abc"]}, TypeError, "must be a str"),
        ({"trigger_tokens": [-1]}, ArgumentError, "trigger_tokens must be .* not -1"),
        ({"trigger_tokens": ["a"]}, TypeError, "trigger_tokens"),
    ):
        with pytest.raises(error, match=message):
            Grammar('root ::= "a"', **options)
    beyond = chain(Grammar('root ::= "a"', trigger_tokens=[514]), vocab=model.vocab)
    with pytest.raises(ArgumentError, match="not in the vocabulary"):
        _ = beyond.ptr
    assert not Grammar('root ::= "a"', trigger_tokens=[]).lazy
    lazy = Grammar('root ::= "a"', trigger_tokens=[1], trigger_patterns=["b"])
    assert pickle.loads(pickle.dumps(lazy)) == lazy
    assert eval(repr(lazy)) == lazy


def test_two_grammars(context, chain):
    """Only what both grammars allow."""
    one = chain(
        Grammar('root ::= "a" | "b"'),
        Grammar('root ::= "b" | "c"'),
        Greedy(),
        vocab=context.model.vocab,
    )
    a, b, c = (IDS[f"<0x{ord(char):02X}>"] for char in "abc")
    for wrong in (a, c):
        with pytest.raises(GrammarError):
            one.accept(wrong)
    for first in (True, False):
        choosing = chain(*one[:], grammar_first=first)
        assert choosing.sample(after(context, THE)) == b


def test_grammar_first_or_not(context, chain):
    """The texts are the same; without it, a failed first choice also draws random numbers."""
    grammar = Grammar(WORDS)
    for samplers in ([Temp(2.0), Dist(seed=1)], [TopK(3), Dist(seed=1)]):
        for first in (True, False):
            one = chain(grammar, *samplers, grammar_first=first, no_perf=False)
            text = generate(context, one)
            assert re.match(GENERATED[WORDS].removesuffix(r"\."), text), text
            assert one.perf().t_sample_ms > 0
    nothing = chain(Grammar('root ::= "Z"'), LogitBias({90 + 3: -math.inf}), Greedy())
    assert IDS["<0x5A>"] == 93
    for one in (nothing, chain(*nothing[:], grammar_first=False)):
        with pytest.raises(GrammarError, match="allows none"):
            one.sample(after(context, THE))


def test_an_early_end_and_a_grammar(context, chain):
    """The grammar is complete, but the end is not allowed yet: no token remains."""
    one = chain(Grammar("root ::= <[300]>"), MinTokens(3), Greedy())
    after(context, THE)
    assert one.sample(context) == 300
    with pytest.raises(GrammarError, match="allows none"):
        one.sample(context)


def test_many_steps_are_the_same_as_one(context, chain):
    """Another chain accepts the sampled token, and rejects every other."""
    vocab = context.model.vocab
    one = chain(Grammar(WORDS), Temp(4.0), Dist(seed=8))
    other = chain(Grammar(WORDS), Greedy(), vocab=vocab)
    tokens, k = [], THE
    while k != END and len(tokens) < 40:
        k = one.sample(after(context, k))
        tokens.append(k)
    for here, there in pairwise([*tokens, None]):
        other.accept(here)
        candidates = Candidates(np.zeros(len(vocab)))
        other.apply(candidates)
        left = np.flatnonzero(candidates.logit == 0).tolist()
        if there is not None:
            assert there in left
        with other.clone() as probe:
            for wrong in {*range(0, len(vocab), 37)} - set(left):
                with pytest.raises(GrammarError):
                    probe.accept(wrong)


def test_llama_cpp_never_prints(capfd, model, chain):
    for text in MISTAKES:
        with pytest.raises(GrammarError):
            Grammar(text)
    with pytest.raises(GrammarError):
        _ = chain(Grammar("root ::= <nothing like it>"), vocab=model.vocab).ptr
    assert capfd.readouterr() == ("", "")
