// The wrapper around one C function.  The generated guards.cpp has a line for each function.
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

// Finds a function in a library that was loaded after this module; throws if no library has it.
void *find_late(const char *function);

// Stores a failure, which the Python frame that made the call raises.
void set_failure(const char *function, const char *message) noexcept;

// The "C" locale.
// upstream: src/llama-impl.cpp gguf_data_to_str: writes metadata with the decimal point of the process, and a program
// may have set a locale in which that is a comma.
inline locale_t plain_locale() {
    static const locale_t plain = newlocale(LC_ALL_MASK, "C", nullptr);
    return plain;
}

// Whether the stack of the calling thread is large enough to compute; if not, stores a failure.
bool has_stack(const char *function) noexcept;

constexpr bool is_same(const char *one, const char *other) {
    return *one == *other && (!*one || is_same(one + 1, other + 1));
}

constexpr bool begins(const char *name, const char *prefix) {
    return !*prefix || (*name == *prefix && begins(name + 1, prefix + 1));
}

// The name of a function in errors: our own functions that stand in for one of llama.h bear its name.
constexpr const char *name_in_errors(const char *name) {
    constexpr const char *names[][2] = {
        {"llamacffi_context_new", "llama_init_from_model"},
        {"llamacffi_adapter_load", "llama_adapter_lora_init_from_file_ptr"},
        {"llamacffi_adapter_free", "llama_adapter_lora_free"},
        {"llamacffi_quantize", "llama_model_quantize"}};
    for (const auto &one : names) {
        if (is_same(name, one[0])) {
            return one[1];
        }
    }
    return name;
}

// Whether a function builds or runs graphs, or reads files, which takes more stack than the smallest that
// a thread can have.  The other functions must work on any stack, since they include those that free.
constexpr bool needs_stack(const char *name) {
    constexpr const char *prefixes[] = {
        "llama_decode", "llama_encode", "llama_process", "llama_init_from_model", "llama_model_load_",
        "llama_model_init_from_", "llama_model_quantize", "llama_model_save_", "llama_opt_",
        "llama_adapter_lora_init", "ggml_graph_compute", "ggml_backend_graph_compute",
        "ggml_backend_sched_graph_compute", "mtmd_init", "mtmd_encode", "mtmd_helper_",
        "llamacffi_graph_describe", "llamacffi_memory_update", "llamacffi_reserve"};
    for (const char *prefix : prefixes) {
        if (begins(name, prefix)) {
            return true;
        }
    }
    return false;
}

// While it exists, the thread is inside a guard and uses the "C" locale.
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

// Runs `body` under a guard.  If it throws, stores the failure under the name of `function` for the Python
// frame that made the call, and returns a result to be ignored.
template <typename Body> auto guarded(const char *function, const Body &body) -> decltype(body()) {
    if (llamacffi_guard.depth > 0) {
        return body(); // the outer guard catches
    }
    try {
        Enter enter;
        return body();
#if __has_include(<cxxabi.h>)
    } catch (abi::__forced_unwind &) {
        throw; // the thread is being cancelled, which must not be stopped
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

    // References to functions of llama.cpp are weak: null if the function is in a backend, which is loaded
    // at run time, or in no library at all.
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

// Defines `llamacffi_guarded_f`, a constant that points to the wrapper of f: a function of llama.cpp,
#define LLAMACFFI_GUARD(f)                                                                         \
    extern "C" decltype(f) f __attribute__((weak));                                                \
    LLAMACFFI_GUARD_OWN(f)

// or a function of this module.
#define LLAMACFFI_GUARD_OWN(f)                                                                     \
    namespace {                                                                                    \
    struct guard_of_##f {                                                                          \
        static constexpr const char *name = llamacffi::name_in_errors(#f);                         \
        static decltype(&::f) linked() { return &::f; }                                            \
    };                                                                                             \
    }                                                                                              \
    extern "C" {                                                                                   \
    extern decltype(&::f) const llamacffi_guarded_##f __attribute__((visibility("hidden")));       \
    decltype(&::f) const llamacffi_guarded_##f =                                                   \
        llamacffi::Guarded<guard_of_##f, decltype(::f)>::call;                                     \
    }
