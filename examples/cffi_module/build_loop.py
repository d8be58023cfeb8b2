"""The module ``greedy_loop._loop``: a C function that takes a llamacffi context."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

import llamacffi

builder = FFI()
builder.include(llamacffi.ffi_builder())
builder.cdef(
    """
    static char *const LLAMACFFI_LLAMA_CPP_COMMIT;

    int32_t greedy_loop(struct llama_context *context, llama_token first, llama_token *out,
                        int32_t size);
    """
)
builder.set_source(
    "greedy_loop._loop",
    Path("src/loop.c").read_text(encoding="utf-8"),
    include_dirs=[str(llamacffi.include_dir())],
    library_dirs=[str(llamacffi.library_dir())],
    libraries=["llama"],
)
