// The small functions of llamacffi.h.  The other LLAMACFFI_BUILT_* macros come from CMakeLists.txt.
#include "llamacffi.h"
#include "guard.h"
#include "has.h"    // generated: LLAMACFFI_MISSING
#include "layout.h" // generated: LLAMACFFI_BUILT_LAYOUT
#include "native.hpp"

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include <unistd.h>

static_assert(sizeof(std::atomic<int32_t>) == sizeof(int32_t), "the flag is a plain int32 to Python");

namespace {

std::atomic<int32_t> &atomic_of(llamacffi_abort_flag *flag) {
    return *reinterpret_cast<std::atomic<int32_t> *>(&flag->requested);
}

} // namespace

const char *llamacffi_built_commit(void) { return LLAMACFFI_BUILT_COMMIT; }
const char *llamacffi_built_llama_version(void) { return LLAMACFFI_BUILT_LLAMA_VERSION; }
const char *llamacffi_built_ggml_version(void) { return LLAMACFFI_BUILT_GGML_VERSION; }
const char *llamacffi_built_version(void) { return LLAMACFFI_BUILT_VERSION; }
const char *llamacffi_built_layout(void) { return LLAMACFFI_BUILT_LAYOUT; }

bool llamacffi_missing(int32_t i, llamacffi_missing_name *missing) {
    static const llamacffi_missing_name all[] = {LLAMACFFI_MISSING};
    const int32_t n = sizeof all / sizeof *all - 1; // the last ends it
    if (i < 0 || i >= n) {
        return false;
    }
    *missing = all[i];
    return true;
}

void llamacffi_install(void) {
    llamacffi::install_log_callbacks();
    llamacffi::install_abort_callback();
}

int32_t llamacffi_n_calls(void) { return llamacffi_n_running - 1; }

void llamacffi_forget_calls(void) { llamacffi_n_running = 1; } // this one

void llamacffi_guard_exit(void) {
#if defined(__GLIBC__)
    // The destructors of static objects come after this, and a call that runs would find them gone.
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

void llamacffi_abort_set(llamacffi_abort_flag *flag, bool requested) {
    atomic_of(flag).store(requested, std::memory_order_relaxed);
}

bool llamacffi_abort_requested(void *flag) {
    return atomic_of(static_cast<llamacffi_abort_flag *>(flag)).load(std::memory_order_relaxed) != 0;
}

FILE *llamacffi_file_open(int32_t descriptor, int64_t offset, bool writable) {
    const int copy = dup(descriptor);
    if (copy < 0) {
        return nullptr;
    }
    FILE *file = fdopen(copy, writable ? "r+b" : "rb");
    if (!file) {
        const int error = errno;
        close(copy);
        errno = error;
        return nullptr;
    }
    if (fseeko(file, offset, SEEK_SET) != 0) {
        const int error = errno;
        std::fclose(file);
        errno = error;
        return nullptr;
    }
    return file;
}

int32_t llamacffi_file_close(FILE *file) { return !file || std::fclose(file) == 0 ? 0 : -1; }

int32_t llamacffi_threads_fit(int32_t n) {
    std::atomic<bool> over{false};
    std::vector<std::thread> threads;
    try {
        threads.reserve(n);
        for (int32_t i = 0; i < n; ++i) {
            threads.emplace_back([&over] {
                const std::unique_ptr<char[]> own(new (std::nothrow) char[1 << 16]);
                while (!over) {
                    std::this_thread::yield();
                }
            });
        }
    } catch (const std::exception &) { // as many as there are
    }
    over = true;
    for (std::thread &thread : threads) {
        thread.join();
    }
    return static_cast<int32_t>(threads.size());
}
