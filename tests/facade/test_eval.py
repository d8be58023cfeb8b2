"""Seeing the compute graph: ``Context(..., cb_eval=callback)``."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

from llamacffi import (
    AbortedError,
    ClosedError,
    Context,
    ContextError,
    Model,
    TensorView,
    UnsupportedError,
    enums,
    ffi,
    lib,
)
from llamacffi.gguf.gguf import Gguf, quantize_array
from tests.facade.random_models import N_EMBD, N_FF, N_VOCAB
from tests.facade.test_context import batch_of

TEXT = [5, 17, 40, 3, 88, 21, 9]


class Collect:
    """Collects what some nodes are."""

    def __init__(self, *names):
        self.names = names
        self.found = {}
        self.asked = []

    def __call__(self, tensor, ask):
        if ask:
            self.asked.append(tensor.name)
            return tensor.name in self.names
        self.found[tensor.name] = tensor.to_numpy()
        return True


def test_nodes_are_shown(random_context):
    see = Collect("result_output", "result_embd_pooled", "ffn_out-0")
    context = random_context("llama", embeddings=True, cb_eval=see)
    context.decode(batch_of(TEXT))
    assert set(see.found) == set(see.names)
    np.testing.assert_array_equal(see.found["result_output"], context.logits_all())
    np.testing.assert_array_equal(see.found["result_embd_pooled"], context.embeddings_all())
    assert see.found["ffn_out-0"].shape == (len(TEXT), N_EMBD)
    assert len(see.asked) > 60


def test_properties_of_a_view(random_context):
    seen = {}

    def look(tensor, ask):
        if tensor.name == "ffn_gate-1" and not ask:
            weights, activations = tensor.sources
            seen.update(
                text=repr(tensor),
                op=tensor.op,
                type=tensor.type,
                shape=tensor.shape,
                nbytes=tensor.nbytes,
                name=weights.name,
                weights=weights.to_numpy(),
                activations=activations.to_numpy(),
                result=tensor.to_numpy(),
                same=tensor.ptr.src[0] == weights.ptr,
                none=weights.op,
            )
        return tensor.name == "ffn_gate-1"

    random_context("llama", cb_eval=look).decode(batch_of(TEXT, logits="all"))
    assert seen["op"] is enums.GgmlOp.MUL_MAT
    assert seen["none"] is enums.GgmlOp.NONE
    assert seen["type"] is enums.GgmlType.F32
    assert seen["shape"] == (len(TEXT), N_FF)
    assert seen["nbytes"] == 4 * len(TEXT) * N_FF
    assert seen["name"] == "blk.1.ffn_gate.weight"
    assert seen["same"]
    assert seen["text"] == f"<TensorView 'ffn_gate-1': MUL_MAT F32 ({len(TEXT)}, {N_FF})>"
    expected = seen["activations"] @ seen["weights"].T
    np.testing.assert_allclose(seen["result"], expected, atol=1e-4)


def test_results_are_those_without_a_callback(random_context):
    plain = random_context("llama")
    plain.decode(batch_of(TEXT))
    for answer in (True, False, None, 1, np.True_, np.False_):
        calls = []

        def see(tensor, ask, answer=answer, calls=calls):
            calls.append(ask)
            return answer if ask else None

        context = random_context("llama", cb_eval=see)
        context.decode(batch_of(TEXT))
        np.testing.assert_allclose(context.logits_all(), plain.logits_all(), atol=1e-5)
        assert calls.count(False) == (calls.count(True) if answer else 0)
    assert random_context("llama", cb_eval=None) is not None


def test_a_view_ends_with_its_call(random_context):
    kept = []

    def keep(tensor, ask):
        kept.extend([tensor, *tensor.sources])
        return True

    random_context("llama", cb_eval=keep).decode(batch_of(TEXT))
    for tensor in filter(None, kept):
        assert repr(tensor) == "<TensorView, no longer valid>"
        for use in ("name", "op", "type", "shape", "nbytes", "sources", "ptr"):
            with pytest.raises(ClosedError, match="only inside the callback"):
                getattr(tensor, use)
        with pytest.raises(ClosedError):
            tensor.to_numpy()


def test_data_are_there_when_they_are_computed(random_context):
    def read(tensor, ask):
        if ask:
            with pytest.raises(ContextError, match="not computed yet: return True"):
                tensor.to_numpy()
            assert tensor.shape
        return False

    random_context("llama", cb_eval=read).decode(batch_of(TEXT))


class Stop(Exception):
    """What the user raises."""


@pytest.mark.parametrize("when", ["asked", "computed", "last"])
@pytest.mark.parametrize("kind", ["llama", "mamba", "mimo2"])
def test_what_it_raises_is_raised_by_decode(random_context, kind, when):
    calls, armed = [], True
    node = "result_output" if when == "last" else "attn_norm-1"

    def fail(tensor, ask):
        calls.append(tensor.name)
        if armed and tensor.name == node and ask == (when == "asked"):
            raise Stop(node)
        return tensor.name == node

    context = random_context(kind, n_ubatch=4, cb_eval=fail)
    with pytest.raises(Stop) as caught:
        context.decode(batch_of(TEXT))
    failure = caught.value.__context__
    assert isinstance(failure, AbortedError)
    pos_max = context.memory.pos_max()
    assert failure.pos_max == {0: pos_max}
    # The first micro-batch was not finished, or it was, and then the second was not begun.
    assert pos_max == (3 if when == "last" and kind != "mamba" else None)
    with pytest.raises(IndexError):
        context.logits()
    assert calls.count(node) <= 2
    # It can go on.
    start = 0 if pos_max is None else pos_max + 1
    armed = False
    fresh = random_context(kind)
    context.decode(batch_of(TEXT[start:], pos=start))
    fresh.decode(batch_of(TEXT))
    np.testing.assert_allclose(context.logits(), fresh.logits(), atol=1e-4)


def test_it_may_stop_the_computation(random_context):
    stop = False

    def see(tensor, ask):
        return ask or not stop

    context = random_context("llama", n_ubatch=4, cb_eval=see)
    context.decode(batch_of(TEXT))
    stop = True
    with pytest.raises(AbortedError) as caught:
        context.decode(batch_of(TEXT, pos=len(TEXT)))
    assert caught.value.pos_max == {0: len(TEXT) - 1}
    stop = False
    context.decode(batch_of(TEXT, pos=len(TEXT)))
    fresh = random_context("llama")
    fresh.decode(batch_of(TEXT * 2))
    np.testing.assert_allclose(context.logits(), fresh.logits(), atol=1e-4)


@pytest.mark.parametrize("how", ["false", "raise"])
@pytest.mark.parametrize("kind", ["llama", "mamba"])
@pytest.mark.parametrize("nth", [0, 1, 2])
def test_a_device_that_cannot_be_stopped(random_context, kind, how, nth):
    """As on a GPU: C computes to the end, but the function is not called again."""
    seen, stop, graphs = [], [10**9], []

    def see(tensor, ask):
        if ask and (not seen or tensor.name == seen[0]):
            graphs.append(len(seen))
        seen.append(tensor.name)
        if len(seen) <= stop[0]:
            return True
        if how == "raise":
            raise KeyError("stop")
        return ask and len(seen) <= stop[0] + 1

    rehearsal = random_context(kind, n_ubatch=4, cb_eval=see)
    for k in range(4):
        rehearsal.decode(batch_of(TEXT[:4], pos=4 * k, logits="last" if k in (0, 3) else "none"))
    where = graphs[nth + 1] + 20
    seen.clear(), graphs.clear()
    context = random_context(kind, n_ubatch=4, cb_eval=see)
    lib.llama_set_abort_callback(context.ptr, ffi.NULL, ffi.NULL)
    context.decode(batch_of(TEXT[:4], logits="last"))
    stop[0] = where
    with pytest.raises(KeyError if how == "raise" else AbortedError):
        context.decode(batch_of((TEXT * 2)[:12], pos=4, logits="last"))
    assert len(graphs) == nth + 2
    assert len(seen) <= stop[0] + 2
    stop[0] = 10**9
    end = context.memory.pos_max()
    assert end == (None if kind == "mamba" else 3 + 4 * nth)
    fresh = random_context(kind, n_ubatch=4)
    text = TEXT[:4] + (TEXT * 2)[:12]
    context.decode(batch_of(text[0 if end is None else end + 1 :], pos=(end or -1) + 1))
    fresh.decode(batch_of(text[:4]))
    fresh.decode(batch_of(text[4:], pos=4))
    np.testing.assert_allclose(context.logits(), fresh.logits(), atol=1e-4)


def test_an_encoder_too(random_context):
    see = Collect("result_embd_pooled")
    context = random_context("bert", embeddings=True, pooling_type="none", cb_eval=see)
    context.encode(batch_of(TEXT))
    np.testing.assert_array_equal(see.found["result_embd_pooled"], context.embeddings_all())
    t5 = random_context("t5", cb_eval=lambda tensor, ask: ask or tensor.name != "ffn_out-1")
    with pytest.raises(AbortedError):
        t5.encode(batch_of(TEXT))
    assert t5.causal_attn


def test_a_callback_may_use_llama_cpp(random_context, model):
    """Other objects, not this context: that one is in use."""
    texts, errors = [], []

    def see(tensor, ask):
        if not texts:
            texts.append(model.vocab.tokenize("The llama"))
            for use in (
                context.logits,
                context.memory.clear,
                lambda: context.decode(batch_of([1])),
            ):
                try:
                    use()
                except RuntimeError as error:
                    errors.append(type(error).__name__)

    context = random_context("llama", cb_eval=see)
    context.decode(batch_of(TEXT))
    assert len(texts[0]) > 1
    assert errors == ["BusyError"] * 3


def test_a_callback_that_holds_its_context(random_path):
    """Is garbage like any other cycle."""
    with Model(random_path("llama")) as model:

        class Holder:
            def see(self, tensor, ask):
                return False

        holder = Holder()
        holder.context = Context(model, n_ctx=256, n_threads=1, cb_eval=holder.see)
        holder.context.decode(batch_of(TEXT))
        alive = weakref.ref(holder.context)
        del holder
        gc.collect()
        assert alive() is None


def test_raw_calls_after_the_context_is_gone(random_path):
    """Whoever has the pointer keeps the C object; the callback is the context's."""
    calls = []
    with Model(random_path("llama")) as model:
        context = Context(
            model, n_ctx=256, n_threads=1, cb_eval=lambda tensor, ask: calls.append(tensor)
        )
        ptr = context.ptr
        del context
        tokens = ffi.new("llama_token[]", TEXT)
        assert lib.llama_decode(ptr, lib.llama_batch_get_one(tokens, len(TEXT))) == 0
        assert len(ffi.unpack(lib.llama_get_logits_ith(ptr, -1), N_VOCAB)) == N_VOCAB
        assert calls == []
        del ptr


def test_cancel_from_a_callback(random_context):
    """As from any thread."""

    def see(tensor, ask):
        if tensor.name == "attn_norm-1" and not ask:
            thread = threading.Thread(target=context.cancel)
            thread.start()
            thread.join()
        return tensor.name == "attn_norm-1"

    context = random_context("llama", cb_eval=see)
    with pytest.raises(AbortedError):
        context.decode(batch_of(TEXT))


@pytest.mark.parametrize("value", [0, "print", ffi.NULL])
def test_only_python_functions(model, value):
    with pytest.raises(TypeError, match="cb_eval must be a Python function"):
        Context(model, cb_eval=value)
    with pytest.raises(TypeError, match="give the data to cb_eval"):
        Context(model, cb_eval_user_data=ffi.NULL)


class Tensors:
    """Tensors of ggml's own, with data in main memory."""

    def __init__(self):
        params = ffi.new("struct ggml_init_params *", {"mem_size": 2**20, "no_alloc": True})
        self.ggml = lib.ggml_init(params[0])

    def place(self):
        cpu = lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU)
        kind = lib.ggml_backend_dev_buffer_type(cpu)
        self.buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(self.ggml, kind)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        lib.ggml_backend_buffer_free(self.buffer)
        lib.ggml_free(self.ggml)


def view(ptr, computed=True):
    from llamacffi.backend.tensor import Call

    return TensorView(ptr, Call(computed))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64", "Q4_0"])
def test_types_and_strides(model, kind):
    """Also of views that are permuted, or a part."""
    number = enums.GgmlType[kind]
    values = np.arange(2 * 3 * 64).reshape(2, 3, 64) % 100 - 50
    data = quantize_array(values.astype(np.float32), kind) if kind[0] in "BQ" else None
    plain = {"F32": "f4", "F16": "f2", "F64": "f8"}.get(
        kind, f"i{int(kind[1:] or 8) // 8}" if kind[0] == "I" else ""
    )
    data = values.astype(plain) if data is None else data
    with Tensors() as tensors:
        ptr = lib.ggml_new_tensor_3d(tensors.ggml, number, 64, 3, 2)
        lib.ggml_set_name(ptr, b"some")
        row, plane = ptr.nb[1], ptr.nb[2]
        part = lib.ggml_view_2d(tensors.ggml, ptr, 64, 2, plane, row)  # the second row of each
        turned = lib.ggml_permute(tensors.ggml, ptr, 0, 2, 1, 3)
        one = lib.ggml_view_1d(tensors.ggml, ptr, 64, 0)
        tensors.place()
        raw = np.ascontiguousarray(data)
        lib.ggml_backend_tensor_set(ptr, ffi.from_buffer(raw), 0, raw.nbytes)
        whole = view(ptr).to_numpy()
        assert whole.shape == view(ptr).shape == (2, 3, 64)
        assert whole.dtype == (np.float32 if kind[0] in "BQ" else data.dtype)
        np.testing.assert_allclose(whole, values, atol=7 if kind == "Q4_0" else 0.3)
        np.testing.assert_array_equal(view(part).to_numpy(), whole[:, 1])
        np.testing.assert_array_equal(view(turned).to_numpy(), whole.transpose(1, 0, 2))
        np.testing.assert_array_equal(view(one).to_numpy(), whole[0, 0])
        if kind == "F32":
            flipped = lib.ggml_permute(tensors.ggml, ptr, 1, 0, 2, 3)
            flipped.buffer = ptr.buffer
            np.testing.assert_array_equal(view(flipped).to_numpy(), whole.transpose(0, 2, 1))


def test_a_tensor_without_memory(model):
    with Tensors() as tensors:
        ptr = lib.ggml_new_tensor_1d(tensors.ggml, lib.GGML_TYPE_F32, 4)
        with pytest.raises(UnsupportedError, match="has no buffer"):
            view(ptr).to_numpy()
        tensors.place()


def test_weights_that_were_repacked(random_path, tmp_path):
    """llama.cpp would call a function that is not there."""
    path = tmp_path / "q4_0.gguf"
    with Gguf.open(random_path("llama")) as gguf:
        for name, tensor in list(gguf.tensors.items()):
            if "ffn" in name and "norm" not in name:
                gguf.replace_tensor(name, tensor.data, type="q4_0")
        gguf.write(path)
    told = {}

    def look(tensor, ask):
        if tensor.name == "ffn_up-0" and not ask:
            try:
                told["data"] = tensor.sources[0].to_numpy()
            except UnsupportedError as error:
                told["error"] = str(error)
        return tensor.name == "ffn_up-0"

    for extra in (True, False):
        told.clear()
        with Model(path, use_extra_bufts=extra) as model:
            Context(model, n_ctx=256, n_threads=1, cb_eval=look).decode(batch_of(TEXT))
        assert len(told) == 1
        if not extra:
            assert told["data"].shape == (N_FF, N_EMBD)
        else:
            assert "data" in told or "use_extra_bufts=False" in told["error"]
