// The guard's installation, and the calls that are running under it.
#include "llamacffi/calls.h"

#include "guard.h"
#include "native.hpp"

#include <cstdio>
#include <cstdlib>

#include <unistd.h>

void llamacffi_install(void) {
    llamacffi::install_log_callbacks();
    llamacffi::install_abort_callback();
}

int32_t llamacffi_n_calls(void) { return llamacffi_n_running - 1; }

void llamacffi_forget_calls(void) { llamacffi_n_running = 1; } // this call

void llamacffi_guard_exit(void) {
#if defined(__GLIBC__)
    // Static objects are destroyed after this, and running calls would find them gone.
    on_exit(
        [](int status, void *) {
            if (llamacffi_n_running > 0) {
                std::fflush(stdout);
                _exit(status);
            }
        },
        nullptr);
#endif
}
