"""The same greedy text as upstream's own program, built from the same tree."""

from __future__ import annotations

import subprocess

import pytest

import llamacffi
from tests.timing import HANGS

N_PREDICT = 48
PROMPT = "Once upon a time, in 2026"


@pytest.mark.parametrize(
    ("architecture", "vocabulary"),
    [("llama", "llama-spm"), ("llama", "gpt-2"), ("mamba", "llama-spm")],
)
def test_greedy_text_equals_llama_completion(
    completion_program, random_model, architecture, vocabulary
):
    path = random_model(architecture, vocabulary)
    command = [
        *(completion_program, "-m", path, "-p", PROMPT, "-n", N_PREDICT, "--temp", 0),
        *("-no-cnv", "--no-display-prompt", "--no-warmup", "-c", 256, "-t", 1),
    ]
    result = subprocess.run(
        [str(one) for one in command], capture_output=True, timeout=HANGS, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 0, result.stderr.decode(errors="replace")

    greedy = llamacffi.SamplerChain(llamacffi.Greedy())
    with (
        llamacffi.Model(path) as model,
        llamacffi.Context(model, n_ctx=256, n_threads=1) as context,
        greedy,
    ):
        generation = llamacffi.generate(context, PROMPT, sampler=greedy, max_tokens=N_PREDICT)
        tokens = [token.id for token in generation]
        ours = b"".join(model.vocab.piece(token, special=False) for token in tokens)
    assert len(tokens) > 8
    theirs = result.stdout.removesuffix(b"\n").removesuffix(b" [end of text]\n")
    assert theirs.strip() == ours.strip()
