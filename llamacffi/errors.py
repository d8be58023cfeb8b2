"""Exceptions, and the one place where C return codes become them.

Each is a `LlamaError` and the builtin that fits, so that code which knows neither llama.cpp nor
this package catches the right ones::

    LlamaError
    ├── ArgumentError (ValueError)          a value that C must not see
    ├── ClosedError (ValueError)            the object was closed
    ├── ForkError (RuntimeError)            the object belongs to the parent process
    ├── BusyError (RuntimeError)            two threads used one object at once
    ├── NativeError (RuntimeError)          llama.cpp threw, or one of its assertions failed
    ├── LoadError (OSError)                 a file could not be loaded
    │   ├── ModelNotFoundError (FileNotFoundError)
    │   └── LibraryNotFoundError (FileNotFoundError)
    ├── ContextError (RuntimeError)         a context could not be made, or lacks something
    ├── TokenizeError (ValueError)          text that the vocabulary cannot take
    ├── AdapterError (ValueError)           an adapter or control vector that does not fit
    ├── StateError (ValueError)             a saved state that does not fit, or is damaged
    ├── GrammarError (ValueError)           a grammar that cannot be parsed, or was left
    ├── GgufError (ValueError)              data that is no GGUF, or cannot be put into one
    ├── QuantizeError (RuntimeError)        a model could not be quantized
    ├── UnsupportedError (RuntimeError)     this model or llama.cpp cannot do that
    ├── BackendUnavailableError (RuntimeError)  no backend for what was asked
    ├── DependencyError (ImportError)       an optional package is not installed
    └── DecodeError (RuntimeError)          decoding failed; finished micro-batches stay
        ├── InvalidBatchError (ValueError)      memory unchanged
        ├── ContextFullError                    memory unchanged: free a slot and retry
        └── AbortedError                        told to stop; finished micro-batches stay
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


class LlamaError(Exception):
    """Base of all errors of this package."""


class ArgumentError(LlamaError, ValueError):
    """A value is out of its range; raised before C sees it."""


class ClosedError(LlamaError, ValueError):
    """The object was closed."""


class ForkError(LlamaError, RuntimeError):
    """The object was made before ``os.fork``; its threads and devices stayed with the parent."""


class BusyError(LlamaError, RuntimeError):
    """Another thread is using the object, which is for one thread at a time."""


class NativeError(LlamaError, RuntimeError):
    """llama.cpp threw a C++ exception, or one of its assertions failed.

    The last lines of its log are in the notes of the exception.
    """

    function: str
    """The C function that was called."""

    def __init__(self, message: str, function: str) -> None:
        super().__init__(message)
        self.function = function

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.function), self.__dict__


class LoadError(LlamaError, OSError):
    """A file could not be loaded."""


class ModelNotFoundError(LoadError, FileNotFoundError):
    """There is no file of that name."""


class LibraryNotFoundError(LoadError, FileNotFoundError):
    """There is no library of that name."""


class ContextError(LlamaError, RuntimeError):
    """A context could not be created, or has not got what was asked for."""


class TokenizeError(LlamaError, ValueError):
    """The vocabulary cannot tokenize the text."""

    index: int | None
    """Which text it was, if several were given at once."""

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.index), self.__dict__


class AdapterError(LlamaError, ValueError):
    """An adapter or a control vector does not fit the model, or cannot be read."""


class StateError(LlamaError, ValueError):
    """A saved state is of another model, shape or llama.cpp, or is damaged."""


class GrammarError(LlamaError, ValueError):
    """A grammar cannot be parsed, or a token was accepted that it does not allow."""


class GgufError(LlamaError, ValueError):
    """Data is no valid GGUF, or a value cannot be stored in one."""


class QuantizeError(LlamaError, RuntimeError):
    """A model could not be quantized."""


class UnsupportedError(LlamaError, RuntimeError):
    """This model, or this llama.cpp, cannot do what was asked."""


class BackendUnavailableError(LlamaError, RuntimeError):
    """No backend is there for what was asked."""


class DependencyError(LlamaError, ImportError):
    """An optional package is not installed; the message says how to install it."""


class DecodeError(LlamaError, RuntimeError):
    """Decoding failed.  Micro-batches that were finished stay in memory: `pos_max` tells."""

    code: int
    """What llama.cpp returned."""
    pos_max: Mapping[int, int | None]
    """Where each sequence of the batch ends in memory now: the position of its last token, None if
    it has none.  To go on, decode what comes after."""

    def __init__(
        self, message: str, code: int, pos_max: Mapping[int, int | None] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.pos_max = {} if pos_max is None else pos_max

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.code, self.pos_max), self.__dict__


class InvalidBatchError(DecodeError, ValueError):
    """llama.cpp rejected the batch; memory is unchanged."""


class ContextFullError(DecodeError):
    """There is no room for the batch; memory is unchanged."""


class AbortedError(DecodeError):
    """The computation was cancelled.  Micro-batches that were finished stay in memory."""


# Source: the comment on llama_decode() in llama.h.  Codes below -1 are all fatal.
DECODE_ERRORS: Mapping[int, tuple[type[DecodeError], str]] = MappingProxyType(
    {
        2: (AbortedError, "decoding was cancelled"),
        1: (ContextFullError, "no room in memory for the batch: remove a sequence, or raise n_ctx"),
        -1: (InvalidBatchError, "llama.cpp rejected the batch"),
    }
)


def decode_error(
    code: int,
    pos_max: Mapping[int, int | None] | None = None,
    function: str = "llama_decode",
    why: str = "",
) -> DecodeError:
    """Return the error that a return code of ``llama_decode`` other than 0 stands for.

    Args:
        code: The code.
        pos_max: Where the sequences of the batch end now.
        function: The function that returned it, if it is another with the same codes.
        why: What caused it, and what to do, if that is known.
    """
    error, message = DECODE_ERRORS.get(code, (DecodeError, "llama.cpp cannot compute the batch"))
    reason = f": {why}" if why else ""
    return error(f"{message} ({function} returned {code}){reason}", code, pos_max)


# Source: the comment on llama_batch_ext_add() in llama.h.
BATCH_ERRORS: Mapping[int, str] = MappingProxyType(
    {
        -1: "does not fit: create the Context with a larger n_batch",
        -2: "has another width than the model reads: make the Batch with the n_embd that "
        "llama.cpp's log names",
        -3: "is of a sequence that the context does not have: create it with a larger n_seq_max",
    }
)


def batch_error(code: int, what: str) -> ArgumentError:
    """Return the error for an entry that ``llama_batch_ext`` refused with a code."""
    return ArgumentError(f"{what}, {BATCH_ERRORS.get(code, 'was refused')} (llama.cpp said {code})")
