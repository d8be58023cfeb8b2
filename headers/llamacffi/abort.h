/* Aborting a computation. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Tells a running computation to stop.  Owned by the caller, and zero at first. */
struct llamacffi_abort_flag {
    int32_t requested;
};

/* Set or clear the flag.  May be called from any thread at any time. */
void llamacffi_abort_set(struct llamacffi_abort_flag *flag, bool requested);

/* The ggml_abort_callback to use with it; `flag` is a struct llamacffi_abort_flag. */
bool llamacffi_abort_requested(void *flag);

#ifdef __cplusplus
}
#endif
