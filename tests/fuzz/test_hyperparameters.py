"""The fuzz of hyperparameters tells of everything that ends a case; see tests/reference."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.fuzz import hyperparameters as fuzz

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")

# What a case may do besides being computed, and what is to be found then.
ENDS = {
    "exit": (lambda: os._exit(0), "the process ended with status 0"),
    "raise": (lambda: sys.exit("no"), "the process ended with status 1"),
    "die": (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
    "hang": (lambda: os.kill(os.getpid(), signal.SIGPROF), "too slow"),
    "find": (lambda: "two\nlines", "two lines"),
    "pass": (lambda: None, ""),
}


def test_each_case_is_told_of_once(monkeypatch):
    keys = [*ENDS, "pass", *ENDS, "exit"]
    cases = [fuzz.Case(Path("model"), key, 1, "file", 1) for key in keys]
    monkeypatch.setattr(fuzz, "compute", lambda case, _directory: ENDS[case.key][0]())
    monkeypatch.setattr(fuzz, "BATCH", 5)
    assert list(fuzz.run(cases)) == [(case, ENDS[case.key][1]) for case in cases]
