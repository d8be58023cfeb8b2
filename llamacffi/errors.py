"""Exceptions, and the one place where C return codes become exceptions.

Each is a `LlamaError` and also the builtin exception that fits, so that code which knows nothing of
this package catches the right ones::

    LlamaError
    ├── ArgumentError (ValueError)          a value that must not reach C
    ├── ClosedError (ValueError)            the object was closed
    ├── ForkError (RuntimeError)            the object belongs to the parent process
    ├── BusyError (RuntimeError)            two threads used one object at the same time
    ├── NativeError (RuntimeError)          llama.cpp threw, or one of its assertions failed
    ├── LoadError (OSError)                 a file could not be loaded
    │   ├── ModelNotFoundError (FileNotFoundError)
    │   └── LibraryNotFoundError (FileNotFoundError)
    ├── ContextError (RuntimeError)         a context could not be created, or lacks something
    ├── TokenizeError (ValueError)          text that the vocabulary cannot tokenize
    ├── AdapterError (ValueError)           an adapter or control vector that does not fit
    ├── StateError (ValueError)             a saved state that does not fit or is damaged
    ├── GrammarError (ValueError)           a grammar that cannot be parsed or was violated
    ├── GgufError (ValueError)              invalid GGUF data, or a value that GGUF cannot store
    ├── QuantizeError (RuntimeError)        a model could not be quantized
    ├── UnsupportedError (RuntimeError)     not possible with this model or this llama.cpp
    ├── BackendUnavailableError (RuntimeError)  the requested backend or device is missing
    ├── DependencyError (ImportError)       an optional package is not installed
    └── DecodeError (RuntimeError)          decoding failed; finished micro-batches stay
        ├── InvalidBatchError (ValueError)      memory unchanged
        ├── ContextFullError                    memory unchanged: free a slot and retry
        └── AbortedError                        cancelled; finished micro-batches stay
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
    """The object was created before ``os.fork``; its threads and devices stayed in the parent."""


class BusyError(LlamaError, RuntimeError):
    """Another thread is using the object, which only one thread may use at a time."""


class NativeError(LlamaError, RuntimeError):
    """llama.cpp threw a C++ exception, or one of its assertions failed.

    The notes of the exception have the last lines of its log.
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
    """The model file does not exist."""


class LibraryNotFoundError(LoadError, FileNotFoundError):
    """The library does not exist."""


class ContextError(LlamaError, RuntimeError):
    """A context could not be created, or does not have what was requested."""


class TokenizeError(LlamaError, ValueError):
    """The vocabulary cannot tokenize the text."""

    index: int | None
    """The index of the text, if several were given at once."""

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.index), self.__dict__


class AdapterError(LlamaError, ValueError):
    """An adapter or a control vector does not fit the model, or cannot be read."""


class StateError(LlamaError, ValueError):
    """A saved state comes from another model, shape or llama.cpp, or is damaged."""


class GrammarError(LlamaError, ValueError):
    """A grammar cannot be parsed, or does not allow a token that was accepted."""


class GgufError(LlamaError, ValueError):
    """Data is not a valid GGUF, or a value cannot be stored in one."""


class QuantizeError(LlamaError, RuntimeError):
    """A model could not be quantized."""


class UnsupportedError(LlamaError, RuntimeError):
    """This model, or this llama.cpp, does not support what was requested."""


class BackendUnavailableError(LlamaError, RuntimeError):
    """The requested backend or device is not available."""


class DependencyError(LlamaError, ImportError):
    """An optional package is not installed; the message says how to install it."""


class DecodeError(LlamaError, RuntimeError):
    """Decoding failed.  Micro-batches that were finished stay in memory: see `pos_max`."""

    code: int
    """The return code of llama.cpp."""
    pos_max: Mapping[int, int | None]
    """The last position that each sequence of the batch has in memory now; None if it is empty.

    To continue, decode the tokens after it."""

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
    """The memory has no room for the batch; it is unchanged."""


class AbortedError(DecodeError):
    """The computation was cancelled.  Micro-batches that were finished stay in memory."""


# Source: the comment on llama_decode() in llama.h.  Codes below -1 are all fatal.
DECODE_ERRORS: Mapping[int, tuple[type[DecodeError], str]] = MappingProxyType(
    {
        2: (AbortedError, "decoding was cancelled"),
        1: (ContextFullError, "no room in memory for the batch: remove a sequence or raise n_ctx"),
        -1: (InvalidBatchError, "llama.cpp rejected the batch"),
    }
)


def decode_error(
    code: int,
    pos_max: Mapping[int, int | None] | None = None,
    function: str = "llama_decode",
    why: str = "",
) -> DecodeError:
    """Return the error for a return code of ``llama_decode`` other than 0.

    Args:
        code: The return code.
        pos_max: The last position that each sequence of the batch has in memory now.
        function: The function that returned the code, if another one with the same codes.
        why: The cause and the remedy, if known.
    """
    error, message = DECODE_ERRORS.get(code, (DecodeError, "llama.cpp cannot compute the batch"))
    reason = f": {why}" if why else ""
    return error(f"{message} ({function} returned {code}){reason}", code, pos_max)


# Source: the comment on llama_batch_ext_add() in llama.h.
BATCH_ERRORS: Mapping[int, str] = MappingProxyType(
    {
        -1: "does not fit: create the Context with a larger n_batch",
        -2: "does not have the width that the model reads: create the Batch with the n_embd that "
        "llama.cpp's log names",
        -3: "belongs to a sequence that the context does not have: create it with a larger "
        "n_seq_max",
    }
)


def batch_error(code: int, what: str) -> ArgumentError:
    """Return the error for an entry that ``llama_batch_ext`` refused with this code."""
    return ArgumentError(
        f"{what}, {BATCH_ERRORS.get(code, 'was refused')} (llama.cpp returned {code})"
    )
