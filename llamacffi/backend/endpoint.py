"""Where RPC servers listen: ``"host:port"``."""

from __future__ import annotations

import ipaddress
import re
import socket
import threading

from .._core.values import number
from ..errors import ArgumentError, BackendUnavailableError


def parse(endpoint: str) -> tuple[str, int]:
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


def check_timeout(timeout: float) -> None:
    """Raise TypeError or ArgumentError unless one can wait for so many seconds."""
    number("timeout", timeout, 0, threading.TIMEOUT_MAX)
    if not timeout:
        raise ArgumentError("timeout must be above 0 seconds, not 0")


def knock(host: str, port: int, timeout: float) -> None:
    """Connect and disconnect; a server that serves nobody else disconnects too.

    llama.cpp would wait for the server without end, and nothing could stop it.
    """
    found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        client.connect(found[0][4])
        client.shutdown(socket.SHUT_WR)
        client.recv(1)


def exposure(endpoint: str) -> str | None:
    """Return what to warn of if other machines can reach an endpoint."""
    host, _ = parse(endpoint)
    if ipaddress.IPv4Address(host).is_loopback:
        return None
    return (
        f"other machines can reach the RPC server at {endpoint}, and whoever reaches it can take "
        "over its process: see the documentation of llamacffi.rpc"
    )


def free_endpoint(endpoint: str) -> str:
    """Return an endpoint of this machine that nobody listens at."""
    host, port = parse(endpoint)
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
