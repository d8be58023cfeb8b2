"""Turns exceptions into one line for people, and an exit code."""

from __future__ import annotations

import logging


class UsageError(Exception):
    """The command was used incorrectly; the message says how to use it."""


class Failures(logging.Handler):
    """Explains exceptions with the errors that llama.cpp has logged.

    upstream: src/llama.cpp LLAMA_LOG_ERROR: on failure each caller logs another error, so the first
    one that belongs to an exception is the cause.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._errors: list[str] = []
        logging.getLogger("llamacffi").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Store a logged error."""
        self._errors.append(record.getMessage())

    def close(self) -> None:
        """Stop listening to the log."""
        logging.getLogger("llamacffi").removeHandler(self)
        super().close()

    def line(self, error: Exception) -> str:
        """Return a one-line description of an exception."""
        from ..errors import LlamaError

        if isinstance(error, OSError) and error.strerror:
            named = f": {error.filename!r}" if error.filename is not None else ""
            text = f"{error.strerror}{named}"
        elif isinstance(error, LlamaError | UsageError | OSError):
            # Before Python 3.11, exceptions have no notes: the log follows in the message.
            text = str(error).split("\n", 1)[0]
            cause = self._cause(error)
            text = text if cause is None or _reason(cause) in text else f"{text}: {cause}"
        else:
            text = f"internal error: {type(error).__name__}: {error} (--traceback shows where)"
        return " ".join(text.split())

    def code(self, error: Exception) -> int:
        """Return the exit code for an exception."""
        from ..errors import ArgumentError

        return 2 if isinstance(error, UsageError | ArgumentError) else 1

    def _cause(self, error: Exception) -> str | None:
        """Return the first logged error that the exception carries."""
        texts = [str(error), *getattr(error, "__notes__", ())]
        carried = {line.strip() for text in texts for line in text.splitlines()}
        return next((line for line in self._errors if line.strip() in carried), None)


def _reason(line: str) -> str:
    """Return a line of the log without the names of functions before it."""
    from ..model.loading import BEFORE_REASON, CUT_OFF

    return CUT_OFF.sub("", BEFORE_REASON.sub("", line.strip()))
