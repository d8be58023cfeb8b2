"""RPC servers and their devices; `llamacffi.rpc` describes both for users."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, NamedTuple

from .._core.ownership import after_end, live_objects
from .._core.text import checked_path
from .._core.unique import Unique
from .._core.values import elements, integer
from .._native import ffi, lib
from ..errors import (
    ArgumentError,
    BackendUnavailableError,
    LlamaError,
    NativeError,
    UnsupportedError,
)
from ..log import drain, logger, with_log
from . import registry as backend
from .device_types import Device, new_device
from .endpoint import check_timeout, exposure, free_endpoint, knock, parse
from .subprocess import python_command
from .threads import check_computing

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


# Where a server from the command line listens by default: the port is that of llama.cpp's own.
DEFAULT_ENDPOINT = "127.0.0.1:50052"
# The servers of this process, and those it is a client of itself: these stay, whoever lets go.
_running: weakref.WeakSet[RpcServer] = weakref.WeakSet()
_used: set[RpcServer] = set()


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
    host, port = parse(endpoint)
    check_timeout(timeout)
    _require_backend()
    # By the port alone, since one address has several names.
    ours = [server for server in _running if parse(server.endpoint)[1] == port]
    try:
        knock(host, port, timeout)
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
                f"the RPC server {endpoint} is of another version: build both of one llama.cpp "
                f"({str(error).strip()})"
            )
        ) from error
    if reg == ffi.NULL:
        raise with_log(BackendUnavailableError(f"the RPC server {endpoint} has no devices"))
    _used.update(ours)
    backend.register(reg)
    drain()
    n_devices = lib.ggml_backend_reg_dev_count(reg)
    return [new_device(lib.ggml_backend_reg_dev_get(reg, i)) for i in range(n_devices)]


class RpcServer(Unique):
    """A server in a process of its own, since the C function never returns.

    It ends when it is closed, or with this process; and when nothing refers to this object any
    more, unless this process has made its devices known by `add_server`.
    """

    _why = "it stands for a process, which it ends"
    _instead = "give its endpoint, a text, to add_server() wherever its devices are wanted"

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
                Some more than processors are a warning in the log, many more an error.
            cache_dir: A directory to keep large tensors in, so that a model that is loaded again
                need not travel again.  Not kept if omitted.
            timeout: How many seconds it may take to start.

        Raises:
            ArgumentError: A value is out of range, or there is no such directory.
            BackendUnavailableError: There is no such device, or the server cannot be started: for
                example, the port is taken.

        Source: ``ggml_backend_rpc_start_server``.
        """
        check_timeout(timeout)
        settings = _check(endpoint, devices, n_threads, cache_dir)
        self.endpoint = settings.endpoint
        if warning := exposure(self.endpoint):
            logger.warning("%s", warning)
        output = tempfile.TemporaryFile()  # noqa: SIM115  `_end` closes it; a pipe could fill up
        process = subprocess.Popen(
            python_command("llamacffi.rpc", "--until-eof", *settings.options()),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for this process, which still needs the server
        )
        self._end = weakref.finalize(self, _end, process, output, os.getpid())
        self._end.atexit = False
        _running.add(self)
        after_end(_end_all)
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
                its memory there, the process would be aborted.  The server goes on.
        """
        if self in _used and (n := live_objects()):
            raise UnsupportedError(
                f"{self!r} may still be in use: close all models, contexts and what else was made "
                f"({n} C objects); at the exit of the process it ends by itself"
            )
        self._finish()
        _used.discard(self)

    def _finish(self) -> None:
        """End the server, also at the exit, where a finalizer that is called does nothing."""
        if alive := self._end.detach():
            _, function, args, _ = alive
            function(*args)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # An error may hold what uses the server, and is not to be replaced.
        if exc is None or self not in _used or not live_objects():
            self.close()


def _require_backend() -> None:
    backend.load()
    if not lib.llama_supports_rpc():
        raise BackendUnavailableError("this build has no RPC backend: build it with GGML_RPC=ON")


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
        given = elements("devices", named, "devices or their names")
        lent = [one if isinstance(one, Device) else backend.device(one) for one in given]
    if not lent or any(one.backend == "RPC" for one in lent):
        raise ArgumentError(f"devices={devices!r}: name at least one, and none of another machine")
    n_threads = backend.physical_cores() if n_threads is None else integer("n_threads", n_threads)
    check_computing("n_threads", n_threads)
    if cache_dir is not None:
        cache_dir = os.path.abspath(checked_path(cache_dir, "cache_dir"))
        if not os.path.isdir(cache_dir):
            raise ArgumentError(f"cache_dir={cache_dir!r} is no directory")
    return Settings(free_endpoint(endpoint), lent, n_threads, cache_dir)


def _wait(
    endpoint: str, process: subprocess.Popen[bytes], output: IO[bytes], timeout: float
) -> None:
    """Wait until a server listens."""
    host, port = parse(endpoint)
    end = time.monotonic() + timeout
    while process.poll() is None:
        try:
            return knock(host, port, max(0.1, end - time.monotonic()))
        except OSError:
            if time.monotonic() > end:
                raise BackendUnavailableError(
                    f"the RPC server did not begin to listen in timeout={timeout} seconds"
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


def _end_all() -> None:
    """End the servers that are left at the exit; before the models on them it would be an abort."""
    for server in list(_running):
        server._finish()


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
    if not args.until_eof and (warning := exposure(settings.endpoint)):
        print(f"warning: {warning}", file=sys.stderr)
    lib.llama_log_set(ffi.NULL, ffi.NULL)  # nobody will drain ours
    settings.serve()
    sys.exit(f"cannot serve at {settings.endpoint}")


def _end_with_stdin() -> None:
    """End the process when its parent has ended."""
    sys.stdin.buffer.read()
    os._exit(0)
