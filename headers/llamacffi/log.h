/* The log: a ring buffer that llama.cpp writes to from any thread and Python reads. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The number of lines logged so far, over all threads. */
uint64_t llamacffi_log_count(void);

/* Likewise, and remember it as the start of the log of the calling thread's next failure. */
uint64_t llamacffi_log_checkpoint(void);

/* The last checkpoint of the calling thread; 0 before the first. */
uint64_t llamacffi_log_since(void);

/* A number that identifies the calling thread.  It is never reused, not even after the thread ends. */
int32_t llamacffi_log_thread(void);

/* Where a line came from. */
struct llamacffi_log_info {
    int32_t level;  /* enum ggml_log_level */
    int32_t thread; /* llamacffi_log_thread() of the thread that logged it */
    double time;    /* when the line began, in seconds since 1970 */
};

/* Copy line `number` (from 0), without its newline and without a terminating zero.  Returns its length
 * in bytes, even if it exceeds `size`; -1 if the ring buffer has dropped the line, or if it has not been
 * logged yet. */
int32_t llamacffi_log_line(uint64_t number, struct llamacffi_log_info *info, char *text, size_t size);

/* Drop lines below this enum ggml_log_level as they are logged.  Initially, all are kept. */
void llamacffi_log_set_level(int32_t level);
int32_t llamacffi_log_get_level(void);

/* How many lines the ring buffer holds. */
#define LLAMACFFI_LOG_CAPACITY 2048

#ifdef __cplusplus
}
#endif
