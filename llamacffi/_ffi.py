"""The only import of the compiled module, and the checks that it fits what was loaded with it."""

from __future__ import annotations

try:
    from . import _llama
    from ._llama import ffi, lib
except ImportError as error:
    raise ImportError(
        f"the compiled part of llamacffi cannot be loaded: {error}; reinstall llamacffi"
    ) from error

__all__ = ["ffi", "lib", "module_path"]

module_path: str = _llama.__file__ or ""


def check_libraries() -> None:
    """Compare the llama.cpp that `_llama` was compiled from with the libraries that were loaded.

    Raises:
        ImportError: They differ: structs could be laid out differently, and every call be wrong.
    """
    pairs = (
        ("commit", lib.llamacffi_built_commit(), lib.ggml_commit()),
        ("llama version", lib.llamacffi_built_llama_version(), lib.llama_version()),
        ("ggml version", lib.llamacffi_built_ggml_version(), lib.ggml_version()),
    )
    different = [
        f"{what} {ffi.string(loaded).decode()} instead of {ffi.string(built).decode()}"
        for what, built, loaded in pairs
        if ffi.string(built) != ffi.string(loaded)
    ]
    if different:
        raise ImportError(
            "llamacffi was compiled for another llama.cpp than the one that was loaded: "
            f"{', '.join(different)}; another build of libllama or libggml is in the way "
            "(LD_LIBRARY_PATH, LD_PRELOAD, or a half-finished upgrade): remove it, or reinstall "
            "llamacffi"
        )


check_libraries()
lib.llamacffi_install()  # in C only: log lines to the ring, failed assertions to the guard
