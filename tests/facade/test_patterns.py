"""Regular expressions that are too slow for std::regex never reach it."""

from __future__ import annotations

import contextlib
import re
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamacffi import ArgumentError, Grammar, Model, NativeError, lib, quantize
from llamacffi.model.pattern_cost import is_quick

ENDLESS = (
    *("(a?){30}a{30}", "(a*)*c", "(?:a|a)*c", "(.*)*x", "(a|aa)+$", "((a|b)*c?)*d"),
    *("(?=(a*)*c)a", "(x+x+)+y", "(?:[a-z]*){20}!", "(a*)(\\1*)*b", ".*.*.*.*.*.*z"),
)
USUAL = (
    *(r"\.ffn_(up|down|gate|gate_up)_(ch)?exps\.", r"blk\.(1[0-9]|2[0-3])\..*", "ffn_.*"),
    *(r".*blk.*ffn.*exps.*weight.*", r"^blk\.\d+\.attn_(q|k|v)\.weight$", "output", "exps=?"),
    *(r"(?!.*shexp).*exps", r"^token_embd\.weight$|^output\.weight$", r"[[:digit:]]+", "a{1000}"),
)


@pytest.mark.parametrize("pattern", ENDLESS)
def test_slow_patterns_are_refused(demo_path, tmp_path, pattern):
    message = "can match a name in more than 1000000 ways"
    with pytest.raises(ArgumentError, match=message):
        Model(demo_path, tensor_buft_overrides={pattern: "CPU"})
    with pytest.raises(ArgumentError, match=message):
        quantize(demo_path, tmp_path / "out.gguf", "q4_0", tt_overrides={pattern: "q8_0"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pattern", USUAL)
def test_common_patterns_are_accepted(demo_path, pattern):
    Model(demo_path, tensor_buft_overrides={pattern: "CPU"}).close()


@pytest.mark.parametrize("pattern", ["a" + "*" * 900, "a" + "{1}" * 300, "(?:a?)" + "+" * 900])
def test_too_many_repetitions(demo_path, pattern):
    with pytest.raises(ArgumentError, match="more than 3 quantifiers in a row"):
        Model(demo_path, tensor_buft_overrides={pattern: "CPU"})
    with pytest.raises(ArgumentError, match="more than 3 quantifiers in a row"):
        Grammar('root ::= "a"', trigger_patterns=[pattern])


PIECES = st.sampled_from(
    [
        *("a", "b", ".", "*", "+", "?", "*?", "{2}", "{1,}", "{,2}", "{2,1}", "(", ")", "(?:", "|"),
        *(
            "[ab]",
            "[^a]",
            "[",
            "]",
            "[]a]",
            "[a-c]",
            "[c-a]",
            "[a-]",
            "^",
            "$",
            "\\b",
            "\\d",
            "\\W",
        ),
        *(
            "\\.",
            "\\x41",
            "\\u0041",
            "\\x4",
            "\\1",
            "(a)",
            "(?=a)",
            "(?!b)",
            "[[:alpha:]]",
            "{",
            "}",
        ),
        *("[\\d-]", "[\\]]", "\\cA", "é", "(?=", "\\"),
    ]
)


# What C++ accepts but a trigger may not contain, with the error message for each.
NOT_IN_TRIGGERS = {
    r"(?:[*+?]|\{[0-9,]+\}){4}": "more than 3 quantifiers in a row",
    r"\(\?[=!]|\\1": "would read the text more than once",
}


def reasons(pattern):
    """Return why we refuse a pattern that C++ accepts, or None if we do not."""
    one = r"\\[^1]|\[(?:\\.|[^\]\\])*\]"  # one character, or a class of them
    plain = re.sub(r"([*+?}])\?", r"\1", re.sub(one, "x", pattern))
    return [text for where, text in NOT_IN_TRIGGERS.items() if re.search(where, plain)]


def test_the_same_patterns_as_in_cpp():
    """The same as for C++, except what would be slow in a trigger."""
    outcomes = Counter()

    @given(st.lists(PIECES, min_size=1, max_size=7).map("".join))
    @settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
    def check(pattern):
        try:
            lib.llamacffi_check_regex(pattern.encode())
            taken = True
        except NativeError:
            taken = False
        expected = "|".join(reasons(pattern)) if taken else "the trigger pattern .* cannot be used"
        outcomes[not expected] += 1
        refused = pytest.raises(ArgumentError, match=expected) if expected else None
        with refused or contextlib.nullcontext():
            Grammar('root ::= "a"', trigger_patterns=[pattern])
        if taken and not re.search(r"[(]|[*+?}][*+?{]", pattern):  # nothing is repeated twice
            assert is_quick(pattern)

    check()
    assert min(outcomes[True], outcomes[False]) >= 50, outcomes
