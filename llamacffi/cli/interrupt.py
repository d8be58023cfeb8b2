"""Ctrl-C that does not wait for C."""

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
    """Let Ctrl-C cut a computation short; it raises KeyboardInterrupt as ever.

    Python runs its handler only when C has returned, and a prompt can keep C busy for minutes.  But
    the number of a signal is written to the wakeup descriptor at once, and a thread may wait there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are for the main thread, which is someone else's
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
        thread.join()  # its `recv` ends, since the other end is closed
        reader.close()


def _watch(reader: socket.socket, context: Context) -> None:
    while numbers := reader.recv(64):
        if signal.SIGINT in numbers:
            context.cancel()
