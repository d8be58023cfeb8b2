"""The address of every object that has a `ptr`, for code that does not know CFFI."""

from __future__ import annotations

import ctypes

import pytest

import llamacffi
from llamacffi import (
    Adapter,
    Batch,
    Candidates,
    ClosedError,
    Context,
    Gguf,
    Greedy,
    Model,
    SamplerChain,
    Threadpool,
    demo,
    ffi,
)
from llamacffi._core.ownership import Handle, Pointer
from tests.facade import loras


@pytest.fixture
def objects(demo_path, tmp_path):
    """One of each kind."""
    shape = len(demo.vocabulary()), demo.width()
    lora = loras.write_lora(tmp_path / "lora.gguf", {"output.weight": shape})
    with Model(demo_path) as model, Context(model, n_ctx=64, n_threads=1) as context:
        batch = Batch.from_tokens([1, 2])
        context.decode(batch)
        others = [Candidates.from_context(context), SamplerChain(Greedy()), Adapter(model, lora)]
        opened = [Gguf.open(demo_path), Threadpool(1), llamacffi.devices()[0]]
        made = [model, context, model.vocab, context.memory, batch, *others, *opened]
        yield made
        for one in made:
            if isinstance(one, Handle | SamplerChain):
                one.close()


def test_the_address_is_that_of_ptr(objects):
    kinds = {type(one) for one in objects}
    assert {"Model", "Context", "Vocab", "Memory", "Batch"} <= {kind.__name__ for kind in kinds}
    for one in objects:
        assert isinstance(one.address, int)
        assert one.address == int(ffi.cast("uintptr_t", one.ptr)) != 0


def test_all_that_has_a_ptr_has_an_address():
    classes = [one for one in vars(llamacffi).values() if isinstance(one, type)]
    classes += [getattr(llamacffi, name) for name in llamacffi.__all__]
    with_ptr = {one for one in classes if isinstance(one, type) and hasattr(one, "ptr")}
    assert {one for one in with_ptr if not issubclass(one, Pointer)} == set()
    assert len(with_ptr) >= 12


def test_what_is_closed_has_none(objects):
    for one in objects:
        if isinstance(one, Handle | SamplerChain):
            one.close()
            with pytest.raises(ClosedError):
                one.address  # noqa: B018
    for name in ("Vocab", "Memory"):  # those of what is closed
        (one,) = (one for one in objects if type(one).__name__ == name)
        with pytest.raises(ClosedError):
            one.address  # noqa: B018


def test_a_tensor_has_one_while_it_is_seen(demo_path):
    seen = []

    def see(tensor, ask):
        if not ask:
            seen.append((tensor, tensor.address == int(ffi.cast("uintptr_t", tensor.ptr))))
        return True

    with Model(demo_path) as model, Context(model, n_ctx=64, n_threads=1, cb_eval=see) as context:
        context.decode(Batch.from_tokens([1]))
    tensor, same = seen[0]
    assert same
    with pytest.raises(ClosedError):
        tensor.address  # noqa: B018


def test_ctypes_can_read_what_is_there():
    batch = Batch.from_tokens([5, 6, 7])
    assert ctypes.c_int32.from_address(batch.address).value == len(batch)
