/* Files of Python as C's. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Open the file behind a descriptor a second time, at `offset` from its beginning.  Both share the file
 * position; closing one leaves the other open.  Returns NULL and sets errno on failure. */
FILE *llamacffi_file_open(int32_t descriptor, int64_t offset, bool writable);

/* Close what llamacffi_file_open() returned.  Returns 0, or -1 and sets errno. */
int32_t llamacffi_file_close(FILE *file);

#ifdef __cplusplus
}
#endif
