// The state behind the guard, the abort callback that feeds it, and the search for late functions.
#include "guard.hpp"

#include "ggml.h"
#include "has.h" // generated
#include "native.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include <dlfcn.h>
#if defined(__APPLE__)
#include <mach-o/dyld.h>
#else
#include <link.h>
#endif

__thread struct llamacffi_guard_state llamacffi_guard;
int llamacffi_n_running = 0;

namespace {

// Thrown through llama.cpp by a failed assertion.
struct AssertionFailed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A ggml_abort_callback_t.
// upstream: ggml/src/ggml.c g_abort_callback, abort: calls abort() if the callback returns, and so this one throws.
void on_abort(const char *message) {
    if (llamacffi_guard.depth > 0) {
        throw AssertionFailed(message);
    }
    // In a thread of ggml's own or a call that bypassed the guard, an exception would not be caught.
    std::fprintf(stderr, "%s\n", message);
    std::fflush(stderr);
}

// A std::terminate_handler.
// upstream: ggml/src/ggml.cpp ggml_uncaught_exception: ggml's attaches a debugger to this process; this replaces it.
[[noreturn]] void on_terminate() {
    const char *reason = "no exception is active";
    try {
        if (const std::exception_ptr current = std::current_exception()) {
            reason = "an exception of unknown type";
            std::rethrow_exception(current);
        }
    } catch (const std::exception &error) {
        std::fprintf(stderr, "C++ code cannot go on: %s\n", error.what());
        std::abort();
    } catch (...) {
    }
    std::fprintf(stderr, "C++ code cannot go on: %s\n", reason);
    std::abort();
}

// Whether a function belongs to the library of ggml that this module uses.
bool is_of_ggml(const void *function) {
    Dl_info one, other;
    return function && dladdr(function, &one) && dladdr(reinterpret_cast<const void *>(&ggml_abort), &other) &&
           one.dli_fbase == other.dli_fbase;
}

// Finds a function in the library at `path`; null if it is not one of ggml's or lacks the function.
void *find_in(const std::string &path, const char *function) {
    const std::string file = path.substr(path.rfind('/') + 1);
    if (file.compare(0, 7, "libggml") != 0) {
        return nullptr;
    }
    void *library = dlopen(path.c_str(), RTLD_NOLOAD | RTLD_LAZY);
    if (!library) {
        return nullptr;
    }
    void *found = dlsym(library, function);
    if (!found) {
        dlclose(library); // otherwise keep it open: the address must stay valid when the backend is unloaded
    }
    return found;
}

#if defined(__APPLE__)
std::vector<std::string> loaded_libraries() {
    std::vector<std::string> paths;
    for (uint32_t i = 0; i < _dyld_image_count(); ++i) {
        paths.emplace_back(_dyld_get_image_name(i));
    }
    return paths;
}
#else
// Only collects the names: the loader holds a lock during the callback, which dlopen() would take again.
std::vector<std::string> loaded_libraries() {
    std::vector<std::string> paths;
    dl_iterate_phdr(
        [](dl_phdr_info *info, size_t, void *data) {
            static_cast<std::vector<std::string> *>(data)->emplace_back(info->dlpi_name);
            return 0;
        },
        &paths);
    return paths;
}
#endif

} // namespace

namespace llamacffi {

void *find_late(const char *function) {
    for (const std::string &path : loaded_libraries()) {
        if (void *found = find_in(path, function)) {
            return found;
        }
    }
    throw std::runtime_error("no loaded library has this function; if it belongs to a backend, load "
                             "that first: llamacffi.backend.load()");
}

void set_failure(const char *function, const char *message) noexcept {
    std::free(llamacffi_guard.message);
    llamacffi_guard.function = function;
    llamacffi_guard.message = strdup(message);
    if (!llamacffi_guard.message) {
        std::abort(); // not even memory for the message: nothing can be reported
    }
}

void install_abort_callback() {
#if LLAMACFFI_HAS_ggml_set_abort_callback // in an older ggml, a failed assertion always ends the process
    ggml_set_abort_callback(on_abort);
#else
    (void)on_abort;
#endif
    // Keep a handler that someone else has set, and ggml's if the user asks for backtraces.
    if (is_of_ggml(reinterpret_cast<const void *>(std::get_terminate())) && !std::getenv("LLAMACFFI_BACKTRACE")) {
        std::set_terminate(on_terminate);
    }
}

} // namespace llamacffi
