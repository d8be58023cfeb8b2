"""Devices of other machines, through llama.cpp's RPC backend.

A server lends its devices: `RpcServer` starts one here, `add_server` makes those of one anywhere
known.  Models use them as they use a GPU.

The protocol has no authentication and no encryption, and a server trusts its clients with its
memory.  Whoever can reach the port can read what other clients have left on the devices, fill the
memory and the ``cache_dir``, end the process, and with a message of the right shape take it over,
with all that its user may do.  Whoever can reach the cable reads prompts, answers and weights, and
can change them.  A server is trusted likewise by its clients.  So servers listen at 127.0.0.1
unless they are told otherwise; let them listen elsewhere only in a network that is yours alone, and
lead other connections through a tunnel, as of ``ssh -L``.

A server serves one client at a time, a process being one client.  If it ends while a model is on
it, llama.cpp ends this process too (SIGABRT): the connection belongs to a thread of its own, whose
failures nobody can catch.  So free the models first.

``python -I -m llamacffi.rpc`` starts a server from the command line (``-I`` keeps Python from
running files of the current directory); ``--help`` tells more.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, NamedTuple

from . import backend
from ._devices import Device, new_device
from ._ffi import ffi, lib
from ._handle import live_objects
from ._params import integer
from ._subprocess import python_command
from ._unique import Unique
from .errors import (
    ArgumentError,
    BackendUnavailableError,
    LlamaError,
    NativeError,
    UnsupportedError,
)
from .log import drain, logger, with_log
from .threads import check_n_threads

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


# Where a server from the command line listens by default: the port is that of llama.cpp's own.
DEFAULT_ENDPOINT = "127.0.0.1:50052"
# The servers that this process is a client of.
_added: set[str] = set()


def add_server(endpoint: str, *, timeout: float = 10.0) -> list[Device]:
    """Make the devices of a server known; models that are not told otherwise use them.

    It cannot be undone in this process.  A second time it does nothing.

    Args:
        endpoint: ``"host:port"``; the host a name or an IPv4 address.
        timeout: How many seconds the server may take to accept a connection.

    Returns:
        The devices, which `devices` has now too.

    Raises:
        ArgumentError: ``endpoint`` is not of that form, or ``timeout`` not positive.
        BackendUnavailableError: Nobody listens there, the server is busy with another client, it
            speaks another version of the protocol, or this build has no RPC backend.

    Source: ``ggml_backend_rpc_add_server``, ``ggml_backend_register``.
    """
    host, port = _parse(endpoint)
    _check_timeout(timeout)
    _require_backend()
    try:
        _knock(host, port, timeout)
    except OSError as error:
        busy = ": it serves one client at a time" if isinstance(error, TimeoutError) else ""
        raise BackendUnavailableError(
            f"the RPC server {endpoint} does not answer: {error}{busy}"
        ) from None
    try:
        reg = lib.ggml_backend_rpc_add_server(endpoint.encode())
    except NativeError as error:
        raise with_log(
            BackendUnavailableError(
                f"the RPC server {endpoint} is none of this version: {str(error).strip()}"
            )
        ) from error
    if reg == ffi.NULL:
        raise with_log(BackendUnavailableError(f"the RPC server {endpoint} has no devices"))
    backend.register(reg)
    _added.add(endpoint)
    drain()
    n_devices = lib.ggml_backend_reg_dev_count(reg)
    return [new_device(lib.ggml_backend_reg_dev_get(reg, i)) for i in range(n_devices)]


class RpcServer(Unique):
    """A server in a process of its own, since the C function never returns.

    It ends when it is closed, when nothing refers to this object any more, and with this process.
    Keep it for as long as a model is on it.
    """

    endpoint: str
    """Where it listens: ``"host:port"``, for `add_server`."""

    def __init__(
        self,
        endpoint: str = "127.0.0.1:0",
        *,
        devices: Iterable[Device | str] | None = None,
        n_threads: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        """Start the server, and wait until it listens.

        Args:
            endpoint: An IPv4 address of this machine and a port; port 0 is any that is free.  Any
                address but 127.0.0.1 lets other machines take over the process: the log warns.
            devices: What it lends, as devices or their names; without them the GPUs, or if there
                are none, the CPU.
            n_threads: How many threads compute on the CPU; one for each physical core if omitted.
            cache_dir: A directory to keep large tensors in, so that a model that is loaded again
                need not travel again.  Not kept if omitted.
            timeout: How many seconds it may take to start.

        Raises:
            ArgumentError: A value is out of range, or there is no such directory.
            BackendUnavailableError: There is no such device, or the server cannot be started: for
                example, the port is taken.

        Source: ``ggml_backend_rpc_start_server``.
        """
        _check_timeout(timeout)
        settings = _check(endpoint, devices, n_threads, cache_dir)
        self.endpoint = settings.endpoint
        if warning := _exposure(self.endpoint):
            logger.warning("%s", warning)
        output = tempfile.TemporaryFile()  # noqa: SIM115  `_end` closes it; a pipe could fill up
        process = subprocess.Popen(
            python_command(__name__, "--until-eof", *settings.options()),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for this process, which still needs the server
        )
        self._end = weakref.finalize(self, _end, process, output, os.getpid())
        try:
            _wait(self.endpoint, process, output, timeout)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<RpcServer at {self.endpoint}{', closed' if self.closed else ''}>"

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return not self._end.alive

    def close(self) -> None:
        """End the server.  Idempotent.

        Raises:
            UnsupportedError: This process uses the server, and has C objects: if one of them has
                its memory there, the process would be aborted.
        """
        if self._end.alive and self.endpoint in _added and (n := live_objects()):
            raise UnsupportedError(
                f"{self!r} may still be in use: close all models, contexts and what else was made "
                f"({n} C objects); at the exit of the process it ends by itself"
            )
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None or not live_objects():  # an error may hold what uses the server
            self.close()


def _parse(endpoint: str) -> tuple[str, int]:
    """Return the host and the port of ``"host:port"``; llama.cpp takes more, and cuts it short."""
    if not isinstance(endpoint, str):
        raise TypeError(f"an endpoint must be a str, not {endpoint!r}")
    match = re.fullmatch(r"([A-Za-z0-9._-]+):([0-9]{1,5})", endpoint)
    if not match or int(match[2]) >= 2**16:
        raise ArgumentError(
            f"endpoint={endpoint!r} must be 'host:port': a name or an IPv4 address, and a number "
            f"below {2**16}"
        )
    return match[1], int(match[2])


def _check_timeout(timeout: float) -> None:
    if not 0 < timeout <= threading.TIMEOUT_MAX:
        raise ArgumentError(f"timeout={timeout!r} is not in 0 to {threading.TIMEOUT_MAX} seconds")


def _require_backend() -> None:
    backend.load()
    if not lib.llama_supports_rpc():
        raise BackendUnavailableError("this build has no RPC backend: build it with GGML_RPC=ON")


def _knock(host: str, port: int, timeout: float) -> None:
    """Connect and disconnect; a server that serves nobody else disconnects too.

    llama.cpp would wait for the server without end, and nothing could stop it.
    """
    found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        client.connect(found[0][4])
        client.shutdown(socket.SHUT_WR)
        client.recv(1)


class Settings(NamedTuple):
    """What a server is started with, checked."""

    endpoint: str
    devices: list[Device]
    n_threads: int
    cache_dir: str | None

    def options(self) -> list[str]:
        """Return the arguments of `main` for them."""
        cache = [] if self.cache_dir is None else [f"--cache={self.cache_dir}"]
        devices = [f"--device={device.name}" for device in self.devices]
        return [*devices, f"--threads={self.n_threads}", *cache, self.endpoint]

    def serve(self) -> None:
        """Be the server; returns only if that is impossible."""
        devices = ffi.new("ggml_backend_dev_t[]", [device.ptr for device in self.devices])
        cache = ffi.NULL if self.cache_dir is None else os.fsencode(self.cache_dir)
        lib.ggml_backend_rpc_start_server(
            self.endpoint.encode(), cache, self.n_threads, len(devices), devices
        )


def _check(
    endpoint: str,
    devices: Iterable[Device | str] | None,
    n_threads: int | None,
    cache_dir: str | os.PathLike[str] | None,
) -> Settings:
    """Return the settings of a server, with defaults for what is None."""
    _require_backend()
    if devices is None:
        here = [one for one in backend.devices() if one.backend != "RPC"]
        lent = [one for one in here if "gpu" in one.kind] or [backend.device("CPU")]
    else:
        named = [devices] if isinstance(devices, (str, Device)) else devices
        lent = [one if isinstance(one, Device) else backend.device(one) for one in named]
    if not lent or any(one.backend == "RPC" for one in lent):
        raise ArgumentError(f"devices={devices!r}: name at least one, and none of another machine")
    n_threads = backend.physical_cores() if n_threads is None else integer("n_threads", n_threads)
    check_n_threads("n_threads", n_threads)
    if cache_dir is not None:
        cache_dir = os.path.abspath(os.fspath(cache_dir))
        if not os.path.isdir(cache_dir):
            raise ArgumentError(f"cache_dir={cache_dir!r} is no directory")
    return Settings(_free_endpoint(endpoint), lent, n_threads, cache_dir)


def _exposure(endpoint: str) -> str | None:
    """Return what to warn of if other machines can reach an endpoint."""
    host, _ = _parse(endpoint)
    if ipaddress.IPv4Address(host).is_loopback:
        return None
    return (
        f"other machines can reach the RPC server at {endpoint}, and whoever reaches it can take "
        "over its process: see the documentation of llamacffi.rpc"
    )


def _free_endpoint(endpoint: str) -> str:
    """Return an endpoint of this machine that nobody listens at."""
    host, port = _parse(endpoint)
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        raise ArgumentError(
            f"endpoint={endpoint!r} must begin with the IPv4 address to listen at"
        ) from None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host, port))
            return f"{host}:{server.getsockname()[1]}"
    except OSError as error:
        raise BackendUnavailableError(f"cannot listen at {endpoint}: {error}") from None


def _wait(
    endpoint: str, process: subprocess.Popen[bytes], output: IO[bytes], timeout: float
) -> None:
    """Wait until a server listens."""
    host, port = _parse(endpoint)
    end = time.monotonic() + timeout
    while process.poll() is None:
        try:
            return _knock(host, port, max(0.1, end - time.monotonic()))
        except OSError:
            if time.monotonic() > end:
                raise BackendUnavailableError(
                    f"the RPC server did not begin to listen in {timeout} seconds"
                ) from None
            time.sleep(0.02)
    output.seek(0)
    raise BackendUnavailableError(
        f"the RPC server ended with exit code {process.returncode}, and these words: "
        f"{output.read().decode(errors='replace')}"
    )


def _end(process: subprocess.Popen[bytes], output: IO[bytes], pid: int) -> None:
    """End a server, unless this is a fork of the process that started it."""
    assert process.stdin
    if os.getpid() != pid:
        process.returncode = 0  # of a process that this one cannot wait for
    else:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    process.stdin.close()
    output.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Be a server, until the process is ended."""
    parser = argparse.ArgumentParser(
        prog="python -I -m llamacffi.rpc",
        description="Lend devices of this machine to llama.cpp's RPC clients, without any "
        "authentication: only for a network that is yours alone.",
    )
    parser.add_argument(
        "endpoint",
        nargs="?",
        default=DEFAULT_ENDPOINT,
        help=f"the IPv4 address and port to listen at, as host:port (default: {DEFAULT_ENDPOINT}, "
        "which only this machine can reach)",
    )
    parser.add_argument("--device", action="append", help="a device to lend; may be repeated")
    parser.add_argument("--threads", type=int, help="how many threads compute on the CPU")
    parser.add_argument("--cache", metavar="DIRECTORY", help="keep large tensors there")
    parser.add_argument("--until-eof", action="store_true", help="end when stdin does")
    args = parser.parse_args(arguments)
    try:
        settings = _check(args.endpoint, args.device, args.threads, args.cache)
    except LlamaError as error:
        parser.error(str(error))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the C function does not come back for Python's
    if args.until_eof:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    if not args.until_eof and (warning := _exposure(settings.endpoint)):
        print(f"warning: {warning}", file=sys.stderr)
    lib.llama_log_set(ffi.NULL, ffi.NULL)  # nobody will drain ours
    settings.serve()
    sys.exit(f"cannot serve at {settings.endpoint}")


def _end_with_stdin() -> None:
    """End the process when its parent has ended."""
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
