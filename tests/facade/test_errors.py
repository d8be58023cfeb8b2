"""Each error is a LlamaError and the builtin that fits."""

from __future__ import annotations

import copy
import pickle

import pytest

from llamacffi import ContextFullError, LoadError, NativeError, errors

BUILTINS = {
    "ArgumentError": ValueError,
    "ClosedError": ValueError,
    "ForkError": RuntimeError,
    "BusyError": RuntimeError,
    "NativeError": RuntimeError,
    "LoadError": OSError,
    "ModelNotFoundError": FileNotFoundError,
    "LibraryNotFoundError": FileNotFoundError,
    "ContextError": RuntimeError,
    "TokenizeError": ValueError,
    "AdapterError": ValueError,
    "StateError": ValueError,
    "GrammarError": ValueError,
    "GgufError": ValueError,
    "QuantizeError": RuntimeError,
    "UnsupportedError": RuntimeError,
    "BackendUnavailableError": RuntimeError,
    "DependencyError": ImportError,
    "DecodeError": RuntimeError,
    "InvalidBatchError": ValueError,
    "ContextFullError": RuntimeError,
    "AbortedError": RuntimeError,
}


def error_classes() -> dict[str, type]:
    return {
        name: one
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, errors.LlamaError)
    }


def test_every_error_has_its_builtin():
    assert error_classes().keys() == {"LlamaError", *BUILTINS}
    for name, builtin in BUILTINS.items():
        assert issubclass(error_classes()[name], builtin), name


def test_every_error_is_in_the_tree_of_the_docstring():
    for name, error in error_classes().items():
        line = next(line for line in errors.__doc__.splitlines() if f" {name}" in f" {line} ")
        for builtin in (ValueError, OSError, RuntimeError, FileNotFoundError):
            if f"({builtin.__name__})" in line:
                assert issubclass(error, builtin), line


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (2, errors.AbortedError),
        (1, errors.ContextFullError),
        (-1, errors.InvalidBatchError),
        (-2, errors.DecodeError),
        (-3, errors.DecodeError),
        (77, errors.DecodeError),
    ],
)
def test_return_codes_of_llama_decode(code, error):
    made = errors.decode_error(code)
    assert type(made) is error
    assert made.code == code
    assert f"returned {code}" in str(made)


def test_every_code_of_the_table_is_in_the_header(root, llama_cpp):
    """The comment above llama_decode lists them as ``//   2 - aborted``, and ``// < -1 - ...``."""
    header = (llama_cpp / "include" / "llama.h").read_text()
    comment = header[: header.index("llama_decode(\n")].rpartition(
        "LLAMA_API int32_t llama_encode"
    )[2]
    for code in errors.DECODE_ERRORS:
        assert f"{code} - " in comment, code


def test_native_error_knows_its_function():
    from llamacffi import lib

    with pytest.raises(errors.NativeError, match="ggml_backend_reg_get") as caught:
        lib.ggml_backend_reg_get(10**6)
    assert caught.value.function == "ggml_backend_reg_get"


@pytest.mark.parametrize(
    "error", [NativeError("f: failed", "f"), ContextFullError("full", 1), LoadError("x")]
)
def test_errors_travel_between_processes(error):
    for copied in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(copied) is type(error)
        assert str(copied) == str(error)
        assert vars(copied) == vars(error)
