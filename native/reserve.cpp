// Calls that must not overlap while a context reserves the memory for its graphs.
//
// upstream: src/llama-context.cpp "model.loras", sched_need_reserve: meanwhile it reads the model's list of adapters
// without a lock: when it is created, and at the first computation after its adapters or samplers have changed.
//
// The lock is in C++, so that it is only held during a single call, which cannot be interrupted, and finalizers can
// take it without running Python.
#include "reserve.hpp"

#include "has.h" // generated
#include "llama.h"
#include "llamacffi/reserve.h"

#include <stdexcept>

namespace llamacffi {

namespace {
// Never destroyed: threads may outlive static objects.
std::recursive_mutex *mutex = new std::recursive_mutex;
} // namespace

std::recursive_mutex &reserve_mutex() { return *mutex; }

} // namespace llamacffi

using llamacffi::ReserveLock;

llama_context *llamacffi_context_new(llama_model *model, const llama_context_params *params) {
    ReserveLock lock;
    return llama_init_from_model(model, *params);
}

llama_adapter_lora *llamacffi_adapter_load(llama_model *model, FILE *file) {
#if LLAMACFFI_HAS_llama_adapter_lora_init_from_file_ptr
    ReserveLock lock;
    return llama_adapter_lora_init_from_file_ptr(model, file);
#else
    (void)model, (void)file;
    throw std::runtime_error("this llama.cpp cannot read an adapter from an open file");
#endif
}

void llamacffi_adapter_free(llama_adapter_lora *adapter) {
    ReserveLock lock;
    llama_adapter_lora_free(adapter);
}

void llamacffi_reserve_lock(void) { llamacffi::reserve_mutex().lock(); }

void llamacffi_reserve_unlock(void) { llamacffi::reserve_mutex().unlock(); }

// A new lock: in the child, the thread does not have the identity that locked the old one.
void llamacffi_reserve_new_lock(void) { llamacffi::mutex = new std::recursive_mutex; }
