/* How many threads the system allows. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Start `n` threads at once, and end them.  Returns how many the system was able to start. */
int32_t llamacffi_threads_fit(int32_t n);

#ifdef __cplusplus
}
#endif
