/* What this module was built from, and what that llama.cpp lacks. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The llama.cpp that the module was compiled from. */
const char *llamacffi_built_commit(void);
const char *llamacffi_built_llama_version(void);
const char *llamacffi_built_ggml_version(void);

/* The version of llamacffi, and two hashes: of llama.cpp's API as recorded in lib/api.lock, and of the
 * declarations from which the Python code in _generated was made. */
const char *llamacffi_built_version(void);
const char *llamacffi_built_layout(void);
const char *llamacffi_built_cdef(void);

/* A name of the pinned llama.cpp that is missing from this one, or differs in it. */
struct llamacffi_missing_name {
    const char *name;
    const char *reason;
};

/* Describe the missing name at index `i`.  Returns false past the last one. */
bool llamacffi_missing(int32_t i, struct llamacffi_missing_name *missing);

#ifdef __cplusplus
}
#endif
