"""Regular expressions that std::regex would search for too long never reach it."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamacffi import ArgumentError, Grammar, Model, NativeError, lib, quantize
from llamacffi._model.pattern_cost import is_quick
from llamacffi._regex import parse

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
def test_what_takes_too_long_is_refused(demo_path, tmp_path, pattern):
    message = "can match a name in over 1000000 ways"
    with pytest.raises(ArgumentError, match=message):
        Model(demo_path, tensor_buft_overrides={pattern: "CPU"})
    with pytest.raises(ArgumentError, match=message):
        quantize(demo_path, tmp_path / "out.gguf", "q4_0", tt_overrides={pattern: "q8_0"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pattern", USUAL)
def test_what_people_write_is_taken(demo_path, pattern):
    Model(demo_path, tensor_buft_overrides={pattern: "CPU"}).close()


@pytest.mark.parametrize("pattern", ["a" + "*" * 900, "a" + "{1}" * 300, "(?:a?)" + "+" * 900])
def test_repetitions_without_end(demo_path, pattern):
    with pytest.raises(ArgumentError, match="over 3 repetitions follow each other"):
        Model(demo_path, tensor_buft_overrides={pattern: "CPU"})
    with pytest.raises(ArgumentError, match="over 3 repetitions follow each other"):
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


@given(st.lists(PIECES, max_size=7).map("".join))
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_a_pattern(pattern):
    """Nothing that C++ takes is misread as no pattern, but for a few oddities."""
    try:
        lib.llamacffi_check_regex(pattern.encode())
    except NativeError:
        return
    try:
        parse(pattern)
    except ArgumentError as error:
        odd = re.search(
            r"before|too much|follow|no '\]'|in order|begins no count|no group", str(error)
        )
        assert odd, (pattern, str(error))  # noqa: PT017
    else:
        assert is_quick(pattern) in (True, False)
