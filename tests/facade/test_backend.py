"""The machine as the backends see it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamacffi import LoadError, backend


def test_the_processor_is_a_device_with_memory():
    (cpu,) = [device for device in backend.devices() if device.kind == "cpu"]
    assert cpu.backend == "CPU"
    assert cpu.backend in backend.backends()
    assert 0 < cpu.memory_free <= cpu.memory_total


def test_features_are_no_more_than_the_processor_has():
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or "avx" not in cpuinfo.read_text():
        pytest.skip("needs an x86 processor under Linux")
    flags = set(cpuinfo.read_text().split())
    features = backend.cpu_features()
    assert set(features.values()) <= {True, False}
    assert {name for name in ("avx", "avx2", "fma", "f16c", "bmi2") if features[name]} <= flags


def test_system_info_names_the_cpu_backend():
    assert "CPU :" in backend.system_info()


def test_physical_cores_are_no_more_than_may_be_used():
    assert 1 <= backend.physical_cores() <= (os.cpu_count() or 1)


def test_one_more_backend_by_its_file(tmp_path):
    library = backend.library_dir() / "libggml-rpc.so"
    if library.exists():
        assert backend.load_library(library) == "RPC"
    broken = tmp_path / "libggml-broken.so"
    broken.write_bytes(b"no library")
    for path in (broken, tmp_path / "missing.so"):
        with pytest.raises(LoadError, match=path.name):
            backend.load_library(path)
