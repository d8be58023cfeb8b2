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

from .._core.ownership import call_after_frees, live_objects
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
from .endpoint import check_timeout, exposure, free_endpoint, parse, probe
from .python_command import python_command
from .threads import check_computing

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


# Where a server from the command line listens by default.
# upstream: tools/rpc/rpc-server.cpp port: the same port as llama.cpp's own server
DEFAULT_ENDPOINT = "127.0.0.1:50052"
# The servers that this process started, and those it also uses, which must stay alive.
_running: weakref.WeakSet[RpcServer] = weakref.WeakSet()
_used: set[RpcServer] = set()


def add_server(endpoint: str, *, timeout: float = 10.0) -> list[Device]:
    """Add the devices of a server; by default, models loaded from now on use them.

    This cannot be undone in this process.  Calling it again for the same server does nothing.

    Args:
        endpoint: ``"host:port"``, where the host is a name or an IPv4 address.
        timeout: How long to wait for the server to accept a connection, in seconds.

    Returns:
        The devices, which `devices` now lists too.

    Raises:
        ArgumentError: ``endpoint`` has another form, or ``timeout`` is not positive.
        BackendUnavailableError: No server listens there, it is busy with another client, it uses
            another version of the protocol, or this build has no RPC backend.

    Source: ``ggml_backend_rpc_add_server``, ``ggml_backend_register``.
    """
    host, port = parse(endpoint)
    check_timeout(timeout)
    _require_backend()
    # Compare only the port, since a host can have several names.
    ours = [server for server in _running if parse(server.endpoint)[1] == port]
    try:
        probe(host, port, timeout)
    except OSError as error:
        busy = ": it serves one client at a time" if isinstance(error, TimeoutError) else ""
        raise BackendUnavailableError(
            f"the RPC server {endpoint} does not respond: {error}{busy}"
        ) from None
    try:
        reg = lib.ggml_backend_rpc_add_server(endpoint.encode())
    except NativeError as error:
        raise with_log(
            BackendUnavailableError(
                f"the RPC server {endpoint} has another version: build both sides from the same "
                f"llama.cpp ({str(error).strip()})"
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
    """A server in a process of its own.

    The server stops when this object is closed or garbage-collected, or when this process exits.
    If this process has added its devices with `add_server`, only closing it or exiting stops it.
    """

    _why = "it owns a process, which it ends"
    _instead = "pass its endpoint, a str, to add_server() wherever its devices are needed"

    endpoint: str
    """The ``"host:port"`` that it listens on, for `add_server`."""

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
            endpoint: An IPv4 address of this machine and a port; port 0 selects a free one.  Any
                address other than 127.0.0.1 lets other machines take over the process, so the log
                warns.
            devices: The devices to lend, or their names.  By default the GPUs or, if the machine
                has none, the CPU.
            n_threads: The number of threads that compute on the CPU; by default one for each
                physical core.  Slightly more threads than processors log a warning, many more are
                an error.
            cache_dir: A directory to cache large tensors in, so that loading a model again does not
                send them again.  By default there is no cache.
            timeout: How long the server may take to start, in seconds.

        Raises:
            ArgumentError: A value is out of range, or ``cache_dir`` is not a directory.
            BackendUnavailableError: A device does not exist, or the server cannot start, for
                example because the port is in use.

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
            start_new_session=True,  # so Ctrl-C only reaches this process, which needs the server
        )
        self._end = weakref.finalize(self, _end, process, output, os.getpid())
        self._end.atexit = False
        _running.add(self)
        call_after_frees(_end_all)
        try:
            _wait(self.endpoint, process, output, timeout)
        except BaseException:  # also an interrupt: the process must not stay without an owner
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<RpcServer at {self.endpoint}{', closed' if self.closed else ''}>"

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return not self._end.alive

    def close(self) -> None:
        """Stop the server.  Idempotent.

        Raises:
            UnsupportedError: This process has added its devices, and still has C objects: if one
                of them has memory on the server, llama.cpp would abort the process.  The server
                keeps running.
        """
        # upstream: ggml/src/ggml-rpc/ggml-rpc.cpp RPC_STATUS_ASSERT: without the server, aborts.
        if self in _used and (n := live_objects()):
            raise UnsupportedError(
                f"{self!r} may still be in use: close all models, contexts and other objects first "
                f"({n} C objects are alive); when the process exits, the server stops by itself"
            )
        self._finish()
        _used.discard(self)

    def _finish(self) -> None:
        """Stop the server, also at exit, when calling the finalizer itself would do nothing."""
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
        # The traceback of an error may hold objects on the server; do not replace that error.
        if exc is None or self not in _used or not live_objects():
            self.close()


def _require_backend() -> None:
    backend.load()
    if not lib.llama_supports_rpc():
        raise BackendUnavailableError("this build has no RPC backend: build it with GGML_RPC=ON")


class Settings(NamedTuple):
    """Checked settings of a server."""

    endpoint: str
    devices: list[Device]
    n_threads: int
    cache_dir: str | None

    def options(self) -> list[str]:
        """Return these settings as arguments of `main`."""
        cache = [] if self.cache_dir is None else [f"--cache={self.cache_dir}"]
        devices = [f"--device={device.name}" for device in self.devices]
        return [*devices, f"--threads={self.n_threads}", *cache, self.endpoint]

    def serve(self) -> None:
        """Serve in this process; returns only on failure."""
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
        raise ArgumentError(f"devices={devices!r} must name at least one device, all local")
    n_threads = backend.physical_cores() if n_threads is None else integer("n_threads", n_threads)
    check_computing("n_threads", n_threads)
    if cache_dir is not None:
        cache_dir = os.path.abspath(checked_path(cache_dir, "cache_dir"))
        if not os.path.isdir(cache_dir):
            raise ArgumentError(f"cache_dir={cache_dir!r} is not a directory")
    return Settings(free_endpoint(endpoint), lent, n_threads, cache_dir)


def _wait(
    endpoint: str, process: subprocess.Popen[bytes], output: IO[bytes], timeout: float
) -> None:
    """Wait until a server listens."""
    host, port = parse(endpoint)
    end = time.monotonic() + timeout
    while process.poll() is None:
        try:
            return probe(host, port, max(0.1, end - time.monotonic()))
        except OSError:
            if time.monotonic() > end:
                raise BackendUnavailableError(
                    f"the RPC server did not start listening within timeout={timeout} seconds"
                ) from None
            time.sleep(0.02)
    output.seek(0)
    raise BackendUnavailableError(
        f"the RPC server exited with code {process.returncode} and printed: "
        f"{output.read().decode(errors='replace')}"
    )


def _end(process: subprocess.Popen[bytes], output: IO[bytes], pid: int) -> None:
    """Stop a server, unless this is a fork of the process that started it."""
    assert process.stdin
    if os.getpid() != pid:
        process.returncode = 0  # only the parent can wait for it
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
    """Stop the servers that still run at exit, after the models on them are gone."""
    for server in list(_running):
        server._finish()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a server from the command line until the process is stopped."""
    parser = argparse.ArgumentParser(
        prog="python -I -m llamacffi.rpc",
        description="Lend devices of this machine to llama.cpp's RPC clients, without "
        "authentication: use it on private networks only.",
    )
    parser.add_argument(
        "endpoint",
        nargs="?",
        default=DEFAULT_ENDPOINT,
        help=f"the IPv4 address and port to listen on, as host:port (default: {DEFAULT_ENDPOINT}, "
        "which only this machine can reach)",
    )
    parser.add_argument("--device", action="append", help="a device to lend; may be repeated")
    parser.add_argument("--threads", type=int, help="number of threads that compute on the CPU")
    parser.add_argument("--cache", metavar="DIRECTORY", help="directory to cache large tensors in")
    parser.add_argument("--until-eof", action="store_true", help="stop when stdin is closed")
    args = parser.parse_args(arguments)
    try:
        settings = _check(args.endpoint, args.device, args.threads, args.cache)
    except LlamaError as error:
        parser.error(str(error))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler never runs during the C call
    if args.until_eof:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    if not args.until_eof and (warning := exposure(settings.endpoint)):
        print(f"warning: {warning}", file=sys.stderr)
    lib.llama_log_set(ffi.NULL, ffi.NULL)  # nothing would drain our ring: let C print its log
    settings.serve()
    sys.exit(f"cannot serve on {settings.endpoint}")


def _end_with_stdin() -> None:
    """End the process when stdin closes, as when its parent ends."""
    sys.stdin.buffer.read()
    os._exit(0)
