// Work that llama.cpp defers to the next decode.
// upstream: src/llama-context.cpp sched_reserve, memory_update: called by decode; llama.h has no functions for
// them.
// Without this file, llamacffi cannot apply updates that a memory defers to the next decode.
#include "llama-context.h" // the functions are exported, but only as members
#include "llamacffi/abort.h"
#include "llamacffi/pending.h"
#include "reserve.hpp"

void llamacffi_reserve(llama_context *context) {
    llamacffi::ReserveLock lock;
    context->sched_reserve();
}

namespace {

// Keeps the computations of a context from being aborted while it exists.
struct Unstoppable {
    Unstoppable(llama_context *one, llamacffi_abort_flag *its) : context(one), flag(its) {
        llama_set_abort_callback(context, nullptr, nullptr);
    }
    ~Unstoppable() { llama_set_abort_callback(context, llamacffi_abort_requested, flag); }
    llama_context *context;
    llamacffi_abort_flag *flag;
};

} // namespace

void llamacffi_memory_update(llama_context *context, llamacffi_abort_flag *flag) {
    {
        llamacffi::ReserveLock lock;
        context->sched_reserve(); // as decode does: the update needs no more than this
    }
    Unstoppable unstoppable(context, flag);
    context->memory_update(false);
}
