"""Models on several devices: two servers, each in its own process."""

from __future__ import annotations

import pytest

from llamacffi import backend
from tests.facade.helpers import check_script

pytestmark = pytest.mark.skipif(
    not backend.capabilities().rpc, reason="this build has no RPC backend"
)

SETUP = """
import sys, warnings
import numpy as np
from llamacffi import *
from llamacffi import rpc

def logits(model):
    with Context(model, n_ctx=64, n_threads=1) as context:
        context.decode(Batch.from_tokens([1, 5, 9]))
        return context.logits()

def placed(**params):
    # Return the names of the devices and the fraction of the bytes that each holds.
    model = Model(sys.argv[1], **params)
    assert np.array_equal(logits(model), expected) or params.get("split_mode") == "tensor", params
    where = {name: 0 for name in names}
    for place, size in model.placement.items():
        for server, name in zip(servers, names):
            if server.endpoint in place:
                where[name] += size
    return [device.name for device in model.devices], [where[name] / model.size for name in names]

def refused(error, match, **params):
    try:
        Model(sys.argv[1], **params)
    except error as caught:
        assert match in str(caught), caught
    else:
        raise AssertionError(params)

expected = logits(Model(sys.argv[1], devices="none"))
servers = [RpcServer(n_threads=1), RpcServer(n_threads=1)]
names = [rpc.add_server(server.endpoint)[0].name for server in servers]
first, second = names
"""


@pytest.fixture
def client(run_python, random_path):
    """Run code in another process, which must succeed and print only ``ok``."""

    def run(code: str) -> None:
        check_script(run_python, SETUP, code, random_path("llama"))

    return run


def test_layers_go_to_the_given_devices(client):
    client("""
        assert placed()[0] == [first, second]
        assert placed(devices=[]) == ([], [0, 0])
        assert placed(devices=["CPU"]) == ([], [0, 0])
        assert placed(n_gpu_layers=0)[1] == [0, 0]
        used, (a, b) = placed(devices=[second])
        assert used == [second] and a == 0 and b > 0.7
        used, (a, b) = placed(devices=[device(first), second], tensor_split=[1, 0])
        assert used == [first, second] and a > 0.7 and b == 0
        _, (a, b) = placed(devices=[first, second], tensor_split=np.array([1, 2]))
        assert 0 < a < b
        _, (a, b) = placed(devices=[first], n_gpu_layers=1)
        assert 0 < a < 0.3
        refused(ArgumentError, "tensor_split has 3 parts, but there are 2 devices", devices=names,
                tensor_split=[1, 2, 3])
        for server in servers:
            server.close()
    """)


def test_one_device_of_several(client):
    client("""
        assert placed(split_mode="none")[0] == [first]
        assert placed(split_mode="none", main_gpu=1)[0] == [second]
        assert placed(split_mode="none", main_gpu=-1) == ([], [0, 0])
        refused(ArgumentError, "main_gpu must be at most 1, not 2", split_mode="none", main_gpu=2)
        refused(ArgumentError, "works only with split_mode='none'", main_gpu=1)
        refused(LoadError, "does not support split buffers", split_mode="row")
        used, _ = placed(split_mode="tensor")
        assert used == [first, second]
        with Model(sys.argv[1], split_mode="tensor") as model:
            try:
                model.save("saved.gguf")
            except UnsupportedError as error:
                assert "split_mode='tensor'" in str(error)
            else:
                raise AssertionError("saved")
        for server in servers:
            server.close()
    """)


def test_tensors_go_to_the_given_places(client):
    client("""
        _, whole = placed(devices=[first])
        _, (a, b) = placed(devices=[first], tensor_buft_overrides={"ffn_(up|down)": "CPU"})
        assert 0 < a < whole[0] and b == 0
        _, (a, b) = placed(tensor_buft_overrides=[("ffn_up", device(second)), ("ffn", first)])
        assert a > 0 and b > 0
        buffer_type = device(second).buffer_type
        _, (a, b) = placed(devices=names, tensor_split=[1, 0],
                           tensor_buft_overrides={r"blk\\.1\\.": buffer_type})
        assert 0.2 < b < 0.6
        refused(ArgumentError, "which is not one of the model's devices", devices=[first],
                tensor_buft_overrides={"ffn": second})
        with Model(sys.argv[1]) as model:
            model.save("saved.gguf")  # reads the memory of other processes
        assert np.array_equal(logits(Model("saved.gguf", devices=[])), expected)
        for server in servers:
            server.close()
    """)


def test_a_mixture_of_experts_with_its_experts_on_the_cpu(client):
    client("""
        with Gguf.new() as gguf:
            gguf["general.architecture"] = "qwen3moe"
            gguf["tokenizer.ggml.model"] = "no_vocab"
            for key, value in {
                "vocab_size": 96, "context_length": 64, "embedding_length": 64, "block_count": 3,
                "feed_forward_length": 64, "expert_feed_forward_length": 64, "expert_count": 4,
                "expert_used_count": 2, "attention.head_count": 2, "attention.head_count_kv": 2,
                "attention.key_length": 32, "attention.value_length": 32,
                "attention.layer_norm_rms_epsilon": 1e-5,
            }.items():
                gguf[f"qwen3moe.{key}"] = value
            seen = {}
            def fill(name, array):
                seed = sum(map(ord, name))
                array[...] = np.random.default_rng(seed).standard_normal(array.shape) * 0.1
                if "scale" in name:
                    array[...] = 1
                seen[name] = array.nbytes
            def remote(**params):
                # Return how many bytes are on the servers.
                with Model.from_gguf(gguf, fill, **params) as model:
                    values.append(logits(model))
                    return sum(size for place, size in model.placement.items() if "RPC" in place)
            values = []
            everything, none = remote(), remote(devices=[])
            experts = {name: size for name, size in seen.items()
                       if "_exps." in name and name.startswith("blk.")}
            assert none == 0 and everything > sum(experts.values()) > 0
            assert remote(cpu_moe=True) == everything - sum(experts.values())
            of_layer = [size for name, size in experts.items() if name.startswith("blk.0.")]
            assert remote(n_cpu_moe=1) == everything - sum(of_layer)
            assert remote(n_cpu_moe=100) == remote(cpu_moe=True)
            assert all(np.allclose(value, values[0], atol=1e-5) for value in values)
        for server in servers:
            server.close()
    """)
