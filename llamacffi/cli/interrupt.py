"""Ctrl-C that interrupts a computation in C."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..context.context import Context


@contextmanager
def ctrl_c_cancels(context: Context) -> Iterator[None]:
    """Let Ctrl-C cancel a running computation; it still raises KeyboardInterrupt.

    Python runs its signal handler only after C has returned, and a prompt can keep C busy for
    minutes.  But Python writes the signal number to the wakeup descriptor at once, and a thread can
    wait for that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals arrive in the main thread, which is not ours here
        return
    reader, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    thread = threading.Thread(target=_watch, args=(reader, context), daemon=True)
    previous = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        wakeup.close()
        thread.join()  # its `recv` returns, because the other end is closed
        reader.close()


def _watch(reader: socket.socket, context: Context) -> None:
    while numbers := reader.recv(64):
        if signal.SIGINT in numbers:
            context.cancel()
