"""The machine as the backends see it."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from pathlib import Path

import pytest

import llamacffi
from llamacffi import BackendUnavailableError, LibraryNotFoundError, LoadError, backend, ffi, lib
from llamacffi.backend.cores import _quotas


def test_the_processor_is_a_device_with_memory():
    (cpu,) = [device for device in backend.devices() if device.kind == "cpu"]
    assert cpu.backend == "CPU"
    assert cpu.backend in backend.backends()
    memory = cpu.memory()
    assert 0 < memory.free <= memory.total == cpu.memory_total
    assert 0 < cpu.memory_free <= memory.total
    assert cpu.ptr == lib.ggml_backend_dev_by_type(lib.GGML_BACKEND_DEVICE_TYPE_CPU)
    assert llamacffi.device("CPU") == cpu
    assert llamacffi.device("cpu") == cpu  # as llama.cpp's own programs
    assert hash(cpu) == hash(llamacffi.device("CPU"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        cpu.name = "GPU"


def test_capabilities_of_a_device():
    cpu = llamacffi.device("CPU")
    props = ffi.new("struct ggml_backend_dev_props *")
    lib.ggml_backend_dev_get_props(cpu.ptr, props)
    assert {"async", "host_buffer", "buffer_from_host_ptr", "events"} <= set(cpu.caps)
    assert all(getattr(props.caps, name) == value for name, value in cpu.caps.items())
    assert cpu.device_id is None


def test_where_a_device_keeps_tensors():
    cpu = llamacffi.device("CPU")
    buffer_type = cpu.buffer_type
    assert (buffer_type.name, buffer_type.is_host, buffer_type.max_size) == ("CPU", True, None)
    assert buffer_type.ptr == lib.ggml_backend_cpu_buffer_type()
    assert buffer_type.alignment == lib.ggml_backend_buft_get_alignment(buffer_type.ptr) > 0
    assert cpu.host_buffer_type is None
    extra = cpu.extra_buffer_types
    assert all(kind.device == "CPU" and not kind.is_host for kind in extra)
    assert ("REPACK" in backend.features()) == ("CPU_REPACK" in [kind.name for kind in extra])
    known = llamacffi.buffer_types()
    assert {buffer_type, *extra} <= set(known)
    assert len({kind.ptr for kind in known}) == len(known)


@pytest.mark.parametrize("name", ["abacus", "", "CPU\0", "CP\udce9"])
def test_unknown_names(name):
    for look_up in (llamacffi.device, backend.features, backend.unload):
        with pytest.raises(BackendUnavailableError, match=r"there is no .*; available: .*CPU"):
            look_up(name)
    for look_up in (llamacffi.device, backend.features, backend.unload):
        with pytest.raises(TypeError):
            look_up(None)


def test_features_are_those_of_the_cpu():
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or "avx" not in cpuinfo.read_text():
        pytest.skip("needs an x86 processor under Linux")
    flags = set(cpuinfo.read_text().split())
    features = backend.cpu_features()
    assert set(features.values()) <= {True, False}
    assert {name for name in ("avx", "avx2", "fma", "f16c", "bmi2") if features[name]} <= flags
    assert features["avx2"] == ("avx2" in flags), "the backend was built for another processor"


def test_features_of_a_backend():
    features = backend.features()
    assert features == backend.features("cpu")
    assert {name.lower() for name, has in backend.cpu_features().items() if has} <= {
        name.lower() for name in features
    }
    info = backend.system_info()
    assert "CPU : " in info
    assert all(f"{name} = {value}" in info for name, value in features.items())
    assert backend.features(next(iter({*backend.backends()} - {"CPU"}), "CPU")) is not None


def test_capabilities_match_llama_cpp():
    can = llamacffi.capabilities()
    for name in ("mmap", "mlock", "gpu_offload", "rpc"):
        assert getattr(can, name) is bool(getattr(lib, f"llama_supports_{name}")())
    for name in ("max_devices", "max_parallel_sequences", "max_tensor_buft_overrides"):
        assert getattr(can, name) == getattr(lib, f"llama_{name}")() > 0
    assert can.max_threads == lib.GGML_MAX_N_THREADS
    assert can.rpc == ("RPC" in backend.backends())


def test_the_clock_counts_microseconds():
    before = time.perf_counter()
    clock, began = backend.time_us(), time.perf_counter()
    while time.perf_counter() - began < 0.01:
        pass
    ended, clock = time.perf_counter(), backend.time_us() - clock
    after = time.perf_counter()
    assert (ended - began) * 0.99e6 <= clock <= (after - before) * 1.01e6


def test_physical_cores_are_at_most_the_usable_ones():
    assert 1 <= backend.physical_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, []),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, [2.5]),
        ("0::/a/b\n", {"cpu.max": "150000 100000\n", "a/b/cpu.max": "50000 100000\n"}, [0.5, 1.5]),
        ("0::/outside\n", {"cpu.max": "400000 100000\n"}, [4.0]),
        ("0::/../../x\n", {"cpu.max": "100000 100000\n"}, [1.0]),
        ("0::/\n", {"cpu.max": "?\n"}, []),
        (
            "9:memory:/\n3:cpu,cpuacct:/a\n",
            {
                "cpu/a/cpu.cfs_quota_us": "300000\n",
                "cpu/a/cpu.cfs_period_us": "100000\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            [3.0],
        ),
        ("", {}, []),
    ],
)
def test_quotas_of_containers(tmp_path, membership, files, expected):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(membership)
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert list(_quotas(tmp_path)) == expected


def test_this_container_grants_its_cores():
    quota = min(_quotas(Path("/")), default=math.inf)
    assert backend.physical_cores() <= max(1, quota)


def test_one_more_backend_by_its_file(tmp_path, monkeypatch):
    library = llamacffi.library_dir() / "libggml-rpc.so"
    before = backend.backends()
    if library.exists():
        assert backend.load_library(library) == "RPC"
        monkeypatch.chdir(library.parent)
        assert backend.load_library(library.name) == "RPC"
    assert backend.backends() == before  # it was there already
    broken = tmp_path / "libggml-broken.so"
    broken.write_bytes(b"no library")
    with pytest.raises(LoadError, match=broken.name):
        backend.load_library(broken)
    for path in (tmp_path / "missing.so", tmp_path, "libc.so.6", "a\0b"):
        with pytest.raises(LibraryNotFoundError, match="there is no such file") as caught:
            backend.load_library(path)
        assert isinstance(caught.value, FileNotFoundError)


def test_a_library_that_is_not_a_backend():
    for name in ("libggml-base.so", "libllama.so"):
        with pytest.raises(LoadError, match=name):
            backend.load_library(llamacffi.library_dir() / name)


def test_unloading(run_python, demo_path):
    result = run_python(
        """
        import gc, sys
        from llamacffi import *
        from llamacffi import backend

        def refused(name, why):
            try:
                backend.unload(name)
            except UnsupportedError as error:
                assert why in str(error), error
            else:
                raise AssertionError(name)

        refused("CPU", "llama.cpp needs it")
        if "RPC" in backend.backends():
            model = Model(sys.argv[1])
            refused("RPC", "1 C objects are alive")
            model.close()
            backend.unload("RPC")
            assert "RPC" not in backend.backends()
            assert not capabilities().rpc
            for call in (RpcServer, lambda: rpc.add_server("127.0.0.1:1")):
                try:
                    call()
                except BackendUnavailableError as error:
                    assert "no RPC backend" in str(error), error
                else:
                    raise AssertionError(call)
            assert backend.load_library(library_dir() / "libggml-rpc.so") == "RPC"
            assert capabilities().rpc
        with Model(sys.argv[1]) as model, Context(model, n_ctx=64, n_threads=1) as context:
            batch = Batch(1)
            batch.add([1])
            context.decode(batch)
        print("ok")
        """,
        demo_path,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "ok\n", ""), result


def test_a_device_of_an_unloaded_backend():
    gone = dataclasses.replace(llamacffi.device("CPU"), _ptr=ffi.cast("ggml_backend_dev_t", 64))
    for ask in (lambda: gone.ptr, gone.memory, lambda: gone.caps, lambda: gone.extra_buffer_types):
        with pytest.raises(BackendUnavailableError, match="was unloaded"):
            ask()


def test_numa_is_chosen_once(run_python, demo_path):
    result = run_python(
        """
        import sys
        from llamacffi import *

        def refused(error, strategy):
            try:
                numa_init(strategy)
            except error as raised:
                return str(raised)
            raise AssertionError(strategy)

        with Model(sys.argv[1]) as model:
            assert "before loading the first model" in refused(UnsupportedError, "distribute")
        assert "DISTRIBUTE" in refused(ArgumentError, "everywhere")
        refused(ArgumentError, "count")
        refused(ArgumentError, 17)
        refused(TypeError, None)
        numa_init(enums.GgmlNumaStrategy.DISTRIBUTE)
        numa_init("distribute")
        with Model(sys.argv[1]) as model, Context(model, n_ctx=64, n_threads=2) as context:
            numa_init(lib.GGML_NUMA_STRATEGY_DISTRIBUTE)
            assert "another one" in refused(UnsupportedError, "disabled")
            batch = Batch(1)
            batch.add([1])
            context.decode(batch)
        print("ok")
        """,
        demo_path,
    )
    assert (result.returncode, result.stdout) == (0, "ok\n"), result


def test_numa_can_be_off(run_python):
    """It is so by default, and stays so."""
    code = """
        import llamacffi
        llamacffi.numa_init("disabled")
        try:
            llamacffi.numa_init("isolate")
        except llamacffi.UnsupportedError:
            print(llamacffi.lib.ggml_is_numa())
    """
    assert run_python(code).stdout == "False\n"
