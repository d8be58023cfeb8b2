/* The libraries of llama.cpp in this process. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A loaded library of llama.cpp.  Unknown members are NULL. */
struct llamacffi_library_info {
    const char *name;          /* such as "llama" */
    const char *path;          /* of its file */
    const char *commit;        /* from which llamacffi built it; NULL if someone else built it */
    const char *ggml_commit;   /* ggml_commit() of the library, or of the ggml that it uses */
    const char *ggml_version;  /* ggml_version(), likewise */
    const char *llama_version; /* llama_version() */
};

/* Describe library `i` of those that this module uses, dependencies first.  Returns false past the
 * last one. */
bool llamacffi_library(int32_t i, struct llamacffi_library_info *info);

/* Load any other library and describe it, all but the name.  Returns a handle that keeps it loaded, or
 * NULL if it cannot be loaded; `error` then holds the reason. */
void *llamacffi_library_open(const char *path, struct llamacffi_library_info *info, char *error,
                             size_t size);
void llamacffi_library_close(void *handle);

#ifdef __cplusplus
}
#endif
