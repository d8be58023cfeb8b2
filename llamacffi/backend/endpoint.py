"""Endpoints of RPC servers: ``"host:port"``."""

from __future__ import annotations

import ipaddress
import re
import socket
import threading

from .._core.values import number
from ..errors import ArgumentError, BackendUnavailableError


def parse(endpoint: str) -> tuple[str, int]:
    """Return the host and the port of ``"host:port"``.

    upstream: ggml/src/ggml-rpc/ggml-rpc.cpp parse_endpoint: it accepts other forms too, but does
    not check the port.
    """
    if not isinstance(endpoint, str):
        raise TypeError(f"an endpoint must be a str, not {endpoint!r}")
    match = re.fullmatch(r"([A-Za-z0-9._-]+):([0-9]{1,5})", endpoint)
    if not match or int(match[2]) >= 2**16:
        raise ArgumentError(
            f"endpoint={endpoint!r} must be 'host:port': a name or an IPv4 address, and a number "
            f"below {2**16}"
        )
    return match[1], int(match[2])


def check_timeout(timeout: float) -> None:
    """Raise TypeError or ArgumentError unless this is a positive number of seconds."""
    number("timeout", timeout, 0, threading.TIMEOUT_MAX)
    if not timeout:
        raise ArgumentError("timeout must be above 0 seconds, not 0")


def probe(host: str, port: int, timeout: float) -> None:
    """Connect, and wait until the server closes the connection, which shows that it is free.

    upstream: ggml/src/ggml-rpc/ggml-rpc.cpp send_rpc_cmd: it waits for a server without a timeout,
    and cannot be interrupted.
    """
    found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        client.connect(found[0][4])
        client.shutdown(socket.SHUT_WR)
        client.recv(1)


def exposure(endpoint: str) -> str | None:
    """Return a warning if other machines can reach an endpoint."""
    host, _ = parse(endpoint)
    if ipaddress.IPv4Address(host).is_loopback:
        return None
    return (
        f"other machines can reach the RPC server at {endpoint}, and anyone who does can take over "
        "its process: see the documentation of llamacffi.rpc"
    )


def free_endpoint(endpoint: str) -> str:
    """Return an unused endpoint of this machine; port 0 stands for any free port."""
    host, port = parse(endpoint)
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        raise ArgumentError(
            f"endpoint={endpoint!r} must begin with the IPv4 address to listen on"
        ) from None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host, port))
            return f"{host}:{server.getsockname()[1]}"
    except OSError as error:
        raise BackendUnavailableError(f"cannot listen on {endpoint}: {error}") from None
