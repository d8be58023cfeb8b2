"""What several tests do in the same way."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable

from llamacffi import Batch, Context


def decoded(context: Context, token: int) -> Context:
    """Return a context whose only token is this one, with its outputs."""
    context.memory.clear(data=False)
    batch = Batch(1)
    batch.set_one(token, 0)
    context.decode(batch)
    return context


def raised_in_thread(call: Callable[[], object]) -> BaseException | None:
    """Call a function in another thread, and return what it raised there."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def check_script(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
    setup: str,
    code: str,
    *args: object,
    status: int = 0,
) -> None:
    """Run code in a process of its own, which must print only ``ok``.

    Args:
        run_python: The fixture.
        setup: What runs first.
        code: The lines of the test, indented by 8.
        *args: Arguments of the program.
        status: How the process must exit.
    """
    end = "print('ok', flush=True)"
    lines = [setup, *(line[8:] for line in code.splitlines()), end]
    result = run_python("\n".join(lines), *args)
    assert (result.returncode, result.stdout, result.stderr) == (status, "ok\n", ""), result
