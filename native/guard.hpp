// The wrapper around one function of llama.cpp; guard.cpp, which is generated, has one line for each.
#pragma once

#include "guard.h"

#include <exception>
#include <locale.h>
#if defined(__APPLE__)
#include <xlocale.h>
#endif
#if __has_include(<cxxabi.h>)
#include <cxxabi.h>
#endif

namespace llamacffi {

// Finds a function of a library that was loaded after us; throws if there is none.
void *find_late(const char *function);

// Leaves a failure for the Python frame that made the call.
void set_failure(const char *function, const char *message) noexcept;

// The "C" locale, which llama.cpp takes for granted: it writes metadata with the decimal point of the
// process, and a program may have set one that is a comma.
inline locale_t plain_locale() {
    static const locale_t plain = newlocale(LC_ALL_MASK, "C", nullptr);
    return plain;
}

// Whether the calling thread has a stack that is large enough to compute; if not, a failure is left.
bool has_stack(const char *function) noexcept;

constexpr bool begins(const char *name, const char *prefix) {
    return !*prefix || (*name == *prefix && begins(name + 1, prefix + 1));
}

// Whether a function builds or runs graphs, or reads files, which takes more stack than the smallest
// that a thread can have.  The others must work everywhere: they free, too.
constexpr bool needs_stack(const char *name) {
    constexpr const char *prefixes[] = {
        "llama_decode", "llama_encode", "llama_process", "llama_init_from_model", "llama_model_load_",
        "llama_model_init_from_", "llama_model_quantize", "llama_model_save_", "llama_opt_",
        "llama_adapter_lora_init", "ggml_graph_compute", "ggml_backend_graph_compute",
        "ggml_backend_sched_graph_compute", "mtmd_init", "mtmd_encode", "mtmd_helper_"};
    for (const char *prefix : prefixes) {
        if (begins(name, prefix)) {
            return true;
        }
    }
    return false;
}

// As long as it lives, the thread is inside a guard, and in the "C" locale.
struct Enter {
    Enter() : outside(uselocale(plain_locale())), further_out(llamacffi_guard.locale) {
        llamacffi_guard.locale = outside;
        ++llamacffi_guard.depth;
    }
    ~Enter() {
        --llamacffi_guard.depth;
        llamacffi_guard.locale = further_out;
        uselocale(outside);
    }
    Enter(const Enter &) = delete;
    Enter &operator=(const Enter &) = delete;

    const locale_t outside;
    void *const further_out;
};

// Runs `body` under a guard: what it throws is left for the Python frame that made the call, in the
// name of `function`, and the result means nothing.
template <typename Body> auto guarded(const char *function, const Body &body) -> decltype(body()) {
    if (llamacffi_guard.depth > 0) {
        return body(); // C calls back into C: the guard further out catches
    }
    try {
        Enter enter;
        return body();
#if __has_include(<cxxabi.h>)
    } catch (abi::__forced_unwind &) {
        throw; // a thread is being ended, which nobody may stop
#endif
    } catch (const std::exception &error) {
        set_failure(function, error.what());
    } catch (...) {
        set_failure(function, "an exception of unknown type");
    }
    return decltype(body())();
}

template <typename Function, typename Signature> struct Guarded;

template <typename Function, typename Result, typename... Arguments>
struct Guarded<Function, Result(Arguments...)> {
    using Pointer = Result (*)(Arguments...);

    static Result call(Arguments... arguments) {
        if constexpr (needs_stack(Function::name)) {
            if (llamacffi_guard.depth == 0 && !has_stack(Function::name)) {
                return Result();
            }
        }
        return guarded(Function::name, [&] { return target()(arguments...); });
    }

    // The reference to the function is weak: it is null if the function is in a backend, which is
    // loaded at run time, or in no library at all.
    static Pointer target() {
        if (Pointer linked = Function::linked()) {
            return linked;
        }
        static Pointer late = nullptr;
        if (!late) {
            late = reinterpret_cast<Pointer>(find_late(Function::name));
        }
        return late;
    }
};

} // namespace llamacffi

// Defines `llamacffi_guarded_f`, a constant that points to the wrapper of f.
#define LLAMACFFI_GUARD(f)                                                                         \
    extern "C" decltype(f) f __attribute__((weak));                                                \
    namespace {                                                                                    \
    struct guard_of_##f {                                                                          \
        static constexpr const char *name = #f;                                                    \
        static decltype(&::f) linked() { return &::f; }                                            \
    };                                                                                             \
    }                                                                                              \
    extern "C" {                                                                                   \
    extern decltype(&::f) const llamacffi_guarded_##f __attribute__((visibility("hidden")));       \
    decltype(&::f) const llamacffi_guarded_##f =                                                   \
        llamacffi::Guarded<guard_of_##f, decltype(::f)>::call;                                     \
    }
