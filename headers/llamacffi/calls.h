/* The guard's installation, and the calls that are running under it. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Route the log of llama, ggml and mtmd into the ring buffer of log.h, and failed assertions into the
 * guard.  Affects the whole process; called once, at import. */
void llamacffi_install(void);

/* The number of calls from Python that are running, in all threads, not counting this one. */
int32_t llamacffi_n_calls(void);

/* Reset that count: the other threads do not exist in a forked process. */
void llamacffi_forget_calls(void);

/* Arrange for a process that exits while calls are still running to end at once, with its exit status,
 * before static objects that the calls use are destroyed.  Does nothing where the C library cannot tell
 * the exit status. */
void llamacffi_guard_exit(void);

#ifdef __cplusplus
}
#endif
