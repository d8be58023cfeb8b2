/* The guard: what turns a C++ exception or a failed assertion of llama.cpp into a Python exception.
 *
 *   lib.f(...)              Python calls what CFFI compiled,
 *     guarded f             which calls this wrapper (the macro in front of CFFI's C renames the call):
 *       f                   the wrapper catches what llama.cpp throws and leaves it in `llamacffi_guard`;
 *   Py_END_ALLOW_THREADS    looks there and raises it.
 *
 * GGML_ASSERT does not throw: it calls ggml_abort, which calls our abort callback first, and that one
 * throws if its thread is inside a guard.  Included by C (the module) and C++ (the wrappers). */
#pragma once

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One per thread, initially zero. */
struct llamacffi_guard_state {
    int depth;            /* above 0 inside a guarded call; 0 again in Python code called from there */
    const char *function; /* where the failure was caught; static */
    char *message;        /* malloc'ed, waiting to be raised; NULL if nothing failed */
    void *locale;         /* locale_t of the thread outside of the guarded call; NULL if there is none */
};

extern __thread struct llamacffi_guard_state llamacffi_guard
    __attribute__((visibility("hidden"), tls_model("initial-exec")));

/* How many calls from Python are running; only modified with the GIL held. */
extern int llamacffi_n_running __attribute__((visibility("hidden")));

#ifdef Py_GIL_DISABLED
#define LLAMACFFI_COUNT_CALL(n) __atomic_add_fetch(&llamacffi_n_running, n, __ATOMIC_RELAXED)
#else
#define LLAMACFFI_COUNT_CALL(n) (llamacffi_n_running += (n))
#endif

#ifdef __cplusplus
}
#endif
