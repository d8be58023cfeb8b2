// Quantization that reports progress and can be stopped, by means of what llama.cpp logs meanwhile.
// Without this file, llamacffi cannot quantize with progress.
#include "ggml.h"
#include "llama-ext.h" // the type of a file's tensors: exported, but not in llama.h yet
#include "llama.h"
#include "llamacffi/quantize.h"
#include "native.hpp"

#include <stdexcept>

namespace {

struct Watch {
    llamacffi_message_callback on_message;
    void *user_data;
};

thread_local const Watch *watch = nullptr;

// Sets `watch` while it exists.
struct Watching {
    explicit Watching(const Watch *one) : before(watch) { watch = one; }
    ~Watching() { watch = before; }
    const Watch *before;
};

} // namespace

namespace llamacffi {

void watch_log(int level, const char *text) {
    // upstream: src/llama-mmap.cpp "warning: munmap failed": logged by destructors, which must not throw.
    if (!watch || level != GGML_LOG_LEVEL_INFO) {
        return;
    }
    const Watch *told = watch;
    watch = nullptr; // ignore what the callback logs, and what is logged during unwinding
    if (!told->on_message(text, told->user_data)) {
        throw std::runtime_error("stopped");
    }
    watch = told;
}

} // namespace llamacffi

uint32_t llamacffi_quantize(const char *source, const char *target, const llama_model_quantize_params *params,
                            llamacffi_message_callback on_message, void *user_data) {
    const Watch told = {on_message, user_data};
    Watching watching(&told);
    return llama_model_quantize(source, target, params);
}

int32_t llamacffi_ftype_type(int32_t ftype) {
    return llama_ftype_get_default_type(static_cast<llama_ftype>(ftype));
}
