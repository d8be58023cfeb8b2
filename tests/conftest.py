"""What the tests share: the built-in model, a leak check after each test, and subprocesses."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.timing import HANGS

ROOT = Path(__file__).parent.parent

# Whether the tests run under AddressSanitizer: ``make asan``.
ASAN = "libasan" in os.environ.get("LD_PRELOAD", "")
# How long an example takes is a matter of the machine, and of what else runs there.
hypothesis.settings.register_profile(
    "any machine",
    hypothesis.settings.default,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any machine")


# What keeps the backends of GPUs from finding one.
HIDDEN = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "HIP_VISIBLE_DEVICES": "-1",
    "GGML_VK_VISIBLE_DEVICES": "",
    "GGML_METAL_DEVICES": "0",
    "ONEAPI_DEVICE_SELECTOR": "opencl:cpu",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that chooses where models compute."""
    parser.addoption(
        "--device",
        metavar="NAME",
        help="compute on this device, such as CUDA0, where tests use the shared models of the "
        "facade; RPC is a server on this machine.  Without it GPUs are hidden",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Know the markers, hide GPUs, and let Ctrl-C be heard."""
    config.addinivalue_line("markers", "no_asan: cannot pass under AddressSanitizer")
    config.addinivalue_line("markers", "processor: is about the processor, not --device")
    if config.getoption("--device") is None:
        os.environ.update(HIDDEN)
    # A shell lets what it starts in the background ignore Ctrl-C, and so would every process here.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip those there; and refuse names that are others each time."""
    device = config.getoption("--device")
    for item in items:
        if re.search(r" at 0x[0-9a-f]{6,}", item.nodeid):
            raise pytest.UsageError(f"{item.nodeid} has an address in its name: give it ids=")
        if ASAN and item.get_closest_marker("no_asan"):
            item.add_marker(pytest.mark.skip(reason="not under AddressSanitizer"))
        if device is not None and item.get_closest_marker("processor"):
            item.add_marker(pytest.mark.skip(reason="about the processor"))


@pytest.fixture(scope="session")
def place(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """The parameters of models that compute where ``--device`` says."""
    from llamacffi import RpcServer, device, rpc

    name = request.config.getoption("--device")
    if name is None:
        yield {}
    elif name == "RPC":
        with RpcServer(n_threads=1) as server:
            yield {"devices": rpc.add_server(server.endpoint)}
    else:
        yield {"devices": [device(name)]}


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's directory."""
    return ROOT


@pytest.fixture(scope="session")
def llama_cpp(root: Path) -> Path:
    """The pinned llama.cpp tree, or the one that LLAMACFFI_LLAMA_CPP names."""
    from ffigen.vendor import ensure_tree

    return ensure_tree(root).path


@pytest.fixture(scope="session")
def demo_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh file of the built-in model."""
    from llamacffi import demo

    path = tmp_path_factory.mktemp("demo") / "demo.gguf"
    demo.write(path)
    return path


@pytest.fixture(scope="session")
def alive() -> dict[str, int]:
    """How many C objects there were when the last test was over."""
    return {"objects": 0}


@pytest.fixture(autouse=True)
def no_leaks(alive: dict[str, int]) -> Iterator[None]:
    """Every C object that a test makes is freed by its end.

    Garbage is collected only where their number changed: that takes up to a second with the syntax
    trees of all headers in memory.
    """
    from llamacffi._core.ownership import live_objects

    if live_objects() != alive["objects"]:
        gc.collect()
    before = live_objects()
    yield
    if live_objects() != before:
        gc.collect()
    alive["objects"] = live_objects()
    assert alive["objects"] == before


Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_python(tmp_path: Path) -> Script:
    """Run Python code in a process of its own, so that a crash is a result and not the end.

    Returns:
        A function that takes the code (dedented), arguments for it and options for
        `subprocess.run`; the process runs with ``-X dev`` and in an empty directory.
    """

    def run(code: str, *args: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-X", "dev", "-c", textwrap.dedent(code), *map(str, args)]
        settings = {"capture_output": True, "text": True, "timeout": HANGS, "cwd": tmp_path}
        return subprocess.run(command, check=False, **{**settings, **options})  # type: ignore[call-overload, no-any-return]

    return run
