"""Exceptions as one line for people, and as exit codes."""

from __future__ import annotations

import logging


class UsageError(Exception):
    """The command was used wrongly; the message says how to do it right."""


class Failures(logging.Handler):
    """Tells what an exception means, with the help of the errors that llama.cpp logged.

    llama.cpp logs one error after the other on its way out, so the first of those that belong to an
    exception is the cause.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._errors: list[str] = []
        logging.getLogger("llamacffi").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Remember a line of the log."""
        self._errors.append(record.getMessage())

    def close(self) -> None:
        """Listen no more."""
        logging.getLogger("llamacffi").removeHandler(self)
        super().close()

    def line(self, error: Exception) -> str:
        """Return what happened, in one line."""
        from ..errors import LlamaError

        if isinstance(error, OSError) and error.strerror:
            named = f": {error.filename!r}" if error.filename is not None else ""
            text = f"{error.strerror}{named}"
        elif isinstance(error, LlamaError | UsageError | OSError):
            # Where exceptions have no notes, the log is in further lines of the message.
            text = str(error).split("\n", 1)[0]
            cause = self._cause(error)
            text = text if cause is None or _reason(cause) in text else f"{text}: {cause}"
        else:
            text = f"internal error: {type(error).__name__}: {error} (--traceback tells more)"
        return " ".join(text.split())

    def code(self, error: Exception) -> int:
        """Return the exit code."""
        from ..errors import ArgumentError

        return 2 if isinstance(error, UsageError | ArgumentError) else 1

    def _cause(self, error: Exception) -> str | None:
        """Return the first error of the log that the exception carries."""
        texts = [str(error), *getattr(error, "__notes__", ())]
        carried = {line.strip() for text in texts for line in text.splitlines()}
        return next((line for line in self._errors if line.strip() in carried), None)


def _reason(line: str) -> str:
    """Return a line of the log without the functions that have said so."""
    from ..model.loading import BEFORE_REASON, CUT_OFF

    return CUT_OFF.sub("", BEFORE_REASON.sub("", line.strip()))
