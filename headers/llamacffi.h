/* llamacffi's own C API: what the package needs and llama.cpp's headers do not have. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The llama.cpp that this module was compiled from, to be compared with the libraries that are
 * loaded: ggml_commit(), llama_version() and ggml_version(). */
const char *llamacffi_built_commit(void);
const char *llamacffi_built_llama_version(void);
const char *llamacffi_built_ggml_version(void);

/* Route the log of llama, ggml and mtmd into the ring below, and failed assertions into the guard.
 * For the whole process; called once, at import. */
void llamacffi_install(void);

/* The number of lines logged so far, over all threads. */
uint64_t llamacffi_log_count(void);

/* Copy line `number` (from 0), without its newline and without a terminating zero.
 * Returns its length in bytes, even if more than `size`; -1 if the ring has forgotten it, or if
 * there is no such line yet. */
int32_t llamacffi_log_line(uint64_t number, int32_t *level, char *text, size_t size);

/* How many lines the ring remembers. */
#define LLAMACFFI_LOG_CAPACITY 2048

/* Tells a running computation to stop.  Memory of the caller, zero at first. */
struct llamacffi_abort_flag {
    int32_t requested;
};

/* Raise or lower the flag; any thread may, at any time. */
void llamacffi_abort_set(struct llamacffi_abort_flag *flag, bool requested);

/* The ggml_abort_callback to go with it; `flag` is a struct llamacffi_abort_flag. */
bool llamacffi_abort_requested(void *flag);

/* Open the file behind a descriptor a second time, at `offset` from its beginning.  The two share the
 * position in it; closing one leaves the other open.  Returns NULL and sets errno on failure. */
FILE *llamacffi_file_open(int32_t descriptor, int64_t offset, bool writable);

/* Close what llamacffi_file_open() opened.  Returns 0, or -1 and sets errno. */
int32_t llamacffi_file_close(FILE *file);

#ifdef __cplusplus
}
#endif
