"""What a context and a generation are if one does not say."""

from __future__ import annotations

import numpy as np
import pytest

from llamacffi import Context, Gguf, Model, SamplerChain, capture_logs, generate
from tests.facade.gguf_models import write_altered, write_llama

PROMPT = "The llama"


@pytest.mark.parametrize(
    ("trained", "params", "expected"),
    [
        (300, {}, 512),  # llama.cpp rounds up to whole blocks of 256
        (768, {}, 768),
        (4096, {}, 4096),
        (131072, {}, 4096),
        (131072, {"n_ctx": 700}, 768),
        (8192, {"n_ctx": 0}, 8192),
        (512, {"n_seq_max": 4}, 2048),  # 512 for each
        (512, {"n_seq_max": 4, "kv_unified": True}, 2048),
        (8192, {"n_seq_max": 4}, 4096),
        (16, {"n_seq_max": 64}, 64 * 256),  # a block for each
    ],
)
def test_a_context_is_as_long_as_the_training_up_to_a_limit(tmp_path, trained, params, expected):
    path = write_llama(tmp_path / "model.gguf", n_layer=1)
    with Gguf.open(path) as gguf:
        gguf["llama.context_length"] = trained
        gguf.write(other := tmp_path / "other.gguf")
    with Model(other) as model, Context(model, n_threads=1, **params) as context:
        assert context.n_ctx == expected


@pytest.mark.parametrize("trained", [300, 768, 1000, 131072])
def test_sequences_of_any_number_have_as_many_tokens(tmp_path, trained):
    """In whole blocks of 256, so that llama.cpp adjusts nothing."""
    path = write_llama(tmp_path / "model.gguf", n_layer=1)
    with Gguf.open(path) as gguf:
        gguf["llama.context_length"] = trained
        gguf.write(other := tmp_path / "other.gguf")
    with Model(other) as model:
        for n in range(1, 21):
            with (
                capture_logs("WARNING", thread=True) as log,
                Context(model, n_seq_max=n, n_threads=1) as context,
            ):
                assert context.n_ctx == n * context.n_ctx_seq
                assert context.n_ctx <= max(4096, n * 256)
                full = -(-trained // 256) * 256
                assert context.n_ctx_seq == full or context.n_ctx + n * 256 > 4096
            assert not [line for line in log if "n_seq_max" in line.text]


def test_a_generation_samples_as_the_file_recommends(tmp_path):
    path = write_altered(tmp_path / "greedy.gguf", general__sampling__temp=0.0)
    with Model(path) as model, Context(model, n_ctx=256, n_threads=1) as context:
        text = generate(context, PROMPT, max_tokens=30).text()
        context.memory.clear()
        greedy = SamplerChain.default(temp=0)
        assert text == generate(context, PROMPT, sampler=greedy, max_tokens=30).text()


def test_a_generation_leaves_out_what_the_file_suppresses(tmp_path, model):
    with Context(model, n_ctx=256, n_threads=1) as context:
        greedy = SamplerChain.default(temp=0)
        usual = generate(context, PROMPT, sampler=greedy, max_tokens=20)
        usual.text()
    ids = np.array(sorted(set(usual.tokens)), np.int32)
    path = write_altered(
        tmp_path / "quiet.gguf", general__sampling__temp=0.0, tokenizer__ggml__suppress_tokens=ids
    )
    with Model(path) as other, Context(other, n_ctx=256, n_threads=1) as context:
        generation = generate(context, PROMPT, max_tokens=20)
        generation.text()
        assert generation.tokens
        assert not set(generation.tokens) & set(usual.tokens)


def test_without_a_recommendation_the_default_chain_chooses(model):
    texts = []
    for sampler in (SamplerChain.default(seed=5), SamplerChain.from_model(model, seed=5)):
        with Context(model, n_ctx=256, n_threads=1) as context:
            texts.append(generate(context, PROMPT, sampler=sampler, max_tokens=100).text())
    assert texts[0] == texts[1]
