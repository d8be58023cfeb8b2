"""Parameters of a context: what each changes, and what is refused; see test_every_parameter.py."""

from __future__ import annotations

import numpy as np
import pytest

from llamacffi import ArgumentError, Context, ContextError, Model, UnsupportedError, ffi, lib
from llamacffi.context.handle import params_of
from llamacffi.context.memory_size import available_bytes, cache_bytes
from tests.facade.random_models import N_EMBD, N_LAYER
from tests.facade.test_context import batch_of

TEXT = [(7 * i + 3) % 96 for i in range(40)]


def logits(context):
    context.decode(batch_of(TEXT))
    return context.logits_all()


# Parameters that change the logits of the random llama, each with what it needs to.
YARN = {"rope_scaling_type": "yarn", "rope_freq_scale": 0.25}
CHANGES_LOGITS = {
    "rope_freq_base": ({}, 100.0),
    "rope_freq_scale": ({}, 0.25),
    "rope_scaling_type": ({"rope_freq_scale": 0.25}, "yarn"),
    "yarn_ext_factor": (YARN, 0.25),
    "yarn_attn_factor": ({}, 3.0),
    "yarn_beta_fast": (YARN, 2.0),
    "yarn_beta_slow": (YARN, 8.0),
    "yarn_orig_ctx": (YARN, 16),
    "attention_type": ({"n_ubatch": 64}, "non_causal"),
    "type_k": ({}, "q4_0"),
    "type_v": ({}, "q4_0"),
    "flash_attn_type": ({}, "disabled"),
}


@pytest.mark.parametrize("name", CHANGES_LOGITS)
def test_it_changes_the_logits(random_context, name):
    others, value = CHANGES_LOGITS[name]
    plain = logits(random_context("llama", **others))
    changed = logits(random_context("llama", **others, **{name: value}))
    difference = np.abs(plain - changed).max()
    assert difference > (0 if name == "flash_attn_type" else 1e-3)


# Parameters that a property tells, with a value and what it must be then.
TOLD = {
    "n_ctx": (512, "n_ctx", 512),
    "n_batch": (33, "n_batch", 33),
    "n_ubatch": (17, "n_ubatch", 17),
    "n_seq_max": (3, "n_seq_max", 3),
    "n_outputs_max": (5, "n_outputs_max", 5),
    "n_threads": (2, "n_threads", 2),
    "n_threads_batch": (2, "n_threads_batch", 2),
    "pooling_type": ("last", "pooling_type", 3),
    "embeddings": (True, "embeddings_enabled", True),
    "kv_unified": (True, "kv_unified", True),
    "attention_type": ("non_causal", "causal_attn", False),
}


@pytest.mark.parametrize("name", TOLD)
def test_a_property_tells_it(random_context, name):
    value, told, expected = TOLD[name]
    context = random_context("llama", **{name: value})
    assert getattr(context, told) == expected
    assert getattr(random_context("llama"), told) != expected or name == "n_threads"


def test_a_small_window(random_context):
    """Of sliding attention only the window is kept, and earlier tokens cannot be had again."""
    ends = []
    for swa_full in (True, False):
        context = random_context("mimo2", swa_full=swa_full, n_ctx=1024, n_ubatch=16)
        context.decode(batch_of(TEXT * 15, logits="last"))
        ends.append(context.memory.pos_min())
    assert ends[0] == 0 < ends[1]


def test_sizes_are_told_as_they_have_become(random_context):
    context = random_context("llama", n_ctx=300, n_batch=4096, n_seq_max=2)
    assert (context.n_ctx, context.n_ctx_seq, context.n_batch) == (512, 256, 300)
    assert context.n_ubatch == 300
    assert context.n_rs_seq == 0
    bert = random_context("bert", n_ctx=300, n_batch=600, n_ubatch=600)
    assert (bert.n_batch, bert.n_ubatch) == (600, 600)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_batch": 2, "n_seq_max": 3}, "n_batch=2 is less than n_seq_max=3"),
        ({"n_ctx": 2, "n_seq_max": 3}, "n_ctx=2 is less than n_seq_max=3"),
        ({"n_outputs_max": 2, "n_seq_max": 3}, "n_outputs_max=2 is less than n_seq_max=3"),
        ({"type_v": "q8_0", "flash_attn_type": "disabled"}, "needs flash attention"),
        ({"rope_freq_base": -1.0}, "rope_freq_base must be positive, .* not -1.0"),
        ({"rope_freq_scale": -0.5}, "rope_freq_scale must be positive, .* not -0.5"),
        ({"yarn_beta_fast": 16.0}, "yarn_beta_fast has an effect only with YaRN"),
        (
            {"yarn_orig_ctx": 128, "yarn_ext_factor": 0.0},
            "yarn_orig_ctx has an effect only with YaRN",
        ),
        (
            {"yarn_beta_slow": 2.0, "rope_scaling_type": "linear"},
            "yarn_beta_slow has an effect only with YaRN",
        ),
    ],
)
def test_values_that_do_not_fit_each_other(model, params, message):
    with pytest.raises(ArgumentError, match=message):
        Context(model, n_threads=1, **params)


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("llama", {"n_rs_seq": 4}, "no recurrent state"),
        ("mamba", {"n_rs_seq": 4}, "no recurrent state to roll back"),
        ("llama", {"ctx_type": "mtp"}, "no layers for multi-token prediction"),
        ("gpt2", {"rope_freq_base": 1e6}, "no rotary embeddings: leave out rope_freq_base"),
        ("mamba", {"yarn_attn_factor": 2.0}, "no rotary embeddings: leave out yarn_attn_factor"),
        ("t5", {"rope_scaling_type": "yarn"}, "no rotary embeddings"),
    ],
)
def test_what_a_model_would_ignore(random_context, kind, params, message):
    with pytest.raises(UnsupportedError, match=message):
        random_context(kind, **params)


def test_the_models_own_may_be_said_aloud(random_context):
    """0 and -1 mean that, also where there is nothing to set."""
    params = {"rope_freq_base": 0.0, "yarn_ext_factor": -1.0, "rope_scaling_type": "unspecified"}
    random_context("gpt2", n_rs_seq=0, ctx_other=None, cb_eval=None, **params)


@pytest.mark.parametrize("params", [{"vocab_only": True}, {"no_alloc": True}])
def test_a_model_without_weights(demo_path, params):
    with (
        Model(demo_path, **params) as model,
        pytest.raises(UnsupportedError, match="was loaded with"),
    ):
        Context(model)


def test_bools(random_context):
    for value in (np.True_, True, np.array(True)):
        assert random_context("llama", embeddings=value).embeddings_enabled
    for value in ("yes", None, 1, 2, 1.0):
        with pytest.raises(TypeError, match="embeddings must be True or False"):
            random_context("llama", embeddings=value)
    with pytest.raises(TypeError, match="n_ctx must be an integer, not True"):
        random_context("llama", n_ctx=True)


@pytest.mark.parametrize("n_ctx", [2**31 - 1, 2**30, 2**28])
def test_a_context_that_does_not_fit(model, n_ctx):
    """The system would overcommit the memory, and kill the process that uses it."""
    with pytest.raises(ContextError, match=r"needs [0-9.]+ GiB, but only [0-9.]+ GiB are free"):
        Context(model, n_ctx=n_ctx, n_threads=1, type_k="f32", type_v="f32")


@pytest.mark.parametrize(
    "params", [{}, {"type_k": "q8_0", "type_v": "q4_0"}, {"kv_unified": True, "n_seq_max": 4}]
)
def test_the_size_of_the_cache(random_path, params):
    """The size computed in advance is the one that llama.cpp logs."""
    from llamacffi.log import capture_logs

    with Model(random_path("llama")) as model:
        struct = ffi.new("struct llama_context_params *")
        struct[0] = lib.llama_context_default_params()
        with (
            capture_logs() as log,
            Context(model, n_ctx=2048, n_threads=1, **params) as context,
        ):
            n_bytes = cache_bytes(params_of(context), model)
        line = next(line for line in log.text.splitlines() if "KV buffer size" in line)
        logged = float(line.split("=")[1].split()[0]) * 2**20
        assert logged <= n_bytes <= logged + 2048 * 64 + 6000
        assert n_bytes >= 2048 * 2 * N_LAYER * N_EMBD // 2


def test_what_no_context_takes(random_path):
    for kind in ("mamba", "bert"):
        with Model(random_path(kind)) as model:
            struct = ffi.new("struct llama_context_params *")
            struct[0] = lib.llama_context_default_params()
            struct.n_ctx = 2**31 - 1
            assert cache_bytes(struct, model) == 0


def test_there_is_some_memory():
    assert 2**26 < available_bytes() < 2**50
