"""LoRA adapters: the same results as merged weights, and the base model comes back unchanged."""

from __future__ import annotations

import functools
import io
import threading

import gguf
import numpy as np
import pytest

from llamacffi import (
    Adapter,
    AdapterError,
    ArgumentError,
    Batch,
    BusyError,
    ClosedError,
    Context,
    Gguf,
    LoadError,
    Model,
    ModelNotFoundError,
    StateError,
    UnsupportedError,
    ffi,
    lib,
)
from llamacffi._core.ownership import live_objects
from tests.facade import loras
from tests.facade.gguf_models import edited
from tests.facade.helpers import raised_in_thread
from tests.facade.random_models import N_EMBD, N_FF, N_VOCAB

TOKENS = [(7 * i) % 90 + 3 for i in range(12)]
QUERY, DOWN = "blk.0.attn_q.weight", "blk.1.ffn_down.weight"
# Shapes of the llama of random_models.py, rows first.
SHAPES = {
    "token_embd.weight": (N_VOCAB, N_EMBD),
    "output.weight": (N_VOCAB, N_EMBD),
    **{
        f"blk.{i}.{name}.weight": shape
        for i in range(2)
        for name, shape in {
            **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (N_EMBD, N_EMBD)),
            **dict.fromkeys(("ffn_gate", "ffn_up"), (N_FF, N_EMBD)),
            "ffn_down": (N_EMBD, N_FF),
        }.items()
    },
}
# In single precision, the order of sums makes little difference.
EXACT = {"n_ctx": 64, "n_threads": 1, "type_k": "f32", "type_v": "f32", "flash_attn_type": 0}


def decode(context, tokens=TOKENS, pos=0):
    batch = Batch(64)
    batch.add(tokens, pos=pos)
    context.decode(batch)
    return context.logits()


def anew(context, tokens=TOKENS):
    context.memory.clear()
    return decode(context, tokens)


@pytest.fixture
def llama(random_path):
    """A llama with random weights."""
    with Model(random_path("llama")) as model:
        yield model


@pytest.fixture
def context(llama):
    """A context of that model."""
    with Context(llama, **EXACT) as context:
        yield context


@pytest.fixture
def write(tmp_path):
    """Write an adapter."""
    names = iter(range(100))

    def write(weights, **options):
        return loras.write_lora(tmp_path / f"{next(names)}.lora.gguf", weights, **options)

    return write


@pytest.mark.parametrize("weight", SHAPES)
def test_each_weight_gives_the_same_as_merged(llama, context, random_path, write, tmp_path, weight):
    n_out, n_in = SHAPES[weight]
    a, b = loras.random_pair(n_out, n_in, seed=3)
    change = 0.7 * b @ a
    if weight == "token_embd.weight":
        # Its rows are looked up: `a` has a column for each token, stored here as rows.
        a, b = b, np.ascontiguousarray(a.T)
    base = decode(context)
    adapter = Adapter(llama, write({weight: (a, b)}))
    context.adapters = {adapter: 0.7}
    merged = loras.merge(random_path("llama"), tmp_path / "merged.gguf", {weight: change})
    with Model(merged) as other, Context(other, **EXACT) as expected:
        found = anew(context)
        assert np.allclose(found, decode(expected), atol=1e-3)
        assert np.abs(found - base).max() > 0.1


def test_several_with_scales_and_alpha(llama, context, random_path, write, tmp_path):
    pairs = [
        {QUERY: loras.random_pair(64, 64, 1), DOWN: loras.random_pair(64, 96, 2)},
        {QUERY: loras.random_pair(64, 64, 3, rank=7)},
    ]
    adapters = [
        Adapter(llama, write(pairs[0], alpha=6.0)),
        Adapter(llama, write(pairs[1], alpha=5.0)),
    ]
    context.adapters = {adapters[0]: 0.5, adapters[1]: -0.25}
    changes = {name: 0.5 * 6 / 4 * b @ a for name, (a, b) in pairs[0].items()}
    a, b = pairs[1][QUERY]
    changes[QUERY] = changes[QUERY] - 0.25 * 5 / 7 * b @ a
    merged = loras.merge(random_path("llama"), tmp_path / "merged.gguf", changes)
    with Model(merged) as other, Context(other, **EXACT) as expected:
        assert np.allclose(decode(context), decode(expected), atol=1e-3)
    assert adapters[0].alpha == 6.0


def test_the_base_comes_back_exactly(llama, context, write):
    adapter = Adapter(llama, write({QUERY: (64, 64), DOWN: (64, 96)}))
    base = decode(context)
    for none in ({}, None, {adapter: 0.0}, {adapter: 1e-60}):
        context.adapters = {adapter: 2.0}
        assert np.abs(anew(context) - base).max() > 0.1
        context.adapters = none
        assert np.array_equal(anew(context), base)


def test_a_linear_weight_is_linear_in_the_scale(llama, context, write):
    adapter = Adapter(llama, write({"output.weight": (N_VOCAB, N_EMBD)}))
    found = []
    for scale in (0.0, 1.0, -2.0, 0.5):
        context.adapters = {adapter: scale}
        found.append(anew(context))
    difference = found[1] - found[0]
    assert np.allclose(found[2], found[0] - 2 * difference, atol=1e-3)
    assert np.allclose(found[3], found[0] + difference / 2, atol=1e-3)


def test_switching_back_and_forth(llama, context, write):
    adapters = [Adapter(llama, write({QUERY: loras.random_pair(64, 64, i)})) for i in range(3)]
    expected = []
    for adapter in adapters:
        context.adapters = {adapter: 1.0}
        expected.append(anew(context))
    for i in (0, 2, 1, 1, 0):
        context.adapters = {adapters[i]: 1.0}
        assert np.array_equal(anew(context), expected[i])


def test_contexts_share_an_adapter_each_with_its_scale(llama, context, write):
    adapter = Adapter(llama, write({QUERY: (64, 64)}))
    with Context(llama, **EXACT) as other:
        base = decode(context)
        context.adapters, other.adapters = {adapter: 1.0}, {adapter: -1.0}
        first, second = anew(context), decode(other)
        assert len({one.tobytes() for one in (base, first, second)}) == 3
        other.adapters = {adapter: 1.0}
        assert np.array_equal(anew(other), first)


def test_adapters_stay_when_memory_is_cleared_or_a_state_is_loaded(llama, context, write):
    adapter = Adapter(llama, write({QUERY: (64, 64)}))
    context.adapters = {adapter: 1.0}
    expected = decode(context)
    saved = context.save_state()
    context.memory.clear()
    context.load_state(saved)
    assert context.adapters == {adapter: 1.0}
    assert np.array_equal(anew(context), expected)


def test_every_source(llama, context, write, tmp_path):
    path = write({QUERY: (64, 64)})
    content = path.read_bytes()
    embedded = tmp_path / "embedded"
    embedded.write_bytes(b"x" * 1001 + content)
    context.adapters = {Adapter(llama, path): 1.0}
    expected = decode(context)
    with open(embedded, "rb") as file, open(path, "rb") as plain:
        file.seek(1001)
        sources = [
            *(str(path), file, plain, plain.fileno()),
            *(content, bytearray(content), memoryview(content), io.BytesIO(content)),
        ]
        for source in sources:
            context.adapters = {Adapter(llama, source): 1.0}
            assert np.array_equal(anew(context), expected)
        assert (file.tell(), plain.tell()) == (1001, 0)
        assert file.read() == content


def test_metadata_of_the_file(llama, write):
    options = {"general_name": "n\u00e4me", "adapter_lora_task_name": "task"}
    path = write({QUERY: (64, 64)}, alpha=8.0, invocation=[5, 6, 5], **options)
    with Gguf.open(path) as file:
        file["adapter.lora.prompt_prefix"] = "p" * 1000
        del file["general.name"]
        file["adapter.lora.task_name"] = "n\u00e4me"
        file.write(path)
    adapter = Adapter(llama, path)
    assert adapter.alpha == 8.0
    assert adapter.task_name == adapter.metadata["adapter.lora.task_name"] == "n\u00e4me"
    assert adapter.prompt_prefix == "p" * 1000
    assert adapter.metadata["general.architecture"] == "llama"
    assert "adapter.alora.invocation_tokens" not in adapter.metadata  # scalars only
    assert adapter.invocation_tokens == (5, 6, 5)
    assert adapter.model is llama
    assert repr(adapter) == f"<Adapter {str(path)!r}>"
    with pytest.raises(TypeError):
        adapter.metadata["x"] = "y"
    plain = Adapter(llama, write({QUERY: (64, 64)}))
    assert (plain.alpha, plain.task_name, plain.prompt_prefix) == (None, None, None)
    assert plain.invocation_tokens == ()


def set_key(key, value, **kind):
    def change(file):
        file.pop(key, None)  # also removes its type, which would not fit a value of another kind
        file.set(key, value, **kind)

    return change


def integers(file):
    data = np.ones((loras.RANK, 64), np.int32)
    file.replace_tensor(f"{QUERY}.lora_a", data, type="i32")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (set_key("general.type", "model"), "is not an adapter: its general.type is 'model'"),
        (lambda file: file.pop("general.type"), "is not an adapter: its general.type is None"),
        (set_key("general.type", 5), "is not an adapter: its general.type is 5"),
        (set_key("adapter.type", "other"), "is not a LoRA adapter: its adapter.type is 'other'"),
        (
            set_key("general.architecture", "gpt2"),
            "does not fit <Model .*: its general.architecture",
        ),
        (set_key("adapter.lora.alpha", 5), "adapter.lora.alpha must be a finite float32, not 5"),
        (
            set_key("adapter.lora.alpha", "5"),
            "adapter.lora.alpha must be a finite float32, not '5'",
        ),
        (
            set_key("adapter.lora.alpha", float("nan")),
            "adapter.lora.alpha must be a finite float32, not nan",
        ),
        (set_key("adapter.lora.alpha", 5.0, type="f64"), "adapter.lora.alpha"),
        (
            set_key("adapter.alora.invocation_tokens", [5, N_VOCAB], type="u32"),
            "uint32 between 0 and 95",
        ),
        (set_key("adapter.alora.invocation_tokens", [5], type="i32"), "invocation_tokens"),
        (set_key("adapter.alora.invocation_tokens", 5), "invocation_tokens"),
        (set_key("adapter.alora.invocation_tokens", ["a"]), "invocation_tokens"),
        (lambda file: file.remove_tensor(f"{QUERY}.lora_a"), "has no lora_a"),
        (lambda file: file.remove_tensor(f"{QUERY}.lora_b"), "has no lora_b"),
        (lambda file: [file.remove_tensor(name) for name in list(file.tensors)], "changes nothing"),
        (lambda file: file.add_tensor("x", np.ones(4, np.float32)), "has a tensor 'x'"),
        (
            lambda file: [
                file.rename_tensor(f"{QUERY}.lora_{part}", f"blk.9.attn_q.weight.lora_{part}")
                for part in "ab"
            ],
            "has no tensor 'blk.9.attn_q.weight'",
        ),
        (
            lambda file: file.replace_tensor(f"{QUERY}.lora_a", np.ones((4, 32), np.float32)),
            "'blk.0.attn_q.weight' is 64 x 64, but lora_a is 32 x 4 and lora_b is 4 x 64",
        ),
        (
            lambda file: file.replace_tensor(f"{QUERY}.lora_b", np.ones((64, 5), np.float32)),
            "lora_b is 5 x 64",
        ),
        (
            lambda file: file.replace_tensor(f"{QUERY}.lora_b", np.ones((2, 64, 4), np.float32)),
            "lora_b is 4 x 64 x 2",
        ),
        (integers, "lora_a' is I32, which is not a type for weights"),
        *(
            (set_key(key, np.ones(2, np.float32)), key)
            for key in ("general.type", "adapter.type", "general.architecture")
        ),
        (lambda file: file.update({"general.type": ["adapter"]}), "general.type"),
    ],
)
def test_adapters_that_do_not_fit(llama, write, change, match):
    content = edited(write({QUERY: (64, 64)}), change)
    before = live_objects()
    with pytest.raises(AdapterError, match=match):
        Adapter(llama, content)
    assert live_objects() == before


def test_the_number_of_experts_must_be_the_model_s(random_path, write, tmp_path):
    """Otherwise C would read past the end of the adapter."""
    with Gguf.open(random_path("llama")) as file:
        for name, shape in {"ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96)}.items():
            for i in range(2):
                data = np.random.default_rng(i).standard_normal((4, *shape), np.float32) * 0.1
                file.remove_tensor(f"blk.{i}.{name}.weight")
                file.add_tensor(f"blk.{i}.{name}_exps.weight", data)
        for i in range(2):
            router = np.random.default_rng(9).standard_normal((4, 64), np.float32)
            file.add_tensor(f"blk.{i}.ffn_gate_inp.weight", router)
        file["llama.expert_count"], file["llama.expert_used_count"] = 4, 2
        file.write(tmp_path / "moe.gguf")
        up = "blk.0.ffn_up_exps.weight"
        a, b = loras.random_pair(96, 64)
        both = [np.stack([one * (i - 1) for i in range(4)]) for one in (a, b)]
        weight = file.tensors[up].dequantize()
        file.replace_tensor(up, weight + np.matmul(both[1], both[0]))
        file.write(tmp_path / "merged.gguf")
    with Model(tmp_path / "moe.gguf") as model, Context(model, **EXACT) as context:
        for n in (1, 2, 5):
            bad = [np.stack([one] * n) for one in (a, b)]
            with pytest.raises(AdapterError, match=r"is 64 x 96 x 4, but lora_a is"):
                Adapter(model, write({up: bad}))
        context.adapters = {Adapter(model, write({up: both})): 1.0}
        found = decode(context)
    with Model(tmp_path / "merged.gguf") as model, Context(model, **EXACT) as context:
        assert np.allclose(decode(context), found, atol=1e-3)


def test_embeddings_that_are_also_the_output(random_path, write, tmp_path):
    with Gguf.open(random_path("llama")) as file:
        file.remove_tensor("output.weight")
        file.write(tmp_path / "tied.gguf")
    path = write({"token_embd.weight": (N_EMBD, N_VOCAB)})
    with (
        Model(tmp_path / "tied.gguf") as model,
        pytest.raises(AdapterError, match="also uses for its output"),
    ):
        Adapter(model, path)


def test_files_that_are_not_adapters(llama, random_path, write, tmp_path):
    with pytest.raises(AdapterError, match=r"is not a LoRA adapter: it is a model: load it with"):
        Adapter(llama, random_path("llama"))
    with pytest.raises(ModelNotFoundError, match="no such file"):
        Adapter(llama, tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        Adapter(llama, tmp_path / "none")
    with pytest.raises(LoadError):
        Adapter(llama, tmp_path)
    for content in (b"", b"GGUF", b"no GGUF at all"):
        with pytest.raises(AdapterError, match="is not an adapter"):
            Adapter(llama, content)
    content = write({QUERY: (64, 64)}).read_bytes()
    with pytest.raises(AdapterError, match="is truncated"):
        Adapter(llama, content[:-100])
    for source in (None, 1.5, [1], io.StringIO("x")):
        with pytest.raises(TypeError):
            Adapter(llama, source)
    with pytest.raises(ArgumentError, match=r"a file descriptor must be .*, not -1"):
        Adapter(llama, -1)


def test_a_model_without_weights(random_path, write):
    path = write({QUERY: (64, 64)})
    with (
        Model(random_path("llama"), vocab_only=True) as model,
        pytest.raises(UnsupportedError, match="vocab_only"),
    ):
        Adapter(model, path)


def test_a_refused_assignment_changes_nothing(llama, context, random_path, write):
    path = write({QUERY: (64, 64)})
    adapter, closed = Adapter(llama, path), Adapter(llama, path)
    closed.close()
    with Model(random_path("llama")) as other:
        foreign = Adapter(other, path)
        context.adapters = {adapter: 0.5}
        expected = decode(context)
        for bad, error, match in (
            ({adapter: 1.0, foreign: 1.0}, AdapterError, "was loaded for"),
            ({adapter: 1.0, closed: 1.0}, ClosedError, "the Adapter is closed"),
            (
                {adapter: float("nan")},
                ArgumentError,
                "scale must be a finite 32-bit float",
            ),
            ({adapter: float("inf")}, ArgumentError, "finite"),
            ({adapter: 1e39}, ArgumentError, "finite"),
            ({adapter: "1"}, TypeError, "scale must be a number"),
            ({adapter: None}, TypeError, "scale must be a number"),
            ({"adapter": 1.0}, TypeError, "map each Adapter to its scale, not 'adapter'"),
            ([adapter], TypeError, "must be a mapping"),
            (adapter, TypeError, "must be a mapping"),
        ):
            with pytest.raises(error, match=match):
                context.adapters = bad
            assert context.adapters == {adapter: 0.5}
        assert np.array_equal(anew(context), expected)
        with pytest.raises(TypeError):
            context.adapters[adapter] = 2.0
        given = {adapter: 1.0}
        context.adapters = given
        given[adapter] = 3.0
        assert context.adapters == {adapter: 1.0}


def test_use_from_two_threads_is_refused(llama, context, write):
    adapter = Adapter(llama, write({QUERY: (64, 64)}))
    with context.exclusive:
        for name, value in (("adapters", {adapter: 1.0}), ("control_vector", None)):
            error = raised_in_thread(functools.partial(setattr, context, name, value))
            assert isinstance(error, BusyError)
    assert context.adapters == {}


def test_an_adapter_in_use_can_be_closed(llama, context, write):
    adapter = Adapter(llama, write({QUERY: (64, 64)}))
    objects = live_objects()
    base = decode(context)
    context.adapters = {adapter: 1.0}
    expected = anew(context)
    adapter.close()
    assert adapter.closed
    assert live_objects() == objects
    assert np.array_equal(anew(context), expected)
    assert list(context.adapters) == [adapter]
    with pytest.raises(ClosedError):
        adapter.ptr  # noqa: B018
    context.adapters = {}
    assert live_objects() == objects - 1
    assert np.array_equal(anew(context), base)


@pytest.mark.parametrize("order", ["mac", "mca", "amc", "acm", "cma", "cam"])
def test_every_order_of_closing(random_path, write, order):
    path = write({QUERY: (64, 64)})
    before = live_objects()
    model = Model(random_path("llama"))
    adapter, context = Adapter(model, path), Context(model, **EXACT)
    context.adapters = {adapter: 1.0}
    decode(context)
    objects = {"m": model, "a": adapter, "c": context}
    for one in order:
        objects[one].close()
    assert all(one.closed for one in objects.values())
    assert live_objects() == before  # although all of them are still referenced
    with pytest.raises(ClosedError):
        context.adapters  # noqa: B018
    with pytest.raises(ClosedError):
        Adapter(model, path)


def test_every_order_of_release(random_path, write, run_python):
    """Objects are freed when collected in cycles and at the exit of the interpreter."""
    done = run_python(
        """
        import gc, itertools, sys
        from llamacffi import Adapter, Batch, Context, Model
        batch = Batch(4)
        batch.add([5, 6, 7])
        def make():
            model = Model(sys.argv[1])
            adapter, context = Adapter(model, sys.argv[2]), Context(model, n_ctx=64, n_threads=1)
            context.adapters = {adapter: 1.0}
            context.decode(batch)
            return [model, adapter, context]
        for order in itertools.permutations(range(3)):
            objects = make()
            for i in order:
                objects[i] = None
        for _ in range(5):
            objects = make()
            objects.append(objects)
        del objects
        gc.collect()
        kept = make()
        kept.append(kept)
        print("done")
        """,
        random_path("llama"),
        write({QUERY: (64, 64)}),
    )
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


@pytest.mark.no_asan
def test_loading_and_releasing_many(random_path, write, run_python):
    done = run_python(
        """
        import os, sys
        from llamacffi import Adapter, Context, Model
        def rss():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        with Model(sys.argv[1]) as model, Context(model, n_ctx=64, n_threads=1) as context:
            for i in range(300):
                context.adapters = {Adapter(model, sys.argv[2]): 1.0}
                if i == 100:
                    before = rss()
            print(rss() - before)
        """,
        random_path("llama"),
        write({name: SHAPES[name] for name in SHAPES if name != "token_embd.weight"}),
    )
    assert done.stderr == ""
    assert int(done.stdout) < 4 << 20


def test_loading_and_freeing_while_others_compute(llama, write):
    path = write({QUERY: (64, 64)})
    mine = Adapter(llama, path)
    done, failed = threading.Event(), []

    def load():
        while not done.is_set():
            for one in [Adapter(llama, path) for _ in range(3)]:
                one.close()

    def compute():
        try:
            for _ in range(2):
                with Context(llama, **EXACT) as context:
                    for pos in range(6):
                        context.adapters = {mine: 1.0 + pos}
                        batch = Batch(1)
                        batch.add([5], pos)
                        context.decode(batch)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=compute) for _ in range(2)]
    loader = threading.Thread(target=load)
    for thread in (loader, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    loader.join()
    assert failed == []


@pytest.mark.parametrize(
    ("tokens", "start"),
    [
        ([], None),
        ([5], None),
        ([5, 6], 0),
        ([1, 5, 6, 2], 1),
        ([5, 6, 5, 6], 2),
        ([5, 5, 6], 1),  # a partial match, and then one that starts inside it
        ([6, 5], None),
        (np.array([1, 5, 6]), 1),
    ],
)
def test_where_an_activated_adapter_takes_effect(llama, write, tokens, start):
    adapter = Adapter(llama, write({QUERY: (64, 64)}, invocation=[5, 6]))
    assert adapter.invocation_start(tokens) == start
    assert Adapter(llama, write({QUERY: (64, 64)})).invocation_start(tokens) is None


def test_an_activated_adapter_keeps_the_memory_before_it(
    llama, context, random_path, write, tmp_path
):
    """The same as the merged model that continues from the base model's memory."""
    pairs = {f"blk.{i}.attn_k.weight": loras.random_pair(64, 64, i) for i in range(2)}
    adapter = Adapter(llama, write(pairs, invocation=[50, 51]))
    tokens = [*TOKENS, 50, 51, 7, 8]
    start = adapter.invocation_start(tokens)
    assert start == len(TOKENS)
    decode(context, tokens[:start])
    size = lib.llama_state_get_size(context.ptr)
    prefix = ffi.new("uint8_t[]", size)
    lib.llama_state_get_data(context.ptr, prefix, size)
    saved = context.save_state()
    context.adapters = {adapter: 1.0}
    found = decode(context, tokens[start:], start)

    changes = {name: b @ a for name, (a, b) in pairs.items()}
    merged = loras.merge(random_path("llama"), tmp_path / "merged.gguf", changes)
    with Model(merged) as other, Context(other, **EXACT) as expected:
        assert lib.llama_state_set_data(expected.ptr, prefix, size) == size
        assert np.allclose(decode(expected, tokens[start:], start), found, atol=1e-3)
        assert not np.allclose(anew(expected, tokens), found, atol=1e-2)

    # The base model computed the prefix, so any adapter can use it.
    context.adapters = {}
    context.load_state(saved)
    context.adapters = {adapter: 1.0}
    assert np.array_equal(decode(context, tokens[start:], start), found)
    with pytest.raises(StateError, match="computed with no adapters"):
        context.load_state(saved)


def test_damaged_files_never_crash(random_path, write, run_python):
    done = run_python(
        """
        import random, sys
        from pathlib import Path
        from llamacffi import Adapter, AdapterError, Batch, Context, LlamaError, LoadError, Model
        rng = random.Random(3)
        good = Path(sys.argv[2]).read_bytes()
        batch = Batch(4)
        batch.add([5, 6, 7])
        refused = loaded = 0
        with Model(sys.argv[1]) as model, Context(model, n_ctx=64, n_threads=1) as context:
            for n in range(600):
                bad = bytearray(good)
                if n % 5:
                    for _ in range(rng.randint(1, 3)):
                        at = rng.randrange(len(bad))
                        bad[at] = rng.choice([0, 1, 127, 255, bad[at] ^ (1 << rng.randrange(8))])
                else:
                    del bad[rng.randrange(len(bad)):]
                try:
                    adapter = Adapter(model, bad)
                except (AdapterError, LoadError):
                    refused += 1
                    continue
                loaded += 1
                context.adapters = {adapter: 1.0}
                context.memory.clear()
                context.decode(batch)
        print(refused, loaded)
        """,
        random_path("llama"),
        write({QUERY: (64, 64), DOWN: (64, 96)}, alpha=4.0, invocation=[5, 6]),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused, loaded = map(int, done.stdout.split())
    assert min(refused, loaded) > 100


def test_quantized_parts(llama, context, tmp_path):
    """Half-precision and block-quantized matrices work too."""
    random = np.random.default_rng(1)
    a, b = random.standard_normal((32, 64)), random.standard_normal((64, 32))
    found = []
    for kind in ("F32", "F16", "Q8_0"):
        path = tmp_path / f"{kind}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_string("general.type", "adapter")
        writer.add_string("adapter.type", "lora")
        qtype = gguf.GGMLQuantizationType[kind]
        for part, data in (("a", a), ("b", b)):
            raw = gguf.quants.quantize((data * 0.1).astype(np.float32), qtype)
            writer.add_tensor(f"{QUERY}.lora_{part}", raw, raw_dtype=qtype)
        loras.finish(writer)
        context.adapters = {Adapter(llama, path): 1.0}
        found.append(anew(context))
    assert np.allclose(found[0], found[1], atol=0.05)
    assert np.allclose(found[0], found[2], atol=0.2)
    assert not np.array_equal(found[0], found[2])
