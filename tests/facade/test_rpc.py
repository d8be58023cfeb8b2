"""Servers that lend devices: real ones, in processes of their own."""

from __future__ import annotations

import gc
import os
import re
import socket
import subprocess
import sys
import time

import pytest

from llamacffi import ArgumentError, BackendUnavailableError, RpcServer, backend, rpc
from tests.facade.helpers import check_script
from tests.timing import HANGS

pytestmark = pytest.mark.skipif(
    not backend.capabilities().rpc, reason="this build has no RPC backend"
)

SETUP = """
import gc, socket, sys, threading
from llamacffi import *
from llamacffi import backend, rpc

def tokens(**params):
    with Model(sys.argv[1], **params) as model, Context(model, n_ctx=64, n_threads=1) as context:
        generation = generate(context, "The", max_tokens=8, sampler=SamplerChain(Greedy()))
        return [token.id for token in generation]
"""


@pytest.fixture
def client(run_python, demo_path):
    """Run code that must succeed and print only ``ok``, so this process is never a client."""

    def run(code: str) -> None:
        check_script(run_python, SETUP, code, demo_path)

    return run


def test_a_model_on_a_server_says_the_same(client):
    client("""
        expected = tokens(devices="none")
        with RpcServer(n_threads=1) as server:
            (remote,) = rpc.add_server(server.endpoint)
            assert remote in devices() and device(remote.name) == remote
            assert (remote.backend, remote.kind) == ("RPC", "gpu")
            assert remote.description == server.endpoint
            assert 0 < remote.memory_free <= remote.memory_total
            assert remote.caps["async"] and not remote.caps["host_buffer"]
            assert remote.device_id is None
            assert server.endpoint in remote.buffer_type.name
            assert remote.buffer_type.device == remote.name and not remote.buffer_type.is_host
            assert remote.buffer_type in buffer_types()
            assert rpc.add_server(server.endpoint) == [remote]
            assert tokens(devices=[remote], n_gpu_layers=99) == expected
            assert tokens() == expected  # where it is used by default
            gc.collect()
            try:
                backend.unload("RPC")
            except UnsupportedError as error:
                assert "after add_server()" in str(error)
            else:
                raise AssertionError("unloaded")
        assert server.closed
        server.close()
        assert remote in devices()  # known, but gone
        for ask in (remote.memory, lambda: remote.caps, lambda: remote.memory_free):
            try:
                ask()
            except BackendUnavailableError as error:
                assert "RPC0 does not respond" in str(error), error
            else:
                raise AssertionError(ask)
    """)


def test_a_server_in_use_is_not_closed(client):
    client("""
        with RpcServer(n_threads=1) as server:
            remote = rpc.add_server(server.endpoint)
            model = Model(sys.argv[1], devices=remote)
            try:
                server.close()
            except UnsupportedError as error:
                assert "1 C objects" in str(error), error
            assert not server.closed
            try:
                with server:
                    raise KeyError
            except KeyError:
                assert not server.closed
            model.close()
        assert server.closed
        # And one that is never closed ends after what uses it.
        left = RpcServer(n_threads=1)
        model = Model(sys.argv[1], devices=rpc.add_server(left.endpoint))
        context = Context(model, n_ctx=64, n_threads=1)
    """)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_in_use_that_nobody_refers_to(client, host):
    """It keeps running, since models can still be loaded on its devices."""
    client(f"""
        try:
            with RpcServer(n_threads=1) as server:
                endpoint = server.endpoint.replace("127.0.0.1", "{host}")
                model = Model(sys.argv[1], devices=rpc.add_server(endpoint))
        except UnsupportedError as error:
            assert "may still be in use" in str(error), error
        else:
            raise AssertionError("closed")
        server = None
        gc.collect()
        with Context(model, n_ctx=64, n_threads=1) as context:
            assert generate(context, "The", max_tokens=2).text()
        model.close()
    """)


@pytest.mark.parametrize("first", ["", "model = Model(sys.argv[1], devices='none')"])
def test_a_server_in_use_at_the_exit(client, first):
    """It stops after the models on it are gone, in whatever order they were created."""
    client(f"""
        {first or "pass"}
        server = RpcServer(n_threads=1)
        remote = rpc.add_server(server.endpoint)
        context = Context(Model(sys.argv[1], devices=remote), n_ctx=64, n_threads=1)
    """)


def test_a_server_of_others_ends_with_its_object():
    server = RpcServer(n_threads=1)
    host, port = server.endpoint.split(":")
    del server
    gc.collect()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port))).close()


def test_the_death_of_a_server_is_the_death_of_its_clients(run_python, demo_path):
    """As documented, this process cannot catch it."""
    with RpcServer(n_threads=1) as server:
        script = """
            model = Model(sys.argv[1], devices=rpc.add_server(sys.argv[2]))
            context = Context(model, n_ctx=64, n_threads=1)
            print("ready", flush=True)
            sys.stdin.readline()
            batch = Batch(1)
            batch.add([1])
            context.decode(batch)
        """
        code = "\n".join([SETUP, *(line[12:] for line in script.splitlines())])
        with subprocess.Popen(
            [sys.executable, "-c", code, demo_path, server.endpoint],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout.readline() == "ready\n"
            server.close()  # not this process's client
            _, stderr = process.communicate("\n", timeout=HANGS)
    assert process.returncode < 0
    assert "RPC server crashed" in stderr


def test_a_server_that_is_busy(client):
    client("""
        server = RpcServer(n_threads=1)
        host, port = server.endpoint.split(":")
        with socket.create_connection((host, int(port))):
            try:
                rpc.add_server(server.endpoint, timeout=0.2)
            except BackendUnavailableError as error:
                assert "one client at a time" in str(error), error
            else:
                raise AssertionError("served")
        assert len(rpc.add_server(server.endpoint)) == 1
    """)


def test_something_else_than_an_rpc_server(client):
    client("""
        with socket.create_server(("127.0.0.1", 0)) as other:
            def answer():
                for _ in range(2):
                    connection, _ = other.accept()
                    with connection:
                        connection.recv(100)
                        connection.sendall(b"HTTP/1.1 400 Bad Request" * 10)

            thread = threading.Thread(target=answer)
            thread.start()
            try:
                rpc.add_server("127.0.0.1:%d" % other.getsockname()[1])
            except BackendUnavailableError as error:
                assert "another version: build both sides from the same" in str(error), error
            else:
                raise AssertionError("understood")
            thread.join()
        assert "RPC" not in [one.backend for one in devices()]
    """)


@pytest.mark.parametrize(
    "endpoint",
    ["", "localhost", "127.0.0.1:", ":50052", "a:b", "127.0.0.1:65536", "127.0.0.1:80x", "::1:80",
     "127.0.0.1:80\0", "a b:80", "ä:80"],
)  # fmt: skip
def test_invalid_endpoints(endpoint):
    for use in (rpc.add_server, RpcServer):
        with pytest.raises(ArgumentError, match=r"must be 'host:port'"):
            use(endpoint)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e300, "5", True, None])
def test_invalid_timeouts(timeout):
    for use in (rpc.add_server, RpcServer):
        with pytest.raises((ArgumentError, TypeError), match=r"^timeout"):
            use("127.0.0.1:1", timeout=timeout)


def test_endpoints_where_nobody_is():
    with pytest.raises(TypeError):
        rpc.add_server(50052)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(BackendUnavailableError, match=f"{endpoint} does not respond"):
            rpc.add_server(endpoint)
    with pytest.raises(BackendUnavailableError, match="does not respond"):
        rpc.add_server("no-such-host.invalid:50052")


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"endpoint": "localhost:0"}, ArgumentError, "IPv4 address"),
        ({"endpoint": "192.0.2.1:50052"}, BackendUnavailableError, "cannot listen"),
        ({"n_threads": 0}, ArgumentError, "n_threads must be between 1 and 512, not 0"),
        ({"n_threads": 513}, ArgumentError, "between 1 and 512, not 513"),
        ({"n_threads": 512}, ArgumentError, "n_threads=512 is more than"),
        ({"n_threads": "1"}, TypeError, "n_threads must be an integer"),
        ({"devices": []}, ArgumentError, "at least one"),
        ({"devices": "abacus"}, BackendUnavailableError, "no device 'abacus'; available: CPU"),
        ({"cache_dir": "/no/such/directory"}, ArgumentError, "is not a directory"),
    ],
)
def test_servers_that_cannot_be(params, error, message):
    with pytest.raises(error, match=message):
        RpcServer(**params)


def test_a_port_has_one_server():
    with RpcServer(devices="CPU", n_threads=1) as server:
        assert not server.closed
        assert server.endpoint in repr(server)
        with pytest.raises(BackendUnavailableError, match="cannot listen"):
            RpcServer(server.endpoint)
        endpoint = server.endpoint
    assert "closed" in repr(server)
    with RpcServer(endpoint, n_threads=1):
        pass


def test_a_server_that_cannot_start(monkeypatch):
    """The error has the output of the server."""
    monkeypatch.setenv("LLAMACFFI_LIBRARY_DIR", "/no/such/directory")
    words = "exited with code 1 and printed: (?s:.)*/no/such/directory"
    with pytest.raises(BackendUnavailableError, match=words):
        RpcServer(n_threads=1)


def test_the_command_line_says_what_is_wrong():
    command = [sys.executable, "-m", "llamacffi.rpc", "localhost:50052"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "must begin with the IPv4 address" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_from_the_command_line(tmp_path):
    """It uses its options, and ends when its parent does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    endpoint = "{}:{}".format(*address)
    options = ["--threads=1", "--device=CPU", f"--cache={tmp_path}", "--until-eof"]
    with subprocess.Popen(
        [sys.executable, "-m", "llamacffi.rpc", endpoint, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_for(address)
            lines = []
            for line in process.stdout:  # it flushes when it has accepted somebody
                lines.append(line)
                if "Accepted" in line:
                    break
        finally:
            process.stdin.close()
        assert process.wait(HANGS) == 0
    text = "".join(lines)
    assert endpoint in text
    assert str(tmp_path) in text
    assert re.search(r"Devices:\n +CPU: ", text)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_server_ends_with_the_process_that_started_it(client):
    client("""
        import os, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
        server = RpcServer(n_threads=1)
        child = os.fork()
        if child == 0:
            server.close()
            sys.exit()
        assert os.waitpid(child, 0)[1] == 0
        assert len(rpc.add_server(server.endpoint)) == 1
    """)


def wait_for(address):
    """Wait until a server listens there."""
    end = time.monotonic() + HANGS
    while True:
        try:
            return socket.create_connection(address).close()
        except OSError:
            assert time.monotonic() < end, "nobody listens"
            time.sleep(0.05)


def test_no_file_that_lies_around_is_run(tmp_path, monkeypatch):
    """Named like modules that a server imports: of Python, other packages and this package."""
    marker = tmp_path / "ran"
    for name in ("socket", "argparse", "json", "signal", "cffi", "_cffi_backend", "numpy", "os"):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close()")
    (tmp_path / "llamacffi").mkdir()
    for name in ("__init__", "rpc"):
        (tmp_path / "llamacffi" / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close()")
    (tmp_path / "sitecustomize.py").write_text(f"open({str(marker)!r}, 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with RpcServer(devices=["CPU"], n_threads=1) as server:
        assert not server.closed
    assert not marker.exists()


def test_other_machines_are_warned_of(caplog):
    assert rpc.DEFAULT_ENDPOINT.startswith("127.0.0.1:")
    with RpcServer(n_threads=1), RpcServer("127.0.0.1:0", n_threads=1):
        assert not caplog.records
    with RpcServer("0.0.0.0:0", n_threads=1) as server:
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert f"other machines can reach the RPC server at {server.endpoint}" in record.message


def test_a_device_that_computes_by_itself(client):
    """The time of a prompt is not that of its last token, and one thread is enough here."""
    client("""
        with RpcServer(n_threads=1) as server:
            (remote,) = rpc.add_server(server.endpoint)
            n = 2000
            sizes = {"n_ctx": 2048, "n_batch": n, "n_ubatch": n}
            greedy = SamplerChain(Greedy())
            with Model(sys.argv[1], devices=[remote], n_gpu_layers=99) as model:
                context = Context(model, **sizes)
                assert (context.n_threads, context.n_threads_batch) == (1, 1)
                assert Context(model, n_ctx=64, n_threads=2).n_threads == 2
                shares = []
                for _ in range(5):
                    context.memory.clear()
                    generation = generate(context, [5] * n, max_tokens=1, sampler=greedy)
                    generation.text()
                    shares.append(generation.prompt_seconds / generation.seconds)
                assert max(shares) > 3, shares
            del context, generation, greedy
    """)
