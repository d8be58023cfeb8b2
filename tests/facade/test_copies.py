"""What copy and pickle refuse, and what the error advises."""

from __future__ import annotations

import copy
import pickle

import pytest

import llamacffi
from llamacffi import (
    Adapter,
    Batch,
    Candidates,
    Gguf,
    GgufTensor,
    Greedy,
    RpcServer,
    TensorView,
    Threadpool,
    devices,
    generate,
)
from llamacffi._core.ownership import Pointer
from llamacffi._core.unique import Unique


def test_what_stands_for_memory_of_c_is_not_copied(context, chain):
    context.decode(Batch.from_tokens([5, 6]))
    things = {
        "Context": (context, "save_state"),
        "Batch": (Batch(4), "add"),
        "SamplerChain": (chain(Greedy()), "clone"),
        "Model": (context.model, "load the file again"),
        "Vocab": (context.model.vocab, "part of its Model: .*vocab_only=True"),
        "Memory": (context.memory, "part of its Context: .*load_state"),
        "Candidates": (Candidates([0.0, 1.0]), r"Candidates\(candidates.logit, ids="),
        "Snapshot": (context.snapshot(), "save_state"),
        "Generation": (generate(context, "The"), "generate"),
        "Device": (devices()[0], "devices"),
        "BufferType": (devices()[0].buffer_type, "buffer_types"),
        "Gguf": (Gguf.new(), r"Gguf.copy\(\) makes another.*to_bytes"),
        "Threadpool": (Threadpool(1), "threads of this process: create another"),
    }
    public = {name: getattr(llamacffi, name) for name in llamacffi.__all__}
    kinds = {name for name, one in public.items() if isinstance(one, type) and is_unique(one)}
    assert kinds <= {*things, *ELSEWHERE}
    for name, (thing, advice) in things.items():
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(
                TypeError, match=rf"^an? {name} cannot be copied or pickled.*{advice}"
            ):
                duplicate(thing)


# Those whose objects are not made here; what they advise is theirs all the same.
ELSEWHERE = {
    "GgufTensor": GgufTensor,
    "Adapter": Adapter,
    "RpcServer": RpcServer,
    "TensorView": TensorView,
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_each_advises_something_of_its_own(name):
    assert ELSEWHERE[name]._instead != Unique._instead


def is_unique(kind):
    """Return whether objects of a class are refused."""
    return issubclass(kind, (Unique, Pointer))


def test_a_tensor_of_a_file_is_copied_over_the_same_data(demo_path):
    with Gguf.open(demo_path) as gguf:
        tensor = gguf.tensors["output.weight"]
        assert copy.copy(tensor).data.tobytes() == tensor.data.tobytes()
        for duplicate in (copy.deepcopy, pickle.dumps):
            with pytest.raises(
                TypeError, match=r"^a GgufTensor cannot .*in an open.*data.copy\(\)"
            ):
                duplicate(tensor)


def test_a_subclass_may_say_how_to_make_another(model):
    class Mine(Batch):
        def __reduce__(self):
            return Mine, (self.capacity,)

    for duplicate in (copy.copy, lambda one: one.__reduce_ex__(4)[0](3)):
        assert duplicate(Mine(3)).capacity == 3
